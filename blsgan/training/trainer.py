"""What a task brings to be trained: a run in memory that steps, validates, is kept and restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from blsgan.data.dataset import load_root
from blsgan.data.layout import JointImage, check_complete, content_digest
from blsgan.errors import InputError
from blsgan.models.generator import Generator
from blsgan.models.segmenter import FoldedUNet
from blsgan.progress import Track
from blsgan.tasks.task import Task
from blsgan.training.checkpoint import Checkpoint
from blsgan.training.config import RunConfig
from blsgan.training.distributed import World
from blsgan.training.precision import has_bfloat16

_Network = TypeVar("_Network", bound=nn.Module)


@dataclass
class Terms:
    """What a step minimised, scalars on the device: ``total`` is minimised, ``parts`` are read."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    def names(self) -> list[str]:
        """What :meth:`detached` holds."""
        return ["loss", *self.parts]

    def detached(self) -> Tensor:
        """One number for each name."""
        return torch.stack([value.detach() for value in (self.total, *self.parts.values())])


class Trainer(ABC):
    """A run in memory.

    Args:
        config: the run's configuration.
        device: where the networks run.
        world: the processes that train together.

    Attributes:
        step: steps made; ``steps``: of the whole run.
        precision: what the networks run in: the configuration's, or float32 where the device of
            one of the processes has no bfloat16 instructions.
        average: the network whose weights ship, an exponential moving average of the trained one.
    """

    steps: int
    average: Generator | FoldedUNet

    def __init__(self, config: RunConfig, device: torch.device, world: World | None = None) -> None:
        self.device, self.step = device, 0
        self.world = World() if world is None else world
        # All the same, or their weights would drift apart.
        self._bfloat16 = self.world.all(has_bfloat16(device))
        self.precision = config.precision if self._bfloat16 else "float32"

    @abstractmethod
    def part(self) -> tuple[str, int]:
        """What the next step is part of: its name, and the step that it ends with."""

    @abstractmethod
    def start_from(self, weights: Path) -> None:
        """Replaces the random first weights by those of a ``.safetensors`` file.

        Raises:
            WeightsError: the file cannot be read.
            InputError: it is of another model than the configuration's.
        """

    @abstractmethod
    def train_step(self) -> Terms:
        """One step."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Quick figures of the averaged weights on validation joints, by name."""

    @abstractmethod
    def picture(self) -> Tensor:
        """What the averaged weights make of a few validation joints, [H,W] in [0,1]."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Every network that a checkpoint keeps, by name."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides: optimisers and random numbers, as ``GROUP.KEY``."""

    @abstractmethod
    def restore_state(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes back what :meth:`state` gave, by group; the networks and the step are there.

        Raises ValueError, IndexError or RuntimeError for what is of another model.
        """

    def checkpoint(self) -> Checkpoint:
        """Everything needed to go on from here."""
        weights = {
            f"{prefix}.{key}": value.cpu()
            for prefix, module in self.modules().items()
            for key, value in module.state_dict().items()
        }
        return Checkpoint(self.step, weights, self.state())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint.

        Raises:
            InputError: it belongs to another model.
        """
        groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in checkpoint.tensors.items():
            group, _, rest = key.partition(".")
            groups[group][rest] = value
        try:
            for prefix, module in self.modules().items():
                module.load_state_dict(groups[prefix])
            self.step = checkpoint.step
            self.restore_state(groups)
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                "the checkpoint is of another model or optimiser.method than the run's "
                "configuration; restore config.yaml or start the run anew in another folder"
            ) from error

    def is_finite(self) -> bool:
        """Whether a checkpoint of now is worth keeping: no weight is NaN or infinite. A step's own
        loss cannot tell, it is older than the step's update."""
        largest = [
            value.abs().amax()
            for module in self.modules().values()
            for value in module.state_dict().values()
            if value.is_floating_point()
        ]
        return bool(torch.isfinite(torch.stack(largest)).all())

    def autocast(self) -> torch.autocast:
        """The context that networks are trained in."""
        return autocast(self.device, self.precision)


def read_joints(root: str | Path) -> Sequence[JointImage]:
    """Every image of the public dataset's layout, none of them missing.

    Raises:
        InputError: the folder is no dataset, or a file is missing.
    """
    images = load_root(root)
    check_complete(root, images)
    return images


@dataclass(frozen=True)
class Recipe:
    """How the runs of a task are trained; the functions raise what ``run.train`` raises.

    Attributes:
        task: what for.
        limits: what its weights are not for, as their card says.
        check: (configuration, weights to start from or None) before anything is read.
        check_data: (configuration, every sample) before minutes of work.
        load: (configuration, every sample, folder that keeps what is found, device, progress) ->
            what a trainer learns from.
        trainer: (configuration, what was loaded, device, processes).
        read: the dataset's folder -> its samples, each with the name ``joint`` that it is split by.
        digest: their content's SHA-256.
    """

    task: Task
    limits: str
    check: Callable[[Any, Path | None], object]
    check_data: Callable[[Any, Sequence[Any]], None]
    load: Callable[[Any, Sequence[Any], Path, torch.device, Track], Any]
    trainer: Callable[[Any, Any, torch.device, World], Trainer]
    read: Callable[[str | Path], Sequence[Any]] = read_joints
    digest: Callable[[Sequence[Any]], str] = content_digest


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def placed(network: _Network, device: torch.device) -> _Network:
    """The network on its device, its memory channels-last."""
    network = network.to(device)
    # Its stub knows no memory_format for modules.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
