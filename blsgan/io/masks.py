"""Reading the two bone masks: what counts as a mask, and what is refused rather than misread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io.files import FileBytes
from blsgan.io.raster import decode_raster

BONES = ("upper", "lower")
"""Order of the mask channels everywhere."""

_GREY_RANGE = (1 / 8, 7 / 8)
"""Shares of white between which a pixel is neither black nor white."""

_GREY_PER_EDGE = 3
"""Grey pixels allowed for each pixel of the mask's outline (soft, antialiased or JPEG edges), but
no more than half of the mask: a radiograph given by mistake is far above that."""


@dataclass(frozen=True)
class MaskPair:
    """``masks`` bool [2,H,W] (upper, lower) and the SHA-256 of each file."""

    masks: NDArray[np.bool_]
    sha256: tuple[str, str]


def decode_masks(upper: FileBytes, lower: FileBytes, size: tuple[int, int]) -> MaskPair:
    """The masks of the upper and the lower bone for an image of ``size`` = (height, width).

    Raises :class:`InputError` for a mask of another size, empty, all white, not binary, or the same
    mask twice. Masks that do not intersect are fine.
    """
    masks = np.empty((2, *size), dtype=np.bool_)
    for index, file in enumerate((upper, lower)):
        values = decode_raster(file).values
        if values.shape != size:
            raise InputError(
                f"{file.path} is {values.shape[1]}x{values.shape[0]} but the image is "
                f"{size[1]}x{size[0]}; give the mask of this image."
            )
        masks[index] = threshold(values, file.path)
    if np.array_equal(masks[0], masks[1]):
        raise InputError(
            f"{upper.path} and {lower.path} hold the same mask; give one mask for each bone."
        )
    if masks.any(axis=0).all():
        raise InputError(
            f"{upper.path} and {lower.path} together cover every pixel, so no background is left; "
            "white is bone, black is the rest."
        )
    return MaskPair(masks, (upper.sha256, lower.sha256))


def threshold(values: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    """Grey values [H,W] of a mask file as bool [H,W]; ``path`` is for the messages.

    Two levels, one of them 0, are taken as they are (0/1, 0/255, 0/65535, ...); soft edges are cut
    at half of white.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(
            f"{path} has NaN or infinite values; save the mask as 8-bit black and white."
        )
    low, high = values.min(), values.max()
    if high == 0:
        raise InputError(f"{path} is empty (no white pixel); paint the bone white.")
    if low == high:
        raise InputError(
            f"{path} covers everything (every pixel is {high:g}); paint only the bone white."
        )
    white = values == high
    if low == 0 and not (~white & (values != 0)).any():
        return np.asarray(white)
    full = 1.0 if values.dtype.kind == "f" else 255.0 if values.dtype == np.uint8 else 65535.0
    mask = values > full / 2
    if not mask.any():
        raise InputError(
            f"{path} is not a black and white mask: its values run from {low:g} to {high:g}; use 0 "
            f"and {full:g}, or 0 and 1."
        )
    grey = np.count_nonzero((values > full * _GREY_RANGE[0]) & (values < full * _GREY_RANGE[1]))
    if grey > min(_GREY_PER_EDGE * _outline_length(mask), np.count_nonzero(mask) / 2):
        raise InputError(
            f"{path} is not a black and white mask: {grey} pixels are grey, beside "
            f"{np.count_nonzero(mask)} white ones; threshold it first."
        )
    if mask.all():
        raise InputError(f"{path} covers everything after thresholding; paint only the bone white.")
    return mask


def _outline_length(mask: NDArray[np.bool_]) -> int:
    """Number of neighbouring pixels, down or to the right, of which one is in the mask."""
    down = np.count_nonzero(mask[1:] != mask[:-1])
    return down + np.count_nonzero(mask[:, 1:] != mask[:, :-1])
