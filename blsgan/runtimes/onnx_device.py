"""Where ONNX Runtime computes: on the processor, or on an NVIDIA GPU by one of its providers.

A device that is asked for is used or refused. ONNX Runtime by itself goes on without a provider
that does not load, prints that to a stream, and may leave single nodes to the processor.

Results are those of float32: TF32 is off, and no provider is told to use half precision. A network
in half precision is one that ``blsgan export --precision fp16`` wrote, after its gate.

No GPU was there when this was written: what is tested is each refusal, against the real packages as
far as they load without one.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blsgan.errors import BackendError
from blsgan.runtimes.session import gpu_missing

DEVICES = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")

_CPU = "CPUExecutionProvider"
_PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
# What a GPU is asked for. Arithmetic on shapes stays on the processor by design.
_HEAVY = {"Conv", "ConvTranspose", "FusedConv", "Gemm", "MatMul"}


def missing(device: str, onnxruntime: Any) -> str | None:
    """Why a device cannot be used here, as far as that shows before a session is made."""
    if device == "cpu":
        return None
    if device == "tensorrt-rtx":
        if not hasattr(onnxruntime, "register_execution_provider_library"):
            return f"onnxruntime {onnxruntime.__version__} takes no plugins; 1.24 or newer does"
        if find_spec(_RTX_PLUGIN) is None:
            return "its plugin is not installed; pip install 'blsgan[rtx]'"
    elif _PROVIDERS[device] not in onnxruntime.get_available_providers():
        return (
            "the onnxruntime that is installed is the one without a GPU; pip uninstall onnxruntime "
            "and then pip install onnxruntime-gpu"
        )
    return gpu_missing() or _unloadable(device, onnxruntime)


def _unloadable(device: str, onnxruntime: Any) -> str | None:
    """What the loader says of a provider's library: a name, where ONNX Runtime says nothing."""
    if device == "tensorrt-rtx":
        return None  # registering it tells
    onnxruntime.preload_dlls()  # CUDA's and cuDNN's, where they came from PyPI
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        shared = folder / "libonnxruntime_providers_shared.so"
        ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{device}.so"))
    except OSError as error:
        return f"a library is missing or of another version ({error})"
    return None


def open_session(onnxruntime: Any, data: bytes, options: Any, device: str) -> Any:
    """A session of the model ``data`` on ``device``.

    Args:
        onnxruntime: the module.
        data: an ONNX model.
        options: its SessionOptions, which are added to.
        device: one of :data:`DEVICES`.

    Raises:
        BackendError: the device cannot be used here, or the network would not run there.
        Exception: what ONNX Runtime raises for a model that it cannot load.
    """
    if device == "cpu":
        return onnxruntime.InferenceSession(data, options, providers=[_CPU])
    if reason := missing(device, onnxruntime):
        raise BackendError(f"device {device!r} cannot be used: {reason}.")
    # Read by CUDA's libraries; ONNX Runtime has a switch of its own for one provider alone.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if device == "tensorrt-rtx":
        wanted = _add_rtx(onnxruntime, options, _cache_folder(device, data, onnxruntime))
        session = onnxruntime.InferenceSession(data, options, enable_fallback=0)
    else:
        wanted = _PROVIDERS[device]
        cuda = (_PROVIDERS["cuda"], {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
        providers = [cuda]
        if device == "tensorrt":
            folder = str(_cache_folder(device, data, onnxruntime))
            caches = {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": folder,
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": folder,
            }
            providers.insert(0, (wanted, caches))
        session = onnxruntime.InferenceSession(
            data, options, providers=providers, enable_fallback=0
        )
    if reason := left_to_the_processor(session, wanted):
        raise BackendError(f"device {device!r} cannot be used: {reason}.")
    return session


def _add_rtx(onnxruntime: Any, options: Any, cache: Path) -> str:
    """Register the plugin and choose its devices; returns the provider's name."""
    from importlib import import_module

    try:
        plugin = import_module(_RTX_PLUGIN)
        name: str = plugin.get_ep_name()
        if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        reason = (str(error).splitlines() or [""])[0][:200]
        raise BackendError(
            f"device 'tensorrt-rtx' cannot be used: its plugin does not load ({reason})."
        ) from error
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise BackendError(
            "device 'tensorrt-rtx' cannot be used: its plugin finds no GPU of Ampere or newer "
            "whose driver fits."
        )
    options.add_provider_for_devices(devices[:1], {"nv_runtime_cache_path": str(cache)})
    return name


def left_to_the_processor(session: Any, wanted: str) -> str | None:
    """Why a session does not run the network by the provider ``wanted``, None where it does."""
    active = list(session.get_providers())
    if wanted not in active:
        return f"ONNX Runtime went on without {wanted}, with {', '.join(active)}"
    tells = getattr(session, "get_provider_graph_assignment_info", None)
    if tells is None:  # before 1.24
        return None
    left = {
        node.op_type
        for subgraph in tells()
        if subgraph.ep_name == _CPU
        for node in subgraph.get_nodes()
    }
    if heavy := sorted(left & _HEAVY):
        return f"{wanted} leaves {', '.join(heavy)} of this network to the processor"
    return None


def _cache_folder(device: str, data: bytes, onnxruntime: Any) -> Path:
    """The folder where a provider keeps what it compiled for one model.

    The providers' own names of files tell GPUs and structures apart, but not weights.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    model = hashlib.sha256(data).hexdigest()[:16]
    folder = Path(base, "blsgan", f"{device}-{onnxruntime.__version__}-{model}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "it is read-only")
    except OSError as error:
        raise BackendError(
            f"{folder}, where {device} keeps what it compiles, cannot be written "
            f"({error.strerror}); set XDG_CACHE_HOME to a folder that can."
        ) from error
    return folder
