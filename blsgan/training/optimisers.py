"""What moves the weights: AdamW for everything, or Muon for the convolutions inside the network.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a weight
matrix by the nearest matrix with equal singular values, so that every direction of a layer learns
at one pace. A convolution's weight [out,in,h,w] is taken as the matrix [out, h·w·in]. The first and
the last layers, biases and the k head have no such matrix and stay with AdamW.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from blsgan.training.config import OptimiserConfig

_OUTER = ("stem", "share_head", "k_head", "reconstructor")
_RECONSTRUCTOR = "reconstructor."
_BACKBONE = "network."  # of a network by MONAI, or the U-Net
_POLYNOMIAL, _ITERATIONS = (3.4445, -4.775, 2.0315), 5  # a x + b x^3 + c x^5
_HIGHEST = "highest"  # key of a parameter group: its learning rate at a share of 1


class Course(Protocol):
    """The keys of a configuration's optimiser that :func:`learning_rate_share` follows."""

    @property
    def warm_up_steps(self) -> int: ...

    @property
    def final_share(self) -> float: ...


def learning_rate_share(step: int, steps: int, course: Course) -> float:
    """Learning rate as a share of the highest: linear warm-up, cosine decay to ``final_share``.

    Args:
        step: of a stage, from 0.
        steps: the stage's length.
        course: ``warm_up_steps`` and ``final_share``.
    """
    warm_up = min(1.0, (step + 1) / course.warm_up_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return warm_up * (cosine * (1 - course.final_share) + course.final_share)


def update_average(
    average: nn.Module, parameters: Sequence[Tensor], decay: float, step: int
) -> None:
    """Moves an average's weights towards ``parameters``, in the same order, by 1 - ``decay``.

    It moves quickly at first, so that early validations mean something: in step s, from 0, the
    decay is at most (1 + s) / (10 + s).
    """
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(parameters), 1 - decay)


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` with ``match_rms_adamw`` (Liu et al., arXiv 2502.16982), the matrices of
    one shape together.

    That one iterates in bfloat16 on every device; without instructions for it this took as long as
    all the rest of a training step in float32.

    Args:
        groups: parameter groups of matrices, each with its ``lr``.
        weight_decay: decoupled, as AdamW's.
        bfloat16: see :func:`orthogonalised`.
        momentum: Nesterov's.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        weight_decay: float,
        *,
        bfloat16: bool = False,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(groups, {"weight_decay": weight_decay, "momentum": momentum})
        self._bfloat16 = bfloat16

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves the matrices by their gradients."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                average = state["momentum_buffer"]
                average.lerp_(matrix.grad, 1 - group["momentum"])
                alike[matrix.shape].append((matrix, matrix.grad.lerp(average, group["momentum"])))
            for shape, pairs in alike.items():
                matrices = [matrix for matrix, _ in pairs]
                moves = orthogonalised(
                    torch.stack([move for _, move in pairs]), bfloat16=self._bfloat16
                )
                # Entries of the size that AdamW's have.
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(moves.unbind()), alpha=-rate)


def orthogonalised(matrices: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1 (0.7 to 1.2).

    Five Newton-Schulz iterations with the quintic polynomial of Jordan et al. Each makes a small
    singular value 3.4 times as large at most, so those below 1/500 of the matrix's norm stay
    smaller.

    Args:
        matrices: float32 [B,m,n].
        bfloat16: whether to iterate in bfloat16; nothing depends on the last digits.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    size = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = matrices / size
    if bfloat16:
        x = x.bfloat16()
    if tall:
        x = x.mT
    a, b, c = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    if tall:
        x = x.mT
    return x.to(matrices.dtype)


class Optimisers:
    """One or two optimisers behind one ``step``.

    Args:
        network: whose parameters are moved.
        config: method, learning rates and so on.
        bfloat16: whether Muon iterates in bfloat16.
    """

    def __init__(
        self, network: nn.Module, config: OptimiserConfig, *, bfloat16: bool = False
    ) -> None:
        inside = _inside(network) if config.method == "muon" else set()
        inner = [weight for name, weight in network.named_parameters() if name in inside]
        chosen = {id(parameter) for parameter in inner}
        outer = [
            (name, parameter)
            for name, parameter in network.named_parameters()
            if id(parameter) not in chosen and parameter.requires_grad
        ]
        slow = config.reconstructor_learning_rate or config.learning_rate
        parts = (
            ([p for name, p in outer if not name.startswith(_RECONSTRUCTOR)], config.learning_rate),
            ([p for name, p in outer if name.startswith(_RECONSTRUCTOR)], slow),
        )
        self._inner = [(p, nn.Parameter(_matrix(p.detach()))) for p in inner]
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [{"params": part, "lr": rate, _HIGHEST: rate} for part, rate in parts if part],
                betas=config.betas,
                weight_decay=config.weight_decay,
            )
        ]
        if self._inner:
            matrices = [matrix for _, matrix in self._inner]
            rate = config.muon_learning_rate
            self._all.append(
                Muon(
                    [{"params": matrices, "lr": rate, _HIGHEST: rate}],
                    config.weight_decay,
                    bfloat16=bfloat16,
                )
            )

    def step(self, share: float) -> None:
        """Moves the weights by their gradients, at ``share`` of the highest learning rates."""
        for weight, matrix in self._inner:
            matrix.grad = None if weight.grad is None else _matrix(weight.grad)
        for optimiser in self._all:
            for group in optimiser.param_groups:
                group["lr"] = group[_HIGHEST] * share
            optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """``METHOD.PARAMETER.NAME`` -> tensor, for a checkpoint."""
        return {
            f"{number}.{key}": value
            for number, optimiser in enumerate(self._all)
            for key, value in optimiser_state(optimiser).items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state` gave.

        Raises:
            ValueError: it is of another method or network.
        """
        for number, optimiser in enumerate(self._all):
            prefix = f"{number}."
            restore_optimiser(
                optimiser,
                {
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                },
            )


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``PARAMETER.NAME`` -> tensor on the CPU, for a checkpoint."""
    return {
        f"{index}.{key}": value.cpu()
        for index, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Takes back what :func:`optimiser_state` gave.

    Raises:
        ValueError: it is of other parameters.
    """
    shapes = [p.shape for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        if int(index) >= len(shapes) or (value.dim() and value.shape != shapes[int(index)]):
            raise ValueError(f"the state's {name} is of no such parameter")
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _inside(network: nn.Module) -> set[str]:
    """Names of the weights of the convolutions between the first and the last layers."""
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not name.startswith(_OUTER)
    ]
    if any(name.startswith(_BACKBONE) for name in names):
        names = names[1:-1]  # their first and last layers have no name of their own
    return {f"{name}.weight" for name in names}


def _matrix(weight: Tensor) -> Tensor:
    """[out,in,h,w] -> [out, h·w·in], a view of a weight whose memory is channels-last."""
    return weight.permute(0, 2, 3, 1).flatten(1)
