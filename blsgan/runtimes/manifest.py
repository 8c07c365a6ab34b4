"""What is known of an engine: ``model.engine.json`` beside ``model.engine``.

A plan is not portable, and a runtime that is given the wrong one may crash instead of refusing it.
So everything that decides lies beside the plan and is compared with this machine before a byte of
it is deserialised. Nothing is glued to the plan itself: NVIDIA's own tools read it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from blsgan.errors import BackendError, WeightsError
from blsgan.runtimes.gpu import Gpu
from blsgan.runtimes.libraries import FLAVOURS, missing

DEFAULT_BATCH = (1, 1, 8)
DEFAULT_HEIGHT = (32, 96, 512)
DEFAULT_WIDTH = (32, 192, 512)
"""Least, best and largest of what a GPU's runtime compiles for: crops of ``Separator`` around
overlaps; in the public dataset 96 x 192 px holds most of them."""

SCHEMA = 1
SUFFIX = ".engine"
_MAX_DB = 1e6


class Profile(BaseModel):
    """The shapes [B,C,H,W] of one input that the engine takes, and those it is fastest at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: tuple[int, int, int, int]
    opt: tuple[int, int, int, int]
    max: tuple[int, int, int, int]

    @model_validator(mode="after")
    def _in_order(self) -> Profile:
        sides = zip((1, 1, 1, 1), self.min, self.opt, self.max, strict=True)
        if any(list(side) != sorted(side) for side in sides):
            raise ValueError("min, opt and max are not whole numbers from 1 in this order")
        return self

    def takes(self, shape: tuple[int, ...]) -> bool:
        return all(a <= b <= c for a, b, c in zip(self.min, shape, self.max, strict=True))


class Model(BaseModel):
    """The ONNX model an engine was built from, and the weights in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str
    converted_sha256: str
    weights: str
    weights_sha256: str
    architecture: str
    size_multiple: int
    law: float
    reach_px: int


class Manifest(BaseModel):
    """One engine.

    Attributes:
        engine: name of the plan's file; ``sha256``, ``bytes``: of it.
        key: digest of all that decides the plan, by which a finished build is recognised.
        model: where it comes from.
        precision, converter, calibration: how the graph was converted.
        layers: name of every convolution and matrix product -> its precision.
        gate: the figures of :class:`blsgan.deploy.gate.Verdict`; it passed, or ``forced``.
        forced: whether it failed the gate and was written all the same.
        backend, backend_version: what built it and alone can run it.
        compute_capabilities: of the GPUs it runs on; ``gpu``: of which it was built on, None where
            it was built without one.
        hardware: other GPUs that it runs on: of compute capability 8.0 and newer ("ampere+"), of
            its own ("same-capability"), or none.
        version_compatible: whether newer versions of its TensorRT's major one run it, too.
        profile: shapes of the inputs.
        workspace_bytes, build_seconds, built: the limit, how long it took, and when (UTC).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: Literal[1] = Field(alias="schema")
    blsgan: str
    engine: str
    sha256: str
    bytes: int
    key: str
    model: Model
    precision: str
    converter: str
    calibration: str | None
    layers: dict[str, str] = Field(default_factory=dict)
    gate: dict[str, Any]
    forced: bool
    backend: Literal["tensorrt", "tensorrt-rtx"]
    backend_version: str
    compute_capabilities: list[str]
    gpu: str | None
    hardware: Literal["none", "ampere+", "same-capability"] = "none"
    version_compatible: bool = False
    profile: dict[Literal["image", "masks"], Profile]
    workspace_bytes: int
    build_seconds: float
    built: str

    @field_validator("profile")
    @classmethod
    def _of_both_inputs(
        cls, profile: dict[Literal["image", "masks"], Profile]
    ) -> dict[Literal["image", "masks"], Profile]:
        if len(profile) != 2:
            raise ValueError("it needs the shapes of image and of masks")
        return profile

    @model_validator(mode="after")
    def _was_judged(self) -> Manifest:
        figures = {key: self.gate.get(key) for key in ("psnr_db", "drop_db")}
        if not all(
            value is None or (type(value) in (int, float) and -_MAX_DB < value < _MAX_DB)
            for value in figures.values()
        ) or (figures["psnr_db"] is not None and figures["drop_db"] is None):
            raise ValueError("gate: psnr_db and drop_db are no figures")
        if type(self.gate.get("passed")) is not bool:
            raise ValueError("gate: it does not say whether it passed")
        if not self.gate["passed"] and not self.forced:
            raise ValueError("gate: it did not pass, and nobody forced it")
        return self

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.model_dump(by_alias=True), indent=2) + "\n"

    def parity(self) -> str:
        """One line about precision and gate."""
        return gate_line(self.precision, self.gate, forced=self.forced)


