"""Windows of a picture: where they lie, what is cut out by them, and the way back.

A network knows bones of one size. What it is given is a window of the picture at the *working
scale*, at which the bones have that size, and what it answers is brought back to the picture's
pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blsgan.joint.compiled import _native

Bool = NDArray[np.bool_]

Window = _native.Window
"""A part of an image at working scale; what it does stands in ``blsgan/_native.pyi``."""

TYPICAL_BONE_WIDTH_PX = _native.TYPICAL_BONE_WIDTH_PX
"""Width of a bone across the joint's axis in the public dataset's 256x256 images."""

SAME_SCALE = _native.SAME_SCALE
"""Bones whose width is within these multiples of the typical one are not resampled."""

MAX_AREA_PX = _native.MAX_AREA_PX
"""Windows are kept below this by a smaller working scale, so memory is bounded whatever the
masks."""


def around_overlap(masks: Bool, size_multiple: int) -> Window | None:
    """What a network sees of the overlap of masks [2,H,W]; None where there is none.

    The overlap and its surroundings at working scale, inside the image where that is large enough;
    both sides are multiples of ``size_multiple``, 1 to 256, at least twice that.
    """
    return _native.around_overlap(masks, size_multiple)


def working_scale(masks: Bool) -> float:
    """Working pixels per image pixel for masks [2,H,W]: 1 for bones of about the dataset's size."""
    return _native.working_scale(masks)
