"""What every session is, and which runtimes can run here."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import BackendError, WeightsError
from blsgan.runtimes import libraries
from blsgan.runtimes.device import no_gpu

_LOG = logging.getLogger(__name__)

Float32 = NDArray[np.float32]
Ports = Mapping[str, tuple[int | None, ...] | None]
"""Name -> shape, None for a dimension that is free, or for a shape that is not known."""

ENGINES = ("tensorrt", "tensorrt-rtx")

# In the order "auto" tries them: an engine where there is one that fits; ONNX Runtime is up in half
# of OpenVINO's time (which is a little faster once warm), torch takes seconds.
_PACKAGES = {
    "onnx": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "'blsgan[openvino]'"),
    "torch": ("torch", "'blsgan[train]'"),
}
NAMES = (*ENGINES, *_PACKAGES)


_CUDA = re.compile(r"\bCU\w+ (?:failure|error) \d+: [^;]+")
_SOURCE = re.compile(r"^/onnxruntime_src/.*?\[ONNXRuntimeError\] : \d+ : \w+ : ")


class Session(Protocol):
    """A network that runs.

    Attributes:
        version: of the runtime.
        inputs, outputs: names and shapes.
    """

    version: str
    inputs: Ports
    outputs: Ports

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        """Outputs by name, in arrays of their own; what cannot be run raises what it likes."""
        ...


def available() -> dict[str, str | None]:
    """For each runtime the reason why it cannot run here, or None when it can. Imports nothing.

    An engine must also have been built for this machine, which its manifest says.
    """
    reasons = {name: _engines_missing(name) for name in ENGINES}
    for name, (module, package) in _PACKAGES.items():
        missing = find_spec(module) is None
        reasons[name] = f"{module} is not installed; pip install {package}" if missing else None
    return reasons


def _engines_missing(name: str) -> str | None:
    if reason := libraries.missing(name):
        return reason
    if find_spec("cuda") is None:
        return "cuda-bindings is not installed; pip install 'blsgan[engine]'"
    return no_gpu()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Cores this process may use, at most 8: the networks are too small to feed more."""
    return min(cores(), 8)


def thread_count(threads: int | None) -> int | None:
    """``threads``, but no more than the cores this process may use: more of them wait in circles.

    A runtime with 64 threads on two cores took 9 s for what takes 10 ms, and with 1000 forever.
    """
    most = cores()
    if threads is None or threads <= most:
        return threads
    _LOG.warning("%d threads are more than the %d usable cores: %d are used", threads, most, most)
    return most


def imported(name: str) -> Any:
    """The module of the runtime ``name``; raises :class:`BackendError` where it does not load."""
    module = _PACKAGES[name][0]
    try:
        return import_module(module)
    except ImportError as error:
        reason = available()[name] or f"{module} is installed but does not load ({error})"
        raise BackendError(f"backend {name!r} cannot run here: {reason}.") from error


def unloadable(what: str, error: Exception) -> WeightsError:
    """The error for a file that a runtime refuses, whatever type the runtime raised."""
    return WeightsError(
        f"{what} is not a network that can be run ({first_line(error)}); give another one."
    )


def first_line(error: Exception) -> str:
    """The beginning of what a runtime says, for the sentence that reports it.

    ONNX Runtime begins with where in its sources it stood, and CUDA's own words come after it.
    """
    words = (str(error).splitlines() or [type(error).__name__])[0]
    if found := _CUDA.search(words):
        words = found[0].rstrip()
    return _SOURCE.sub("", words)[:120].rstrip(".")
