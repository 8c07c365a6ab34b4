"""An engine from an exported model: convert, judge, build, and say what was done.

The precision is in the graph (:mod:`blsgan.deploy.precision`) and the network strongly typed, so
the builder decides nothing about it, and one path serves TensorRT 10, TensorRT 11 and TensorRT-RTX;
what one of them lacks is asked for with ``hasattr``. TensorRT builds for the GPU it runs on;
TensorRT-RTX builds without one for any compute capability it knows.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from blsgan import __version__
from blsgan.deploy.lowering import Listener, Samples, Silent, lower, samples_for
from blsgan.deploy.model import ExportedModel, load_exported
from blsgan.deploy.precision import layer_precisions, modelopt_missing
from blsgan.deploy.samples import Sample
from blsgan.errors import BackendError, BlsganError, UsageError
from blsgan.io.atomic import atomic_path, atomic_paths, check_writable_folder
from blsgan.io.files import read_file
from blsgan.runtimes.gpu import Gpu, this_gpu
from blsgan.runtimes.libraries import Library, load
from blsgan.runtimes.manifest import (
    DEFAULT_BATCH,
    DEFAULT_HEIGHT,
    DEFAULT_WIDTH,
    SCHEMA,
    SUFFIX,
    Manifest,
    Model,
    Profile,
    manifest_path,
    numbers,
    read_manifest,
)

MIN_OPT_MAX = tuple[int, int, int]
DEFAULT_WORKSPACE = 2 * 2**30

AMPERE_AND_NEWER = "ampere+"
_LEVELS = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
"""Modes of compatibility with other GPUs; a mode costs speed, which only the GPU can tell."""
_VERSIONS = "VERSION_COMPATIBLE"

LEAST_CAPABILITY = {"bf16": "8.0", "fp8": "8.9"}
"""Compute capability from which on a GPU has arithmetic of that precision."""


@dataclass(frozen=True)
class Request:
    """What to build.

    Attributes:
        precision, converter: see :func:`blsgan.deploy.precision.convert`.
        backend: "tensorrt" or "tensorrt-rtx".
        batch, height, width: least, best and largest; None: as the model has them fixed, or the
            defaults.
        compute_capabilities: such as ("8.6",), or "ampere+" for all from 8.0 on that TensorRT-RTX
            knows; none: of this GPU.
        hardware, version_compatible: of TensorRT, see :class:`blsgan.runtimes.manifest.Manifest`.
        workspace_bytes: most memory one layer may use while it runs.
        timing_cache: a file of measured kernels that is read and extended, so that the next build
            is quicker (TensorRT; TensorRT-RTX measures nothing).
        calibration_data: the public dataset to calibrate and judge on; None: phantoms.
        force: write an engine that failed its gate, marked.
        rebuild: build also what is there already.
    """

    precision: str = "fp32"
    converter: str = "auto"
    backend: str = "tensorrt"
    batch: MIN_OPT_MAX | None = None
    height: MIN_OPT_MAX | None = None
    width: MIN_OPT_MAX | None = None
    compute_capabilities: tuple[str, ...] = ()
    hardware: str = "none"
    version_compatible: bool = False
    workspace_bytes: int = DEFAULT_WORKSPACE
    timing_cache: Path | None = None
    calibration_data: Path | None = None
    force: bool = False
    rebuild: bool = False


@dataclass(frozen=True)
class Built:
    """The engine, its manifest, and whether it was there already."""

    engine: Path
    manifest: Manifest
    cached: bool


def build_engine(
    model: os.PathLike[str] | str,
    output: Path,
    request: Request,
    *,
    progress: Listener | None = None,
    threads: int | None = None,
) -> Built:
    """Build ``output`` and its manifest from an exported model, unless they are there already.

    Raises:
        UsageError: options that do not fit each other or the model.
        InputError: the model or the calibration data cannot be used.
        BackendError: the builder is not installed, cannot build for that GPU, or fails.
        ParityError: the precision failed its gate; the message has the figures.
        OutputError: a file cannot be written.
    """
    progress = progress or Silent()
    if output.suffix != SUFFIX:
        raise UsageError(f"{output} does not end in {SUFFIX}; name the engine like that.")
    check_writable_folder(output.parent)
    if request.timing_cache is not None:
        _check_timing_cache(request.timing_cache)
    exported = load_exported(model)
    profile = shapes(exported, request)
    library = load(request.backend)
    gpu, capabilities = _targets(library, request)
    samples = samples_for(exported, request.precision, request.calibration_data)
    key = build_key(exported, request, profile, library, gpu, capabilities, *samples)
    if not request.rebuild and (found := _finished(output, key, request)) is not None:
        return Built(output, found, cached=True)

    converted, verdict = lower(
        exported,
        request.precision,
        samples,
        output,
        converter=request.converter,
        force=request.force,
        threads=threads,
        progress=progress,
    )
    progress.step(f"building by {request.backend} {library.version}")
    started = time.perf_counter()
    plan = _build(library, converted.data(), profile, capabilities, request)
    fields = {
        "schema": SCHEMA,
        "blsgan": __version__,
        "engine": output.name,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "bytes": len(plan),
        "key": key,
        "model": Model(
            file=exported.path.name,
            sha256=exported.sha256,
            converted_sha256=hashlib.sha256(converted.data()).hexdigest(),
            weights=exported.metadata["weights"],
            weights_sha256=exported.metadata["weights_sha256"],
            architecture=exported.metadata["architecture"],
            size_multiple=exported.size_multiple,
            law=exported.law,
            reach_px=exported.reach_px,
        ),
        "precision": converted.precision,
        "converter": converted.converter,
        "calibration": converted.calibration,
        "layers": layer_precisions(converted.model),
        "gate": verdict.as_dict(),
        "forced": not verdict.passed,
        "backend": request.backend,
        "backend_version": library.version,
        "compute_capabilities": list(capabilities),
        "gpu": gpu.name if gpu is not None else None,
        "hardware": request.hardware,
        "version_compatible": request.version_compatible,
        "profile": profile,
        "workspace_bytes": request.workspace_bytes,
        "build_seconds": round(time.perf_counter() - started, 3),
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    manifest = Manifest.model_validate(fields)
    with atomic_paths([output, manifest_path(output)]) as (binary, text):
        binary.write_bytes(plan)
        text.write_text(manifest.text(), encoding="utf-8")
    return Built(output, manifest, cached=False)


def shapes(model: ExportedModel, request: Request) -> dict[str, Profile]:
    """The profile of both inputs; raises :class:`UsageError` for one the model cannot take."""
    height, width = model.size or (None, None)
    sides = [
        _range("--batch", request.batch, model.batch, DEFAULT_BATCH, 1, model),
        _range("--height", request.height, height, DEFAULT_HEIGHT, model.size_multiple, model),
        _range("--width", request.width, width, DEFAULT_WIDTH, model.size_multiple, model),
    ]
    return {
        name: Profile(
            **{
                place: (sides[0][index], channels, sides[1][index], sides[2][index])
                for index, place in enumerate(("min", "opt", "max"))
            }
        )
        for name, channels in (("image", 1), ("masks", 2))
    }


def _range(
    option: str,
    asked: MIN_OPT_MAX | None,
    fixed: int | None,
    default: MIN_OPT_MAX,
    multiple: int,
    model: ExportedModel,
) -> MIN_OPT_MAX:
    if fixed is not None:
        if asked is not None and asked != (fixed, fixed, fixed):
            raise UsageError(
                f"{model.path} was exported with {fixed} for {option}; leave the option out, or "
                "export with free sizes."
            )
        return fixed, fixed, fixed
    low, best, high = asked or default
    if not 1 <= low <= best <= high:
        raise UsageError(f"{option} {low} {best} {high} must be three rising numbers from 1 on.")
    if any(value % multiple or value < 2 * multiple for value in (low, best, high) if multiple > 1):
        raise UsageError(
            f"{option} {low} {best} {high}: {model.metadata['architecture']} takes multiples of "
            f"{multiple} from {2 * multiple} on."
        )
    return low, best, high


def build_key(
    model: ExportedModel,
    request: Request,
    profile: dict[str, Profile],
    library: Library,
    gpu: Gpu | None,
    capabilities: Sequence[str],
    calibration: Samples,
    judged_on: Samples,
) -> str:
    """A digest of everything that decides an engine: a finished one with it need not be built."""
    data = "phantoms"  # of this version of blsgan
    if request.precision == "fp32":
        data = "none"
    elif request.calibration_data is not None:
        data = _content([*calibration(), *judged_on()])
    decides = {
        "blsgan": __version__,
        "model": model.sha256,
        "precision": request.precision,
        "converter": [request.converter, modelopt_missing() is None],
        "data": data,
        "backend": [library.flavour.name, library.version],
        "gpu": gpu.name if gpu is not None else None,
        "capabilities": list(capabilities),
        "profile": {name: shape.model_dump() for name, shape in profile.items()},
        "workspace": request.workspace_bytes,
        "compatible": [request.hardware, request.version_compatible],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _finished(output: Path, key: str, request: Request) -> Manifest | None:
    """The manifest of an engine that is there, whole and what would be built; else None."""
    try:
        manifest = read_manifest(output)
        whole = read_file(output, what="engine").sha256 == manifest.sha256
    except BlsganError:  # missing or damaged: built again
        return None
    if manifest.key != key or not whole or (manifest.forced and not request.force):
        return None
    return manifest


def _targets(library: Library, request: Request) -> tuple[Gpu | None, tuple[str, ...]]:
    """The GPU that kernels are timed on, and the capabilities that the engine runs on."""
    gpu, capabilities = _gpu_and_capabilities(library, request)
    least = LEAST_CAPABILITY.get(request.precision)
    for capability in capabilities:
        if least is not None and numbers(capability) < numbers(least):
            raise UsageError(
                f"compute capability {capability} has no {request.precision}, which begins with "
                f"{least}; take fp16 or int8."
            )
    return gpu, capabilities


def _gpu_and_capabilities(library: Library, request: Request) -> tuple[Gpu | None, tuple[str, ...]]:
    asked = request.compute_capabilities
    known = _known_capabilities(library.module)
    if known is None:  # TensorRT: for the GPU it runs on, and those that its modes add
        gpu = this_gpu()
        _check_modes(library, request, gpu)
        if asked and asked != (gpu.compute_capability,):
            raise BackendError(
                f"{request.backend} builds for the GPU it runs on, which is {gpu.name} with "
                f"compute capability {gpu.compute_capability}, not for {', '.join(asked)}; build "
                "on that device, or take --backend tensorrt-rtx."
            )
        return gpu, (gpu.compute_capability,)
    if request.hardware != "none" or request.version_compatible:
        raise UsageError(
            f"{request.backend} has no --hardware and no --version-compatible; name the GPUs by "
            "--compute-capability."
        )
    if not asked:
        gpu = this_gpu()
        asked = (gpu.compute_capability,)
    ampere = [capability for capability in known if numbers(capability) >= (8, 0)]
    asked = tuple(one for name in asked for one in (ampere if name == AMPERE_AND_NEWER else [name]))
    if "7.5" in asked and len(set(asked)) > 1:
        raise UsageError("compute capability 7.5 is built for apart; give it alone.")
    for capability in asked:
        if capability not in known:
            raise UsageError(
                f"{request.backend} {library.version} does not build for compute capability "
                f"{capability}, only for {', '.join(known)}; take --backend tensorrt on that "
                "device."
            )
    return None, tuple(dict.fromkeys(asked))


def _check_modes(library: Library, request: Request, gpu: Gpu) -> None:
    """Whether this TensorRT has the modes of compatibility that were asked for, and this GPU."""
    level = _LEVELS.get(request.hardware)
    levels = getattr(library.module, "HardwareCompatibilityLevel", None)
    if level is not None and not hasattr(levels, level):
        raise BackendError(
            f"{request.backend} {library.version} has no --hardware {request.hardware}; leave it "
            "out."
        )
    if request.hardware == "ampere+" and numbers(gpu.compute_capability) < (8, 0):
        raise UsageError(
            f"--hardware ampere+ begins with compute capability 8.0, and {gpu.name} has "
            f"{gpu.compute_capability}; build it on a newer GPU."
        )
    if request.version_compatible and not hasattr(library.module.BuilderFlag, _VERSIONS):
        raise BackendError(
            f"{request.backend} {library.version} has no --version-compatible; leave it out."
        )


def _known_capabilities(module: Any) -> dict[str, Any] | None:
    """Capability -> enum member, where the library builds for GPUs that are not there."""
    if not hasattr(module, "ComputeCapability"):
        return None
    members = module.ComputeCapability.__members__
    return {
        f"{name[2:-1]}.{name[-1]}": member
        for name, member in members.items()
        if name.startswith("SM") and name[2:].isdigit()
    }


def _content(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for array in (sample.image, sample.masks, sample.layers):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# ---- the builder ----


def _build(
    library: Library,
    graph: bytes,
    profile: dict[str, Profile],
    capabilities: Sequence[str],
    request: Request,
) -> bytes:
    """The plan's bytes. Every object is kept in a name: a parser does not keep its network."""
    trt = library.module
    library.messages.clear()
    builder = trt.Builder(library.logger)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(graph):
        errors = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise BackendError(
            f"{request.backend} {library.version} cannot read the {request.precision} model "
            f"({(errors or [library.last_error()])[0][:200]})."
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    # float32 means float32: TensorFloat-32 keeps 10 bits of the mantissa and is on by default.
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt, "ProfilingVerbosity"):  # so that `blsgan inspect` can name each layer
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    known = _known_capabilities(trt)
    if known is not None:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(known[capability], index)
    if request.hardware != "none":
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, _LEVELS[request.hardware]
        )
    if request.version_compatible:
        config.set_flag(getattr(trt.BuilderFlag, _VERSIONS))
    ranges = builder.create_optimization_profile()
    for name, shape in profile.items():
        ranges.set_shape(name, shape.min, shape.opt, shape.max)
    config.add_optimization_profile(ranges)
    cache = _timing_cache(config, request.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(
            f"{request.backend} {library.version} could not build the {request.precision} engine "
            f"({library.last_error()})."
        )
    if cache is not None and request.timing_cache is not None:
        with atomic_path(request.timing_cache) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    return bytes(plan)


def _creation_flags(trt: Any) -> int:
    """Strongly typed, where that is a choice (TensorRT 11 keeps the flag and ignores it)."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _check_timing_cache(path: Path) -> None:
    """Refuses, before minutes of building, a file that could not be read or written after them."""
    check_writable_folder(path.parent)
    _read_timing_cache(path)


def _read_timing_cache(path: Path) -> bytes:
    """What it holds; nothing where it is not there yet or still empty."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return b""
    return read_file(path, what="timing cache").data


def _timing_cache(config: Any, path: Path | None) -> Any:
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    # A cache of another GPU or version is refused; the build then starts one of its own.
    for content in (_read_timing_cache(path), b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None
