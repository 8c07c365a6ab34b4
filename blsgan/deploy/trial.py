"""An engine tried where it shall serve: how fast it is and whether it computes what its model does.

Never run on an engine by its authors, who had no GPU.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from blsgan.deploy import parity
from blsgan.deploy.gate import LIMITS_DB
from blsgan.deploy.model import load_exported
from blsgan.deploy.samples import Sample, phantom_sample
from blsgan.errors import InputError
from blsgan.runtimes.engine import Engine
from blsgan.runtimes.manifest import Manifest, read_manifest

_WARM_UP = 5


def read_sample(path: Path) -> Sample:
    """A batch from an ``.npz`` with ``image`` [B,1,H,W] and ``masks`` [B,2,H,W].

    Raises :class:`InputError` for another file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image, masks = (
                np.ascontiguousarray(arrays[name], np.float32) for name in ("image", "masks")
            )
    except (
        OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise InputError(
            f"{path} is not an .npz with image [B,1,H,W] and masks [B,2,H,W] ({error})."
        ) from error
    return Sample(path.name, image, masks)


def best_sample(manifest: Manifest, batch: int | None = None) -> Sample:
    """Phantoms of the size that an engine is fastest at."""
    best = manifest.profile["image"].opt
    return phantom_sample(batch or best[0], best[2], best[3], seed=0)


def try_engine(
    path: os.PathLike[str] | str,
    sample: Sample | None = None,
    *,
    batch: int | None = None,
    repeat: int = 100,
    against: Path | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run an engine, time it and compare it.

    Args:
        path: the engine.
        sample: the batch; None: phantoms of the engine's best size.
        batch: how many phantoms; None: the engine's best batch.
        repeat: timed runs, after a warm-up; host to host, with both copies.
        against: the float32 model, run by ONNX Runtime on the CPU.

    Returns:
        A report (``latency_ms`` p50 and p99, ``joints_per_s``, ``streamed_joints_per_s`` with two
        batches in flight, ``overlap_psnr_db`` and ``passed`` where compared), and the outputs.

    Raises:
        BackendError: the engine cannot run here.
        WeightsError: engine or manifest is damaged.
        InputError: the batch does not fit, or ``against`` is not the engine's model.
    """
    manifest = read_manifest(path)
    reference = None
    if against is not None:
        model = load_exported(against)
        if model.sha256 != manifest.model.sha256:
            raise InputError(
                f"{against} is not the model that {path} was built from: its SHA-256 is "
                f"{model.sha256[:12]}..., not {manifest.model.sha256[:12]}...; give that one."
            )
        reference = parity.OnnxRuntime(model.data, str(against))
    sample = sample or best_sample(manifest, batch)
    count = len(sample.image)
    with Engine(path) as engine:
        for _ in range(_WARM_UP):
            outputs = engine.run(sample.image, sample.masks)
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            engine.run(sample.image, sample.masks)
            times.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        for _ in engine.stream((sample.image, sample.masks) for _ in range(repeat)):
            pass
        streamed = repeat * count / (time.perf_counter() - started)
        gpu = engine.gpu.name
    p50, p99 = np.percentile(times, [50, 99])
    report: dict[str, Any] = {
        "engine": str(path),
        "gpu": gpu,
        "backend": f"{manifest.backend} {manifest.backend_version}",
        "precision": manifest.precision,
        "inputs": sample.name,
        "batch": count,
        "size": list(sample.image.shape[2:]),
        "latency_ms": {"p50": float(p50), "p99": float(p99)},
        "joints_per_s": 1000 * count / float(p50),
        "streamed_joints_per_s": streamed,
    }
    if reference is not None:
        expected = reference.run(sample)
        alike = parity.overlap_psnr_db(outputs["layers"], expected["layers"], sample.overlap)
        report["overlap_psnr_db"] = float(np.mean(alike)) if alike else None
        limit = LIMITS_DB.get(manifest.precision)
        report["passed"] = (
            parity.compare(outputs, expected, sample)["passed"]
            if limit is None
            else bool(alike) and report["overlap_psnr_db"] >= limit
        )
    return report, outputs