def gate_line(precision: str, gate: dict[str, Any], *, forced: bool) -> str:
    """One line about a precision and the figures of its gate."""
    if gate.get("psnr_db") is None:
        return f"{precision}, the exported graph itself"
    failed = "; it FAILED its gate and was written with --force" if forced else ""
    return (
        f"{precision}, {gate['psnr_db']:.1f} dB against float32, quality "
        f"{-gate['drop_db']:+.2f} dB{failed}"
    )


def manifest_path(engine: os.PathLike[str] | str) -> Path:
    """``model.engine.json`` for ``model.engine``."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".json")


def runtime_cache_path(engine: os.PathLike[str] | str) -> Path:
    """``model.engine.cache``: kernels that TensorRT-RTX compiled for ``model.engine``."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".cache")


def read_manifest(engine: os.PathLike[str] | str) -> Manifest:
    """The manifest beside ``engine``; raises :class:`WeightsError` when it cannot be read."""
    path = manifest_path(engine)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path} does not exist; without it nobody knows where {Path(engine).name} may run: "
            "copy it along, or build the engine again."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not a readable manifest; build the engine again.") from error
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
        raise WeightsError(
            f"{path} is not a manifest of this version of blsgan ({problem}); build the engine "
            "again."
        ) from error


def read_plan(engine: os.PathLike[str] | str, manifest: Manifest) -> bytes:
    """The plan's bytes; raises :class:`WeightsError` when they are not the manifest's."""
    path = Path(engine)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}); check the path of the engine."
        ) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != manifest.sha256:
        raise WeightsError(
            f"{path} is not the engine its manifest describes: its SHA-256 is {sha256[:12]}..., "
            f"the manifest says {manifest.sha256[:12]}...; copy both again, or build it again."
        )
    return data


def misfit(manifest: Manifest, *, version: str | None, gpu: Gpu | None) -> str | None:
    """Why an engine cannot run where TensorRT has ``version`` and the GPU is ``gpu``, or None.

    ``version`` is of the manifest's own backend, None where that is not installed; ``gpu`` is None
    where there is none.
    """
    name = FLAVOURS[manifest.backend].name
    if version is None:
        return f"it was built by {name} {manifest.backend_version}, and {missing(name) or name}"
    if not _runs_under(manifest, version):
        return (
            f"it was built by {name} {manifest.backend_version}, and here is {version}; build it "
            "here again"
        )
    if gpu is None:
        return "this machine has no usable NVIDIA GPU"
    if manifest.hardware == "ampere+":
        if numbers(gpu.compute_capability) < (8, 0):
            return (
                f"it was built for compute capability 8.0 and newer, and {gpu.name} has "
                f"{gpu.compute_capability}; build it there"
            )
        return None
    if gpu.compute_capability not in manifest.compute_capabilities:
        return (
            f"it was built for compute capability {', '.join(manifest.compute_capabilities)}, and "
            f"{gpu.name} has {gpu.compute_capability}; build it for that"
        )
    # A TensorRT plan holds kernels that were timed on one GPU; TensorRT-RTX makes its own on site.
    timed = manifest.backend == "tensorrt" and manifest.hardware == "none"
    if timed and gpu.name != manifest.gpu:
        return f"it was built on {manifest.gpu}, and here is {gpu.name}; build it here again"
    return None


def _runs_under(manifest: Manifest, version: str) -> bool:
    if not manifest.version_compatible:
        return version == manifest.backend_version
    built, here = numbers(manifest.backend_version), numbers(version)
    return built[:1] == here[:1] and built <= here


def numbers(text: str) -> tuple[int, ...]:
    """``10.13.3`` or ``8.7`` in an order."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def check_fits(engine: Path, manifest: Manifest, *, device: int = 0) -> Gpu:
    """Compare an engine with this machine; nothing of the plan is touched.

    Returns:
        The GPU it will run on.

    Raises:
        BackendError: it cannot run here; one sentence says why.
    """
    from blsgan.runtimes.gpu import this_gpu
    from blsgan.runtimes.libraries import load

    version, gpu, reason = None, None, None
    if missing(manifest.backend) is None:
        version = load(manifest.backend).version
    try:
        gpu = this_gpu(device)
    except BackendError as error:
        reason = str(error).rstrip(".")
    problem = misfit(manifest, version=version, gpu=gpu)
    if problem is None and gpu is not None:
        return gpu
    if version is not None and _runs_under(manifest, version) and reason:
        problem = reason
    raise BackendError(f"{engine} cannot run here: {problem}.")
