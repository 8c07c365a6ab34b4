"""A visual Turing test for a machine: can a classifier tell layers from bones that nothing hid?

A layer and a free bone are compared at one place of one joint: where another visit shows free what
an image hides (``blsgan.data.visits``), that visit's bone on the image's grid is the free bone.
Both are read between pixels once and have the same contrast and support, so that neither anatomy
nor interpolation tells them apart. Features of texture and of the profile across the border,
relative to the same bone beside it and without its level, go to a logistic regression,
cross-validated over joints. The area under its ROC curve is 0.5 where a layer cannot be told from a
bone. Two controls say what the figure is worth: the free bone pasted into the image, which is what
a perfect layer would score, seam included; and the image's own free part in a layer's place, which
nothing was done to and which must score 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, distance_transform_edt, gaussian_filter
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import kurtosis

from blsgan.data.visits import VisitTruth
from blsgan.evaluation.metrics import Interval

FOLDS = 5
REPEATS = 5
LEAST_PX = 60
BESIDE_PX = (5.0, 30.0)
"""Distance from the hidden region of the bone beside it, to which everything is relative."""

_SIGMAS_PX = (0.7, 1.4, 2.8)
_PROFILE_EDGES_PX = np.arange(-3.0, 4.0)
_OUTLINE_PX = 2.0
_RIM_PX = 2.0  # pixels nearer to the bone's own outline do not count
_TURN_DEG = 2.0
_RIDGE = 1.0

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]


def read_once(picture: NDArray[np.floating], random: np.random.Generator) -> Float64:
    """``picture`` [H,W] at its place, but as soft as one that was read between its pixels.

    It is turned and moved by splines of fifth order, which cost next to nothing, and back linearly,
    as another visit is read onto an image's grid. The movement is drawn: up to a pixel and 2
    degrees.
    """
    angle = np.radians(random.uniform(-_TURN_DEG, _TURN_DEG))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = (np.array(picture.shape) - 1) / 2
    offset = centre - turn @ centre + random.uniform(0, 1, 2)
    moved = affine_transform(np.float64(picture), turn, offset, order=5, mode="nearest")
    back = turn.T
    return np.asarray(affine_transform(moved, back, -back @ offset, order=1, mode="nearest"))


def free_bone(truth: VisitTruth) -> Float64:
    """Another visit's bone [H,W] with the image's contrast.

    The line that maps its intensities is fitted by least squares, which shrinks contrast by the
    correlation; that is taken back around the mean of the guiding pixels.
    """
    picture = truth.truth.astype(np.float64)
    level = float(picture[truth.guide].mean())
    return level + (picture - level) / truth.correlation


def realism_features(
    picture: NDArray[np.floating], mask: Bool, support: Bool, distance_px: NDArray[np.floating]
) -> Float64 | None:
    """What the classifier sees of one bone, float64 [14].

    Of three octaves of texture the spread inside the region, and along its border, against that of
    the bone beside it; the mean profile across the border, from 3 px inside to 3 px outside, of
    what a Gaussian of 2.8 px leaves; how much steeper the picture is across the border than along
    it; how heavy the tails of the texture inside are.

    Args:
        picture: [H,W] in [0,1].
        mask: bool [H,W], the bone's pixels; those within 2 px of its outline do not count.
        support: bool [H,W], the pixels of it that are known.
        distance_px: [H,W], signed distance from the region's border, negative inside; NaN: neither.

    Returns:
        None where the region or the bone beside it has less than 60 px.
    """
    # The picture's border is no outline.
    depth = distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    away = np.where(support & (depth > _RIM_PX), distance_px, np.nan)
    with np.errstate(invalid="ignore"):
        inside, border = away < 0, np.abs(away) <= _OUTLINE_PX
        beside = (away > BESIDE_PX[0]) & (away <= BESIDE_PX[1])
        steps = [(away > low) & (away <= low + 1) for low in _PROFILE_EDGES_PX[:-1]]
    if min(np.count_nonzero(inside), np.count_nonzero(beside)) < LEAST_PX:
        return None
    if min(np.count_nonzero(border), *(np.count_nonzero(step) for step in steps)) == 0:
        return None
    known = support.astype(np.float64)
    values = np.where(support, picture, 0).astype(np.float64)
    smooth = [
        gaussian_filter(values, s) / np.maximum(gaussian_filter(known, s), 1e-6) for s in _SIGMAS_PX
    ]
    finer = [values, *smooth[:-1]]
    octaves = [np.where(support, a - b, 0) for a, b in zip(finer, smooth, strict=True)]
    fine = np.where(support, values - smooth[-1], 0)
    spread = float(fine[beside].std()) + 1e-6
    found = [
        float(np.log((octave[where].std() + 1e-4) / (octave[beside].std() + 1e-4)))
        for where in (inside, border)
        for octave in octaves
    ]
    found += [float(fine[step].mean()) / spread for step in steps]
    # Where both neighbours are known; the distance's own gradient points across the border.
    across, along = _slopes(smooth[0], np.nan_to_num(distance_px))
    found.append(
        float(
            np.log((across[border].mean() + 1e-4) / (along[border].mean() + 1e-4))
            - np.log((across[beside].mean() + 1e-4) / (along[beside].mean() + 1e-4))
        )
    )
    found.append(float(np.clip(kurtosis(fine[inside]) - kurtosis(fine[beside]), -3, 3)))
    return np.array(found)


def _slopes(picture: Float64, distance_px: Float64) -> tuple[Float64, Float64]:
    """How steep ``picture`` is across lines of equal distance, and along them."""
    rows, columns = np.gradient(picture)
    down, right = np.gradient(gaussian_filter(distance_px, 1.0))
    length = np.maximum(np.hypot(down, right), 1e-6)
    return (
        np.abs(rows * down + columns * right) / length,
        np.abs(rows * right - columns * down) / length,
    )


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

    Joints, with all that is theirs, are dealt to five folds, five times over; every fold is scored
    by a regression fitted on the others. The interval resamples joints, with the scores as they
    are.

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
    # Folds' scores are not comparable: layer and bone are compared where one fold asks for both.
    above, compared = (np.zeros((len(layers), len(bones))) for _ in range(2))
    for _ in range(REPEATS):
        fold = random.permutation(len(names))[index] % min(FOLDS, len(names))
        for number in np.unique(fold):
            asked = fold == number
            if len(np.unique(is_layer[~asked])) < 2:
                continue
            scores = np.full(len(joints), np.nan)
            scores[asked] = _fit(features[~asked], is_layer[~asked], features[asked])
            difference = scores[is_layer][:, None] - scores[~is_layer]
            above += np.where(np.isnan(difference), 0, (np.sign(difference) + 1) / 2)
            compared += ~np.isnan(difference)
    if not compared.any():
        raise ValueError("no fold has both layers and free bones")
    draws = random.integers(0, len(names), (resamples, len(names)))
    times = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws])[:, index]
    first, second = times[:, is_layer].astype(np.float64), times[:, ~is_layer]
    pairs = ((first @ compared) * second).sum(axis=1)
    drawn = ((first @ above) * second).sum(axis=1)[pairs > 0] / pairs[pairs > 0]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(above.sum() / compared.sum()), float(low), float(high))


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
