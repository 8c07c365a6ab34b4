"""Whether a model of lower precision may be used: what it computes beside what float32 computes.

Both run in ONNX Runtime on the CPU. A graph with int8 or fp8 runs as it is written, with float32
arithmetic between its quantizers; one with float16 or bfloat16 runs as
:func:`blsgan.deploy.precision.in_float32` writes it. An engine rounds in the same places but sums
in another order, so its own parity can only be measured where it runs (``blsgan run-engine
--against``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from blsgan.deploy.model import ExportedModel
from blsgan.deploy.parity import OnnxRuntime, overlap_psnr_db
from blsgan.deploy.precision import Converted, in_float32
from blsgan.deploy.samples import Sample
from blsgan.errors import InputError
from blsgan.progress import Track, silent

LIMITS_DB = {"fp16": 50.0, "bf16": 50.0, "int8": 45.0, "fp8": 45.0}
"""Least PSNR of the layers over the overlap against float32, mean over joints."""

MAX_DROP_DB = 0.1
"""How much PSNR against the true layers may be lost, mean over joints."""

AS_WRITTEN = "as written, ONNX Runtime CPU, optimiser off"
EMULATED = (
    "emulated: float32 arithmetic with every tensor of the body rounded to the type, ONNX Runtime "
    "CPU, optimiser off"
)
UNCHANGED = "not run: the graph is the float32 one"


@dataclass(frozen=True)
class Verdict:
    """The figures of a gate; PSNR in dB over the overlap, means over joints.

    Attributes:
        passed: whether every limit is kept.
        executed: how the converted graph was run.
        data: what it was judged on.
        joints: how many joints.
        psnr_db, worst_psnr_db: layers against those of float32, mean and least.
        limit_db: what the mean must reach.
        quality_fp32_db, quality_db: layers against the true ones, float32 and converted.
        drop_db: what the conversion lost of that.
        max_drop_db: what it may lose.
    """

    passed: bool
    executed: str
    data: str | None = None
    joints: int = 0
    psnr_db: float | None = None
    worst_psnr_db: float | None = None
    limit_db: float | None = None
    quality_fp32_db: float | None = None
    quality_db: float | None = None
    drop_db: float | None = None
    max_drop_db: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain JSON types."""
        return asdict(self)

    def sentence(self) -> str:
        """The figures beside their limits, for people."""
        if self.psnr_db is None:
            return self.executed
        return (
            f"{self.psnr_db:.1f} dB against float32 over the overlap (worst joint "
            f"{self.worst_psnr_db:.1f}, bar {self.limit_db:.0f}), quality {self.quality_db:.2f} dB "
            f"where float32 has {self.quality_fp32_db:.2f} (lost {self.drop_db:.2f}, may lose "
            f"{self.max_drop_db:.1f}), on {self.joints} {self.data}"
        )


def judge(
    model: ExportedModel,
    converted: Converted,
    samples: Sequence[Sample],
    *,
    threads: int | None = None,
    track: Track = silent,
) -> Verdict:
    """Run both models on ``samples``, whose layers are known, and compare.

    Args:
        model: the float32 model.
        converted: the same in another precision.
        samples: batches with true layers.
        threads: of ONNX Runtime; default: the usable cores.
        track: wraps the loop over the samples, for progress.

    Raises:
        InputError: no sample has an overlap with known layers.
    """
    if converted.precision == "fp32":
        return Verdict(True, UNCHANGED)
    half = converted.precision in ("fp16", "bf16")
    runnable = in_float32(converted.model) if half else converted.model
    reference = OnnxRuntime(model.data, str(model.path), threads=threads)
    candidate = OnnxRuntime(
        runnable.SerializeToString(),
        f"{model.path} in {converted.precision}",
        as_written=True,
        threads=threads,
    )
    alike: list[float] = []
    quality: dict[str, list[float]] = {"fp32": [], "converted": []}
    for sample in track(samples, "comparing with float32", len(samples)):
        if sample.layers is None:
            continue
        first = reference.run(sample)["layers"]
        second = candidate.run(sample)["layers"]
        alike += overlap_psnr_db(second, first, sample.overlap)
        quality["fp32"] += overlap_psnr_db(first, sample.layers, sample.overlap)
        quality["converted"] += overlap_psnr_db(second, sample.layers, sample.overlap)
    if not alike:
        raise InputError("no sample has an overlap with known layers; nothing can be judged.")
    psnr, worst = float(np.mean(alike)), float(np.min(alike))
    before, after = (float(np.mean(values)) for values in quality.values())
    limit = LIMITS_DB[converted.precision]
    return Verdict(
        # NaN, what half precision may give, compares as False.
        passed=psnr >= limit and before - after <= MAX_DROP_DB,
        executed=EMULATED if half else AS_WRITTEN,
        data=samples[0].name,
        joints=len(alike),
        psnr_db=psnr,
        worst_psnr_db=worst,
        limit_db=limit,
        quality_fp32_db=before,
        quality_db=after,
        drop_db=before - after,
        max_drop_db=MAX_DROP_DB,
    )
