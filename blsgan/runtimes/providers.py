"""GPUs through ONNX Runtime: its CUDA and TensorRT providers, and the TensorRT-RTX plugin.

A provider that cannot be loaded is left out by ONNX Runtime, which then runs on the CPU and only
logs it; here that is an error with its reason. Precision is the graph's own: TensorFloat-32 is off,
and no provider may lower anything.

None of them was ever run by the authors, who had no GPU: the packages were imported without one
(onnxruntime-gpu 1.31.1, onnxruntime-ep-nv-tensorrt-rtx 0.5.0), the CUDA provider and the plugin
were loaded beside a libcuda that only fails, and the names of all options were read from them.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blsgan.errors import BackendError
from blsgan.runtimes.cache import cache_folder
from blsgan.runtimes.device import Device, no_gpu
from blsgan.runtimes.manifest import Profile
from blsgan.runtimes.session import first_line

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
"""ONNX Runtime's name of what runs on a device."""

AS_GPU = ("tensorrt-rtx", "cuda")
"""What the device ``gpu`` tries, in this order. TensorRT is not among them: its first start takes
minutes, which must have been asked for."""

_WITH_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_GPU_WHEEL = f"pip uninstall onnxruntime, then {_WITH_CUDA}"
_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_DRIVER = "install NVIDIA's driver"
_WHENCE = {
    "libcuda": _DRIVER,
    "libnvidia-ml": _DRIVER,
    "libnvinfer": "install NVIDIA's TensorRT 10, or take --device tensorrt-rtx",
    "libnvonnxparser": "install NVIDIA's TensorRT 10, or take --device tensorrt-rtx",
}
_MISSING = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")


def missing(kind: str) -> str | None:
    """Why there can be no session on ``cuda``, ``tensorrt`` or ``tensorrt-rtx`` here, or None.

    Imports nothing, so what is there may still fail to load.
    """
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install onnxruntime"
    if kind == "tensorrt-rtx":
        if find_spec(_PLUGIN) is None:
            return f"{_PLUGIN} is not installed; pip install 'blsgan[rtx]'"
    elif not _library(kind).is_file():
        return f"this onnxruntime has no GPU in it; {_GPU_WHEEL}"
    return no_gpu()


def _library(kind: str) -> Path:
    """What ONNX Runtime loads for a device."""
    spec = find_spec("onnxruntime")
    assert spec is not None, "asked for where it is installed"
    (folder,) = spec.submodule_search_locations or ("",)
    return Path(folder, "capi", f"libonnxruntime_providers_{kind}.so")


def open_session(
    onnxruntime: Any,
    data: bytes,
    options: Any,
    device: Device,
    *,
    sha256: str,
    profile: Mapping[str, Profile],
) -> Any:
    """An ``InferenceSession`` whose network runs on ``device``.

    Args:
        onnxruntime: the module.
        data: the model.
        options: ``SessionOptions`` of the caller's, which are added to.
        sha256: of the model, by which compiled kernels are kept: TensorRT's provider takes a cached
            engine for every graph of that shape, whatever its weights.
        profile: shapes that TensorRT builds for.

    Raises:
        BackendError: it cannot be loaded, or ONNX Runtime leaves it out.
        OutputError: the cache folder cannot be written.
        Exception: what ONNX Runtime raises for a model it cannot load.
    """
    if reason := missing(device.kind):
        raise BackendError(f"device {device} cannot be used: {reason}.")
    # Read by NVIDIA's libraries when they are loaded. TensorRT's provider has no option of its own.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    name = PROVIDERS[device.kind]
    with _quiet(onnxruntime):
        if device.kind == "tensorrt-rtx":
            plugin = _registered(onnxruntime, device)
            cache = _cache(device, f"{onnxruntime.__version__}-{plugin.__version__}", sha256)
            found = [one for one in onnxruntime.get_ep_devices() if one.ep_name == name]
            if device.index >= len(found):
                raise BackendError(
                    f"device {device} cannot be used: TensorRT-RTX sees {len(found)} GPUs here "
                    "that it runs on (compute capability 8.6 and newer)."
                )
            options.add_provider_for_devices([found[device.index]], _rtx_options(cache, profile))
            session = onnxruntime.InferenceSession(data, options, enable_fallback=0)
        else:
            if hasattr(onnxruntime, "preload_dlls"):  # of NVIDIA's wheels, where they are installed
                onnxruntime.preload_dlls(directory="")
            cuda = (PROVIDERS["cuda"], _cuda_options(device))
            wanted: list[Any] = [cuda, "CPUExecutionProvider"]
            if device.kind == "tensorrt":
                cache = _cache(device, onnxruntime.__version__, sha256)
                wanted.insert(0, (name, _tensorrt_options(device, cache, profile)))
            try:
                session = onnxruntime.InferenceSession(
                    data, options, providers=wanted, enable_fallback=0
                )
            except Exception as error:
                # A library that is not there is what it says least clearly.
                if _missing_library(_library(device.kind)) is None:
                    raise
                raise _left_out(device) from error
    if name not in session.get_providers():
        raise _left_out(device)
    if "Conv" in _on_the_cpu(session):
        raise BackendError(
            f"device {device} cannot be used: ONNX Runtime leaves convolutions of this network to "
            "the CPU; take another device."
        )
    return session


