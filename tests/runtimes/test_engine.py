"""The runtime against FAKES of CUDA and TensorRT: no engine was executed on a GPU.

The fake engine runs the exported graph on the fake's memory, and nothing before somebody waits.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from blsgan.deploy.build import Request, build_engine
from blsgan.deploy.parity import OnnxRuntime
from blsgan.deploy.samples import phantom_sample, random_sample
from blsgan.errors import BackendError, InputError, WeightsError
from blsgan.runtimes import session
from blsgan.runtimes.engine import Engine
from blsgan.runtimes.manifest import manifest_path
from blsgan.tasks.separation import Separator

LIMITS = {"batch": (1, 1, 4), "height": (16, 32, 128), "width": (16, 32, 256)}


@pytest.fixture(params=["10", "11"])
def machine(request, fake_machine):
    return fake_machine(request.param)


@pytest.fixture
def built(exported, machine, tmp_path):
    """An engine of the fake TensorRT."""
    return build_engine(exported.model, tmp_path / "m.engine", Request(**LIMITS)).engine


@pytest.fixture(scope="module")
def expected(exported):
    return OnnxRuntime(exported.model.read_bytes(), "model", threads=1)


def samples(count, height=32, width=48, batch=2):
    return [random_sample(batch, height, width, seed) for seed in range(count)]


def assert_same(answer, reference):
    assert set(answer) == set(reference)
    for name, value in reference.items():
        np.testing.assert_allclose(answer[name], value, atol=1e-5)


def test_the_same_as_onnx_runtime_at_first_and_as_a_replayed_graph(built, machine, expected):
    with Engine(built) as engine:
        for index, sample in enumerate(samples(4)):
            assert_same(engine.run(sample.image, sample.masks), expected.run(sample))
            # The first run of a shape is never recorded; from the second on it is replayed.
            assert machine[1].launches == index
        for sample in samples(2, 64, 32, batch=3):
            assert_same(engine.run(sample.image, sample.masks), expected.run(sample))
        assert machine[1].launches == 4


def test_batches_in_flight_come_in_order_and_unmixed(built, machine, expected):
    given = samples(5)
    with Engine(built) as engine:
        answers = list(engine.stream((sample.image, sample.masks) for sample in given))
        assert len(answers) == 5
        for answer, sample in zip(answers, given, strict=True):
            assert_same(answer, expected.run(sample))
        assert len(machine[1].queues) == 2  # two streams, two batches at a time


def test_a_result_survives_the_next_run(built):
    first, second = samples(2)
    with Engine(built) as engine:
        answer = engine.run(first.image, first.masks)
        kept = {name: value.copy() for name, value in answer.items()}
        engine.run(second.image, second.masks)
    assert_same(answer, kept)


class OnDevice:
    """An array in the fake's device memory, as a torch tensor on a GPU would show itself."""

    def __init__(self, cuda, array, *, strides=None, typestr="<f4"):
        _, self.pointer = cuda.cudaMalloc(array.nbytes)
        cuda.array(self.pointer, array.shape, "device")[...] = array
        self.shape = array.shape
        self.__cuda_array_interface__ = {
            "version": 2, "typestr": typestr, "shape": array.shape, "strides": strides,
            "data": (self.pointer, False),
        }  # fmt: skip


def test_what_lies_on_the_gpu_is_read_where_it_lies(built, machine, expected):
    cuda = machine[1]
    (sample,) = samples(1)
    with Engine(built) as engine:
        image, masks = OnDevice(cuda, sample.image), OnDevice(cuda, sample.masks)
        answer = engine.run_on_device(image, masks)
        assert "image" not in engine._slots[0].device  # no buffer, so no copy
        for name, value in expected.run(sample).items():
            given = answer[name].__cuda_array_interface__
            assert given["shape"] == value.shape
            found = cuda.array(given["data"][0], given["shape"], "device")
            np.testing.assert_allclose(found, value, atol=1e-5)
        # A recorded graph knows only our own addresses: an array elsewhere is never replayed.
        engine.run(sample.image, sample.masks)
        engine.run(sample.image, sample.masks)
        launches = cuda.launches
        other = samples(2)[1]
        answer = engine.run(OnDevice(cuda, other.image), OnDevice(cuda, other.masks))
        assert cuda.launches == launches
        assert_same(answer, expected.run(other))


