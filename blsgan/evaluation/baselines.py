"""Closed-form separations: what a network has to beat, printed beside it in every evaluation.

All take the radiograph ``image`` float32 [H,W] in [0,1] and ``masks`` bool [N,H,W] and return
layers float32 [N,H,W] that are 0 outside their mask and equal the image outside the overlap.
Described in docs/explanation/evaluation.md; the composition is that of ``blsgan.ops``.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from blsgan.ops import K_MAX
from blsgan.ops.native import split_attenuation

RING_PX = 6  # how far from the overlap the ring reaches that k is read from
K_RING_RANGE = (0.05, 0.9)
PENUMBRA_PX = 3  # how far a bone's picture reaches beyond its drawn mask
SOFT_TISSUE_FALLBACK = 0.35  # the mean over real overlaps, where nothing lies beside the bones
K_RING_FALLBACK = 0.46  # the median over real overlaps, for an overlap without a ring
_NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
_LEAST_TRANSMISSION = 1e-4  # a saturated pixel is as dense as this
_ANCHOR = 1e-6  # weight that holds a region without any free neighbour at the equal split


def copy_layers(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """No separation at all: every layer is the image inside its mask."""
    return (image * masks).astype(np.float32)


def share_split(
    image: np.ndarray, masks: np.ndarray, share_logits: np.ndarray, soft_tissue: float
) -> np.ndarray:
    """The exact split by given share logits [N,H,W] (docs/explanation/physics.md)."""
    k = np.array([soft_tissue], np.float32)
    logits = share_logits.astype(np.float32)
    return split_attenuation(logits[None], image[None, None], masks[None], k)[0]


def equal_split(image: np.ndarray, masks: np.ndarray, soft_tissue: float) -> np.ndarray:
    """The exact split that gives every covering bone the same attenuation."""
    return share_split(image, masks, np.zeros(masks.shape, np.float32), soft_tissue)


def ring_soft_tissue(image: np.ndarray, masks: np.ndarray) -> float:
    """k read off the surroundings of the overlap of two bones: 1 - (1-a)(1-b)/(1-o).

    a and b are the mean intensity of the upper and of the lower bone alone within 6 px of the
    overlap, o that of the overlap; clamped to [0.05, 0.9]. Where one of the three has no pixel the
    value is 0.46, the median over real overlaps.
    """
    overlap = masks[0] & masks[1]
    size = 2 * RING_PX + 1
    near = cv2.dilate(overlap.astype(np.uint8), np.ones((size, size), np.uint8)).astype(bool)
    regions = (near & masks[0] & ~masks[1], near & masks[1] & ~masks[0], overlap)
    if not all(region.any() for region in regions):
        return K_RING_FALLBACK
    a, b, o = (float(image[region].mean(dtype=np.float64)) for region in regions)
    return float(np.clip(1 - (1 - a) * (1 - b) / max(1 - o, 1 - K_MAX), *K_RING_RANGE))


def _optical_density(image: np.ndarray) -> np.ndarray:
    return -np.log(np.clip(1 - image.astype(np.float64), _LEAST_TRANSMISSION, 1))


def _continue_harmonically(
    density: np.ndarray, mask: np.ndarray, overlap: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Solves Laplace's equation for one bone's attenuation inside the overlap, float64 [H,W].

    The bone's free pixels that touch the overlap hold their value; across the bone's outline
    nothing flows. ``start`` is what a piece without any free neighbour falls back to.
    """
    inside = overlap & mask
    rows, columns = np.nonzero(inside)
    count = len(rows)
    number = np.full(mask.shape, -1)
    number[rows, columns] = np.arange(count)
    padded_number = np.pad(number, 1, constant_values=-1)
    padded_free = np.pad(mask & ~overlap, 1)
    padded_density = np.pad(density, 1)

    diagonal = np.full(count, _ANCHOR)
    right_side = _ANCHOR * start[rows, columns]
    own: list[np.ndarray] = []
    other: list[np.ndarray] = []
    for down, right in _NEIGHBOURS:
        y, x = rows + 1 + down, columns + 1 + right
        neighbour, free = padded_number[y, x], padded_free[y, x]
        unknown = np.flatnonzero(neighbour >= 0)
        own.append(unknown)
        other.append(neighbour[unknown])
        diagonal += free | (neighbour >= 0)
        right_side += np.where(free, padded_density[y, x], 0)
    off_diagonal = np.full(sum(map(len, own)), -1.0)
    matrix = coo_matrix(
        (
            np.concatenate((diagonal, off_diagonal)),
            (
                np.concatenate((np.arange(count), *own)),
                np.concatenate((np.arange(count), *other)),
            ),
        ),
        shape=(count, count),
    )
    result = density * mask
    if count:
        result[rows, columns] = spsolve(matrix.tocsc(), right_side)
    return result


