"""The model repository is what Triton's own schema allows, and says the truth about the model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from blsgan.cli import main
from blsgan.deploy.triton import Port, Served, configuration, write_repository
from blsgan.errors import InputError, OutputError, UsageError, WeightsError
from blsgan.tasks.separation import Separator


@pytest.fixture(scope="session")
def parse():
    """Text of a config.pbtxt -> ModelConfig, by the descriptor that Triton's client ships."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    package = importlib.util.find_spec("tritonclient")
    if package is None:
        pytest.skip("tritonclient is in the extra 'test'")
    # The module alone: its package would ask for grpc.
    (folder,) = package.submodule_search_locations
    spec = importlib.util.spec_from_file_location(
        "model_config_pb2", Path(folder, "grpc", "model_config_pb2.py")
    )
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)

    def parsed(text):
        return text_format.Parse(text, schema.ModelConfig())

    with pytest.raises(text_format.ParseError):  # the schema is one that refuses
        parsed("max_batch_sizes: 8")
    return parsed


def ports_of(config_ports):
    return {port.name: (port.data_type, list(port.dims)) for port in config_ports}


def test_an_exported_model(parse, exported, tmp_path):
    model, config = write_repository(exported.model, tmp_path, name="joints", max_batch=16)
    assert model == tmp_path / "joints/1/model.onnx"
    assert config == tmp_path / "joints/config.pbtxt"
    assert model.read_bytes() == exported.model.read_bytes()
    parsed = parse(config.read_text())
    assert (parsed.name, parsed.platform) == ("joints", "onnxruntime_onnx")
    assert parsed.max_batch_size == 16
    assert parsed.HasField("dynamic_batching")
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 2000
    float32 = (
        parsed.input[0]
        .DESCRIPTOR.fields_by_name["data_type"]
        .enum_type.values_by_name["TYPE_FP32"]
        .number
    )
    assert ports_of(parsed.input) == {
        "image": (float32, [1, -1, -1]), "masks": (float32, [2, -1, -1]),
    }  # fmt: skip
    assert ports_of(parsed.output) == {
        "layers": (float32, [2, -1, -1]),
        "reconstruction": (float32, [1, -1, -1]),
        "soft_tissue": (float32, [1, -1, -1]),
        "share_logits": (float32, [2, -1, -1]),
    }
    facts = {key: value.string_value for key, value in parsed.parameters.items()}
    assert facts["blsgan.model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert facts["blsgan.weights"] == "small"


def test_ports_are_those_of_the_graph(parse, exported, tmp_path):
    """What is served follows the file, not what export is known to write."""
    graph = onnx.load(exported.model)
    del graph.graph.output[1:]
    onnx.save(graph, tmp_path / "less.onnx")
    parsed = parse(write_repository(tmp_path / "less.onnx", tmp_path)[1].read_text())
    assert (parsed.name, [port.name for port in parsed.output]) == ("less", ["layers"])


def test_a_fixed_batch_is_served_without_batching(parse):
    port = Port("image", "float32", (4, 1, 64, 64))
    served = Served("onnxruntime_onnx", "model.onnx", (port,), (Port("k", "float32", (4,)),), {})
    parsed = parse(configuration(served, "fixed", max_batch=8, max_delay_us=0))
    assert (parsed.max_batch_size, parsed.HasField("dynamic_batching")) == (0, False)
    assert (list(parsed.input[0].dims), list(parsed.output[0].dims)) == ([4, 1, 64, 64], [4])


def write_engine(path, *, backend="tensorrt", batch=(1, 4, 16), height=(32, 96, 512)):
    """A file called engine, and the manifest that build-engine would write beside it."""
    manifest = pytest.importorskip("blsgan.runtimes.manifest")
    path.write_bytes(b"plan")

    def profile(channels):
        shapes = {
            place: (batch[i], channels, height[i], 64)
            for i, place in enumerate(("min", "opt", "max"))
        }
        return manifest.Profile(**shapes)

    model = {
        "file": "lite.onnx", "sha256": "a", "converted_sha256": "b", "weights": "lite",
        "weights_sha256": "c", "architecture": "lite", "size_multiple": 8,
        "law": 6.0, "reach_px": 4,
    }  # fmt: skip
    text = manifest.Manifest(
        schema=1, blsgan="0", engine=path.name, sha256=hashlib.sha256(b"plan").hexdigest(), bytes=4,
        key="d", model=model, precision="fp16", converter="e", calibration=None, layers={},
        gate={"passed": True}, forced=False, backend=backend, backend_version="10.3.0",
        compute_capabilities=["8.7"], gpu="Orin",
        profile={"image": profile(1), "masks": profile(2)},
        workspace_bytes=1, build_seconds=1.0, built="2026-01-01T00:00:00+00:00",
    ).text()  # fmt: skip
    manifest.manifest_path(path).write_text(text)
    return path


def test_an_engine(parse, tmp_path):
    engine = write_engine(tmp_path / "fast.engine")
    plan, config = write_repository(engine, tmp_path / "repository", max_batch=64)
    assert (plan.name, plan.read_bytes()) == ("model.plan", b"plan")
    parsed = parse(config.read_text())
    assert (parsed.platform, parsed.max_batch_size) == ("tensorrt_plan", 16)  # the profile's
    assert {port.name: list(port.dims) for port in (*parsed.input, *parsed.output)} == {
        "image": [1, -1, 64], "masks": [2, -1, 64], "layers": [2, -1, 64],
        "reconstruction": [1, -1, 64], "share_logits": [2, -1, 64], "soft_tissue": [1, -1, 64],
    }  # fmt: skip
    assert parsed.parameters["blsgan.precision"].string_value == "fp16"


def test_engines_that_triton_cannot_run(parse, tmp_path):
    fixed = write_engine(tmp_path / "fixed.engine", batch=(4, 4, 4))
    parsed = parse(write_repository(fixed, tmp_path / "repository")[1].read_text())
    assert (parsed.max_batch_size, list(parsed.input[0].dims)) == (0, [4, 1, -1, 64])
    for name, options, words in (
        ("rtx", {"backend": "tensorrt-rtx"}, "which Triton does not run"),
        ("many", {"batch": (2, 4, 8)}, "build it with --batch 1 2 8"),
    ):
        engine = write_engine(tmp_path / f"{name}.engine", **options)
        with pytest.raises(InputError, match=words):
            write_repository(engine, tmp_path / "repository")
    fixed.write_bytes(b"other")
    with pytest.raises(WeightsError, match="is not the engine its manifest describes"):
        write_repository(fixed, tmp_path / "repository")


def test_text_is_escaped(parse):
    facts = {'a "quoted"\\ key': "Röntgen\n"}
    served = Served("tensorrt_plan", "model.plan", (), (), facts)
    parsed = parse(configuration(served, "x", max_batch=1, max_delay_us=0))
    assert parsed.parameters['a "quoted"\\ key'].string_value == "Röntgen\n"


def test_what_cannot_be(exported, tmp_path):
    for arguments in ({"name": "a/b"}, {"name": ""}, {"max_batch": 0}, {"max_delay_us": -1}):
        with pytest.raises(UsageError):
            write_repository(exported.model, tmp_path / "repository", **arguments)
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(InputError, match="is not an ONNX model"):
        write_repository(tmp_path / "noise.onnx", tmp_path / "repository")
    with pytest.raises(InputError, match="does not exist"):
        write_repository(tmp_path / "none.onnx", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_repository(exported.model, tmp_path / "file")


def test_the_command(parse, exported, small_weights, tmp_path, capfd):
    repository = tmp_path / "repository"
    assert main(["export", str(exported.model), "--triton", str(repository)]) == 0
    assert "config.pbtxt" in capfd.readouterr().out
    parse((repository / "model/config.pbtxt").read_text())
    arguments = ["export", str(small_weights), "--triton", str(repository), "--triton-batch", "4"]
    assert main(arguments) == 0
    parsed = parse((repository / "small/config.pbtxt").read_text())
    assert (parsed.name, parsed.max_batch_size) == ("small", 4)
    assert sorted(path.name for path in repository.iterdir()) == ["model", "small"]
    assert main(["export", str(small_weights)]) == 2
    assert "give -o NAME.onnx, --triton REPO, or both" in capfd.readouterr().err


class FakeTriton:
    """``triton_python_backend_utils`` by the names of its documentation; models run by ORT."""

    TRITONSERVER_MEMORY_CPU = "cpu"

    def __init__(self, repository):
        self.repository, self.requests, self.down = repository, [], None

    class Tensor:
        def __init__(self, name, array):
            assert array.flags.c_contiguous
            self.name, self.array = name, array

        def as_numpy(self):
            return self.array

    class TritonError:
        def __init__(self, text):
            self.text = text

        def message(self):
            return self.text

    class InferenceResponse:
        def __init__(self, output_tensors, error=None):
            self.tensors = {tensor.name: tensor for tensor in output_tensors}
            self.failure = error

        def has_error(self):
            return self.failure is not None

        def error(self):
            return self.failure

    class PreferredMemory:
        def __init__(self, kind, device):
            assert (kind, device) == ("cpu", 0)

    def InferenceRequest(self, *, model_name, requested_output_names, inputs, preferred_memory):
        import onnxruntime

        def run():
            if self.down is not None:
                return self.InferenceResponse([], self.TritonError(self.down))
            path = self.repository / model_name / "1" / "model.onnx"
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            feed = {tensor.name: tensor.array for tensor in inputs}
            self.requests.append(feed["image"].shape)
            answers = session.run(requested_output_names, feed)
            return self.InferenceResponse(map(self.Tensor, requested_output_names, answers))

        return SimpleNamespace(exec=run)

    @staticmethod
    def get_input_tensor_by_name(request, name):
        return request[name]

    @staticmethod
    def get_output_tensor_by_name(response, name):
        return response.tensors[name]


def test_a_whole_radiograph_end_to_end(parse, network, phantom, tmp_path, monkeypatch):
    """The model.py that is written, outside of Triton, gives what ``Separator`` gives."""
    files = write_repository(network, tmp_path, name="net", max_batch=2, radiographs=True)
    names = ["net/1/model.onnx", "net/config.pbtxt"]
    names += ["net-radiograph/1/model.py", "net-radiograph/config.pbtxt"]
    assert [str(path.relative_to(tmp_path)) for path in files] == names
    config = parse(files[3].read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("net-radiograph", "python", 0)
    assert {port.name: list(port.dims) for port in config.input} == {
        "image": [-1, -1], "masks": [2, -1, -1],
    }  # fmt: skip
    triton = FakeTriton(tmp_path)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    served = {}
    exec(compile(files[2].read_text(), "model.py", "exec"), served)
    model = served["TritonPythonModel"]()
    parameters = {key: {"string_value": one.string_value} for key, one in config.parameters.items()}
    model.initialize({"model_config": json.dumps({"parameters": parameters})})

    def request(image, masks):
        return {"image": triton.Tensor("image", image), "masks": triton.Tensor("masks", masks)}

    good, bad = request(phantom.image, phantom.masks), request(phantom.image, phantom.masks * False)
    first, refused, second = model.execute([good, bad, good])
    assert "the upper mask is empty" in refused.error().message()
    expected = Separator.from_pretrained(network)(phantom.image, phantom.masks)
    kinds = {port.name: port.data_type for port in config.output}
    assert set(kinds) == set(first.tensors)
    for answer in (first, second):
        for name, tensor in answer.tensors.items():
            np.testing.assert_array_equal(tensor.array, getattr(expected, name))
            assert (tensor.array.dtype == bool) == (kinds[name] == 1)  # TYPE_BOOL
    assert len(triton.requests) == 2
    answer = model._separator.backend.run(
        np.zeros((5, 1, 32, 32), np.float32), np.ones((5, 2, 32, 32), np.float32)
    )
    assert answer[0].shape == (5, 2, 32, 32)
    assert [shape[0] for shape in triton.requests[2:]] == [
        2,
        2,
        1,
    ]  # what the network's model takes
    triton.down = "out of memory"
    (failed,) = model.execute([good])
    assert failed.error().message() == "Triton's model net: out of memory"


def test_radiographs_need_a_model_of_free_sizes(network, tmp_path):
    graph = onnx.load(network)
    for size, port in zip((4, 4), graph.graph.input, strict=True):
        port.type.tensor_type.shape.dim[0].dim_value = size
    onnx.save(graph, tmp_path / "fixed.onnx")
    with pytest.raises(InputError, match=r"takes image of \[4, 1, -1, -1\] alone"):
        write_repository(tmp_path / "fixed.onnx", tmp_path / "repository", radiographs=True)
    assert not (tmp_path / "repository").exists()
