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
    from blsgan.joint.compiled import _native

    return _native.grown(mask, reach_px)


def zone(masks: Bool, reach_px: int) -> Bool:
    """Where more than one bone's picture may reach, [H,W], for masks [N,H,W].

    At least two of the masks, each dilated by ``reach_px``, cover a pixel that lies in one of the
    masks or in a gap between them no wider than the reach: with such a gap left out, what lies
    beyond it would stand out of a layer as a spur. With a reach of 0 it is the overlap.
    """
    from blsgan.joint.compiled import _native

    return _native.zone(masks, reach_px)


def extend(planes: NDArray[np.float32], known: Bool) -> NDArray[np.float32]:
    """Values [N,H,W] carried from ``known`` [H,W] four pixels outwards; 0 beyond. A network answers
    for the zone only, and interpolation must not take in what lies outside."""
    from blsgan.joint.compiled import _native

    return _native.extend(planes, known)


def soft_tissue_beside(image: NDArray[np.float32], masks: Bool) -> Bool:
    """Soft tissue 3 to 14 px beside all bones of masks [N,H,W], in the exposed field, [H,W].

    What the network continues across the bones (``blsgan.models.priors``).
    """
    union = np.asarray(masks.any(axis=0))
    near = grown(union, SOFT_TISSUE_FAR_PX) & ~grown(union, SOFT_TISSUE_NEAR_PX)
    return near & (image > BLACK)
