"""How right the layer of a hidden bone is: what other visits say, without the noise they add.

Another visit shows the bone that an image hides (``blsgan.data.visits``), with noise of its own:
about half of a plain error is the truth's. Two estimators answer what a plain error cannot:

- the *outline*: the mean of layer minus truth by distance from the border between the overlap and
  the bone's free part. Noise has no sign, so a mean over comparisons shows a line where the other
  bone's edge was left in a layer;
- the *corrected error*: where two visits B and C show the same hidden bone, the mean of
  (layer - B)(layer - C). As B's and C's errors are independent of each other its expectation is the
  layer's squared error against what both agree on.

A corrected error of one pair may be negative, so there is no PSNR of a pair: errors are averaged
first (all pairs of a bone weigh alike) and the mean is expressed in dB. Intervals resample joints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blsgan.evaluation.metrics import PSNR_CEILING_DB, Interval
from blsgan.joint.distance import border_distance_px

Bool = NDArray[np.bool_]
Float = NDArray[np.floating]

OUTLINE_EDGES_PX = np.arange(-4.0, 5.0)
"""Edges of the outline's bins: px from the border, negative inside the overlap."""

RING_PX = 5.0
"""How far beside the overlap the ring reaches in which the other bone's blurred edge may lie."""


def ring_of(masks: Bool, bone: int) -> Bool:
    """Bool [H,W]: a bone's free pixels within 5 px of the overlap of ``masks`` [2,H,W]."""
    distance = border_distance_px(masks, bone)
    return (distance > 0) & (distance <= RING_PX)


def outline_bias(
    layer: Float, truth: Float, distance_px: Float, where: Bool
) -> NDArray[np.float64]:
    """Mean of layer minus truth in each bin of ``OUTLINE_EDGES_PX``, float64 [8]; NaN: no pixel.

    Args:
        layer, truth: [H,W] in [0,1].
        distance_px: :func:`blsgan.joint.distance.border_distance_px`.
        where: bool [H,W], the pixels where ``truth`` shows the bone.
    """
    return _by_distance(layer.astype(np.float64) - truth, distance_px, where)


def outline_error(
    layer: Float, truth: Float, distance_px: Float, where: Bool
) -> NDArray[np.float64]:
    """Mean squared difference in each bin, as :func:`outline_bias`."""
    return _by_distance((layer.astype(np.float64) - truth) ** 2, distance_px, where)


def _by_distance(
    values: NDArray[np.float64], distance_px: Float, where: Bool
) -> NDArray[np.float64]:
    inside = where & np.isfinite(distance_px)
    bins = np.digitize(distance_px[inside], OUTLINE_EDGES_PX) - 1
    known = (bins >= 0) & (bins < len(OUTLINE_EDGES_PX) - 1)
    size = len(OUTLINE_EDGES_PX) - 1
    count = np.bincount(bins[known], minlength=size)
    total = np.bincount(bins[known], values[inside][known], size)
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)


def corrected_error(layer: Float, first: Float, second: Float, where: Bool) -> float:
    """Mean of (layer - first)(layer - second) over the pixels ``where`` both truths hold.

    Unbiased for the layer's mean squared error as long as the truths' errors are independent of
    each other and of the layer's; negative where chance has it so.

    Args:
        layer, first, second: [H,W] in [0,1].
        where: bool [H,W], at least one pixel.

    Raises:
        ValueError: no pixel is shared.
    """
    if not where.any():
        raise ValueError("the truths share no pixel: an error over no pixels has no value")
    values = layer[where].astype(np.float64)
    return float(np.mean((values - first[where]) * (values - second[where])))


def one_radiograph_error(first: Float, second: Float, where: Bool) -> float:
    """Half the mean squared difference of two truths: what one more radiograph of the bone would
    score in a layer's place, without the other one's noise."""
    if not where.any():
        raise ValueError("the truths share no pixel: an error over no pixels has no value")
    return float(np.mean((first[where].astype(np.float64) - second[where]) ** 2)) / 2


def error_db(mse: float) -> float:
    """A mean error in dB (PSNR, data range 1), at most 100; that where it is not positive, too."""
    least = 10 ** (-PSNR_CEILING_DB / 10)
    return float(-10 * np.log10(max(mse, least)))


def pooled_db(
    errors: Sequence[float] | NDArray[np.float64],
    joints: Sequence[str],
    *,
    minus: Sequence[float] | NDArray[np.float64] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """The mean of ``errors`` in dB, with a 95 % percentile interval from resampling whole joints.

    Args:
        errors: one for each comparison or pair; single ones may be negative.
        joints: the joint of each.
        minus: another method's errors of the same pairs: the result is the gain over it in dB,
            paired draw by draw.
        seed, resamples: of the bootstrap.

    Raises:
        ValueError: nothing to average, or lengths that differ.
    """
    planes = [np.asarray(errors, np.float64)]
    planes += [] if minus is None else [np.asarray(minus, np.float64)]
    if not len(joints) or any(plane.shape != (len(joints),) for plane in planes):
        raise ValueError(f"{[p.size for p in planes]} errors for {len(joints)} joints")
    names, index = np.unique(np.asarray(joints), return_inverse=True)
    draws = np.random.default_rng(seed).integers(0, len(names), size=(resamples, len(names)))
    count = np.bincount(index, minlength=len(names)).astype(np.float64)[draws].sum(axis=1)
    sampled, found = np.zeros(resamples), 0.0
    for sign, plane in zip((1, -1), planes, strict=False):
        means = np.bincount(index, plane, len(names))[draws].sum(axis=1) / count
        sampled += sign * np.array([error_db(mean) for mean in means])
        found += sign * error_db(float(plane.mean()))
    low, high = np.percentile(sampled, [2.5, 97.5])
    return Interval(found, float(low), float(high))
