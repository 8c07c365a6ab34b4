"""Where a step's batch comes from: crops of overlaps, or whole images as published."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from blsgan.data.layout import JointImage, check_one_square_size, joints_of
from blsgan.data.splits import split_for_training
from blsgan.data.truths import cached_visit_truths
from blsgan.data.visits import PROTOCOL, TRAINING, VisitTruth
from blsgan.errors import InputError, UsageError
from blsgan.progress import Track, silent
from blsgan.training.composites import Composites
from blsgan.training.config import DataConfig, Stage, TrainingConfig
from blsgan.training.images import Deck, WholeImages, protocol_shifts
from blsgan.training.pairs import (
    PairBatch,
    RealOverlaps,
    SyntheticPairs,
    VisitPairs,
    sent,
)

_VALIDATION_SEED = 7


class Sources(Protocol):
    """The training images of a run and its fixed validation pairs.

    Attributes:
        validation: synthetic pairs of validation joints with the protocol's settings, on the CPU.
        validation_visits: real overlaps of validation joints with another visit's truth, if any.
    """

    @property
    def validation(self) -> PairBatch: ...

    @property
    def validation_visits(self) -> PairBatch | None: ...

    def epoch(self, data: DataConfig) -> int:
        """Steps in which every image is drawn once by each of its sources."""
        ...

    def draw(self, stage: Stage, step: int, random: torch.Generator) -> PairBatch:
        """A step's batch on the training device: synthetic pairs first, then real overlaps."""
        ...


def check_sources(config: TrainingConfig, images: Sequence[JointImage]) -> None:
    """Asks for what a run's stages need of the dataset, before anything long.

    Args:
        config: the run's configuration.
        images: every image of the dataset.

    Raises:
        InputError: the dataset lacks what the configuration asks for, or its images are not square
            and of one size.
        UsageError: the network is of another number of bones than the dataset's joints have.
    """
    layers = config.model.configuration.get("layers", 2)
    if layers != 2:
        raise UsageError(
            f"key 'model.configuration.layers' is {layers}; the dataset's joints have 2 bones"
        )
    training, _ = split_for_training(images, config.held_out)
    check_one_square_size(images)
    if _visit_keys(config) and len(joints_of(training)) == len(training):
        raise _no_visits(config, f"none of the {len(training)} training joints has a second visit")


def _visit_keys(config: TrainingConfig) -> list[str]:
    """The keys that ask for visits."""
    if not config.stages:
        return ["data.visits"] if config.data.visits else []
    return [f"stages.{n}.data.visits" for n, stage in enumerate(config.stages) if stage.data.visits]


def _no_visits(config: TrainingConfig, why: str) -> InputError:
    out = " ".join(f"--set {key}=0" for key in _visit_keys(config))
    return InputError(
        f"{why}, whose truth the configuration asks for; `blsgan train` does without: {out}"
    )


def load_sources(
    config: TrainingConfig,
    images: Sequence[JointImage],
    cache: Path | None,
    device: torch.device,
    progress: Track = silent,
) -> Sources:
    """Reads what a run's stages need; the split by joint is made here.

    Args:
        config: the run's configuration.
        images: every image of the dataset.
        cache: folder for the registered visits, or None to find them anew.
        device: the training device.
        progress: wraps the registration of visits.

    Raises:
        InputError: the dataset lacks what the configuration asks for.
        UsageError: the network is of another number of bones than the dataset's joints have.
    """
    check_sources(config, images)
    training, validation = split_for_training(images, config.held_out)
    parts = [stage.data for stage in config.stages] or [config.data]
    if parts[0].pairs == "images":
        return _Images(parts, training, validation, config.seed, device)
    own = config.seed if config.draws == "step" else None
    visits: list[VisitTruth] = []
    if _visit_keys(config):
        visits = cached_visit_truths(training, cache, TRAINING, progress)
        if not visits:
            raise _no_visits(
                config, "no training joint has an overlap that another visit shows free"
            )
    truths = cached_visit_truths(validation, cache, PROTOCOL, progress) if visits else []
    return _Crops(parts, training, validation, visits, truths, device, own)


