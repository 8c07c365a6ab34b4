"""Open growth plates: a dark line across the phalanx, near its joint end.

The segmenter learned from adults. Of a child's joint it may say that it knows none, or give masks
of a phalanx with its epiphysis as one bone, or without it; what is measured on those is not what
was validated. The line is looked for in the picture, whatever the segmenter was sure of; where the
masks leave the epiphysis out, they lie further apart than the bones of a joint do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.joint.geometry import bone_width_px

CLOSING_PLATE, OPEN_PLATE = 0.15, 0.22
"""Medians of a hand's MCP 2 to 5 from which on its growth plates are perhaps, and are, open. Of 255
single joints of adults 95 and 98.4 % lie below; ten mature hands of other devices have at most
0.12, plates that anybody sees begin at 0.21."""

MOST_APART = 0.25
"""Bone widths between the masks of a joint, beyond which something lies between its bones: at most
0.12 on 1,194 drawn pairs of masks, 0.4 where the epiphyses were left out."""

_MIDDLE = 0.6  # share of the width that both bones have in common
_STEPS = 100  # for each bone width along the bone
_FROM, _TO = 15, 50  # steps from the joint end between which a plate lies
_SHOULDER = 5  # steps on either side within which bone is brighter than its plate
_STRIPS = 6  # across the bone: a plate crosses them all, and is wavy


def growth_plate(image: NDArray[np.float32], masks: NDArray[np.bool_]) -> float:
    """How dark the darkest line across the upper bone of an upright joint is.

    Args:
        image: float32 [H,W] in [0,1].
        masks: bool [2,H,W], upper and lower bone, neither empty.

    Returns:
        Depth of the line below the bone on both sides of it, over what bone is brighter than soft
        tissue by; the median over six strips along the bone, so that it must cross most of it. 0
        where there is no line.
    """
    import cv2

    upper, width = masks[0], bone_width_px(masks)
    end = len(upper) - 1 - np.argmax(upper[::-1], axis=0)
    last = int(np.flatnonzero(upper.any(axis=1))[-1])
    near = np.flatnonzero(upper[max(int(last - width / 2), 0) :].any(axis=0))
    middle, half = (near[0] + near[-1]) / 2, 0.3 * (near[-1] - near[0])
    columns = np.arange(int(middle - half), int(middle + half) + 1)
    columns = columns[upper[:, columns].any(axis=0)]
    bones = cv2.dilate((masks[0] | masks[1]).astype(np.uint8), np.ones((3, 3), np.uint8))
    beside = (image > 0) & (bones == 0)
    if len(columns) < _STRIPS or not beside.any():
        return 0.0
    away = np.arange(_TO + _SHOULDER + 1)[:, None] * (width / _STEPS)
    y = (end[columns] - away).astype(np.float32)
    x = np.broadcast_to(columns.astype(np.float32), y.shape)
    smooth = cv2.GaussianBlur(image, (0, 0), max(0.015 * width, 0.5))
    along = cv2.remap(smooth, x.copy(), y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    contrast = float(np.median(along)) - float(np.median(image[beside]))
    if contrast <= 0:
        return 0.0
    depths = [_deepest(strip.mean(axis=1)) for strip in np.array_split(along, _STRIPS, axis=1)]
    return float(np.median(depths)) / contrast


def _deepest(values: NDArray[Any]) -> float:
    """Of the valleys of a profile, the deepest below its lower shoulder."""
    return max(
        float(
            min(values[n - _SHOULDER : n].max(), values[n + 1 : n + 1 + _SHOULDER].max())
            - values[n]
        )
        for n in range(_FROM, _TO + 1)
    )


def bones_apart(masks: NDArray[np.bool_]) -> float:
    """Distance between the bones of an upright joint, in bone widths.

    The median over the columns in the middle of what both bones [2,H,W] cover; 0 where they do not
    lie above each other.
    """
    upper, lower = masks
    columns = np.flatnonzero(upper.any(axis=0) & lower.any(axis=0))
    aside = int((1 - _MIDDLE) / 2 * len(columns))
    columns = columns[aside : len(columns) - aside]
    if len(columns) == 0:
        return 0.0
    end = len(upper) - np.argmax(upper[::-1, columns], axis=0)
    return float(np.median(np.argmax(lower[:, columns], axis=0) - end)) / bone_width_px(masks)
