"""What a run will cost: parameters, arithmetic and time of a step of each stage, on this device."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from blsgan.data.dataset import load_root
from blsgan.models.locator import LocatorNetwork
from blsgan.models.segmenter import SegmenterNetwork
from blsgan.training.config import (
    LARGE_CROP_EVERY,
    DataConfig,
    LocationConfig,
    RunConfig,
    SegmentationConfig,
    Stage,
    TrainingConfig,
)
from blsgan.training.pairs import PairBatch
from blsgan.training.precision import has_bfloat16, no_bfloat16
from blsgan.training.run_folder import device_of
from blsgan.training.separation import SeparationTrainer
from blsgan.training.sources import Sources, load_sources

_TIMED_STEPS = 2  # after one that warms up


@dataclass(frozen=True)
class StageCost:
    """One stage: steps, floating-point operations and seconds of a step on average (a multiply-add
    is two)."""

    stage: Stage
    flop: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """A whole run; ``parameters`` of each network by name, ``device`` that steps were timed on,
    ``note`` on its arithmetic where there is something to say."""

    parameters: dict[str, int]
    stages: list[StageCost]
    device: str
    note: str | None = None

    @property
    def seconds(self) -> float:
        """Of all steps; reading the data and validations come on top."""
        return sum(cost.stage.steps * cost.seconds for cost in self.stages)

    def lines(self) -> Iterator[str]:
        """Sentences for a dry run."""
        for name, count in self.parameters.items():
            yield f"{name}: {count:,} parameters"
        for cost in self.stages:
            data = cost.stage.data
            batch = f"{data.synthetic} synthetic"
            batch += f", {data.visits} visit" if data.visits else ""
            batch += f", {data.real} real" if data.real else ""
            size = (data.size, data.size) if data.pairs == "images" else data.crop
            of = f"{size[0]}x{size[1]} px"
            if data.large_crop is not None:
                of += f" ({data.large_crop[0]}x{data.large_crop[1]} in every {LARGE_CROP_EVERY}th)"
            yield (
                f"{cost.stage.name}: {cost.stage.steps} steps of {batch} {data.pairs} of "
                f"{of}; {cost.flop / 1e9:,.0f} GFLOP and "
                f"{cost.seconds:.2f} s a step on {self.device}"
            )
        if self.note is not None:
            yield f"note: {self.note}"
        yield f"estimated time: {_hours(self.seconds)}, without reading the data and validations"


def dry_run(config: RunConfig, root: str | Path, device: str = "cpu") -> Iterator[str]:
    """What a run will cost, in sentences. Raises what :func:`estimate` raises."""
    if isinstance(config, TrainingConfig):
        load_root(root)  # refused here, though only stages of epochs read it
        yield from estimate(config, root, device).lines()
    elif isinstance(config, SegmentationConfig | LocationConfig):
        target = device_of(device)
        kind = SegmenterNetwork if isinstance(config, SegmentationConfig) else LocatorNetwork
        count = _count(kind(config.model.widths, config.model.blocks))
        yield f"{count:,} parameters; {config.steps} steps of {config.data.batch} pictures"
        if config.precision == "bfloat16" and not has_bfloat16(target):
            yield f"note: {no_bfloat16(target)}"


def estimate(config: TrainingConfig, root: str | Path, device: str = "cpu") -> Estimate:
    """Builds the networks and times steps of each stage on made-up pictures.

    Args:
        config: the run.
        root: the dataset, read where a stage is given in epochs: what it has for the run's sources
            is counted as the run counts it, which registers the visits that a stage asks for.
        device: where steps are timed.

    Raises:
        InputError: the dataset is needed and is not one.
        UsageError: the device is not there, or a size does not fit the network.
    """
    target = device_of(device)

    @functools.cache
    def sources() -> Sources:
        return load_sources(config, load_root(root), None, torch.device("cpu"))

    def epoch(data: DataConfig) -> int:
        return sources().epoch(data)

    trainer = SeparationTrainer(config, MadeUp(epoch, target), target)
    costs = []
    for stage in trainer.stages:
        trainer.move_to(stage.first)
        with FlopCounterMode(display=False) as counter:
            trainer.train_step()
        trainer.move_to(stage.first)
        started = time.perf_counter()
        for _ in range(_TIMED_STEPS):
            trainer.train_step()
            trainer.step = stage.first  # a stage of a single step shall not end
        if target.type == "cuda":
            torch.cuda.synchronize(target)
        seconds = (time.perf_counter() - started) / _TIMED_STEPS
        more = _growth(stage.data)
        costs.append(StageCost(stage, round(more * counter.get_total_flops()), more * seconds))
    note = no_bfloat16(target) if trainer.precision != config.precision else None
    return Estimate(_parameters(trainer), costs, str(target), note)


class MadeUp:
    """Sources that need no dataset: one batch for each stage, in the shape of the real one.

    Args:
        epoch: steps of an epoch.
        device: where batches lie.
        layers: N, the number of bones.
    """

    def __init__(
        self, epoch: Callable[[DataConfig], int], device: torch.device, layers: int = 2
    ) -> None:
        self.epoch = epoch
        self._device, self._layers = device, layers
        self._made: dict[int, PairBatch] = {}

    @property
    def validation(self) -> PairBatch:
        """The batch that was drawn last."""
        return list(self._made.values())[-1]

    @property
    def validation_visits(self) -> PairBatch | None:
        """None."""
        return None

    def draw(self, stage: Stage, step: int, random: torch.Generator) -> PairBatch:
        """The same batch in every step of a stage."""
        if stage.first not in self._made:
            self._made[stage.first] = made_up(stage, self._device, self._layers)
        return self._made[stage.first]


def made_up(stage: Stage, device: torch.device, layers: int = 2) -> PairBatch:
    """A batch of a stage's shape with two overlapping rectangles and noise in every image."""
    data = stage.data
    count = data.synthetic + data.visits + data.real
    height, width = (data.size, data.size) if data.pairs == "images" else data.crop
    random = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, layers, height, width)
    for bone in range(layers):
        top = bone * height // (2 * layers)
        masks[:, bone, top : top + height * 2 // 3, width // 8 : width * 7 // 8] = 1
    truth = 0.5 * torch.rand(masks.shape, generator=random) * masks
    image = 1 - (1 - truth).prod(dim=1, keepdim=True)
    valid = (masks.sum(dim=1, keepdim=True) > 1) & (masks > 0)
    known = torch.arange(count) < data.synthetic
    k = torch.where(known, 0.1, torch.nan)
    return PairBatch(image, masks, truth, valid, k).to(device)


def _growth(data: DataConfig) -> float:
    """Pixels of a step, on average, by those of a step without large crops."""
    if data.large_crop is None:
        return 1.0
    ratio = data.large_crop[0] * data.large_crop[1] / (data.crop[0] * data.crop[1])
    return 1 + (ratio - 1) / LARGE_CROP_EVERY


def _parameters(trainer: SeparationTrainer) -> dict[str, int]:
    generator = trainer.generator
    counts = {generator.architecture: _count(generator)}
    if generator.soft_tissue == "reconstructor":
        counts["reconstructor"] = _count(generator.reconstructor)
        counts[generator.architecture] -= counts["reconstructor"]
    if trainer.supervisor is not None:
        counts["supervisor"] = _count(trainer.supervisor)
    return counts


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes else f"{seconds:.0f} s"
