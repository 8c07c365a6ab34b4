"""The GPU of this machine, through cuda-python's bindings; no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from blsgan.errors import BackendError

_HINT = "pip install 'blsgan[engine]' (of CUDA's major version: 'cuda-bindings<13' for CUDA 12)"


@dataclass(frozen=True)
class Gpu:
    """A device: its name and compute capability such as ``8.7``."""

    name: str
    compute_capability: str


def cuda_runtime() -> Any:
    """The module ``cuda.bindings.runtime``; raises :class:`BackendError` where it cannot be had."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        reason = (
            "cuda-bindings is not installed"
            if find_spec("cuda") is None
            else f"cuda-bindings does not load ({error})"
        )
        raise BackendError(f"engines cannot run here: {reason}; {_HINT}.") from error


def checked(runtime: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, whose answer is (status, value...).

    Raises :class:`BackendError` with CUDA's own words where the status is not success.
    """
    status, *values = answer
    if int(status) != 0:
        words = runtime.cudaGetErrorString(status)[1]
        text = words.decode() if isinstance(words, bytes) else str(words or status)
        raise BackendError(f"CUDA says: {text} (error {int(status)}).")
    return values[0] if len(values) == 1 else tuple(values)


def this_gpu(device: int = 0) -> Gpu:
    """The GPU number ``device``.

    Raises :class:`BackendError` where there is no GPU, no driver, or no cuda-bindings.
    """
    runtime = cuda_runtime()
    try:
        count = checked(runtime, runtime.cudaGetDeviceCount())
    except Exception as error:  # the bindings raise RuntimeError where libcuda is not found
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(".")
        raise BackendError(f"this machine has no usable NVIDIA GPU ({reason}).") from error
    if device >= count:
        raise BackendError(f"this machine has {count} NVIDIA GPUs, none of number {device}.")
    properties = checked(runtime, runtime.cudaGetDeviceProperties(device))
    name = properties.name
    return Gpu(
        name.decode().rstrip("\0") if isinstance(name, bytes) else str(name),
        f"{properties.major}.{properties.minor}",
    )
