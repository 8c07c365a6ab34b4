"""What moves the weights: AdamW for everything, or Muon for the convolutions inside the network.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a weight
matrix by the nearest matrix with equal singular values, so that every direction of a layer learns
at one pace. A convolution's weight [out,in,h,w] is taken as the matrix [out, h·w·in]. The first and
the last layers, biases and the k head have no such matrix and stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blsgan.training.config import OptimiserConfig

_OUTER = ("stem.", "share_head.", "k_head.")


class Optimisers:
    """One or two optimisers behind one ``step``.

    Args:
        network: whose parameters are moved.
        config: method, learning rates and so on.
    """

    def __init__(self, network: nn.Module, config: OptimiserConfig) -> None:
        inner = [
            parameter for name, parameter in network.named_parameters()
            if config.method == "muon" and parameter.ndim == 4 and not name.startswith(_OUTER)
        ]
        chosen = {id(parameter) for parameter in inner}
        outer = [p for p in network.parameters() if id(p) not in chosen]
        self._inner = [(p, nn.Parameter(_matrix(p.detach()))) for p in inner]
        self._all: list[tuple[torch.optim.Optimizer, float]] = [(
            torch.optim.AdamW(
                outer, lr=config.learning_rate, betas=config.betas,
                weight_decay=config.weight_decay,
            ),
            config.learning_rate,
        )]
        if self._inner:
            self._all.append((
                torch.optim.Muon(
                    [matrix for _, matrix in self._inner], lr=config.muon_learning_rate,
                    weight_decay=config.weight_decay, momentum=0.95, nesterov=True,
                    adjust_lr_fn="match_rms_adamw",
                ),
                config.muon_learning_rate,
            ))

    def step(self, share: float) -> None:
        """Moves the weights by their gradients, at ``share`` of the highest learning rates."""
        for weight, matrix in self._inner:
            matrix.grad = None if weight.grad is None else _matrix(weight.grad)
        for optimiser, highest in self._all:
            for group in optimiser.param_groups:
                group["lr"] = highest * share
            optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """``METHOD.PARAMETER.NAME`` -> tensor, for a checkpoint."""
        return {
            f"{number}.{index}.{key}": value.cpu()
            for number, (optimiser, _) in enumerate(self._all)
            for index, state in optimiser.state_dict()["state"].items()
            for key, value in state.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state` gave."""
        states: list[dict[int, dict[str, Any]]] = [{} for _ in self._all]
        for name, value in tensors.items():
            number, index, key = name.split(".", 2)
            states[int(number)].setdefault(int(index), {})[key] = value
        for (optimiser, _), state in zip(self._all, states, strict=True):
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _matrix(weight: Tensor) -> Tensor:
    """[out,in,h,w] -> [out, h·w·in], a view of a weight whose memory is channels-last."""
    return weight.permute(0, 2, 3, 1).flatten(1)
