"""How far a bone's pixels are from where its overlap begins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Bool = NDArray[np.bool_]


def border_distance_px(masks: Bool, bone: int) -> NDArray[np.float64]:
    """Signed distance of each pixel of a bone from where its overlap ends and its free part begins.

    Args:
        masks: bool [2,H,W].
        bone: 0 upper, 1 lower.

    Returns:
        float64 [H,W]: from a pixel's centre to the border, which lies half a pixel before the
        nearest pixel of the other kind; negative in the overlap, positive on the free part, NaN off
        the bone and where the bone has no overlap or no free part.
    """
    overlap = masks[0] & masks[1]
    free = masks[bone] & ~overlap
    found = np.full(overlap.shape, np.nan)
    if overlap.any() and free.any():
        found[free] = distance_transform_edt(~overlap)[free] - 0.5
        found[overlap] = 0.5 - distance_transform_edt(~free)[overlap]
    return found
