"""Every precision is really in the graph, the physics is not touched, and the gate has its say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blsgan.deploy import precision as precisions
from blsgan.deploy.gate import LIMITS_DB, judge
from blsgan.deploy.model import load_exported
from blsgan.deploy.parity import OnnxRuntime, overlap_psnr_db
from blsgan.deploy.precision import PRECISIONS, Converted, convert, in_float32, layer_precisions
from blsgan.deploy.samples import phantom_sample, random_sample
from blsgan.errors import BackendError, InputError, UsageError, WeightsError

LOW = {
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "fp8": TensorProto.FLOAT8E4M3FN,
}
PHYSICS = {"Log", "Exp", "Div", "Sigmoid", "Softmax", "ReduceSum", "ReduceMean", "Sub", "Clip"}


@pytest.fixture(scope="module")
def model(exported):
    return load_exported(exported.model)


@pytest.fixture(scope="module")
def converted(model):
    """The exported network in every precision, by what needs no ModelOpt."""
    calibration = [phantom_sample(2, 64, 160, seed) for seed in (1, 3)]
    return {name: convert(model.proto, name, calibration, "builtin") for name in PRECISIONS}


def types_of(model):
    """Element type of every tensor of a model."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for port in (*graph.input, *graph.output, *graph.value_info):
        known[port.name] = port.type.tensor_type.elem_type
    return known


@pytest.mark.parametrize("name", LOW)
def test_the_precision_is_in_the_graph(converted, model, name):
    graph = converted[name].model.graph
    types = types_of(converted[name].model)
    products = [node for node in graph.node if node.op_type in precisions.PRODUCTS]
    assert len(products) == len(layer_precisions(model.proto)) > 15
    kinds = Counter(layer_precisions(converted[name].model).values())
    if name in ("fp16", "bf16"):
        assert kinds == {name: len(products)}
    else:  # the first one and the last one stay float32
        assert kinds == {name: len(products) - 2, "fp32": 2}
        assert layer_precisions(converted[name].model)[products[0].name] == "fp32"
        assert layer_precisions(converted[name].model)[products[-1].name] == "fp32"
    stored = Counter()
    for tensor in graph.initializer:
        stored[tensor.data_type] += numpy_helper.to_array(tensor).size
    assert stored[LOW[name]] > 0.7 * sum(stored.values())
    for node in graph.node:
        if node.op_type in PHYSICS:
            floats = [types[port] for port in (*node.input, *node.output) if port]
            assert LOW[name] not in floats, (node.op_type, node.name)
    ports = {types[port.name] for port in (*graph.input, *graph.output)}
    assert ports == {TensorProto.FLOAT}


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_quantizers_are_as_engine_builders_want_them(converted, name):
    graph = converted[name].model.graph
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type.endswith("QuantizeLinear")]
    quantizers += [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert quantizers
    for node in quantizers:
        assert initializers[node.input[1]].dtype == np.float32
        assert (initializers[node.input[1]] > 0).all()
        assert not initializers[node.input[2]].astype(np.float32).any()  # symmetric
    weights = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in initializers
    ]
    assert len(weights) == sum(
        kind == name for kind in layer_precisions(converted[name].model).values()
    )
    for node in weights:
        assert initializers[node.input[1]].size > 1  # a scale for each channel
    for node in graph.node:
        if node.op_type in precisions.PRODUCTS and len(node.input) > 2:
            assert initializers[node.input[2]].dtype == np.float32  # the bias


def test_metadata_and_opset(converted, model):
    for name, result in converted.items():
        facts = {entry.key: entry.value for entry in result.model.metadata_props}
        assert facts.pop("blsgan.precision") == name
        before = {entry.key: entry.value for entry in model.proto.metadata_props}
        assert facts == {k: v for k, v in before.items() if k != "blsgan.precision"}
        versions = {entry.domain: entry.version for entry in result.model.opset_import}
        assert versions[""] == (22 if name == "bf16" else 20)  # the first with bfloat16 Conv
        assert {node.domain for node in result.model.graph.node} == {""}


@pytest.mark.parametrize("name", LOW)
def test_the_gate_lets_real_conversions_through(converted, model, name):
    verdict = judge(model, converted[name], [phantom_sample(2, 64, 160, 50)], threads=1)
    assert LIMITS_DB[name] <= verdict.psnr_db < 100
    assert verdict.worst_psnr_db <= verdict.psnr_db
    assert verdict.executed.startswith("emulated" if name in ("fp16", "bf16") else "as written")
    assert verdict.joints == 2
    assert verdict.drop_db == pytest.approx(verdict.quality_fp32_db - verdict.quality_db)


def damaged(converted, scale):
    """The same conversion with noise in all its weights."""
    model = onnx.ModelProto()
    model.CopyFrom(converted.model)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor)
            noisy = (values + scale * rng.standard_normal(values.shape)).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    return Converted(model, converted.precision, converted.converter)


