"""Real overlaps with a real truth: the bone hidden at one visit lies free at another.

For an image A with an overlap and another visit B of the same joint, each bone of B is registered
rigidly onto A on A's free pixels of that bone; B's intensities are mapped to A's by a fitted line.
Where a pixel of A's overlap lies, at B, on this bone and off the other, B shows what A hides, and
beside the other bone's mask some of its blurred edge, which is taken off.
The protocol and its thresholds are ours (docs/explanation/evaluation.md); registration maximises
the enhanced correlation coefficient (Evangelidis & Psarakis, PAMI 2008) through OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from blsgan.data.layout import JointArrays, JointImage, by_joint, overlap_px, read_joint

UPPER, LOWER = 0, 1

RING_PX = 8  # how far beside A's overlap a truth tells where B shows the bone free
CLEARANCE_PX = 5  # pixels nearer than this to A's overlap do not guide the registration
REACH_ROWS = 60  # nor do pixels farther than this many rows from it
MIN_GUIDE_PX = 200

EDGE_LIGHT = (0.123, 0.054)
EDGE_REACH_PX = (1.73, 1.87)
"""How much brighter the other bone's blurred edge makes a bone at a distance of 0 px from the other
bone's mask, upper and lower bone, and how it fades: deviation of a Gaussian. Measured where one
visit shows a pixel beside the other bone's mask and another one far from it
(``benchmarks/measure_edges.py``)."""

NEAREST_PX = 1
"""Up to this distance from the other bone's mask a visit tells nothing: there the edge is as bright
as what it hides."""
_MAX_SHIFT_PX = 256.0


@dataclass(frozen=True)
class Thresholds:
    """What a truth must reach to be used.

    Attributes:
        overlap_px: least size of A's overlap.
        correlation: least correlation of A and registered B on the guiding pixels.
        truth_px: least number of pixels where B shows what A hides.
    """

    overlap_px: int
    correlation: float
    truth_px: int


PROTOCOL = Thresholds(overlap_px=60, correlation=0.90, truth_px=40)
# Training wants more pairs and bears a little more noise than a measurement does.
TRAINING = Thresholds(overlap_px=30, correlation=0.88, truth_px=20)


@dataclass(frozen=True)
class VisitTruth:
    """One bone of image A as another visit B shows it.

    Attributes:
        image: name of A (``JOINT/HASH``).
        other: name of B.
        bone: 0 upper, 1 lower.
        truth: float32 [H,W] in [0,1], B's bone registered onto A with A's intensities, without the
            other bone's blurred edge (:func:`edge_light`).
        valid: bool [H,W], the pixels of A's overlap where ``truth`` holds (at least 40).
        clear_px: int16 [H,W], in A's overlap and within 8 px of it: how far the other bone's mask
            is at B, rounded up; negative where B shows neither bone, 0 where it does not show this
            bone free or nearer than 1 px to the other. ``valid`` is where it is positive in the
            overlap. Within some 4 px what was taken off as the other bone's edge is a mean.
        guide: bool [H,W], the free pixels of the bone at A that guided the registration.
        correlation: Pearson correlation of A and registered B on ``guide``.
        floor_mse: mean squared error of ``truth`` against A on ``guide``: what no method can beat.
        overlap_px: size of A's overlap.
    """

    image: str
    other: str
    bone: int
    truth: np.ndarray
    valid: np.ndarray
    clear_px: np.ndarray
    guide: np.ndarray
    correlation: float
    floor_mse: float
    overlap_px: int

    def meets(self, thresholds: Thresholds) -> bool:
        """Whether these thresholds would have let it pass."""
        return (
            self.overlap_px >= thresholds.overlap_px
            and self.correlation >= thresholds.correlation
            and int(np.count_nonzero(self.valid)) >= thresholds.truth_px
        )


def edge_light(bone: int, away_px: np.ndarray) -> np.ndarray:
    """What the other bone's blurred edge adds to a bone's display intensity, on average.

    Args:
        bone: 0 upper, 1 lower; the edge is the other one's.
        away_px: distance from the other bone's mask, of any shape.

    Returns:
        float32 of that shape.
    """
    fading = np.exp(-0.5 * (np.asarray(away_px, np.float32) / EDGE_REACH_PX[bone]) ** 2)
    return np.asarray(EDGE_LIGHT[bone] * fading, np.float32)


def _dilate(mask: np.ndarray, radius_px: int) -> np.ndarray:
    size = 2 * radius_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def guide_pixels(masks: np.ndarray, bone: int) -> np.ndarray:
    """A's free pixels of one bone near the overlap; ``masks`` bool [2,H,W], returns bool [H,W]."""
    overlap = masks[0] & masks[1]
    rows = np.flatnonzero(overlap.any(axis=1))
    near = np.zeros_like(overlap)
    near[max(rows[0] - REACH_ROWS, 0) : rows[-1] + REACH_ROWS + 1] = True
    return masks[bone] & ~masks[1 - bone] & ~_dilate(overlap, CLEARANCE_PX) & near


def joint_edge(mask: np.ndarray, bone: int) -> tuple[float, float]:
    """(x, y) of the bone's end at the joint: where a start for the registration is well placed."""
    rows = np.flatnonzero(mask.any(axis=1))
    end = float(rows[-1] if bone == UPPER else rows[0])
    inner = mask[max(int(end) - 40, 0) : int(end) + 41]
    return float(np.nonzero(inner)[1].mean()), end


