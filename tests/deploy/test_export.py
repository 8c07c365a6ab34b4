"""The exported model is the whole separation, computes what torch does, and says what it is."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from scipy.special import softmax

from blsgan import cli
from blsgan.cli.export import command
from blsgan.deploy import gate, lowering, parity
from blsgan.deploy.export import OUTPUTS, _samples, export
from blsgan.deploy.parity import OnnxRuntime
from blsgan.deploy.samples import phantom_sample, random_sample
from blsgan.errors import ParityError, UsageError, WeightsError
from blsgan.joint.zone import REACH_PX, zone
from blsgan.ops import native
from blsgan.records.parity import report_path
from blsgan.tasks.backend import create
from blsgan.tasks.separation import Separator
from blsgan.tasks.task import SEPARATION

LAW = 7.0  # of the small network
# What the last digit of e^b is worth near display intensity 0.
ROUNDING = float(np.finfo(np.float32).eps * np.exp(LAW) / LAW)


@pytest.fixture(scope="module")
def runtime(exported):
    return OnnxRuntime(exported.model.read_bytes(), "model")


@pytest.fixture
def traced(exported, monkeypatch):
    """The small network's graph is there already: tracing it again takes seconds."""
    graph = onnx.load(exported.model)
    monkeypatch.setattr("blsgan.models.weights.to_onnx", lambda *a, **k: graph)


