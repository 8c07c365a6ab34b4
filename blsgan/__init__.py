"""Separate overlapping bones in conventional radiographs.

>>> import blsgan
>>> joint = blsgan.separate("joint.png")
>>> joint
<Joint joint: 128x128 px, overlap ... px, soft tissue 0...>
>>> files = joint.save("out")

``separate`` takes a file or an array, one or many, with or without masks; ``joint.upper`` and
``joint.lower`` are the layers, float32 [H,W]: zero outside their bone, exactly the image outside
the overlap, and together exactly the image inside it. ``segment`` predicts the masks, ``measure``
is joint space narrowing between two visits, ``read`` reads a radiograph. ``hand`` takes every joint
of a whole hand apart, ``hand_visits`` follows them over visits. ``Separator``, ``Segmenter``,
``Locator`` and ``HandSeparator`` are the networks for arrays; ``ops`` and ``nn`` the kernels for
PyTorch; ``errors`` what all of these raise.

Importing this package loads none of its dependencies: the names below come with their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blsgan.runtimes.privacy import stop_telemetry

stop_telemetry()

__version__ = "0.1.0"

__all__ = [
    "HandSeparator",
    "Locator",
    "Segmenter",
    "Separator",
    "errors",
    "hand",
    "hand_visits",
    "measure",
    "nn",
    "ops",
    "read",
    "segment",
    "separate",
]

if TYPE_CHECKING:
    from blsgan import errors, nn, ops
    from blsgan.hands.chain import HandSeparator
    from blsgan.pipeline.api import measure, read, segment, separate
    from blsgan.pipeline.hand_api import hand, hand_visits
    from blsgan.tasks.joints import Locator
    from blsgan.tasks.segmentation import Segmentation as Segmentation
    from blsgan.tasks.segmentation import Segmenter
    from blsgan.tasks.separation import Separation as Separation
    from blsgan.tasks.separation import Separator

_MODULES = ("errors", "nn", "ops")
_LAZY = {
    "HandSeparator": "blsgan.hands.chain",
    "Locator": "blsgan.tasks.joints",
    "Segmentation": "blsgan.tasks.segmentation",
    "Segmenter": "blsgan.tasks.segmentation",
    "Separation": "blsgan.tasks.separation",
    "Separator": "blsgan.tasks.separation",
    "hand": "blsgan.pipeline.hand_api",
    "hand_visits": "blsgan.pipeline.hand_api",
    "measure": "blsgan.pipeline.api",
    "read": "blsgan.pipeline.api",
    "segment": "blsgan.pipeline.api",
    "separate": "blsgan.pipeline.api",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