def _starts(mask_a: np.ndarray, mask_b: np.ndarray, bone: int) -> list[tuple[float, float]]:
    """Shifts (x, y) from B to A to start from: none, bone ends matched, and one in between."""
    (xa, ya), (xb, yb) = joint_edge(mask_a, bone), joint_edge(mask_b, bone)
    dx, dy = xa - xb, ya - yb
    return [(0.0, 0.0), (dx, dy), (dx / 2, dy / 2), (dx, dy - 4.0), (dx, dy + 4.0)]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _warp(image: np.ndarray, matrix: np.ndarray, interpolation: int) -> np.ndarray:
    """Maps B onto A's grid; ``matrix`` maps A's coordinates to B's."""
    height, width = image.shape
    return cv2.warpAffine(
        image, matrix, (width, height), flags=interpolation | cv2.WARP_INVERSE_MAP
    )


def _ecc(
    template: np.ndarray,
    image: np.ndarray,
    start: np.ndarray,
    motion: int,
    mask: np.ndarray,
    blur_px: int,
) -> np.ndarray:
    """OpenCV's map from ``template`` to ``image``; raises cv2.error where it does not converge."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
    _, warp = cv2.findTransformECC(template, image, start, motion, criteria, mask, blur_px)
    return np.asarray(warp)


def _register(
    image_a: np.ndarray,
    image_b: np.ndarray,
    guide: np.ndarray,
    starts: Sequence[tuple[float, float]],
) -> tuple[float, np.ndarray] | None:
    """The best rigid map from A's coordinates to B's over all starts, with its correlation.

    OpenCV masks the *input* image, so A is given as the input and B as the template; the map it
    finds (B to A) is inverted.
    """
    mask = guide.astype(np.uint8)
    best: tuple[float, np.ndarray] | None = None
    tried: list[np.ndarray] = []
    for dx, dy in starts:
        warp = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        try:
            warp = _ecc(image_b, image_a, warp, cv2.MOTION_TRANSLATION, mask, 5)
            # A start that runs into a translation already refined would end in the same place.
            if any(np.abs(warp[:, 2] - done).max() < 0.5 for done in tried):
                continue
            tried.append(warp[:, 2].copy())
            warp = _ecc(image_b, image_a, warp, cv2.MOTION_EUCLIDEAN, mask, 3)
        except cv2.error:  # no convergence from this start: the others may do
            continue
        if np.abs(warp[:, 2]).max() > _MAX_SHIFT_PX or not np.isfinite(warp).all():
            continue
        matrix = cv2.invertAffineTransform(warp)
        warped = _warp(image_b, matrix, cv2.INTER_LINEAR)
        correlation = _correlation(image_a[guide], warped[guide])
        if best is None or correlation > best[0]:
            best = (correlation, matrix)
    return best


def match(
    name_a: str,
    a: JointArrays,
    name_b: str,
    b: JointArrays,
    bone: int,
    thresholds: Thresholds = PROTOCOL,
) -> VisitTruth | None:
    """Visit B's view of one bone hidden at A, or None where the thresholds refuse it.

    Args:
        name_a: name of A, for the record.
        a: the image with the overlap.
        name_b: name of B, for the record.
        b: the other visit, of the same size.
        bone: 0 upper, 1 lower.
        thresholds: the evaluation protocol's, or looser ones.
    """
    guide = guide_pixels(a.masks, bone)
    if guide.sum() < MIN_GUIDE_PX:
        return None
    image_a = a.image.astype(np.float32) / 255
    image_b = b.image.astype(np.float32) / 255
    found = _register(image_a, image_b, guide, _starts(a.masks[bone], b.masks[bone], bone))
    if found is None or found[0] < thresholds.correlation:
        return None
    correlation, matrix = found
    warped = _warp(image_b, matrix, cv2.INTER_LINEAR)
    own, other = (
        _warp(b.masks[i].astype(np.uint8), matrix, cv2.INTER_NEAREST).astype(bool)
        for i in (bone, 1 - bone)
    )
    overlap = a.masks[0] & a.masks[1]
    away = cv2.distanceTransform((~b.masks[1 - bone]).astype(np.uint8), cv2.DIST_L2, 5)
    away = _warp(away, matrix, cv2.INTER_LINEAR)
    clear = ~other & (away > NEAREST_PX)
    valid = overlap & own & clear
    if valid.sum() < thresholds.truth_px:
        return None
    slope, offset = np.polyfit(warped[guide], image_a[guide], 1)
    truth = np.clip(slope * warped + offset, 0, 1).astype(np.float32)
    truth = np.maximum(truth - edge_light(bone, away), 0)
    floor_mse = float(np.mean((truth[guide] - image_a[guide]) ** 2))
    near = cv2.distanceTransform((~overlap).astype(np.uint8), cv2.DIST_L2, 5) <= RING_PX
    away_px = np.clip(np.ceil(away), 1, 255).astype(np.int16)
    clear_px = np.where(near & clear, np.where(own, away_px, -away_px), np.int16(0))
    return VisitTruth(
        name_a,
        name_b,
        bone,
        truth,
        valid,
        clear_px,
        guide,
        correlation,
        floor_mse,
        int(np.count_nonzero(overlap)),
    )


def visit_truths(
    images: Sequence[JointImage], thresholds: Thresholds = PROTOCOL
) -> Iterator[VisitTruth]:
    """Every usable truth among ``images``, joint by joint, in a fixed order.

    Raises:
        InputError: a listed file is missing or damaged.
    """
    for visits in by_joint(images).values():
        if len(visits) < 2:
            continue
        arrays = [read_joint(visit) for visit in visits]
        for index_a, a in enumerate(arrays):
            if overlap_px(a.masks) < thresholds.overlap_px:
                continue
            for index_b, b in enumerate(arrays):
                if index_b == index_a or b.image.shape != a.image.shape:
                    continue
                for bone in (UPPER, LOWER):
                    truth = match(
                        visits[index_a].name, a, visits[index_b].name, b, bone, thresholds
                    )
                    if truth is not None:
                        yield truth