class _Crops:
    """Crops around overlaps, see ``pairs.py``."""

    def __init__(
        self,
        parts: Sequence[DataConfig],
        training: Sequence[JointImage],
        validation: Sequence[JointImage],
        visits: Sequence[VisitTruth],
        truths: Sequence[VisitTruth],
        device: torch.device,
        own_draws: int | None,
    ) -> None:
        self._own_draws = own_draws
        # A network judges k best in crops of the size it is trained on.
        size = parts[-1].crop
        self.validation = SyntheticPairs(validation).draw(
            parts[0].validation,
            torch.Generator().manual_seed(_VALIDATION_SEED),
            protocol=True,
            size=size,
        )
        self.validation_visits: PairBatch | None = None
        self._visits: VisitPairs | None = None
        self._real: RealOverlaps | None = None
        if visits:
            self._visits = VisitPairs(visits, training, device)
            if truths:
                self.validation_visits = VisitPairs(truths, validation).all(size=size)
        if any(part.real for part in parts):
            self._real = RealOverlaps(training, device)
        self._synthetic = SyntheticPairs(training, device)
        self._composites = Composites(self._synthetic)

    def epoch(self, data: DataConfig) -> int:
        counts = [(len(self._synthetic), data.synthetic)]
        counts += [(len(self._visits), data.visits)] if self._visits else []
        counts += [(len(self._real), data.real)] if self._real else []
        return epoch_steps(counts)

    def draw(self, stage: Stage, step: int, random: torch.Generator) -> PairBatch:
        data = stage.data.in_step(step)

        def of(source: str) -> torch.Generator:
            if self._own_draws is None:
                return random
            return source_random(self._own_draws, source, step)

        batch = self._synthetic.draw(data.synthetic, of("synthetic"), data)
        if data.composites:
            composed = self._composites.draw(data.composites, of("composites"), data)
            batch = PairBatch.join(batch, composed)
        if data.visits and self._visits is not None:
            visits = self._visits.draw(data.visits, of("visits"), data)
            batch = PairBatch.join(batch, visits)
        if data.real and self._real is not None:
            batch = PairBatch.join(batch, self._real.draw(data.real, of("real"), data))
        return batch


class _Images:
    """Whole images, see ``images.py``; each is drawn once before any is drawn again."""

    validation_visits: PairBatch | None = None

    def __init__(
        self,
        parts: Sequence[DataConfig],
        training: Sequence[JointImage],
        validation: Sequence[JointImage],
        seed: int,
        device: torch.device,
    ) -> None:
        self._device, self._seed = device, seed
        size = parts[0].size
        self._images = WholeImages(training, size, device)
        if any(part.real for part in parts) and not self._images.real_count:
            raise InputError("the split has no joint with an overlap; set data.real=0")
        held_out = WholeImages(validation, size, torch.device("cpu"))
        count = parts[0].validation
        random = torch.Generator().manual_seed(_VALIDATION_SEED)
        self.validation = held_out.synthetic(
            torch.arange(count) % held_out.synthetic_count, protocol_shifts(count, random)
        )
        self._decks: dict[tuple[int, str], Deck] = {}

    def epoch(self, data: DataConfig) -> int:
        return epoch_steps(
            [(self._images.synthetic_count, data.synthetic), (self._images.real_count, data.real)]
        )

    def draw(self, stage: Stage, step: int, random: torch.Generator) -> PairBatch:
        data, turn = stage.data, step - stage.first
        index = self._deck(stage, "synthetic").draw(turn * data.synthetic, data.synthetic)
        shifts = protocol_shifts(data.synthetic, random)
        batch = self._images.synthetic(*sent(self._device, index, shifts))
        if data.real:
            index = self._deck(stage, "real").draw(turn * data.real, data.real)
            batch = PairBatch.join(batch, self._images.real(*sent(self._device, index)))
        return batch

    def _deck(self, stage: Stage, kind: str) -> Deck:
        key = stage.first, kind
        if key not in self._decks:
            count = self._images.real_count if kind == "real" else self._images.synthetic_count
            self._decks[key] = Deck(count, 2 * (self._seed + stage.first) + (kind == "real"))
        return self._decks[key]


def source_random(seed: int, source: str, step: int) -> torch.Generator:
    """The random numbers of one source in one step, the same in every run of that seed."""
    mixed = np.random.SeedSequence((seed, zlib.crc32(source.encode()), step))
    return torch.Generator().manual_seed(int(mixed.generate_state(1)[0]))


def epoch_steps(counts: Sequence[tuple[int, int]]) -> int:
    """Steps of an epoch from the (images, drawn in a step) of each source."""
    return max(math.ceil(count / drawn) for count, drawn in counts if drawn)
