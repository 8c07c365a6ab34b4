"""Times the whole separation, image and masks to layers, in every runtime that can be had.

Every measurement has a process of its own, so that its peak memory is its own too, and no runtime's
threads are in another's way. What each answers is compared with float32 torch, in the same table:
a runtime that is fast because it computes something else is seen to do so.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.deploy.parity import overlap_psnr_db
from blsgan.deploy.samples import Sample, phantom_sample
from blsgan.errors import BackendError, BlsganError
from blsgan.machine import processor
from blsgan.runtimes.session import Session
from blsgan.tasks.task import find_weights

Float32 = NDArray[np.float32]

SIZE_PX = 256
BATCHES = (1, 32)
REFERENCE = "torch"
_SEED = 30_000  # of the phantoms that are timed; those of calibration begin at another one
_CALIBRATION_SEED = 10_000
_CALIBRATION_BATCHES, _CALIBRATION_BATCH = 8, 2
_LEAST_RUNS, _MOST_RUNS, _WARM_UP = 5, 500, 2
_OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


@dataclass(frozen=True)
class Variant:
    """A runtime and the precision of the graph it is given; ``engine``: the plan to run."""

    runtime: str
    precision: str
    package: str
    engine: str | None = None

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"


VARIANTS = (
    Variant(REFERENCE, "fp32", "torch"),
    Variant("torch.compile", "fp32", "torch"),
    Variant("ONNX Runtime", "fp32", "onnxruntime"),
    Variant("ONNX Runtime", "int8", "onnxruntime"),
    Variant("OpenVINO", "fp32", "openvino"),
    Variant("OpenVINO", "bf16", "openvino"),
    Variant("OpenVINO", "int8", "openvino"),
)
"""The first one is what the others are compared with."""


@dataclass(frozen=True)
class InferenceTiming:
    """One runtime, precision and batch.

    Attributes:
        p50_ms, p99_ms: time of one call with a whole batch.
        joints_per_s: joints over the time of all calls.
        times_torch: how many times faster than eager torch at this batch, by the median.
        peak_mb: largest resident memory of the process, everything it loaded included.
        psnr_db: layers against float32 torch over the overlap, mean over joints; 100 at most
            (:func:`blsgan.evaluation.metrics.psnr_db`).
        load_s: until the first answer was there, compilation included.
        note: why there are no figures.
    """

    model: str
    runtime: str
    precision: str
    batch: int
    threads: int
    runs: int | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    joints_per_s: float | None = None
    times_torch: float | None = None
    psnr_db: float | None = None
    peak_mb: float | None = None
    load_s: float | None = None
    version: str = ""
    note: str = ""

    @classmethod
    def columns(cls) -> list[str]:
        return [field.name for field in fields(cls)]

    def values(self) -> list[object]:
        """The columns' values, floats to four digits, what is not known empty."""
        return [
            "" if value is None else f"{value:.4g}" if isinstance(value, float) else value
            for value in asdict(self).values()
        ]


@dataclass(frozen=True)
class Prepared:
    """The files of one model; ``graphs`` by precision."""

    model: str
    weights: Path | str
    graphs: dict[str, Path]


def prepare(model: str, folder: Path, *, size_px: int = SIZE_PX, int8: bool = True) -> Prepared:
    """Write ``model`` as the files that the runtimes read, into ``folder``.

    Args:
        model: weights by name or path, or "transunet": the published generator with random weights,
            which take as long as any others.

    Raises:
        WeightsError: weights that do not exist, or without a ``.safetensors`` file.
        BackendError: torch is not installed.
        ParityError: the exported graph does not compute what torch does.
    """
    if find_spec("torch") is None:
        raise BackendError(
            "blsgan bench inference compares with PyTorch, which is not installed; pip install "
            "'blsgan[train]'."
        )
    from blsgan.deploy.export import export

    weights: Path | str = model
    if model == "transunet":
        weights = folder / f"{model}.safetensors"
        _write_random(model, weights)
    graph = export(weights, folder / "fp32.onnx", size=(size_px, size_px)).model
    graphs = {"fp32": graph, "bf16": graph}
    if int8:
        import onnx

        from blsgan.deploy.precision import convert

        calibration = [
            phantom_sample(
                _CALIBRATION_BATCH, size_px, size_px, _CALIBRATION_SEED + _CALIBRATION_BATCH * index
            )
            for index in range(_CALIBRATION_BATCHES)
        ]
        graphs["int8"] = folder / "int8.onnx"
        graphs["int8"].write_bytes(convert(onnx.load(graph), "int8", calibration).data())
    return Prepared(Path(model).stem, weights, graphs)