def test_only_standard_operators(exported):
    model = onnx.load(exported.model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert "Attention" not in {node.op_type for node in model.graph.node}


def test_the_model_says_what_it_is(exported, small_weights):
    model = onnx.load(exported.model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["blsgan.weights_sha256"] == hashlib.sha256(small_weights.read_bytes()).hexdigest()
    assert (facts["blsgan.weights"], facts["blsgan.architecture"]) == ("small", "lite")
    assert (facts["blsgan.precision"], facts["blsgan.size_multiple"]) == ("fp32", "8")
    ports = [port.name for port in (*model.graph.input, *model.graph.output)]
    assert ports == ["image", "masks", *OUTPUTS]
    assert list(json.loads(facts["blsgan.ports"])) == sorted(ports)
    for trace in (b".py", b"site-packages", b"torch"):
        assert trace not in exported.model.read_bytes()


def test_the_report_covers_noise_and_phantoms_at_several_batches(exported):
    report = json.loads(exported.report_path.read_text())
    assert exported.report_path.name == "model.parity.json"
    assert report["onnx"]["sha256"] == hashlib.sha256(exported.model.read_bytes()).hexdigest()
    assert {(case["inputs"], case["batch"]) for case in report["cases"]} == {
        (name, batch) for name in ("random", "phantoms") for batch in (1, 2, 5)
    }
    assert report["passed"]
    for case in report["cases"]:
        assert set(case["outputs"]) == set(OUTPUTS)
        assert case["overlap_psnr_db"] > 90


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_openvino_agrees_with_onnx_runtime_in_batches(exported, runtime, batch):
    openvino = pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(exported.model, "CPU", settings)
    sample = phantom_sample(batch, 64, 96, 3)
    expected = runtime.run(sample)
    answer = model({"image": sample.image, "masks": sample.masks})
    for name in OUTPUTS:
        given, wanted = answer[name], expected[name]
        if name == "share_logits":  # the logarithm of next to nothing is sharper than any layer
            given, wanted = (softmax(logits, axis=1) for logits in (given, wanted))
        np.testing.assert_allclose(given, wanted, atol=1e-5, err_msg=name)


def split(answer, sample):
    """The layers of a network's answer by the NumPy kernel, and where each may be."""
    supports = np.stack([each | zone(each, REACH_PX) for each in sample.masks.astype(bool)])
    layers = native.split_attenuation(
        answer["share_logits"],
        sample.image,
        supports,
        answer["soft_tissue"],
        law=LAW,
    )
    return layers, supports


def test_any_size_and_batch_recomposes_and_agrees_with_the_kernels(runtime):
    for sample in (random_sample(3, 16, 40, 1), phantom_sample(2, 128, 96, 5)):
        answer = runtime.run(sample)
        layers, supports = split(answer, sample)
        inside = supports.any(axis=1, keepdims=True)
        np.testing.assert_allclose(
            answer["reconstruction"], np.where(inside, sample.image, 0), atol=ROUNDING
        )
        np.testing.assert_allclose(answer["layers"], layers, atol=ROUNDING)
        single = supports & (supports.sum(axis=1, keepdims=True) == 1)
        expected = np.broadcast_to(sample.image, layers.shape)
        np.testing.assert_array_equal(answer["layers"][single], expected[single])


def test_the_separator_takes_it(exported, small_weights, phantom):
    first, second = (
        Separator.from_pretrained(path, backend)(phantom.image, phantom.masks)
        for path, backend in ((exported.model, "onnx"), (small_weights, "torch"))
    )
    np.testing.assert_allclose(first.layers, second.layers, atol=1e-4)


def test_fixed_sizes_and_the_same_bytes_again(exported, small_weights, tmp_path):
    fixed = export(small_weights, tmp_path / "fixed.onnx", batch=2, size=(32, 48))
    shapes = {
        port.name: [dim.dim_value for dim in port.type.tensor_type.shape.dim]
        for port in onnx.load(fixed.model).graph.input
    }
    assert shapes == {"image": [2, 1, 32, 48], "masks": [2, 2, 32, 48]}
    assert {case["batch"] for case in fixed.report.cases} == {2}
    again = export(small_weights, tmp_path / "again.onnx")
    assert again.model.read_bytes() == exported.model.read_bytes()


@pytest.mark.usefixtures("traced")
def test_a_model_that_differs_is_not_written(small_weights, tmp_path, monkeypatch):
    run = OnnxRuntime.run

    def wrong(self, sample):
        answer = run(self, sample)
        return {**answer, "layers": answer["layers"] + np.float32(2e-4)}

    monkeypatch.setattr(parity.OnnxRuntime, "run", wrong)
    with pytest.raises(ParityError, match=r"layers of \d \w+ differs from torch by 2\.\de-04"):
        export(small_weights, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_weights_pass_the_parity_of_their_export():
    """On the export's own samples, by the graph that ships: tracing takes a minute."""
    for sample in _samples(None, None):
        answers = []
        for backend in (create("onnx"), create("torch")):
            outputs = backend.run(sample.image, sample.masks)
            answer = dict(zip(SEPARATION.outputs, outputs, strict=True))
            answers.append({**answer, "layers": split(answer, sample)[0]})
        case = parity.compare(*answers, sample)
        assert case["passed"], case


def test_shares_count_by_what_they_divide():
    sample = random_sample(1, 16, 16, 0)
    logits = np.zeros((1, 2, 16, 16), np.float32)
    other = logits.copy()
    other[0, 0, 3, 3] = 0.01
    layers = np.zeros_like(logits)
    for soft_tissue, passes in ((sample.image, True), (0 * sample.image, False)):
        expected = {"layers": layers, "soft_tissue": soft_tissue, "share_logits": logits}
        case = parity.compare({**expected, "share_logits": other}, expected, sample)
        assert case["passed"] == passes


def test_nan_is_a_difference():
    sample = random_sample(1, 16, 16, 0)
    layers = np.zeros((1, 2, 16, 16), np.float32)
    broken = layers.copy()
    broken[0, 0, 0, 0] = np.nan
    assert parity.compare({"layers": layers}, {"layers": layers}, sample)["passed"]
    assert not parity.compare({"layers": broken}, {"layers": layers}, sample)["passed"]


def test_what_cannot_be_exported(network, small_weights, tmp_path):
    with pytest.raises(WeightsError, match=r"'random' have no \.safetensors file"):
        export(network, tmp_path / "a.onnx")
    for arguments, message in (
        ({"opset": 23}, "opset 23 is outside 18 to 22"),
        ({"batch": 0}, "batch is 0"),
        ({"size": (32, 36)}, "32 x 36 does not suit small"),
        ({"size": (8, 32)}, "from 16 on"),
    ):
        with pytest.raises(UsageError, match=message):
            export(small_weights, tmp_path / "a.onnx", **arguments)
    with pytest.raises(UsageError, match=r"a\.trt does not end in \.onnx"):
        export(small_weights, tmp_path / "a.trt")
    assert list(tmp_path.iterdir()) == []


def test_a_model_takes_no_precision_on_its_way_to_triton(exported, tmp_path, capsys):
    arguments = [
        "export",
        str(exported.model),
        "--triton",
        str(tmp_path / "r"),
        "--precision",
        "int8",
    ]
    assert cli.main(arguments) == 2
    assert "is a model already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced")
class TestInt8:
    """What OpenVINO runs fastest on a processor."""

    @pytest.fixture(autouse=True)
    def few_crops(self, monkeypatch):
        monkeypatch.setattr(lowering, "CALIBRATION_CROPS", 2)
        monkeypatch.setattr(lowering, "GATE_CROPS", 2)

    def test_passes_its_gate_and_serves_a_separator(self, small_weights, exported, tmp_path):
        output = tmp_path / "int8.onnx"
        result = CliRunner().invoke(
            command, [str(small_weights), "-o", str(output), "--precision", "int8"]
        )
        assert result.exit_code == 0, result.output
        assert "int8, " in result.output
        report = json.loads(report_path(output).read_text())
        lowered = report["lowered"]
        assert report["onnx"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
        float32 = hashlib.sha256(exported.model.read_bytes()).hexdigest()
        assert lowered["float32_sha256"] == float32
        assert lowered["gate"]["passed"]
        assert not lowered["forced"]
        assert set(lowered["layers"].values()) == {"int8", "fp32"}
        assert output.stat().st_size < exported.model.stat().st_size
        phantom = phantom_sample(1, 128, 128, 4)
        int8, float32 = (
            Separator.from_pretrained(file, "onnx")(phantom.image[0, 0], phantom.masks[0] > 0)
            for file in (output, exported.model)
        )
        assert 0 < np.abs(int8.layers - float32.layers).max() < 0.05

    def test_a_failed_gate_writes_nothing(self, small_weights, tmp_path, monkeypatch):
        monkeypatch.setitem(gate.LIMITS_DB, "int8", 150.0)
        with pytest.raises(ParityError, match=r"m\.onnx is not written: int8 fails its gate"):
            export(small_weights, tmp_path / "m.onnx", precision="int8")
        assert list(tmp_path.iterdir()) == []
        done = export(small_weights, tmp_path / "m.onnx", precision="int8", force=True)
        assert done.report.lowered["forced"]


def test_the_weights_own_file_is_not_replaced(small_weights, tmp_path):
    shutil.copy(small_weights, tmp_path / "small.safetensors")
    (tmp_path / "small.json").write_text('{"sha256": {"small.onnx": "00"}}')
    with pytest.raises(UsageError, match="one of the files whose hash"):
        export(tmp_path / "small.safetensors", tmp_path / "small.onnx")


def test_the_command(exported, small_weights, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "blsgan.deploy.export.export", lambda *a, **k: calls.append((a, k)) or exported
    )
    output = tmp_path / "m.onnx"
    arguments = [str(small_weights), "-o", str(output), "--batch", "4", "--size", "64", "96"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "largest difference from torch" in result.output
    ((given, options),) = calls
    assert given == (str(small_weights), output)
    expected = {"opset": 20, "batch": 4, "size": (64, 96), "precision": "fp32", "force": False}
    assert {name: options[name] for name in expected} == expected
    for wrong in (["--batch", "0"], ["--batch", "some"], ["--opset", "23"]):
        assert cli.main(["export", "-o", str(output), *wrong]) == 2
