"""Whether a layer has as much texture where it was hidden as the same bone has beside it.

A separation that answers with the mean of what may lie there is smooth, and a reader sees a blur
where the other bone was. Power above 0.1 cycles/px is measured with a Gaussian high pass. A bone
has more of it at its cortical rim than inside, and overlaps lie at rims, so hidden and free pixels
are compared at equal depth below the bone's outline.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

CUTOFF_CYCLES_PER_PX = 0.1
_SIGMA_PX = np.sqrt(np.log(2) / 2) / (np.pi * CUTOFF_CYCLES_PER_PX)  # half the amplitude passes
DEPTH_EDGES_PX = np.array([3.0, 5, 7, 10, 15, 25])
"""Classes of depth below the bone's outline; nearer to it the bone's fall to soft tissue would
count as texture."""
REFERENCE_PX = (5.0, 40.0)  # from the overlap: the free bone beside it
LEAST_PX = 40
_LEAST_CLASS_PX = 10

Bool = NDArray[np.bool_]


def fine_texture(layer: NDArray[np.floating], mask: Bool) -> NDArray[np.float64]:
    """What a Gaussian of sigma 1.87 px, averaging the bone's own pixels alone, does not hold.

    Args:
        layer: [H,W].
        mask: bool [H,W]; elsewhere the result is 0.
    """
    weight = gaussian_filter(mask.astype(np.float64), _SIGMA_PX)
    smooth = gaussian_filter(np.where(mask, layer, 0).astype(np.float64), _SIGMA_PX)
    return np.where(mask, layer - smooth / np.maximum(weight, 1e-6), 0)


def texture_ratio(
    layer: NDArray[np.floating], masks: Bool, bone: int, where: Bool | None = None
) -> float | None:
    """Power above 0.1 cycles/px in a bone's overlap over that of its free part; 1: the same.

    The free part lies 5 to 40 px from the overlap; each class of depth counts by its pixels in the
    overlap. Classes with less than 10 px of either part are left out.

    Args:
        layer: [H,W] in [0,1].
        masks: bool [2,H,W].
        bone: 0 upper, 1 lower.
        where: bool [H,W], the pixels of the overlap where ``layer`` is known; all of them by
            default.

    Returns:
        The ratio; None where less than 40 px of the overlap are left, or the free part is flat.
    """
    overlap = masks[0] & masks[1]
    if not overlap.any():
        return None
    hidden = overlap if where is None else overlap & where
    known = masks[bone] & (hidden | ~overlap)
    power = fine_texture(layer, known) ** 2
    # A bone that leaves the picture has no outline there.
    depth = distance_transform_edt(np.pad(masks[bone], 1, mode="edge"))[1:-1, 1:-1]
    away = distance_transform_edt(~overlap)
    free = masks[bone] & (away > REFERENCE_PX[0]) & (away <= REFERENCE_PX[1])
    found = expected = 0.0
    count = 0
    for low, high in pairwise(DEPTH_EDGES_PX):
        here = (depth > low) & (depth <= high)
        of_hidden, of_free = power[hidden & here], power[free & here]
        if min(len(of_hidden), len(of_free)) >= _LEAST_CLASS_PX:
            found += float(of_hidden.sum())
            expected += float(of_free.mean()) * len(of_hidden)
            count += len(of_hidden)
    return found / expected if count >= LEAST_PX and expected > 0 else None
