"""A model that takes weights from other files is refused before any runtime has it."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import blsgan
from blsgan.errors import WeightsError
from blsgan.runtimes import onnx_model
from blsgan.runtimes.onnx_model import refuse_external_data
from blsgan.tasks.backend import create

NAMES = {
    "ModelProto": "Model", "TrainingInfoProto": "TrainingInfo", "FunctionProto": "Function",
    "GraphProto": "Graph", "NodeProto": "Node", "AttributeProto": "Attribute",
    "SparseTensorProto": "SparseTensor", "TensorProto": "Tensor",
}  # fmt: skip


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def places(location: str) -> dict[str, onnx.ModelProto]:
    """A model for each place where a tensor can stand."""
    port = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])]

    def model(nodes=(), tensors=()):
        graph = helper.make_graph(list(nodes), "g", port, port, list(tensors))
        return helper.make_model(graph)

    tensor = external(location)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [])
    sparse = onnx.SparseTensorProto(values=tensor)
    found = {
        "initializer": model(tensors=[tensor]),
        "attribute": model([constant]),
        "list": model([helper.make_node("Custom", [], [], all=[tensor])]),
        "branch": model([helper.make_node("If", ["x"], ["y"], then_branch=inner)]),
        "branches": model([helper.make_node("Custom", [], [], all=[inner])]),
        "sparse": model([helper.make_node("Constant", [], ["w"], sparse_value=sparse)]),
        "function": model(),
        "training": model(),
        "sparse initializer": model(),
    }
    found["function"].functions.add().node.append(constant)
    found["training"].training_info.add().algorithm.CopyFrom(inner)
    found["sparse initializer"].graph.sparse_initializer.append(sparse)
    return found


def test_every_way_to_a_tensor_is_known():
    """Also those of the newest release of the format."""
    ways, waiting, seen = {}, [onnx.ModelProto.DESCRIPTOR], set()
    while waiting:
        message = waiting.pop()
        if message.name in seen:
            continue
        seen.add(message.name)
        for field in message.fields:
            if field.message_type is not None and reaches_tensor(field.message_type, set()):
                ways.setdefault(message.name, {})[field.number] = field.message_type.name
                waiting.append(field.message_type)
    known = {
        name: {number: {v: k for k, v in NAMES.items()}[inner] for number, inner in fields.items()}
        for name, fields in ((full, onnx_model._FIELDS[short]) for full, short in NAMES.items())
        if fields
    }
    assert ways == known
    tensor = TensorProto.DESCRIPTOR.fields_by_name
    assert tensor["external_data"].number == onnx_model._EXTERNAL_DATA
    assert tensor["data_location"].number == onnx_model._DATA_LOCATION


def reaches_tensor(message, seen: set[str]) -> bool:
    if message.name == "TensorProto":
        return True
    if message.name in seen:
        return False
    seen.add(message.name)
    return any(
        field.message_type is not None and reaches_tensor(field.message_type, seen)
        for field in message.fields
    )


@pytest.mark.parametrize("place", sorted(places("w.bin")))
def test_a_tensor_in_another_file_is_refused(place):
    data = places("w.bin")[place].SerializeToString()
    with pytest.raises(WeightsError, match=r"m\.onnx keeps tensors in other files"):
        refuse_external_data("m.onnx", data)


def test_what_ships_and_what_tests_write_is_let_through(network):
    for path in (network, *Path(blsgan.__file__).parent.glob("weights/*.onnx")):
        refuse_external_data(path, path.read_bytes())


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("absolute", [True, False])
def test_no_runtime_reads_another_file(network, tmp_path, monkeypatch, backend, absolute):
    model = onnx.load(network)
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "w.bin")
    (tmp_path / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    if absolute:
        next(e for e in tensor.external_data if e.key == "location").value = str(tmp_path / "w.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="keeps tensors in other files"):
        create(backend, tmp_path / "m.onnx")


def test_damaged_models_are_judged_without_a_crash():
    """A verdict or a sentence; what protobuf reads as external is never let through."""
    whole = places("w.bin")["branch"].SerializeToString()
    draw = random.Random(5)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(data))
            if draw.random() < 0.3:
                del data[at : at + draw.randint(1, 8)]
            else:
                data[at] = draw.randrange(256)
        try:
            refuse_external_data("m.onnx", bytes(data))
        except WeightsError:
            continue
        try:
            model = onnx.load_model_from_string(bytes(data))
        except Exception:
            continue
        assert not any(
            tensor.external_data or tensor.data_location == TensorProto.EXTERNAL
            for tensor in onnx.external_data_helper._get_all_tensors(model)
        )


def test_text_and_other_formats_are_no_models():
    for data in (b"", b"<net name='x' version='11'/>", b"\x18\x00\x00\x00ORTM" * 9, bytes(64)):
        with pytest.raises(WeightsError, match="no ONNX model"):
            refuse_external_data("m.onnx", data)
