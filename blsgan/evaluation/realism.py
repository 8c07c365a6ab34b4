"""A visual Turing test for a machine: can a classifier tell layers from bones that nothing hid?

Every bone comes with a region: the overlap for a layer, and for a free bone what would be hidden if
another joint's other bone lay over it, its ends matched. Features of the region, of the band along
its border and of the bone beside it go to a logistic regression, cross-validated over joints. The
area under its ROC curve is 0.5 where a layer cannot be told from a bone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata
from skimage.feature import local_binary_pattern
from skimage.filters import sobel

from blsgan.data.visits import joint_edge
from blsgan.evaluation.metrics import Interval

FOLDS = 5
LEAST_PX = 60
_SIGMAS_PX = (0.7, 1.0, 2.0, 4.0)
_BANDS_PX = ((-99, -3), (-3, -1), (-1, 0), (0, 1), (1, 3), (3, 6), (6, 15))  # + is outside
_PATTERNS = 10  # uniform local binary patterns of 8 neighbours
_RIDGE = 1.0

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]


def laid_over(masks: Bool, donor: Bool, bone: int) -> Bool:
    """Where another joint's other bone would hide a bone, were their ends at the same place.

    Args:
        masks: bool [2,H,W] of the free bone's joint.
        donor: bool [2,h,w] of the joint with an overlap.
        bone: 0 upper, 1 lower.

    Returns:
        bool [H,W], inside the bone's mask.
    """
    shift = [
        round(to - start)
        for to, start in zip(
            joint_edge(masks[bone], bone), joint_edge(donor[bone], bone), strict=True
        )
    ]
    rows, columns = np.nonzero(donor[1 - bone])
    rows, columns = rows + shift[1], columns + shift[0]
    inside = (rows >= 0) & (rows < masks.shape[1]) & (columns >= 0) & (columns < masks.shape[2])
    covered = np.zeros(masks.shape[1:], bool)
    covered[rows[inside], columns[inside]] = True
    return covered & masks[bone]


def realism_features(layer: NDArray[np.floating], mask: Bool, region: Bool) -> Float64 | None:
    """What the classifier sees of one bone, float64 [n].

    For each band of distance from the region's border, relative to the bone beside it: mean, spread
    and mean gradient, and the power of fine texture at four scales; and local binary patterns
    inside, along the border and beside.

    Args:
        layer: [H,W] in [0,1].
        mask: bool [H,W], the bone's pixels.
        region: bool [H,W], what is or might be hidden of it.

    Returns:
        None where the region or the bone beside it has less than 60 px.
    """
    free = mask & ~region
    if min(np.count_nonzero(region & mask), np.count_nonzero(free)) < LEAST_PX:
        return None
    away = np.where(region, -distance_transform_edt(~free), distance_transform_edt(~region))
    # The bone's own outline is no border of the region.
    inner = distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1] > 2
    picture = np.where(mask, layer, 0).astype(np.float64)
    gradient = sobel(picture)
    weights = [gaussian_filter(mask.astype(np.float64), s) for s in _SIGMAS_PX]
    fine = [
        np.abs(picture - gaussian_filter(picture, s) / np.maximum(w, 1e-6))
        for s, w in zip(_SIGMAS_PX, weights, strict=True)
    ]
    planes = [picture, gradient, *fine]
    beside = inner & free & (away > 6) & (away <= 30)
    if np.count_nonzero(beside) < LEAST_PX:
        return None
    found: list[float] = []
    level = [max(float(plane[beside].mean()), 1e-6) for plane in planes]
    for low, high in _BANDS_PX:
        band = inner & (away > low) & (away <= high)
        if not band.any():
            found += [0.0] * (len(planes) + 1)
            continue
        found.append(float(picture[band].mean()) - level[0])
        found.append(float(np.log((picture[band].std() + 1e-3) / (picture[beside].std() + 1e-3))))
        found += [
            float(np.log((plane[band].mean() + 1e-4) / (usual + 1e-4)))
            for plane, usual in zip(planes[1:], level[1:], strict=True)
        ]
    eight_bit = np.round(picture * 255).astype(np.uint8)
    patterns = local_binary_pattern(eight_bit, 8, 1, "uniform").astype(int)
    histograms = []
    for where in (inner & region, inner & (np.abs(away) <= 3), beside):
        counts = np.bincount(patterns[where], minlength=_PATTERNS).astype(np.float64)
        histograms.append(counts / max(counts.sum(), 1))
    return np.array([*found, *(histograms[0] - histograms[2]), *(histograms[1] - histograms[2])])


def auc(positive: Sequence[float] | Float64, negative: Sequence[float] | Float64) -> float:
    """Probability that a positive score is above a negative one; ties count half."""
    ranks = rankdata(np.concatenate((positive, negative)))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def classifier_auc(
    layers: Float64,
    layer_joints: Sequence[str],
    bones: Float64,
    bone_joints: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 500,
) -> Interval:
    """AUC of telling ``layers`` [n,f] from ``bones`` [m,f] on joints that were not learnt from.

    Joints are dealt to five folds; every fold is scored by a regression fitted on the others. The
    interval resamples joints, with the scores as they are.

    Raises:
        ValueError: fewer than two joints on a side.
    """
    joints = np.concatenate((np.asarray(layer_joints), np.asarray(bone_joints)))
    if min(len(set(layer_joints)), len(set(bone_joints))) < 2:
        raise ValueError("a classifier needs two joints with layers and two with free bones")
    features = np.concatenate((layers, bones))
    is_layer = np.arange(len(joints)) < len(layers)
    names, index = np.unique(joints, return_inverse=True)
    random = np.random.default_rng(seed)
    fold = random.permutation(len(names))[index] % min(FOLDS, len(names))
    scores = np.full(len(joints), np.nan)
    for number in np.unique(fold):
        asked = fold == number
        learnt = ~asked
        if len(np.unique(is_layer[learnt])) < 2:
            continue
        scores[asked] = _fit(features[learnt], is_layer[learnt], features[asked])
    known = np.isfinite(scores)

    def pooled(weights: Float64) -> float | None:
        """Mean of the folds' AUCs, each weighed by its pairs: folds' scores are not comparable."""
        total = pairs = 0.0
        for number in np.unique(fold[known]):
            here = known & (fold == number) & (weights > 0)
            first, second = (
                np.repeat(scores[here & side], weights[here & side].astype(int))
                for side in (is_layer, ~is_layer)
            )
            if len(first) and len(second):
                total += auc(first, second) * len(first) * len(second)
                pairs += len(first) * len(second)
        return total / pairs if pairs else None

    mean = pooled(np.ones(len(joints)))
    if mean is None:
        raise ValueError("no fold has both layers and free bones")
    drawn = []
    for _ in range(resamples):
        times = np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))
        value = pooled(times[index].astype(np.float64))
        if value is not None:
            drawn.append(value)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def _fit(features: Float64, is_layer: Bool, asked: Float64) -> Float64:
    """Log odds of ``asked`` by a ridge logistic regression, classes weighed alike."""
    centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    known, target = np.clip((features - centre) / spread, -4, 4), is_layer.astype(np.float64)
    weight = np.where(is_layer, 0.5 / is_layer.sum(), 0.5 / (~is_layer).sum()) * len(target)

    def loss(beta: Float64) -> tuple[float, Float64]:
        odds = known @ beta[1:] + beta[0]
        value = float(weight @ (np.logaddexp(0, odds) - target * odds))
        slope = weight * (expit(odds) - target)
        ridge = _RIDGE * beta[1:]
        return value + float(ridge @ beta[1:]) / 2, np.array(
            [slope.sum(), *(known.T @ slope + ridge)]
        )

    found = minimize(loss, np.zeros(known.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return np.clip((asked - centre) / spread, -4, 4) @ found[1:] + found[0]
