"""TensorRT and TensorRT-RTX: one Python interface under two names, imported when it is needed.

Three generations are served: TensorRT 10 (JetPack 6, and 7 up to 7.2.1), 11 (JetPack from 7.2.2 on)
and TensorRT-RTX 1. What one of them lacks is asked for with ``hasattr``, here and wherever they are
used; no version is compared with a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from blsgan.errors import BackendError


@dataclass(frozen=True)
class Flavour:
    """A library that builds and runs engines."""

    name: str
    module: str
    hint: str


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour(
            "tensorrt",
            "tensorrt",
            "it comes with JetPack or from NVIDIA's TensorRT downloads, not from PyPI",
        ),
        Flavour("tensorrt-rtx", "tensorrt_rtx", "pip install 'blsgan[tensorrt-rtx]'"),
    )
}


@dataclass(frozen=True)
class Library:
    """An imported library: its module, and a logger that keeps warnings and errors."""

    flavour: Flavour
    module: Any
    logger: Any
    messages: list[str]

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    def last_error(self) -> str:
        """The library's last words, for a sentence; "it does not say why" where there are none."""
        return self.messages[-1] if self.messages else "it does not say why"


def missing(name: str) -> str | None:
    """Why the library ``name`` cannot be imported, or None. Imports nothing."""
    flavour = FLAVOURS[name]
    if find_spec(flavour.module) is None:
        return f"{flavour.module} is not installed ({flavour.hint})"
    return None


def load(name: str) -> Library:
    """Import the library ``name`` ("tensorrt", "tensorrt-rtx").

    Raises :class:`BackendError` when it is not installed or does not load.
    """
    flavour = FLAVOURS[name]
    if reason := missing(name):
        raise BackendError(f"{name} cannot be used here: {reason}.")
    try:
        module = import_module(flavour.module)
        if id(module) in _loaded:
            return _loaded[id(module)]
        messages: list[str] = []
        logger = _logger(module, messages)
    except Exception as error:  # a missing CUDA library is an OSError, a stub an AttributeError
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise BackendError(
            f"{name} cannot be used here: {flavour.module} is installed but does not load "
            f"({reason})."
        ) from error
    # The first logger of a process is the one TensorRT keeps, whatever it is given later.
    return _loaded.setdefault(id(module), Library(flavour, module, logger, messages))


_loaded: dict[int, Library] = {}


def _logger(module: Any, messages: list[str]) -> Any:
    severe = (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR)

    class Logger(module.ILogger):
        """Keeps errors for the sentence that reports them, and prints nothing."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severe:
                messages.append(" ".join(str(message).split())[:300])

    return Logger()