def test_the_gate_stops_what_differs_and_what_is_not_finite(converted, model):
    samples = [phantom_sample(1, 64, 160, 60)]
    noisy = judge(model, damaged(converted["fp16"], 0.1), samples, threads=1)
    assert not noisy.passed
    assert noisy.psnr_db < LIMITS_DB["fp16"]
    assert "bar 50" in noisy.sentence()
    broken = judge(model, damaged(converted["fp16"], np.inf), samples, threads=1)
    assert not broken.passed


def test_quality_that_is_lost_fails_by_itself(converted, model, monkeypatch):
    monkeypatch.setattr("blsgan.deploy.gate.MAX_DROP_DB", -1.0)
    verdict = judge(model, converted["fp16"], [phantom_sample(1, 64, 160, 60)], threads=1)
    assert verdict.psnr_db > verdict.limit_db
    assert not verdict.passed


def test_nothing_to_judge(converted, model):
    assert judge(model, converted["fp32"], []).passed
    with pytest.raises(InputError, match="nothing can be judged"):
        judge(model, converted["fp16"], [random_sample(1, 32, 32, 0)], threads=1)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_the_emulation_rounds_after_every_step(name):
    """A chain of two operators on values between two numbers of the type."""
    code = LOW[name]
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=code),
        helper.make_node("Add", ["low", "one"], ["sum"]),
        helper.make_node("Mul", ["sum", "third"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = [
        precisions._low_tensor(numpy_helper.from_array(np.float32(value)), code, given)
        for given, value in (("one", 1.0), ("third", 1 / 3))
    ]
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    emulated = in_float32(model)
    assert {tensor.data_type for tensor in emulated.graph.initializer} == {TensorProto.FLOAT}
    import ml_dtypes
    import onnxruntime

    session = onnxruntime.InferenceSession(
        emulated.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.array([0.001, 0.1234567, 1.7654321, -3.3333333], np.float32)
    dtype = np.float16 if name == "fp16" else ml_dtypes.bfloat16
    low = x.astype(dtype).astype(np.float32)
    total = (low + 1).astype(dtype).astype(np.float32)
    third = np.float32(1 / 3).astype(dtype).astype(np.float32)
    expected = (total * third).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
    assert not np.array_equal(expected, (x + 1) / 3)


def test_fp8_scales_come_from_the_largest_magnitudes(model):
    """A wide range in calibration makes wide scales."""
    sample = phantom_sample(1, 64, 96, 0)
    wide = convert(model.proto, "fp8", [sample, random_sample(4, 64, 96, 1)], "builtin")
    narrow = convert(model.proto, "fp8", [sample], "builtin")

    def scales(result):
        return np.array([
            numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer
            if tensor.name.endswith(".scale") and not tensor.dims
        ])  # fmt: skip

    assert (scales(wide) >= scales(narrow)).all()
    assert (scales(wide) > scales(narrow)).any()


def test_what_cannot_be_converted(converted, model, monkeypatch):
    for wrong, message in (
        ({"precision": "fp4"}, "no precision is called 'fp4'"),
        ({"precision": "fp16", "converter": "magic"}, "no converter is called 'magic'"),
        ({"precision": "int8"}, "int8 needs calibration data"),
    ):
        with pytest.raises(UsageError, match=message):
            convert(model.proto, **wrong)
    with pytest.raises(UsageError, match="the model is fp16 already"):
        convert(converted["fp16"].model, "bf16")
    monkeypatch.setattr(precisions, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="modelopt is not installed; pip install 'nvidia-model"):
        convert(model.proto, "fp16", converter="modelopt")
    assert convert(model.proto, "fp16").converter.startswith("blsgan")


@pytest.mark.skipif(
    precisions.modelopt_missing() is not None, reason=str(precisions.modelopt_missing())
)
@pytest.mark.parametrize("name", ["fp16", "bf16", "int8"])
def test_modelopt_writes_the_same_precisions(model, name):
    result = convert(model.proto, name, [phantom_sample(2, 64, 160, 1)], "modelopt")
    assert result.converter.startswith("ModelOpt")
    assert name in layer_precisions(result.model).values()
    assert judge(model, result, [phantom_sample(1, 64, 160, 50)], threads=1).passed


def test_a_converter_that_converts_nothing_is_not_believed(model, monkeypatch):
    monkeypatch.setattr(precisions, "_cast", lambda source, precision: (source, "a library"))
    with pytest.raises(BackendError, match="a library left every layer of the model in float32"):
        convert(model.proto, "fp16", converter="builtin")


def test_psnr_of_layers():
    layers = np.full((1, 2, 4, 4), 0.5, np.float32)
    other = layers + np.float32(0.01)
    overlap = np.zeros((1, 4, 4), bool)
    assert overlap_psnr_db(layers, other, overlap) == []
    overlap[0, :2] = True
    assert overlap_psnr_db(layers, other, overlap) == [pytest.approx(40, abs=1e-3)]


def test_a_runtime_says_what_does_not_load_or_run(model):
    with pytest.raises(WeightsError, match="it is not a network that can be run"):
        OnnxRuntime(b"no model", "it")
    with pytest.raises(InputError, match=r"it does not run on a batch of \[1, 2, 33, 32\]"):
        OnnxRuntime(model.data, "it", threads=1).run(random_sample(1, 33, 32, 0))
