"""Separate overlapping bones in conventional radiographs.

    >>> import blsgan
    >>> separator = blsgan.Separator.from_pretrained()  # doctest: +SKIP
    >>> joint = separator(image, masks)  # doctest: +SKIP

``image`` is float32 [H,W] in [0,1] (or uint8, uint16), ``masks`` bool [2,H,W] (upper, lower bone).
``joint.upper`` and ``joint.lower`` are the layers, float32 [H,W]: zero outside their bone, exactly
the image outside the overlap, and together exactly the image inside it. Without masks,
``blsgan.Segmenter.from_pretrained()(image).masks`` predicts them.

Importing this package loads none of its dependencies: the names below come with their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blsgan.runtimes.privacy import stop_telemetry

stop_telemetry()

__version__ = "0.1.0"

__all__ = ["Segmentation", "Segmenter", "Separation", "Separator", "__version__"]

if TYPE_CHECKING:
    from blsgan.tasks.segmentation import Segmentation, Segmenter
    from blsgan.tasks.separation import Separation, Separator

_LAZY = {
    "Segmentation": "blsgan.tasks.segmentation",
    "Segmenter": "blsgan.tasks.segmentation",
    "Separation": "blsgan.tasks.separation",
    "Separator": "blsgan.tasks.separation",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
