"""What is inside weights, an ONNX model or an engine: inputs and outputs, precisions, sizes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from blsgan.errors import BackendError, InputError, WeightsError
from blsgan.io.files import read_file
from blsgan.runtimes.onnx_model import refuse_external_data


def inspect_file(path: Path) -> dict[str, Any]:
    """Facts of a weights card, ``.safetensors``, ``.onnx`` or ``.engine`` file, as JSON types.

    Keys of every kind: ``kind``, ``file``, ``bytes``, ``sha256``. An engine is described by its
    manifest, so that neither a GPU nor TensorRT is needed.

    Raises:
        InputError: the file is missing, of another kind, or a model that is damaged or not of this
            package.
        WeightsError: it is a card, weights or an engine that is damaged or not of this package.
        BackendError: a package that reads it is not installed.
    """
    readers = {
        ".json": _card,
        ".safetensors": _safetensors,
        ".onnx": _onnx,
        ".engine": _engine,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise InputError(
            f"{path} is neither weights (.json, .safetensors), a model (.onnx) nor an engine "
            "(.engine); name one of those."
        )
    file = read_file(path, what="file")
    facts = {"file": str(path), "bytes": len(file.data), "sha256": file.sha256}
    return {**reader(path, file.data), **facts}


def _card(path: Path, data: bytes) -> dict[str, Any]:
    from blsgan.tasks.task import find_weights

    weights = find_weights(path)
    files = {}
    for part in (weights.safetensors, weights.onnx):
        if part is not None and part.exists():
            try:
                size: int | None = len(weights.load(part).data)
                problem = None
            except WeightsError as error:
                size, problem = None, str(error)
            files[part.name] = {"bytes": size, "problem": problem}
    fields = json.loads(data)
    if weights.architecture is None:
        raise WeightsError(
            f"{path} is not a weights card (it names no architecture); give one that blsgan wrote."
        )
    return {
        "kind": "weights card",
        "name": weights.name,
        "architecture": weights.architecture,
        "parameters": fields.get("parameters"),
        "files": files,
    }


def _safetensors(path: Path, data: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {}
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                part = file.get_slice(name)
                tensors[name] = {"shape": list(part.get_shape()), "type": str(part.get_dtype())}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}).") from error
    try:
        architecture = metadata["architecture"]
        configuration = json.loads(metadata["configuration"])
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not weights of blsgan (its metadata name no architecture and "
            "configuration); give what a training wrote into its folder weights."
        ) from error
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        size = 1
        for side in tensor["shape"]:
            size *= side
        counts[str(tensor["type"])] += size
    return {
        "kind": "weights",
        "architecture": architecture,
        "configuration": configuration,
        "parameters": sum(counts.values()),
        "types": dict(counts),
        "layers": tensors,
    }


def _onnx(path: Path, data: bytes) -> dict[str, Any]:
    try:
        import onnx
    except ImportError as error:
        raise BackendError("onnx is not installed; pip install 'blsgan[engine]'.") from error
    try:
        refuse_external_data(path, data)
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
        facts = _model_facts(model)
    except WeightsError:
        raise
    except Exception as error:  # protobuf's and onnx's exceptions share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"{path} is not a whole ONNX model ({reason}); export or copy it again."
        ) from error
    if not _is_ours(facts):
        raise InputError(
            f"{path} is an ONNX model of something else (it maps {', '.join(facts['inputs'])} to "
            f"{', '.join(facts['outputs'])}); give weights of blsgan or what `blsgan export` wrote."
        )
    return facts


def _is_ours(facts: dict[str, Any]) -> bool:
    """Whether it is a network of one of the tasks, or what ``blsgan export`` made of one."""
    from blsgan.tasks.task import SEGMENTATION, SEPARATION

    return "blsgan.signature" in facts["metadata"] or any(
        set(facts["inputs"]) == set(task.inputs) and set(facts["outputs"]) >= set(task.outputs)
        for task in (SEPARATION, SEGMENTATION)
    )


def _model_facts(model: Any) -> dict[str, Any]:
    from blsgan.deploy.precision import layer_precisions

    graph = model.graph
    weights: Counter[str] = Counter()
    for tensor in graph.initializer:
        weights[_type_name(tensor.data_type)] += _size(tensor)
    return {
        "kind": "model",
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "inputs": {port.name: _port(port) for port in graph.input},
        "outputs": {port.name: _port(port) for port in graph.output},
        "nodes": dict(Counter(node.op_type for node in graph.node).most_common()),
        "weight_bytes": dict(weights),
        "layers": layer_precisions(model),
    }


def _size(tensor: Any) -> int:
    from onnx import numpy_helper

    return len(tensor.raw_data) or int(numpy_helper.to_array(tensor).nbytes)


def _type_name(code: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(code)).lower()


def _port(port: Any) -> dict[str, Any]:
    tensor = port.type.tensor_type
    return {
        "type": _type_name(tensor.elem_type),
        "shape": [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in tensor.shape.dim
        ],
    }


def _engine(path: Path, data: bytes) -> dict[str, Any]:
    import hashlib

    from blsgan.runtimes.manifest import read_manifest

    manifest = read_manifest(path)
    facts = json.loads(manifest.text())
    del facts["sha256"], facts["bytes"], facts["engine"]
    whole = hashlib.sha256(data).hexdigest() == manifest.sha256
    return {
        "kind": "engine",
        "fits_manifest": whole,
        "parity": manifest.parity(),
        **facts,
    }
