"""Where the bones of a mask lie and how wide they are, and boxes around them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Top, left, bottom, right (both past the end) in image pixels."""

GRID_PX = 256
"""Side of the public dataset's pictures, and of the grid that the mask segmenter works on."""

LOOK_PX, HEATMAP_PX = 192, 96
"""Sides of the grid on which the joint locator sees a whole hand, and of its answers."""

_SAME_BONE_SHARE = 0.6  # of the smaller mask; a real overlap is a rim


def row_blocks(plane: NDArray[Any]) -> Iterator[slice]:
    """Rows of a picture [H,...], a megapixel at a time, for steps whose temporaries are large."""
    rows = max(1, 2**20 * len(plane) // max(plane.size, 1))
    return (slice(top, top + rows) for top in range(0, len(plane), rows))


def bounding_box(mask: Bool) -> Box:
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
    upper, lower = (np.argwhere(mask) for mask in masks)
    direction = lower.mean(axis=0) - upper.mean(axis=0)
    distance = float(np.hypot(*direction))
    size = math.sqrt((len(upper) + len(lower)) / 2)
    return direction / distance if distance > size / 4 else np.array([1.0, 0.0])


def bone_width_px(masks: Bool) -> float:
    """How wide the bones of masks [2,H,W] are across the joint's axis, in pixels.

    The axis joins the bones' centroids, so an oblique finger measures as an upright one. Each
    bone's width is the 90th percentile of its chords across that axis (its head or base, not its
    shaft, and not a stray pixel); returned is the geometric mean of the two. That tells the scale
    whether a mask ends with the picture, as in the public dataset, or holds the whole bone.

    Raises:
        ValueError: a mask is empty.
    """
    from blsgan.joint.compiled import _native

    return _native.bone_width_px(masks)


def joint_window(masks: Bool) -> Box:
    """A square around the joint, 1.6 bones wide, inside the picture, for people to look at.

    It is centred on the overlap of masks [2,H,W] and holds all of it, or on the middle between the
    bones' facing ends where there is none.
    """
    overlap = masks[0] & masks[1]
    if overlap.any():
        top, left, bottom, right = bounding_box(overlap)
        centre = ((top + bottom) / 2, (left + right) / 2)
        extent = max(bottom - top, right - left)
    else:
        boxes = [bounding_box(mask) for mask in masks]
        centre = ((boxes[0][2] + boxes[1][0]) / 2, (boxes[0][1] + boxes[0][3]) / 2)
        extent = 0
    side = max(1.6 * bone_width_px(masks), 1.3 * extent, 16.0)
    return around(centre, (side, side), overlap.shape)


def around(centre: tuple[float, float], size: tuple[float, float], shape: tuple[int, ...]) -> Box:
    """A box of about ``size`` around ``centre`` that lies inside a picture of ``shape``."""
    (top, bottom), (left, right) = (
        interval(middle, extent, limit)
        for middle, extent, limit in zip(centre, size, shape, strict=True)
    )
    return top, left, bottom, right


def interval(centre: float, extent: float, limit: int) -> tuple[int, int]:
    """First and past-the-last of about ``extent`` pixels around ``centre`` that lie in 0..limit."""
    size = min(max(round(extent), 1), limit)
    start = min(max(round(centre - size / 2), 0), limit - size)
    return start, start + size


def cut(planes: NDArray[Any], box: Box, fill: float = 0) -> NDArray[Any]:
    """The box of planes [...,H,W] as an array of its own, ``fill`` where it reaches beyond."""
    top, left, bottom, right = box
    height, width = planes.shape[-2:]
    window = np.full((*planes.shape[:-2], bottom - top, right - left), fill, planes.dtype)
    y0, y1 = max(top, 0), min(bottom, height)
    x0, x1 = max(left, 0), min(right, width)
    if y0 < y1 and x0 < x1:
        window[..., y0 - top : y1 - top, x0 - left : x1 - left] = planes[..., y0:y1, x0:x1]
    return window
