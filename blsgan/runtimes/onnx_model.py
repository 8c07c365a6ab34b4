"""What an ONNX model says of itself, and what it may not do: take weights from other files.

The format lets a tensor name a file, by an absolute path if it likes, that the runtime then reads.
What was hashed would not be what runs, and a model from elsewhere could read any file. blsgan has
each model's bytes in its hand before a runtime gets them, and refuses such ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from blsgan.errors import WeightsError

# The way to every tensor, by the numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto:
# a message's fields and the message each holds.
_FIELDS = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor",
                  23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}  # fmt: skip
_GRAPH, _EXTERNAL_DATA, _DATA_LOCATION = 7, 13, 14
_METADATA, _KEY, _VALUE = 14, 1, 2  # of a model, and of each of its entries
PREFIX = "blsgan."
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def refuse_external_data(path: os.PathLike[str] | str, data: bytes) -> None:
    """Raise :class:`WeightsError` unless ``data`` is an ONNX model that holds all its tensors.

    ``path`` is only named. Reads the file's structure and none of its tensors.
    """
    try:
        external = _has_external_data(data)
    except (IndexError, ValueError):
        raise WeightsError(
            f"{path} is not a network that can be run (it is no ONNX model, or a damaged one); "
            "give another one."
        ) from None
    if external:
        raise WeightsError(
            f"{path} keeps tensors in other files, which its hash does not cover and which could "
            "be any file; save it with its weights inside."
        )


def metadata(data: bytes) -> dict[str, str]:
    """What blsgan wrote into an ONNX model about itself, keys without their prefix ``blsgan.``.

    Raises IndexError or ValueError for what is no ONNX model.
    """
    entries = {}
    for number, wire, first, last in _fields(data, 0, len(data)):
        if number == _METADATA and wire == _BYTES:
            parts = {n: data[a:b] for n, w, a, b in _fields(data, first, last) if w == _BYTES}
            key = parts.get(_KEY, b"").decode("utf-8", "replace")
            if key.startswith(PREFIX):
                value = parts.get(_VALUE, b"").decode("utf-8", "replace")
                entries[key.removeprefix(PREFIX)] = value
    return entries


def _has_external_data(data: bytes) -> bool:
    """Raises IndexError or ValueError for what is no ONNX model."""
    waiting, graphs = [("Model", 0, len(data))], 0
    while waiting:
        message, start, end = waiting.pop()
        inner = _FIELDS[message]
        for number, wire, first, last in _fields(data, start, end):
            if message == "Tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION):
                # Of a location, first is its value: 0 is the model itself.
                if number == _EXTERNAL_DATA or wire != _VARINT or first & 0xFFFFFFFF:
                    return True
            elif wire == _BYTES and number in inner:
                waiting.append((inner[number], first, last))
                graphs += message == "Model" and number == _GRAPH
    if not graphs:
        raise ValueError("no graph")
    return False


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field of a message of protobuf: number, wire type, start and end of its bytes.

    Of a whole number (wire type 0) the value instead of the start.
    """
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        first = at
        if wire == _VARINT:
            first, at = _varint(data, at)
        elif wire == _BYTES:
            size, first = _varint(data, at)
            at = first + size
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at > end or not 0 < number < 1 << 29:
            raise ValueError("a field has no number, or ends beyond its message")
        yield number, wire, first, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")
