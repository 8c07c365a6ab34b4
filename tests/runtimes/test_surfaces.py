"""Our fakes have no name that the real packages lack, and ask of them what the real ones have.

``tests/surfaces`` was read from the packages by ``read.py``; what is installed is read again.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
from pathlib import Path

import pytest

from blsgan.runtimes import providers
from blsgan.runtimes.device import Device
from blsgan.runtimes.manifest import Profile

ENUMERATIONS = ("BuilderFlag", "HardwareCompatibilityLevel", "NetworkDefinitionCreationFlag")

# Where the code asks what a library has: the class (None: the module) and the name.
ASKED = [
    (None, "ComputeCapability"),
    (None, "HardwareCompatibilityLevel"),
    (None, "ProfilingVerbosity"),
    ("BuilderFlag", "TF32"),
    ("BuilderFlag", "VERSION_COMPATIBLE"),
    ("HardwareCompatibilityLevel", "AMPERE_PLUS"),
    ("HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY"),
    ("IBuilderConfig", "create_timing_cache"),
    ("ICudaEngine", "create_runtime_config"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
]


def public(cls):
    return {name for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize("generation", ["10", "11", "rtx"])
class TestTensorRt:
    def test_every_method_of_a_fake_is_one_of_the_real_class(self, fakes, generation):
        real = fakes.surface(f"tensorrt-{generation}")["classes"]
        for name, cls in fakes.fake_tensorrt(generation).faked.items():
            if name in real:
                lacking = public(cls) - set(real[name].split()) - {"Severity", "deserialised"}
                assert not lacking, f"{name} of TensorRT {generation} has no {lacking}"
            else:
                assert (generation, name) in {("10", "IRuntimeCache"), ("11", "IRuntimeCache")}

    def test_members_of_enumerations_are_the_real_ones(self, fakes, generation):
        real = fakes.surface(f"tensorrt-{generation}")["classes"]
        module = fakes.fake_tensorrt(generation)
        for name in ENUMERATIONS:
            assert issubclass(getattr(module, name), enum.IntEnum)
            assert list(getattr(module, name).__members__) == real[name].split()
        assert ("FP16" in real["BuilderFlag"].split()) == (generation == "10")

    def test_what_the_code_asks_for_with_hasattr_is_answered_as_by_the_real_one(
        self, fakes, generation
    ):
        real = fakes.surface(f"tensorrt-{generation}")
        module = fakes.fake_tensorrt(generation)
        for owner, name in ASKED:
            if owner is None:
                assert hasattr(module, name) == (name in real["names"].split()), name
            else:
                cls = module.faked.get(owner) or getattr(module, owner)
                there = name in real["classes"].get(owner, "").split()
                assert hasattr(cls, name) == there, f"{owner}.{name}"


class TestOnnxRuntime:
    def test_every_method_of_a_fake_is_one_of_the_real_class(self, fakes):
        real = fakes.surface("onnxruntime-gpu")
        module = fakes.fake_onnxruntime()
        for name, cls in module.faked.items():
            assert not public(cls) - set(real["classes"][name].split())
        ours = {"asked", "devices", "does", "faked"}
        names = {name for name in vars(module) if not name.startswith("_")} - ours
        assert not names - set(real["names"].split())
        options = module.SessionOptions()
        given = {name for name in vars(options) if name != "given"}
        assert not given - set(real["classes"]["SessionOptions"].split())

    def test_every_option_is_one_that_the_providers_have(self, fakes):
        gpu = set(fakes.surface("onnxruntime-gpu")["options"].split())
        plugin = set(fakes.surface("onnxruntime-ep-nv-tensorrt-rtx")["options"].split())
        shape = (1, 1, 8, 8)
        profile = {"image": Profile(min=shape, opt=shape, max=shape)}
        device, cache = Device("cuda"), Path("cache")
        assert set(providers._cuda_options(device)) <= gpu
        assert set(providers._tensorrt_options(device, cache, profile)) <= gpu
        assert set(providers._rtx_options(cache, profile)) <= plugin
        assert len(providers._rtx_options(cache, profile)) == 4

    def test_the_plugins_functions(self, fakes):
        real = fakes.surface("onnxruntime-ep-nv-tensorrt-rtx")["names"].split()
        plugin = fakes.fake_rtx_plugin(fakes.fake_onnxruntime())
        assert {name for name in vars(plugin) if not name.startswith("_")} <= set(real)


def test_every_call_of_the_fake_of_cuda_is_one_of_the_bindings(fakes):
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    calls = {name for name in vars(fakes.FakeCuda) if name.startswith("cuda")}
    assert len(calls) > 20
    assert not {name for name in calls if not hasattr(runtime, name)}
    for name, member in (
        ("cudaMemcpyKind", "cudaMemcpyHostToDevice"),
        ("cudaMemcpyKind", "cudaMemcpyDeviceToHost"),
        ("cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal"),
    ):
        assert hasattr(getattr(runtime, name), member)


@pytest.mark.parametrize("name", ["tensorrt-rtx", "tensorrt-11", "onnxruntime-gpu"])
def test_what_was_read_is_what_is_installed(fakes, name):
    """Of the version that was read; another one is no failure of ours, and read when it matters."""
    recorded = fakes.surface(name)
    if importlib.util.find_spec(recorded["module"]) is None:
        pytest.skip(f"{recorded['module']} is not installed")
    module = importlib.import_module(recorded["module"])
    if module.__version__ != recorded["version"]:
        pytest.skip(f"{module.__name__} {module.__version__}, and {recorded['version']} was read")
    path = Path(__file__).parents[1] / "surfaces" / "read.py"
    spec = importlib.util.spec_from_file_location("read_surface", path)
    read = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(read)
    found = read.surface(module, None, "")
    assert found["classes"] == recorded["classes"]