def test_a_tensor_in_host_memory(built, expected):
    torch = pytest.importorskip("torch", reason="its tensors are what is tried")
    (sample,) = samples(1)
    with Engine(built) as engine:
        tensors = torch.from_numpy(sample.image), torch.from_numpy(sample.masks)
        assert_same(engine.run(*tensors), expected.run(sample))


def test_inputs_that_do_not_fit(built, machine):
    (sample,) = samples(1)
    image, masks = sample.image, sample.masks
    wide = np.zeros((1, 1, 32, 48), np.float32)
    with Engine(built) as engine:
        for wrong, message in (
            ((image.astype(np.float64), masks), "type float64; give float32"),
            ((image[0], masks), r"give \[B,1,H,W\]"),
            ((image, masks[:, :1]), r"give \[B,1,H,W\]"),
            ((image[:, :, :16], masks), r"give \[B,1,H,W\]"),
            ((image[:1], masks), r"give \[B,1,H,W\]"),
            (("image", masks), "str is neither a NumPy array nor a tensor"),
            ((OnDevice(machine[1], wide, strides=(4, 4, 4, 4)), masks[:1]), "not contiguous"),
            ((OnDevice(machine[1], wide, typestr="<f2"), masks[:1]), "type <f2"),
        ):
            with pytest.raises(InputError, match=message):
                engine.run(*wrong)
        large = random_sample(1, 136, 32, 0)
        with pytest.raises(BackendError, match=r"takes image from \[1, 1, 16, 16\] to"):
            engine.run(large.image, large.masks)
        assert engine.run(image, masks)["layers"].shape == masks.shape  # it still works


def test_memory_is_given_back(built, machine):
    with Engine(built) as engine:
        for sample in (*samples(1), *samples(1, 64, 64), *samples(3)):
            engine.run(sample.image, sample.masks)
        list(engine.stream((s.image, s.masks) for s in samples(3)))
    cuda = machine[1]
    left = [cuda.memory["device"], cuda.memory["host"], cuda.queues, cuda.events, cuda.graphs]
    assert all(not table for table in left), left


def test_nothing_is_deserialised_that_does_not_fit(built, machine, monkeypatch):
    monkeypatch.setattr(machine[1].properties, "minor", 9)
    before = machine[0].Runtime.deserialised
    with pytest.raises(BackendError, match=r"compute capability 8\.6, and Fake GPU has 8\.9"):
        Engine(built)
    built.write_bytes(built.read_bytes() + b"?")
    with pytest.raises(WeightsError, match="not the engine its manifest describes"):
        Engine(built)
    assert machine[0].Runtime.deserialised == before


def test_a_plan_that_tensorrt_refuses(built):
    import hashlib

    built.write_bytes(b"something else")
    fields = json.loads(manifest_path(built).read_text())
    fields["sha256"] = hashlib.sha256(b"something else").hexdigest()
    manifest_path(built).write_text(json.dumps(fields))
    with pytest.raises(BackendError, match=r"tensorrt refuses it \(magic tag does not match\)"):
        Engine(built)


def test_the_separator_runs_an_engine(built, exported, phantom):
    images, masks = [phantom.image] * 6, [phantom.masks] * 6  # more than the engine's batch of 4
    separator = Separator.from_pretrained(built)
    assert (separator.backend.name, separator.weights.name) == ("tensorrt", "small")
    batch = separator.batch(images, masks)
    reference = Separator.from_pretrained(exported.model)(phantom.image, phantom.masks)
    for joint in batch:
        np.testing.assert_allclose(joint.layers, reference.layers, atol=1e-5)


def test_auto_takes_an_engine_that_fits_beside_the_weights(built, exported, machine, monkeypatch):
    import shutil

    model = built.with_name("m.onnx")
    shutil.copy(exported.model, model)
    reasons = {**dict.fromkeys(session.NAMES), "tensorrt-rtx": "not installed"}
    monkeypatch.setattr(session, "available", lambda: reasons)
    assert Separator.from_pretrained(model).backend.name == "tensorrt"
    assert Separator.from_pretrained(model, "onnx").backend.name == "onnx"
    with pytest.raises(WeightsError, match="an engine of tensorrt, not of tensorrt-rtx"):
        Separator.from_pretrained(built, "tensorrt-rtx")
    machine[1].properties.minor = 9
    assert Separator.from_pretrained(model).backend.name == "onnx"
    with pytest.raises(BackendError, match="build it for that"):
        Separator.from_pretrained(built)


