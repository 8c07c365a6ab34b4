"""Networks: the registry that names them, and their weights' files.

``load_generator`` and everything else that needs torch is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blsgan.models.registry import build_generator
    from blsgan.models.weights import load_generator, load_locator, load_segmenter, save_weights

OPSET = 20
"""Of the ONNX standard; newer ones emit operators that engine builders parse and then fail on."""

__all__ = [
    "OPSET",
    "build_generator",
    "load_generator",
    "load_locator",
    "load_segmenter",
    "save_weights",
]

_HOMES = {
    "build_generator": "blsgan.models.registry",
    "load_generator": "blsgan.models.weights",
    "load_locator": "blsgan.models.weights",
    "load_segmenter": "blsgan.models.weights",
    "save_weights": "blsgan.models.weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
