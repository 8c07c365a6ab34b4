"""Where the bones of a mask lie and how wide they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]

GRID_PX = 256
"""Side of the public dataset's pictures, and of the grid that the mask segmenter works on."""

LOOK_PX, HEATMAP_PX = 192, 96
"""Sides of the grid on which the joint locator sees a whole hand, and of its answers."""

_SAME_BONE_SHARE = 0.6  # of the smaller mask; a real overlap is a rim


def row_blocks(plane: NDArray[Any]) -> Iterator[slice]:
    """Rows of a picture [H,...], a megapixel at a time, for steps whose temporaries are large."""
    rows = max(1, 2**20 * len(plane) // max(plane.size, 1))
    return (slice(top, top + rows) for top in range(0, len(plane), rows))


def bounding_box(mask: Bool) -> tuple[int, int, int, int]:
    """Top, left, bottom, right (past the end) of the True pixels of mask [H,W], or of any of masks
    [N,H,W], which has some."""
    others = tuple(range(mask.ndim - 2))
    rows = np.flatnonzero(mask.any(axis=(*others, -1)))
    columns = np.flatnonzero(mask.any(axis=(*others, -2)))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def distance_px(away: NDArray[Any]) -> NDArray[np.float64]:
    """Distance of each pixel of ``away`` [H,W] from the nearest one where it is 0, float64 [H,W].

    OpenCV's, which is fast, without its last bits, which hang on how many threads it has: squared
    distances are whole numbers.
    """
    import cv2

    rough = cv2.distanceTransform(away.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distance: NDArray[np.float64] = np.sqrt(np.rint(rough.astype(np.float64) ** 2))
    return distance


def doubtful_masks(masks: Bool) -> str | None:
    """What looks wrong with masks [2,H,W] that can be used: the public dataset has some of both."""
    smaller = min(np.count_nonzero(mask) for mask in masks)
    if np.count_nonzero(masks[0] & masks[1]) > _SAME_BONE_SHARE * smaller:
        return "the masks cover mostly the same pixels: do both show one bone?"
    upper, lower = (np.flatnonzero(mask.any(axis=1)).mean() for mask in masks)
    if upper > lower:
        return "the upper mask lies below the lower one: are the two masks swapped?"
    return None


def joint_axis(masks: Bool) -> NDArray[np.float64]:
    """Unit vector (row, column) of the joint's axis, from the upper to the lower bone.

    It joins the centroids of masks [2,H,W], none of them empty. Bones almost on top of each other
    have no axis of their own: the picture's, (1, 0), is taken.
    """
    return _axis([np.argwhere(mask) for mask in masks])


def _axis(pixels: list[NDArray[np.intp]]) -> NDArray[np.float64]:
    direction = pixels[1].mean(axis=0) - pixels[0].mean(axis=0)
    distance = float(np.hypot(*direction))
    size = math.sqrt((len(pixels[0]) + len(pixels[1])) / 2)
    return direction / distance if distance > size / 4 else np.array([1.0, 0.0])


def bone_width_px(masks: Bool) -> float:
    """How wide the bones of masks [2,H,W] are across the joint's axis, in pixels.

    The axis joins the bones' centroids, so an oblique finger measures as an upright one. Each
    bone's width is the 90th percentile of its chords across that axis (its head or base, not its
    shaft, and not a stray pixel); returned is the geometric mean of the two. That tells the scale
    whether a mask ends with the picture, as in the public dataset, or holds the whole bone.
    """
    top, left, bottom, right = bounding_box(masks)
    step = max(1, max(bottom - top, right - left) // 512)
    pixels = [np.argwhere(mask[top:bottom:step, left:right:step]) for mask in masks]
    if min(map(len, pixels)) == 0:  # a bone thinner than the step
        step = 1
        pixels = [np.argwhere(mask[top:bottom, left:right]) for mask in masks]
    axis = _axis(pixels)
    widths = []
    for bone in pixels:
        along = np.rint(bone @ axis).astype(np.intp)
        chords = np.bincount(along - along.min())
        widths.append(float(np.percentile(chords[chords > 0], 90)) * step)
    return math.sqrt(widths[0] * widths[1])
