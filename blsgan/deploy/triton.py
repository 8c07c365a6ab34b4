"""A model repository for NVIDIA Triton Inference Server: config.pbtxt and version 1 of the model.

``REPO/NAME/config.pbtxt`` and ``REPO/NAME/1/model.onnx`` (or ``model.plan``). Requests hold single
joints, image [1,H,W] and masks [2,H,W]; the server puts those of one size that arrive within
``max_delay_us`` into one batch. The configuration follows Triton's ``model_config.proto``.

Beside it, on request, ``REPO/NAME-radiograph``: a model of Triton's Python backend that takes whole
radiographs and asks the first one (:mod:`blsgan.deploy.serving`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blsgan.deploy import serving
from blsgan.errors import BackendError, InputError, UsageError
from blsgan.io.atomic import atomic_paths
from blsgan.io.files import read_file
from blsgan.runtimes.onnx_model import PREFIX, refuse_external_data

MAX_BATCH = 32
MAX_DELAY_US = 2000
"""How long a request waits for others: far less than a joint takes on a CPU."""

_VERSION = "1"
_CHANNELS = {
    "image": 1,
    "masks": 2,
    "layers": 2,
    "reconstruction": 1,
    "soft_tissue": 1,
    "share_logits": 2,
}
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bool": "TYPE_BOOL"}
_MODEL_PY = """# Written by blsgan, which Triton's Python needs.
from blsgan.deploy.serving import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""

Shape = tuple[int, ...]
"""Sizes of a tensor, the batch first; -1 where a size is free."""


@dataclass(frozen=True)
class Port:
    """One input or output of a model: ``dtype`` by its NumPy name."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Served:
    """What the configuration needs to know of a model.

    Attributes:
        platform: Triton's word for what runs it.
        file_name: what the file must be called inside the repository.
        inputs, outputs: its ports; all of them batched, or none.
        facts: written into the configuration as parameters.
        max_batch: the largest batch it takes, or None where it names none.
    """

    platform: str
    file_name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    facts: Mapping[str, str]
    max_batch: int | None = None


def write_repository(
    model: Path,
    repository: Path,
    *,
    name: str | None = None,
    max_batch: int = MAX_BATCH,
    max_delay_us: int = MAX_DELAY_US,
    radiographs: bool = False,
) -> list[Path]:
    """Put ``model`` into ``repository``; an older version 1 of that name is replaced.

    Args:
        model: ``.onnx``, or an engine of TensorRT with its manifest (``.engine.json``) beside it.
        repository: the folder that ``tritonserver --model-repository`` is given.
        name: what clients ask for; default: the file's name.
        max_batch: joints in one batch; an engine's profile may allow fewer.
        max_delay_us: microseconds that a request waits for others.
        radiographs: whether ``NAME-radiograph`` is written, too.

    Raises:
        UsageError: a name or number that cannot be.
        InputError: a file that is no model, or an engine that Triton does not run.
        WeightsError: an engine whose manifest is missing or describes another one.
        OutputError: the repository cannot be written.
    """
    name = model.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"model name {name!r} will not do in addresses; use letters, digits, '_', '-' and '.'."
        )
    if max_batch < 1:
        raise UsageError(f"the largest batch is {max_batch}; give a whole number from 1 on.")
    if max_delay_us < 0:
        raise UsageError(f"the delay is {max_delay_us} microseconds; give 0 or more.")
    served, data = (_describe_plan if model.suffix == ".engine" else _describe_onnx)(model)
    text = configuration(served, name, max_batch=max_batch, max_delay_us=max_delay_us)
    contents = {
        repository / name / _VERSION / served.file_name: data,
        repository / name / "config.pbtxt": text.encode(),
    }
    if radiographs:
        _check_free(model, served)
        whole = f"{name}-radiograph"
        limit = min(max_batch, served.max_batch or max_batch)
        contents[repository / whole / _VERSION / "model.py"] = _MODEL_PY.encode()
        contents[repository / whole / "config.pbtxt"] = _of_radiographs(
            whole, {**served.facts, serving.NETWORK: name, serving.BATCH: str(limit)}
        ).encode()
    with atomic_paths(list(contents)) as temporaries:
        for file, content in zip(temporaries, contents.values(), strict=True):
            file.write_bytes(content)
    return list(contents)


def _check_free(model: Path, served: Served) -> None:
    if served.max_batch is not None:  # an engine says itself what is outside its profile
        return
    for port in served.inputs:
        if any(size != -1 for size in (port.shape[0], *port.shape[2:])):
            raise InputError(
                f"{model} takes {port.name} of {list(port.shape)} alone, and overlaps have many "
                "sizes; export it without --batch and --size."
            )


def _of_radiographs(name: str, facts: Mapping[str, str]) -> str:
    """``config.pbtxt`` of the Python backend: one radiograph in each request."""

    def port(field: str, name: str, dtype: str, bones: int = 1) -> str:
        sizes = [bones, -1, -1] if bones > 1 else [-1, -1]
        return f"{field} {{ name: {_quoted(name)} data_type: {_TYPES[dtype]} dims: {sizes} }}"

    inputs = [port("input", each, *given) for each, given in serving.INPUTS.items()]
    outputs = [
        port("output", each, "bool" if each == "zone" else "float32") for each in serving.OUTPUTS
    ]
    lines = [
        f"name: {_quoted(name)}",
        'backend: "python"',
        "max_batch_size: 0",
        *inputs,
        *outputs,
        "instance_group { kind: KIND_CPU }",
        *_parameters(facts),
    ]
    return "\n".join(lines) + "\n"


def configuration(served: Served, name: str, *, max_batch: int, max_delay_us: int) -> str:
    """The content of ``config.pbtxt``, in protobuf's text format."""
    ports = (*served.inputs, *served.outputs)
    batched = all(port.shape and port.shape[0] == -1 for port in ports)
    limit = min(max_batch, served.max_batch or max_batch)
    lines = [
        f"name: {_quoted(name)}",
        f"platform: {_quoted(served.platform)}",
        f"max_batch_size: {limit if batched else 0}",
        *(
            _port(field, port, batched)
            for field, group in (("input", served.inputs), ("output", served.outputs))
            for port in group
        ),
    ]
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {max_delay_us} }}")
    lines += _parameters(served.facts)
    return "\n".join(lines) + "\n"


