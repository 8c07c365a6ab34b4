"""Engines: real ones by TensorRT-RTX, which needs no GPU; TensorRT 10 and 11 against FAKES."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner

from blsgan import cli
from blsgan.cli.build_engine import command
from blsgan.deploy import lowering
from blsgan.deploy.build import Request, build_engine
from blsgan.deploy.gate import Verdict
from blsgan.errors import BackendError, InputError, OutputError, ParityError, UsageError
from blsgan.runtimes.engine import Engine
from blsgan.runtimes.manifest import manifest_path, read_manifest
from blsgan.tasks.separation import Separator

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (extra tensorrt-rtx; Linux on x86-64)",
)
LIMITS = {"batch": (1, 1, 4), "height": (32, 64, 128), "width": (32, 64, 256)}
PASSED = Verdict(True, "as written", "phantoms", 32, 60.0, 55.0, 50.0, 30.0, 29.95, 0.05, 0.1)
FAILED = Verdict(False, "as written", "phantoms", 32, 41.0, 30.0, 50.0, 30.0, 29.5, 0.5, 0.1)


@pytest.fixture(autouse=True)
def small_gate(monkeypatch):
    """Two crops instead of 32: what the gate itself does is tested in test_precision.py."""
    monkeypatch.setattr(lowering, "GATE_CROPS", 2)
    monkeypatch.setattr(lowering, "CALIBRATION_CROPS", 2)


def folder(path):
    return sorted(entry.name for entry in path.iterdir())


@needs_rtx
class TestTensorRtRtx:
    """The real builder, without a GPU."""

    @pytest.mark.parametrize(
        ("precision", "capability"),
        [("fp32", "7.5"), ("fp16", "8.6"), ("bf16", "8.9"), ("int8", "12.0"), ("fp8", "8.9")],
    )
    def test_an_engine_and_its_manifest(self, exported, tmp_path, precision, capability):
        request = Request(
            precision, "builtin", "tensorrt-rtx", compute_capabilities=(capability,), **LIMITS
        )
        built = build_engine(exported.model, tmp_path / "m.engine", request, threads=1)
        plan = built.engine.read_bytes()
        manifest = read_manifest(built.engine)
        assert manifest == built.manifest
        assert folder(tmp_path) == ["m.engine", "m.engine.json"]
        assert len(plan) > 100_000
        assert b"blsgan" not in plan[-4096:]  # pure: nothing is glued to it
        assert manifest.sha256 == hashlib.sha256(plan).hexdigest()
        assert manifest.model.sha256 == exported.report.onnx["sha256"]
        assert (manifest.precision, manifest.compute_capabilities) == (precision, [capability])
        assert (manifest.backend, manifest.gpu, manifest.forced) == ("tensorrt-rtx", None, False)
        assert precision in manifest.layers.values()
        assert manifest.profile["masks"].max == (4, 2, 128, 256)
        assert manifest.gate["passed"]
        assert manifest.build_seconds > 0

        again = build_engine(exported.model, tmp_path / "m.engine", request, threads=1)
        assert again.cached
        assert again.manifest == manifest

        # No GPU here, or another one: refused by the manifest, with a sentence.
        for load in (Engine, Separator.from_pretrained):
            with pytest.raises(BackendError, match=r"m\.engine cannot run here: [^\n]+\.$"):
                load(built.engine)
        assert cli.main(["run-engine", str(built.engine)]) == 1

    def test_what_it_cannot_build_is_said_before_it_tries(self, exported, tmp_path):
        for capability, precision, message in (
            ("9.0", "fp32", r"does not build for compute capability 9\.0, only for 7\.5, "),
            ("7.5", "bf16", r"compute capability 7\.5 has no bf16, which begins with 8\.0"),
            ("8.6", "fp8", r"has no fp8, which begins with 8\.9"),
        ):
            request = Request(precision, backend="tensorrt-rtx", compute_capabilities=(capability,))
            with pytest.raises(UsageError, match=message):
                build_engine(exported.model, tmp_path / "m.engine", request)
        assert folder(tmp_path) == []

    def test_one_engine_for_several_gpus_by_the_command(self, exported, tmp_path, capsys):
        output = tmp_path / "m.engine"
        status = cli.main([
            "build-engine", str(exported.model), "-o", str(output), "--backend", "tensorrt-rtx",
            "--compute-capability", "8.6", "--compute-capability", "12.0", "--workspace", "512M",
        ])  # fmt: skip
        assert status == 0
        assert "for compute capability 8.6, 12.0" in capsys.readouterr().out
        manifest = read_manifest(output)
        assert manifest.compute_capabilities == ["8.6", "12.0"]
        assert manifest.workspace_bytes == 512 * 2**20


class TestFakeTensorRtRtx:
    """Which GPUs an engine is for, by a FAKE with the real names; the real one is above."""

    def test_one_engine_for_ampere_and_newer_and_7_5_apart(self, exported, fake_machine, tmp_path):
        module, _ = fake_machine("rtx")
        request = Request(**LIMITS, backend="tensorrt-rtx", compute_capabilities=("ampere+",))
        manifest = build_engine(exported.model, tmp_path / "m.engine", request).manifest
        asked = ["8.0", "8.6", "8.9", "12.0", "12.1"]
        assert manifest.compute_capabilities == asked
        config = module.built.config
        assert config.num_compute_capabilities == len(asked)
        assert [one.name for one in config.capabilities.values()] == [
            f"SM{one.replace('.', '')}" for one in asked
        ]
        for wrong, words in (
            ({"compute_capabilities": ("7.5", "ampere+")}, r"7\.5 is built for apart"),
            ({"hardware": "ampere+"}, "has no --hardware and no --version-compatible"),
            ({"version_compatible": True}, "has no --hardware and no --version-compatible"),
        ):
            request = Request(backend="tensorrt-rtx", **wrong)
            with pytest.raises(UsageError, match=words):
                build_engine(exported.model, tmp_path / "n.engine", request)


class TestFakeTensorRt:
    """TensorRT 10 and 11 by FAKES that carry their real enum lists; nothing of NVIDIA's ran."""

    @pytest.fixture(params=["10", "11"])
    def machine(self, request, fake_machine):
        return request.param, *fake_machine(request.param, name="Orin", major=8, minor=7)

    def test_one_path_serves_both(self, exported, machine, tmp_path, fakes):
        generation, module, _ = machine
        request = Request("fp16", **LIMITS, workspace_bytes=2**28)
        built = build_engine(exported.model, tmp_path / "m.engine", request, threads=1)
        asked = module.built
        strongly_typed = module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert asked.network.flags == 1 << int(strongly_typed)
        assert int(strongly_typed) == (1 if generation == "10" else 0)
        assert asked.config.flags_set == set()  # above all none of fakes.PRECISION_FLAGS
        assert hasattr(module.BuilderFlag, "FP16") == (generation == "10")
        assert asked.config.flags_cleared == {"TF32"}
        assert asked.config.pools == {"WORKSPACE": 2**28}
        (profile,) = asked.config.profiles
        assert profile.shapes["image"] == ((1, 1, 32, 32), (1, 1, 64, 64), (4, 1, 128, 256))
        manifest = built.manifest
        assert (manifest.gpu, manifest.compute_capabilities) == ("Orin", ["8.7"])
        assert manifest.backend_version == module.__version__
        graph = built.engine.read_bytes()[len(fakes.MAGIC) :]
        assert manifest.model.converted_sha256 == hashlib.sha256(graph).hexdigest()

    def test_modes_of_compatibility_are_asked_for_and_in_the_manifest(
        self, exported, machine, tmp_path, monkeypatch
    ):
        _, module, cuda = machine
        request = Request(**LIMITS, hardware="ampere+", version_compatible=True)
        manifest = build_engine(exported.model, tmp_path / "m.engine", request).manifest
        config = module.built.config
        assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
        assert config.flags_set == {"VERSION_COMPATIBLE"}
        assert (manifest.hardware, manifest.version_compatible) == ("ampere+", True)
        plain = build_engine(exported.model, tmp_path / "m.engine", Request(**LIMITS))
        assert not plain.cached  # another engine
        assert module.built.config.hardware_compatibility_level is None
        monkeypatch.setattr(cuda.properties, "major", 7)
        with pytest.raises(
            UsageError, match=r"begins with compute capability 8\.0, and Orin has 7"
        ):
            build_engine(exported.model, tmp_path / "old.engine", request)
        monkeypatch.setattr(module, "HardwareCompatibilityLevel", None)
        request = Request(hardware="same-capability")
        with pytest.raises(BackendError, match="has no --hardware same-capability; leave it out"):
            build_engine(exported.model, tmp_path / "old.engine", request)

    def test_it_builds_for_the_gpu_it_runs_on_alone(self, exported, machine, tmp_path):
        request = Request(compute_capabilities=("8.6",))
        with pytest.raises(BackendError, match=r"which is Orin with compute capability 8\.7, not"):
            build_engine(exported.model, tmp_path / "m.engine", request)
        request = Request(compute_capabilities=("8.7",))
        assert build_engine(exported.model, tmp_path / "m.engine", request).manifest.gpu == "Orin"

    def test_a_failing_precision_is_refused_and_can_be_forced(
        self, exported, machine, tmp_path, monkeypatch
    ):
        output = tmp_path / "m.engine"
        monkeypatch.setattr(lowering, "judge", lambda *a, **k: FAILED)
        with pytest.raises(ParityError, match=re.escape(FAILED.sentence())) as refused:
            build_engine(exported.model, output, Request("fp16"))
        assert "41.0 dB" in str(refused.value)
        assert "lost 0.50" in str(refused.value)
        assert folder(tmp_path) == []
        assert machine[1].built.count == 0
        built = build_engine(exported.model, output, Request("fp16", force=True))
        assert built.manifest.forced
        assert json.loads(manifest_path(output).read_text())["forced"] is True
        assert "FAILED its gate" in built.manifest.parity()
        # An engine that was forced is not taken for a finished one by somebody who did not.
        with pytest.raises(ParityError):
            build_engine(exported.model, output, Request("fp16"))

    def test_a_finished_engine_is_kept_until_something_changes(
        self, exported, machine, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(lowering, "judge", lambda *a, **k: PASSED)
        output, built = tmp_path / "m.engine", machine[1].built

        def count(**changes):
            before = built.count
            build_engine(exported.model, output, Request(**{"precision": "fp16", **changes}))
            return built.count - before

        assert count() == 1
        assert count() == 0
        assert count(rebuild=True) == 1
        assert count(batch=(1, 2, 4)) == 1
        assert count(batch=(1, 2, 4), workspace_bytes=2**20) == 1
        assert count() == 1
        output.write_bytes(output.read_bytes() + b"?")
        assert count() == 1
        manifest_path(output).write_text("{")
        assert count() == 1
        machine[2].properties.name = b"Orin Nano\0"
        assert count() == 1

    def test_a_timing_cache_is_read_and_extended(self, exported, machine, tmp_path):
        cache = tmp_path / "timing.cache"
        cache.touch()  # an empty one is a beginning
        for index in (1, 2):
            build_engine(
                exported.model, tmp_path / "m.engine", Request(timing_cache=cache, rebuild=True)
            )
            assert cache.read_bytes() == b"measured;" * index
        cache.write_bytes(b"of another GPU")
        build_engine(
            exported.model, tmp_path / "m.engine", Request(timing_cache=cache, rebuild=True)
        )
        assert cache.read_bytes() == b"measured;"

    def test_a_timing_cache_that_cannot_be_is_refused_before_anything_is_built(
        self, exported, machine, tmp_path
    ):
        (tmp_path / "file").write_bytes(b"x")
        (tmp_path / "folder").mkdir()
        machine[1].built.fail = "built all the same"
        for cache, error, words in (
            (tmp_path / "file" / "t.cache", OutputError, "part of the path is a file"),
            (tmp_path / "folder", InputError, "is a folder where one timing cache"),
        ):
            with pytest.raises(error, match=words):
                build_engine(exported.model, tmp_path / "m.engine", Request(timing_cache=cache))

    def test_a_builder_that_fails_says_why_and_leaves_nothing(self, exported, machine, tmp_path):
        machine[1].built.fail = "out of\nmemory"
        with pytest.raises(BackendError, match=r"not build the fp32 engine \(out of memory\)"):
            build_engine(exported.model, tmp_path / "m.engine", Request())
        machine[1].built.refuse_graph = "no importer for Attention"
        with pytest.raises(BackendError, match=r"cannot read the fp32 model \(no importer for Att"):
            build_engine(exported.model, tmp_path / "m.engine", Request())
        assert folder(tmp_path) == []

    def test_calibration_on_the_data_set_and_its_content_in_the_key(
        self, exported, machine, tmp_path, dataset, monkeypatch
    ):
        seen = []

        def watched(model, precision, calibration, converter):
            seen.append([sample.name for sample in calibration])
            return convert(model, "fp16")

        convert = lowering.convert
        monkeypatch.setattr(lowering, "convert", watched)
        monkeypatch.setattr(lowering, "judge", lambda *a, **k: PASSED)
        request = Request("int8", calibration_data=dataset)
        first = build_engine(exported.model, tmp_path / "m.engine", request)
        assert set(seen[0]) == {"train pairs"}
        phantoms = build_engine(exported.model, tmp_path / "m.engine", Request("int8"))
        assert set(seen[1]) == {"phantoms"}
        assert phantoms.manifest.key != first.manifest.key


def test_options_that_do_not_fit(exported, tmp_path, fake_machine):
    fake_machine("10")
    for wrong, message in (
        ({"batch": (4, 2, 8)}, r"--batch 4 2 8 must be three rising numbers"),
        ({"height": (32, 60, 96)}, r"lite takes multiples of 8 from 16 on"),
        ({"width": (8, 16, 32)}, r"lite takes multiples of 8 from 16 on"),
    ):
        with pytest.raises(UsageError, match=message):
            build_engine(exported.model, tmp_path / "m.engine", Request(**wrong))
    with pytest.raises(UsageError, match=r"m\.plan does not end in \.engine"):
        build_engine(exported.model, tmp_path / "m.plan", Request())


def test_models_that_are_none(exported, network, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.onnx is not an ONNX model"):
        build_engine(tmp_path / "a.onnx", tmp_path / "m.engine", Request())
    with pytest.raises(InputError, match="is not a model of the whole separation"):
        build_engine(network, tmp_path / "m.engine", Request())


def test_without_tensorrt_one_sentence_says_where_it_comes_from(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("blsgan.runtimes.libraries.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"tensorrt is not installed \(it comes with JetPack"):
        build_engine(exported.model, tmp_path / "m.engine", Request())


def test_a_library_that_does_not_load(monkeypatch):
    from types import ModuleType

    from blsgan.runtimes import libraries

    monkeypatch.setattr(libraries, "find_spec", lambda name: True)
    monkeypatch.setattr(libraries, "import_module", lambda name: ModuleType("tensorrt"))
    with pytest.raises(BackendError, match="tensorrt is installed but does not load"):
        libraries.load("tensorrt")


def test_the_command_s_values(exported, tmp_path):
    for wrong in (["--workspace", "much"], ["--workspace", "0"], ["--compute-capability", "sm_86"]):
        done = CliRunner().invoke(
            command, [str(exported.model), "-o", str(tmp_path / "m.engine"), *wrong]
        )
        assert done.exit_code == 2
        assert "is no " in done.output


def test_the_gate_runs_on_crops_that_calibration_never_saw(exported):
    from blsgan.deploy.model import load_exported

    calibration, judged_on = lowering.samples_for(load_exported(exported.model), "int8")
    first = {sample.image.tobytes() for sample in calibration()}
    second = {sample.image.tobytes() for sample in judged_on()}
    assert first
    assert second
    assert not first & second
    assert all(np.isfinite(sample.layers).all() for sample in judged_on())