def test_auto_leaves_an_engine_that_failed_its_gate(built, exported, monkeypatch):
    import shutil

    model = built.with_name("m.onnx")
    shutil.copy(exported.model, model)
    fields = json.loads(manifest_path(built).read_text())
    manifest_path(built).write_text(json.dumps({**fields, "forced": True}))
    reasons = {**dict.fromkeys(session.NAMES), "tensorrt-rtx": "not installed"}
    monkeypatch.setattr(session, "available", lambda: reasons)
    assert Separator.from_pretrained(model).backend.name == "onnx"
    assert Separator.from_pretrained(built).backend.name == "tensorrt"


def test_the_trial_times_and_compares(built, exported, tmp_path):
    from click.testing import CliRunner

    from blsgan.cli.run_engine import command

    source, output = tmp_path / "in.npz", tmp_path / "out.npz"
    sample = phantom_sample(1, 64, 128, 4)
    np.savez(source, image=sample.image, masks=sample.masks)
    arguments = [str(built), "--input", str(source), "--repeat", "2", "-o", str(output)]
    arguments += ["--against", str(exported.model)]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert "p99" in done.output
    assert "dB over the overlap, ok" in done.output
    with np.load(output) as arrays:
        assert arrays["layers"].shape == sample.masks.shape
    done = CliRunner().invoke(command, [*arguments, "--json"])
    report = json.loads(done.output)
    assert report["passed"]
    assert report["streamed_joints_per_s"] > 0


class TestRuntimeCache:
    """TensorRT-RTX compiles where it runs; what it compiled lies beside the engine."""

    @pytest.fixture
    def rtx(self, exported, fake_machine, tmp_path):
        module, _ = fake_machine("rtx")
        request = Request(**LIMITS, backend="tensorrt-rtx", compute_capabilities=("8.6",))
        return build_engine(exported.model, tmp_path / "m.engine", request).engine, module

    def test_it_is_kept_and_used_by_the_next_process(self, rtx):
        path, module = rtx
        cache = path.with_name("m.engine.cache")
        (sample,) = samples(1)
        with Engine(path) as engine:
            assert not cache.exists()
            engine.run(sample.image, sample.masks)
            (config,) = module.built.engine.contexts
            assert cache.read_bytes() == b"kernels:k"
        cache.write_bytes(b"kernels:kkk")
        with Engine(path) as engine:
            engine.run(sample.image, sample.masks)
            (config,) = module.built.engine.contexts
            assert config.cache.content == b"kernels:kkk"
        cache.write_bytes(b"of another machine")
        with Engine(path) as engine:
            engine.run(sample.image, sample.masks)
        assert cache.read_bytes() == b"kernels:k"  # made anew

    def test_a_folder_that_cannot_be_written_costs_time_and_no_result(
        self, rtx, monkeypatch, caplog, expected
    ):
        from blsgan.errors import OutputError

        def refuse(path):
            raise OutputError(f"{path} cannot be written: the file system is read-only.")

        monkeypatch.setattr("blsgan.runtimes.engine.atomic_path", refuse)
        with Engine(rtx[0]) as engine:
            for sample in (*samples(2), *samples(1, 64, 64)):
                assert_same(engine.run(sample.image, sample.masks), expected.run(sample))
        assert caplog.text.count("compiles its kernels again at each start") == 1

    def test_tensorrt_has_none(self, built):
        (sample,) = samples(1)
        with Engine(built) as engine:
            engine.run(sample.image, sample.masks)
        assert not built.with_name("m.engine.cache").exists()


def test_an_engine_for_newer_versions_brings_code_along(exported, machine, tmp_path):
    request = Request(**LIMITS, version_compatible=True)
    path = build_engine(exported.model, tmp_path / "m.engine", request).engine
    with Engine(path):
        assert machine[0].built.runtime.engine_host_code_allowed
    fields = json.loads(manifest_path(path).read_text())
    fields["version_compatible"] = False
    manifest_path(path).write_text(json.dumps(fields))
    with Engine(path):
        assert not machine[0].built.runtime.engine_host_code_allowed