def _write_random(architecture: str, path: Path) -> None:
    """Random weights, of which none is zero, so that every output depends on every input."""
    import torch

    from blsgan.models import build_generator
    from blsgan.models.weights import safetensors_bytes

    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_generator(architecture)
        with torch.no_grad():
            for parameter in generator.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
    path.write_bytes(safetensors_bytes(generator))


def measure(
    prepared: Prepared,
    variants: Sequence[Variant],
    batches: Sequence[int],
    folder: Path,
    *,
    threads: int,
    seconds: float,
    size_px: int = SIZE_PX,
) -> Iterator[InferenceTiming]:
    """One row for each batch and variant, as they are done; eager torch comes first and always.

    Args:
        folder: for inputs and answers; the caller removes it.
        seconds: measuring time of each row, at least 5 calls.
    """
    ordered = [VARIANTS[0], *(variant for variant in variants if variant != VARIANTS[0])]
    for batch in batches:
        sample = phantom_sample(batch, size_px, size_px, _SEED)
        np.savez(folder / "inputs.npz", image=sample.image, masks=sample.masks)
        eager: tuple[float, Float32] | None = None
        for variant in ordered:
            row, layers = _measured(prepared, variant, sample, folder, threads, seconds)
            if variant == VARIANTS[0] and row["p50_ms"] is not None and layers is not None:
                eager = row["p50_ms"], layers
            if eager is not None and layers is not None:
                psnr = overlap_psnr_db(layers, eager[1], sample.overlap)
                row |= {
                    "times_torch": eager[0] / row["p50_ms"],
                    "psnr_db": float(np.mean(psnr)),
                }
            yield InferenceTiming(
                model=prepared.model, runtime=variant.runtime, precision=variant.precision,
                batch=batch, threads=threads, version=_version(variant.package), **row,
            )  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _measured(
    prepared: Prepared,
    variant: Variant,
    sample: Sample,
    folder: Path,
    threads: int,
    seconds: float,
) -> tuple[dict[str, Any], Float32 | None]:
    """A row's figures and the layers, from a process of its own; a note where it failed."""
    nothing: dict[str, Any] = {"p50_ms": None}
    if find_spec(variant.package) is None:
        return {**nothing, "note": f"{variant.package} is not installed"}, None
    answer = folder / "layers.npy"
    answer.unlink(missing_ok=True)
    job = {
        "runtime": variant.runtime,
        "precision": variant.precision,
        "weights": str(prepared.weights),
        "graph": variant.engine or str(prepared.graphs.get(variant.precision, "")),
        "inputs": str(folder / "inputs.npz"),
        "size": [len(sample.image), *sample.image.shape[2:]],
        "answer": str(answer),
        "threads": threads,
        "seconds": seconds,
    }
    code = "import sys; from blsgan.deploy.benchmark import work; work(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0 or not answer.exists():
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        return {**nothing, "note": lines[-1][:200]}, None
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures, np.load(answer)


