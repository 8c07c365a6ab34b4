"""A device of ONNX Runtime is used or refused, never replaced. There is no GPU where these run."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

from blsgan.errors import BackendError, UsageError
from blsgan.runtimes import onnx_device, session
from blsgan.runtimes.onnx import OnnxSession
from blsgan.tasks.backend import create

onnxruntime = pytest.importorskip("onnxruntime")

GPUS = onnx_device.DEVICES[1:]


def runtime(providers=("CUDAExecutionProvider", "TensorrtExecutionProvider"), **members):
    """FAKE of the module, for what it says before a session is made."""
    return SimpleNamespace(
        __version__="1.32.0",
        __file__=os.devnull,
        get_available_providers=lambda: list(providers),
        preload_dlls=lambda: None,
        **members,
    )


@pytest.fixture
def gpu(monkeypatch):
    """As if a driver were there."""
    monkeypatch.setattr(session, "_GPU_DEVICES", (os.devnull,))


@pytest.mark.parametrize("device", GPUS)
def test_a_device_that_is_not_there_is_refused_in_one_sentence(network, device):
    with pytest.raises(BackendError, match=f"device '{device}' cannot be used: ") as caught:
        create("onnx", network, device=device)
    assert "\n" not in str(caught.value)


def test_the_package_without_a_gpu_is_named():
    cpu = runtime(providers=["CPUExecutionProvider"])
    for device in ("cuda", "tensorrt"):
        assert "pip install onnxruntime-gpu" in onnx_device.missing(device, cpu)
    assert onnx_device.missing("cpu", cpu) is None


def test_a_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(session, "_GPU_DEVICES", ("/none",))
    assert "there is no NVIDIA GPU" in onnx_device.missing("cuda", runtime())


def test_a_library_that_does_not_load_is_named_by_the_loader(gpu):
    reason = onnx_device.missing("tensorrt", runtime())
    assert "libonnxruntime_providers_shared.so" in reason


def test_a_plugin_needs_a_runtime_that_takes_plugins(gpu):
    assert "takes no plugins" in onnx_device.missing("tensorrt-rtx", runtime())
    takes = runtime(register_execution_provider_library=None)
    if onnx_device.find_spec("onnxruntime_ep_nv_tensorrt_rtx") is None:
        assert "pip install 'blsgan[rtx]'" in onnx_device.missing("tensorrt-rtx", takes)


def test_a_session_on_the_processor_is_not_taken_for_one_on_a_gpu(network):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    made = onnxruntime.InferenceSession(
        network.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    reason = onnx_device.left_to_the_processor(made, "CUDAExecutionProvider")
    assert "went on without CUDAExecutionProvider" in reason
    # The same session as ONNX Runtime would describe one whose provider took none of the nodes.
    pretends = SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        get_provider_graph_assignment_info=made.get_provider_graph_assignment_info,
    )
    reason = onnx_device.left_to_the_processor(pretends, "CUDAExecutionProvider")
    assert "leaves" in reason
    assert "Conv" in reason


def test_a_device_that_fails_at_the_first_run_is_named(network):
    made = OnnxSession(network.read_bytes(), "x.onnx")
    made._device = "cuda"
    with pytest.raises(BackendError, match=r"x\.onnx failed on cuda \(.+\); leave the device out"):
        made.run({"image": np.zeros((1, 1, 16, 16), np.float32)})


def test_each_model_has_a_cache_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = {onnx_device._cache_folder("tensorrt", data, runtime()) for data in (b"a", b"b")}
    assert len(folders) == 2
    assert all(folder.is_dir() and tmp_path in folder.parents for folder in folders)


def test_a_cache_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "blsgan").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BackendError, match=r"keeps what it compiles, cannot be written .*XDG"):
        onnx_device._cache_folder("tensorrt", b"a", runtime())


def test_devices_are_onnx_runtimes(network):
    with pytest.raises(UsageError, match="device 'cuda' is ONNX Runtime's"):
        create("torch", network, device="cuda")
    with pytest.raises(UsageError, match="device 'rocm' is unknown; choose one of cpu, cuda"):
        create("onnx", network, device="rocm")
