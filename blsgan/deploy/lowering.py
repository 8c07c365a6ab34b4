"""A lower precision, written into a model's graph and judged before anything is made of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from blsgan.deploy.gate import Verdict, judge
from blsgan.deploy.model import ExportedModel
from blsgan.deploy.precision import CALIBRATED, Converted, convert
from blsgan.deploy.samples import Sample
from blsgan.errors import ParityError
from blsgan.progress import Track, silent

CALIBRATION_CROPS = 32
GATE_CROPS = 32
_CALIBRATION_SEED, _GATE_SEED = 10_000, 20_000  # of phantoms: never the same ones

Samples = Callable[[], list[Sample]]


class Listener(Protocol):
    """Told what is being done; ``track`` is a :class:`blsgan.progress.Track`."""

    def step(self, text: str) -> None: ...

    @property
    def track(self) -> Track: ...


class Silent:
    """A listener that does not listen."""

    track = staticmethod(silent)

    def step(self, text: str) -> None:
        """Nothing."""


def samples_for(
    model: ExportedModel, precision: str, root: Path | None = None
) -> tuple[Samples, Samples]:
    """What activations are measured on and what the result is judged on, each made when asked for.

    They never share a joint: phantoms of other seeds, or training and validation joints of the
    public dataset under ``root``.
    """

    @functools.cache
    def calibration() -> list[Sample]:
        if precision not in CALIBRATED:
            return []
        return model.samples(CALIBRATION_CROPS, seed=_CALIBRATION_SEED, root=root, split="train")

    @functools.cache
    def judged_on() -> list[Sample]:
        return model.samples(GATE_CROPS, seed=_GATE_SEED, root=root, split="val")

    return calibration, judged_on


def lower(
    model: ExportedModel,
    precision: str,
    samples: tuple[Samples, Samples],
    output: Path,
    *,
    converter: str = "auto",
    force: bool = False,
    threads: int | None = None,
    progress: Listener | None = None,
) -> tuple[Converted, Verdict]:
    """``model`` in ``precision``, and how it did at its gate.

    Args:
        model: float32.
        precision, converter: see :func:`blsgan.deploy.precision.convert`.
        samples: of :func:`samples_for`.
        output: named when the gate fails.
        force: take a model that fails its gate.
        threads: of the comparison; default: the usable cores.

    Raises:
        ParityError: it failed; the message has the figures.
        UsageError, BackendError, InputError: as ``convert`` and ``judge`` raise them.
    """
    progress = progress or Silent()
    calibration, judged_on = samples
    progress.step(f"writing {precision} into the graph")
    converted = convert(model.proto, precision, calibration(), converter)
    progress.step(f"comparing {precision} with float32")
    verdict = judge(
        model,
        converted,
        judged_on() if precision != "fp32" else [],
        threads=threads,
        track=progress.track,
    )
    if not verdict.passed and not force:
        raise ParityError(
            f"{output} is not written: {precision} fails its gate with "
            f"{verdict.sentence()}; take another precision, or --force to write it all the same."
        )
    return converted, verdict
