"""The zone of overlap: wider than where two masks meet, because a bone's picture is.

A drawn mask ends before the blurred edge of its bone does. That edge reaches some pixels beyond the
mask and lies on what the other mask calls free, so both layers are estimated there, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]

REACH_PX = 4
"""How far a bone's picture reaches beyond its mask, in pixels at working scale. Measured on real
overlaps: the other bone brightens a free part by more than 0.01 up to 3 px from the border of the
overlap and no longer beyond 4 (docs/explanation/evaluation.md)."""

SOFT_TISSUE_NEAR_PX, SOFT_TISSUE_FAR_PX = 3, 14
"""Where soft tissue is read: so far beside both bones, in pixels at working scale."""

SOFT_TISSUE_LEAST_PX = 20
"""Fewer pixels of it say nothing: the typical intensity is taken."""

BLACK = 0.02
"""Intensity below which a pixel lies beyond the exposed field."""


PREDICTED_MARGIN_PX = 2
"""How far bones may reach beyond masks that a network predicted, in pixels at working scale. What a
mask misses in the overlap is black in that bone's layer; a pixel too much is soft tissue, which the
split knows. Chosen on validation joints (docs/how-to/segment.md)."""


def grown(mask: Bool, reach_px: int) -> Bool:
    """``mask`` [H,W] dilated by ``reach_px``: squares and crosses in turn, which is nearly
    round."""
    for step in range(reach_px):
        p = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.bool_)  # ten times np.pad
        p[1:-1, 1:-1] = mask
        rows = p[:-2] | p[1:-1] | p[2:]
        if step % 2 == 0:
            mask = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
        else:
            mask = rows[:, 1:-1] | p[1:-1, :-2] | p[1:-1, 2:]
    return mask


def zone(masks: Bool, reach_px: int) -> Bool:
    """Where more than one bone's picture may reach, [H,W], for masks [N,H,W].

    At least two of the masks, each dilated by ``reach_px``, cover a pixel that lies in one of the
    masks or in a gap between them no wider than the reach: with such a gap left out, what lies
    beyond it would stand out of a layer as a spur. With a reach of 0 it is the overlap.
    """
    closed, closing_px = np.asarray(masks.any(axis=0)), reach_px // 2
    closed |= ~grown(~grown(closed, closing_px), closing_px)
    reached = np.zeros(closed.shape, np.uint8)
    for mask in masks:
        reached += grown(mask, reach_px)
    closed &= reached > 1
    return closed


def soft_tissue_beside(image: NDArray[np.float32], masks: Bool) -> Bool:
    """Soft tissue 3 to 14 px beside all bones of masks [N,H,W], in the exposed field, [H,W].

    What the network continues across the bones (``blsgan.models.priors``).
    """
    union = np.asarray(masks.any(axis=0))
    near = grown(union, SOFT_TISSUE_FAR_PX) & ~grown(union, SOFT_TISSUE_NEAR_PX)
    return near & (image > BLACK)