def _harmonic_densities(
    image: np.ndarray, masks: np.ndarray, soft_tissue: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Continued attenuations [N,H,W], the total each pixel must share [H,W], overlap [H,W]."""
    coverage = masks.sum(axis=0)
    overlap = coverage >= 2
    density = _optical_density(image)
    k = min(max(soft_tissue, 0.0), K_MAX)
    total = density - np.log1p(-k) * np.maximum(coverage - 1, 0)
    equal = total / np.maximum(coverage, 1)
    continued = np.stack([_continue_harmonically(density, m, overlap, equal) for m in masks])
    return continued, total, overlap


def _to_layers(
    densities: np.ndarray, image: np.ndarray, masks: np.ndarray, overlap: np.ndarray
) -> np.ndarray:
    inside = -np.expm1(-np.maximum(densities, 0))
    return (np.where(overlap, inside, image) * masks).astype(np.float32)


def harmonic(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Each bone's attenuation continued into the overlap by Laplace's equation.

    The layers are smooth there and do not recompose to the image.
    """
    densities, _, overlap = _harmonic_densities(image, masks, K_RING_FALLBACK)
    return _to_layers(densities, image, masks, overlap)


def harmonic_with_physics(image: np.ndarray, masks: np.ndarray, soft_tissue: float) -> np.ndarray:
    """The harmonic continuation plus an equal part of what it leaves unexplained.

    A layer's attenuation cannot be negative; where an equal part would make it so, the others are
    scaled to keep the sum, so the layers recompose to the image.
    """
    densities, total, overlap = _harmonic_densities(image, masks, soft_tissue)
    covering = np.maximum(masks.sum(axis=0), 1)
    residual = (total - densities.sum(axis=0)) / covering
    corrected = np.maximum(densities + residual, 0) * masks
    found = corrected.sum(axis=0)
    scale = np.divide(total, found, out=np.zeros_like(total), where=found > 0)
    return _to_layers(corrected * scale, image, masks, overlap)


def soft_tissue_beside(image: np.ndarray, masks: np.ndarray) -> float:
    """Intensity of the soft tissue beside the overlap of two bones.

    60th percentile of what lies 3 to 14 px outside both masks within 12 rows of the overlap; 0.35
    where nothing does.
    """
    outside = (~masks.any(axis=0)).astype(np.uint8)
    rows = np.flatnonzero((masks.sum(axis=0) >= 2).any(axis=1))
    if not len(rows):
        return SOFT_TISSUE_FALLBACK
    away = cv2.distanceTransform(np.asarray(outside), cv2.DIST_L2, 5)
    beside = (away >= 3) & (away <= 14)
    beside[: max(rows[0] - 12, 0)] = False
    beside[rows[-1] + 13 :] = False
    return float(np.percentile(image[beside], 60)) if beside.any() else SOFT_TISSUE_FALLBACK


def equal_split_beside(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """:func:`equal_split` with the soft tissue of :func:`soft_tissue_beside`."""
    return equal_split(image, masks, min(soft_tissue_beside(image, masks), K_MAX))


def halved_with_harmonic(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Mean of :func:`equal_split_beside` and :func:`harmonic`."""
    return (equal_split_beside(image, masks) + harmonic(image, masks)) / np.float32(2)


def zone_of(masks: np.ndarray) -> np.ndarray:
    """Bool [H,W]: where both bones' pictures may reach, their masks dilated by 3 px, on a bone."""
    size = 2 * PENUMBRA_PX + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    wider = [cv2.dilate(mask.astype(np.uint8), disc).astype(bool) for mask in masks]
    return np.logical_and(*wider) & masks.any(axis=0)


def prior(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The strongest closed form: what a network that separates well starts from.

    In the overlap of two bones the mean of :func:`equal_split_beside` and the harmonic
    continuation, which starts outside the zone (:func:`zone_of`), clear of blurred edges; in the
    rest of the zone the mean of the image and the continuation.
    """
    zone = zone_of(masks)
    continued = harmonic(image, masks | zone)
    level = np.where(masks.all(axis=0), equal_split_beside(image, masks).max(axis=0), image)
    return (np.where(zone, (continued + level) / 2, image) * masks).astype(np.float32)