def _cuda_options(device: Device) -> dict[str, str]:
    return {
        "device_id": str(device.index),
        "use_tf32": "0",
        # By measuring, the same picture had other bytes in another run.
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _tensorrt_options(
    device: Device, cache: Path, profile: Mapping[str, Profile]
) -> dict[str, str]:
    return {
        "device_id": str(device.index),
        "trt_fp16_enable": "0",
        "trt_bf16_enable": "0",
        "trt_int8_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        **_shapes("trt_profile_{}_shapes", profile),
    }


def _rtx_options(cache: Path, profile: Mapping[str, Profile]) -> dict[str, str]:
    return {
        "nv_runtime_cache_path": str(cache),
        **_shapes("nv_profile_{}_shapes", profile),
    }


def _shapes(option: str, profile: Mapping[str, Profile]) -> dict[str, str]:
    """``image:1x1x32x32,masks:1x2x32x32`` for each of min, opt and max."""
    return {
        option.format(place): ",".join(
            f"{name}:{'x'.join(map(str, getattr(shapes, place)))}"
            for name, shapes in profile.items()
        )
        for place in ("min", "opt", "max")
        if profile
    }


def _cache(device: Device, version: str, sha256: str) -> Path:
    return cache_folder("onnxruntime", f"{device.kind}-{version}", sha256[:16])


def _registered(onnxruntime: Any, device: Device) -> Any:
    """The plugin's module, known to ONNX Runtime."""
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BackendError(
            f"device {device} cannot be used: onnxruntime {onnxruntime.__version__} takes no "
            "plugins; pip install 'onnxruntime>=1.24'."
        )
    try:
        plugin = import_module(_PLUGIN)
        onnxruntime.register_execution_provider_library(
            plugin.get_ep_name(), plugin.get_library_path()
        )
    except Exception as error:  # an OSError, ONNX Runtime's own: they share no base class
        if "already registered" in str(error).lower():
            return import_module(_PLUGIN)
        reason = _sentence(str(error)) or f"its plugin does not load ({first_line(error)})"
        raise BackendError(f"device {device} cannot be used: {reason}.") from error
    return plugin


def _left_out(device: Device) -> BackendError:
    reason = _missing_library(_library(device.kind)) if device.kind != "tensorrt-rtx" else None
    return BackendError(
        f"device {device} cannot be used: "
        f"{reason or 'ONNX Runtime left it out; see that driver and CUDA are those it needs'}."
    )


def _missing_library(path: Path) -> str | None:
    """Which library that ``path`` needs is not there, and how to get it."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return _sentence(str(error))
    return None


def _sentence(text: str) -> str | None:
    found = _MISSING.search(text)
    if found is None:
        return None
    stem = found[1].partition(".")[0]
    return f"{found[1]} is not there; {_WHENCE.get(stem, _WITH_CUDA)}"


def _on_the_cpu(session: Any) -> set[str]:
    """Types of the nodes that ONNX Runtime runs on the CPU; empty where it does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return set()
    return {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }


@contextlib.contextmanager
def _quiet(onnxruntime: Any) -> Iterator[None]:
    """Keep to ourselves what is said while libraries are looked for: the error repeats it."""
    onnxruntime.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default