def work(text: str) -> None:
    """What the measuring process does: load, warm up, time, and print the figures as JSON."""
    job = json.loads(text)
    with np.load(job["inputs"]) as inputs:
        batch = {name: inputs[name] for name in ("image", "masks")}
    started = time.perf_counter()
    try:
        session = _LOADERS[job["runtime"]](job)
    except BlsganError as error:
        raise SystemExit(str(error)) from error
    layers = session.run(batch)["layers"]
    load_s = time.perf_counter() - started
    np.save(job["answer"], layers)
    for _ in range(_WARM_UP - 1):
        session.run(batch)
    times: list[float] = []
    deadline = time.perf_counter() + job["seconds"]
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and time.perf_counter() < deadline):
        begin = time.perf_counter()
        session.run(batch)
        times.append(1e3 * (time.perf_counter() - begin))
    figures = {
        "runs": len(times),
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "joints_per_s": 1e3 * len(layers) * len(times) / sum(times),
        "peak_mb": _peak_mb(),
        "load_s": load_s,
    }
    print(json.dumps(figures))


def _peak_mb() -> float:
    """Of this process since it began; getrusage would count its parent's at the fork as well."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    raise BackendError("this system does not say how much memory a process has used.")


def _load_torch(job: dict[str, Any]) -> Session:
    import torch

    from blsgan.models import load_generator
    from blsgan.runtimes.torch import TorchSession

    weights = find_weights(job["weights"])
    assert weights.safetensors is not None  # or there would be no graph
    file = weights.load(weights.safetensors)
    generator = load_generator(file.path, file.data)

    def whole(image: Any, masks: Any) -> Any:
        return generator.separate(image, masks)[0]

    network = torch.compile(whole) if job["runtime"] == "torch.compile" else whole
    return TorchSession(network, ("image", "masks"), ("layers",), threads=job["threads"])


def _load_onnxruntime(job: dict[str, Any]) -> Session:
    from blsgan.runtimes.onnx import OnnxSession

    graph = Path(job["graph"])
    return OnnxSession(graph.read_bytes(), graph.name, threads=job["threads"])


def _load_openvino(job: dict[str, Any]) -> Session:
    from blsgan.runtimes.openvino import OpenVinoSession

    graph = Path(job["graph"])
    batch, height, width = job["size"]
    return OpenVinoSession(
        graph.read_bytes(),
        graph.name,
        threads=job["threads"],
        precision=_OPENVINO_HINTS[job["precision"]],
        shapes={"image": (batch, 1, height, width), "masks": (batch, 2, height, width)},
    )


def _load_engine(job: dict[str, Any]) -> Session:
    from blsgan.runtimes.engine import EngineSession

    return EngineSession(job["graph"])


_LOADERS: dict[str, Callable[[dict[str, Any]], Session]] = {
    "torch": _load_torch,
    "torch.compile": _load_torch,
    "ONNX Runtime": _load_onnxruntime,
    "OpenVINO": _load_openvino,
    "TensorRT": _load_engine,
}


def engine_variant(path: Path) -> Variant:
    """The variant that runs an engine of TensorRT; raises what reading its manifest raises."""
    from blsgan.runtimes.manifest import read_manifest

    manifest = read_manifest(path)
    package = "tensorrt" if manifest.backend == "tensorrt" else "tensorrt_rtx"
    return Variant("TensorRT", manifest.precision, package, str(path.absolute()))


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    return {
        "cpu": processor(),
        "cores": str(os.cpu_count()),
        "load_average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def markdown(rows: Sequence[InferenceTiming]) -> str:
    """The table for docs: one line for each row that has figures, then what has none."""
    lines = [
        "| model | runtime | batch | p50 ms | p99 ms | joints/s | x torch | PSNR dB | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    missing = []
    for row in rows:
        if row.p50_ms is None:
            missing.append(f"{row.runtime} {row.precision}, batch {row.batch}: {row.note}")
            continue
        psnr = "" if row.psnr_db is None else f"{row.psnr_db:.1f}"
        ratio = "" if row.times_torch is None else f"{row.times_torch:.2f}"
        lines.append(
            f"| {row.model} | {row.runtime} {row.precision} | {row.batch} | {row.p50_ms:.1f} | "
            f"{row.p99_ms:.1f} | {row.joints_per_s:.1f} | {ratio} | {psnr} | {row.peak_mb:.0f} |"
        )
    if missing:
        lines += ["", "Not measured: " + "; ".join(missing) + "."]
    return "\n".join(lines) + "\n"