def _parameters(facts: Mapping[str, str]) -> list[str]:
    return [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in sorted(facts.items())
    ]


def _port(field: str, port: Port, batched: bool) -> str:
    sizes = port.shape[1:] if batched else port.shape
    # A tensor of one value for each joint is [B] in the model; the server's must have a size more.
    shape = "dims: [1] reshape { shape: [] }" if not sizes else f"dims: {list(sizes)}"
    return f"{field} {{ name: {_quoted(port.name)} data_type: {_TYPES[port.dtype]} {shape} }}"


def _quoted(text: str) -> str:
    return json.dumps(text)  # ASCII with escapes that protobuf's text format shares


def _describe_onnx(path: Path) -> tuple[Served, bytes]:
    try:
        import onnx
    except ImportError as error:
        raise BackendError("onnx is not installed; pip install 'blsgan[engine]'.") from error

    data = read_file(path, what="model").data
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, and the checker's own
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"{path} is not an ONNX model ({reason}); export it again.") from error
    refuse_external_data(path, data)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    return Served(
        "onnxruntime_onnx",
        "model.onnx",
        _onnx_ports(path, model.graph.input),
        _onnx_ports(path, model.graph.output),
        _facts(facts, data),
    ), data


def _onnx_ports(path: Path, ports: Sequence[Any]) -> tuple[Port, ...]:
    from onnx import helper

    found = []
    for port in ports:
        tensor = port.type.tensor_type
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if dtype not in _TYPES:
            raise InputError(f"{path} has a port {port.name} of type {dtype}; export it again.")
        sizes = tuple(
            size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim
        )
        found.append(Port(port.name, dtype, sizes))
    return tuple(found)


def _facts(known: Mapping[str, str], data: bytes) -> dict[str, str]:
    """What tells a served model's origin: the weights it came from and its own hash."""
    wanted = (
        *("weights", "weights_sha256", "architecture", "precision"),
        *("size_multiple", "law", "reach_px"),
    )
    facts = {f"{PREFIX}{key}": known[f"{PREFIX}{key}"] for key in wanted if PREFIX + key in known}
    return {**facts, "blsgan.model_sha256": hashlib.sha256(data).hexdigest()}


def _describe_plan(path: Path) -> tuple[Served, bytes]:
    from blsgan.deploy.export import OUTPUTS
    from blsgan.runtimes.manifest import read_manifest, read_plan

    manifest = read_manifest(path)
    data = read_plan(path, manifest)
    if manifest.backend != "tensorrt":
        raise InputError(
            f"{path} is an engine of {manifest.backend}, which Triton does not run; build it with "
            "--backend tensorrt, or serve the .onnx file."
        )
    least, most = manifest.profile["image"].min, manifest.profile["image"].max
    if least[0] > 1 and least[0] != most[0]:
        raise InputError(
            f"{path} takes batches of {least[0]} to {most[0]} joints, and Triton's may have one; "
            f"build it with --batch 1 {least[0]} {most[0]}."
        )
    batch, _, height, width = (
        low if low == high else -1 for low, high in zip(least, most, strict=True)
    )

    def port(name: str) -> Port:
        return Port(name, "float32", (batch, _CHANNELS[name], height, width))

    known = {
        "blsgan.weights": manifest.model.weights,
        "blsgan.weights_sha256": manifest.model.weights_sha256,
        "blsgan.precision": manifest.precision,
        "blsgan.architecture": manifest.model.architecture,
        "blsgan.size_multiple": str(manifest.model.size_multiple),
        "blsgan.law": str(manifest.model.law),
        "blsgan.reach_px": str(manifest.model.reach_px),
    }
    return Served(
        "tensorrt_plan",
        "model.plan",
        (port("image"), port("masks")),
        tuple(port(name) for name in OUTPUTS),
        _facts(known, data),
        most[0],
    ), data
