"""Training a network that answers on one grid: the mask segmenter, the joint locator.

Both learn alike, from pictures of one size that a step's seed alone decides; what differs is where
the pictures come from, what is minimised and what a validation says.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from blsgan.errors import InputError, UsageError
from blsgan.models.segmenter import FoldedUNet
from blsgan.tasks.task import Task
from blsgan.training.config import GridConfig
from blsgan.training.distributed import World
from blsgan.training.optimisers import (
    learning_rate_share,
    optimiser_state,
    restore_optimiser,
    update_average,
)
from blsgan.training.trainer import Recipe, Terms, Trainer, placed

_LOOKED_AT = 8  # pictures at a time in a validation


class PictureBatch(Protocol):
    """Pictures ``image`` float32 [B,1,H,W] in [0,1], and in other tensors what is true of them."""

    @property
    def image(self) -> Tensor: ...


Config = TypeVar("Config", bound=GridConfig)
Batch = TypeVar("Batch", bound=PictureBatch)


class GridTrainer(Trainer, Generic[Config, Batch]):
    """Pictures, network, its average, optimiser, and the step they stand at.

    Args:
        config: the run's configuration.
        samples: every sample of the dataset; the split is made here.
        device: where the network runs.
        world: one process; more are refused.

    Raises:
        InputError: the dataset has nothing for training or nothing for validation.
        UsageError: several processes.
    """

    network_type: ClassVar[Callable[..., FoldedUNet]]
    load: ClassVar[Callable[..., FoldedUNet]]
    average: FoldedUNet

    def __init__(
        self,
        config: Config,
        samples: Sequence[Any],
        device: torch.device,
        world: World | None = None,
    ) -> None:
        super().__init__(config, device, world)
        if self.world.size > 1:
            raise UsageError(
                f"a {config.name} is trained by one process; start it without torchrun"
            )
        self.config, self.steps = config, config.steps
        self._draw, self._validation = self.pictures(samples)
        torch.manual_seed(config.seed)
        self.network = placed(_network(type(self), config), device)
        self.average = copy.deepcopy(self.network)
        self.average.requires_grad_(False).eval()
        self._parameters: list[Tensor] = list(self.network.parameters())
        optimiser = config.optimiser
        self._optimiser = torch.optim.AdamW(
            self._parameters,
            lr=optimiser.learning_rate,
            betas=optimiser.betas,
            weight_decay=optimiser.weight_decay,
        )

    @abstractmethod
    def pictures(
        self, samples: Sequence[Any]
    ) -> tuple[Callable[[int, Sequence[int]], Batch], Batch]:
        """What draws a batch, by the number of pictures and a seed, and what is validated on."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """What is minimised: a scalar of the network's answer, float32, to ``batch``."""

    def part(self) -> tuple[str, int]:
        return self.config.name, self.steps

    def start_from(self, weights: Path) -> None:
        for module in (self.network, self.average):
            _load_first(type(self), module, weights, self.config)

    def train_step(self) -> Terms:
        config = self.config
        batch = self._draw(config.data.batch, (config.seed, self.step))
        batch = type(batch)(*(value.to(self.device) for value in vars(batch).values()))
        rate = config.optimiser.learning_rate * learning_rate_share(
            self.step, config.steps, config.optimiser
        )
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        with self.autocast():
            logits = self.network(batch.image)
        loss = self.loss(logits.float(), batch)
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, config.optimiser.clip_norm)
        self._optimiser.step()
        update_average(self.average, self._parameters, config.optimiser.ema_decay, self.step)
        self.step += 1
        return Terms(loss)

    def answers(self, count: int | None = None) -> Tensor:
        """Logits of the averaged weights for the first ``count`` validation pictures, or all."""
        with torch.inference_mode():
            parts = self._validation.image[:count].split(_LOOKED_AT)
            return torch.cat([self.average(part.to(self.device)).float().cpu() for part in parts])

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average}

    def state(self) -> dict[str, Tensor]:
        return {f"optimiser.{k}": v for k, v in optimiser_state(self._optimiser).items()}

    def restore_state(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        restore_optimiser(self._optimiser, groups["optimiser"])


def grid_recipe(
    task: Task,
    trainer: type[GridTrainer[Any, Any]],
    split: Callable[[Sequence[Any]], object],
    *,
    limits: str,
    **reading: Any,
) -> Recipe:
    """How runs of such a network are trained.

    Args:
        task: what for.
        trainer: what steps.
        split: raises InputError for samples that cannot be divided.
        limits: what the weights are not for, as their card says.
        reading: ``read`` and ``digest`` of :class:`~blsgan.training.trainer.Recipe`.
    """

    def check_data(config: GridConfig, samples: Sequence[Any]) -> None:
        split(samples)

    def check(config: GridConfig, weights: Path | None) -> None:
        network = _network(trainer, config)
        if weights is not None:
            _load_first(trainer, network, weights, config)

    return Recipe(
        task,
        limits=limits,
        check=check,
        check_data=check_data,
        load=lambda config, samples, *_: samples,
        trainer=trainer,
        **reading,
    )


def picture_rows(planes: Tensor) -> Tensor:
    """[B,C,H,W] as one picture [B*H,C*W]."""
    return torch.cat([torch.cat(list(row), dim=1) for row in planes])


def _network(trainer: type[GridTrainer[Any, Any]], config: GridConfig) -> FoldedUNet:
    return trainer.network_type(config.model.widths, config.model.blocks)


def _load_first(
    trainer: type[GridTrainer[Any, Any]], network: nn.Module, weights: Path, config: GridConfig
) -> None:
    try:
        network.load_state_dict(trainer.load(weights).state_dict())
    except RuntimeError as error:
        raise InputError(
            f"{weights}: is not of the configuration's model "
            f"({config.model.widths}, {config.model.blocks})"
        ) from error
