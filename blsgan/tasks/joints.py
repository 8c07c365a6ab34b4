"""Where the joints of a hand are: landmarks and side from a picture of one or two hands.

A small network looks at the whole picture turned by eight angles, as it is and in negative, and at
its halves, in which a second hand may lie. Where it is surest it looks again at the hand upright,
at one size, and mirrored. What it is not sure of is refused (:class:`~blsgan.errors.NoHandError`)
rather than pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.anatomy import JOINTS, LANDMARKS, Side
from blsgan.errors import InputError, NoHandError
from blsgan.joint.geometry import HEATMAP_PX, LOOK_PX
from blsgan.tasks.grid import GridPredictor
from blsgan.tasks.separation import as_unit_interval
from blsgan.tasks.task import LOCATION

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

LEAST_CONFIDENCE = 0.75
"""Of a hand: below, nothing is said to be one."""

LEAST_LANDMARK = 0.30
"""Of a landmark: below, it is not said to be there."""

LEAST_LENGTH_PX = 330.0
"""Of a hand in half of a picture: the bones of a shorter one are less than 18 px wide."""

_FIRST_CONFIDENCE = 0.20  # of a first look: below, there is nothing to look at again
_ANGLES = tuple(range(0, 360, 45))
_UPRIGHT_SCALE = 0.85  # the hand's length over the grid's side in the last looks
_REACH = 3  # cells around a heatmap's peak that belong to it
_WRIST = 2  # landmarks at the end that pictures often lack
_MOST_INSIDE = 0.3  # of a hand's landmarks: it may have so many in a surer hand's outline
_SAME_HAND = 0.35  # of a hand's length: two finds whose joints are nearer are one hand


@dataclass(frozen=True)
class LocatedHand:
    """A hand and its landmarks.

    Attributes:
        points: float64 [L,2], x and y of ``blsgan.anatomy.LANDMARKS`` in pixels of the picture, the
            first pixel's centre at 0.
        confidences: float64 [L] in [0,1], the probability within 3 cells of each point.
        side: by the thumb's side, as if the picture were not mirrored (the back of the hand towards
            the viewer).
        turned_deg: by how much the hand is turned clockwise from upright.
        negative: whether bone is dark in the picture.
    """

    points: Float64
    confidences: Float64
    side: Side
    turned_deg: float
    negative: bool = False

    @property
    def confidence(self) -> float:
        """Mean over the landmarks of hand and fingers."""
        return float(self.confidences[:-_WRIST].mean())

    def point(self, landmark: str) -> Float64:
        """x and y of one landmark."""
        return self.points[LANDMARKS.index(landmark)]

    def confidence_of(self, landmark: str) -> float:
        """Of one landmark."""
        return float(self.confidences[LANDMARKS.index(landmark)])

    @property
    def length_px(self) -> float:
        """The longer side of the box around what was found."""
        return float(np.ptp(_found(self.points, self.confidences), axis=0).max())


@dataclass(frozen=True)
class _View:
    """A turned square of the picture: its centre (x, y), side and clockwise turn."""

    centre: tuple[float, float]
    side: float
    degrees: float = 0.0
    mirrored: bool = False
    negative: bool = False
    part: tuple[float, float, float, float] | None = None  # left, top, right, bottom: what is shown

    def to_picture(self) -> Float64:
        """[2,3], from pixels of the grid to pixels of the picture."""
        zoom, angle = self.side / LOOK_PX, math.radians(self.degrees)
        linear = zoom * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        if self.mirrored:
            linear = linear @ np.diag([-1.0, 1.0])
        middle = np.full(2, (LOOK_PX - 1) / 2)
        return np.column_stack((linear, np.array(self.centre) - linear @ middle))


class Locator(GridPredictor):
    """Finds the joints of one or two hands in a picture.

    >>> locator = blsgan.Locator.from_pretrained()
    >>> hands = locator(hand_image)
    >>> hands[0].side, hands[0].point("mcp3").shape
    ('right', (2,))
    """

    task, answer = LOCATION, (len(LANDMARKS), HEATMAP_PX, HEATMAP_PX)

    def __call__(self, image: NDArray[Any]) -> list[LocatedHand]:
        """The hands of a picture, from left to right.

        Args:
            image: [H,W], floating point in [0,1], or uint8 / uint16 over their whole range. Bone
                may be light or dark, the hand may be turned by any angle; it fills at least a third
                of the picture, or of the half in which it lies.

        Raises:
            NoHandError: there is none that the network is sure of.
            InputError: a wrong shape, NaN or infinity, values outside [0,1].
        """
        image = np.asarray(image)
        if image.ndim != 2 or min(image.shape) < 32:
            raise InputError(
                f"image has shape {list(image.shape)}; give [H,W] of at least 32 x 32 pixels."
            )
        image, _ = as_unit_interval(image)
        picture = _Picture.of(image)
        height, width = (int(side) for side in image.shape)
        middle = ((width - 1) / 2, (height - 1) / 2)
        side = float(max(height, width))
        whole = [
            _View(middle, side, angle, negative=negative)
            for negative in (False, True)
            for angle in _ANGLES
        ]
        firsts = self._look(picture, whole)
        best = max(firsts, key=_certainty)
        # Two hands lie side by side, and about the same way up.
        angles: tuple[float, ...] = (best.view.degrees, (best.view.degrees + 180) % 360)
        angles = angles[:1] if _certainty(best) > LEAST_CONFIDENCE else _ANGLES
        negative = best.view.negative
        halves = [
            replace(view, degrees=angle, negative=negative)
            for view in _halves(width, height)
            for angle in angles
        ]
        firsts += self._look(picture, halves)
        hands: list[LocatedHand] = []
        surest = 0.0
        for first in sorted(firsts, key=_certainty, reverse=True)[:12]:
            if _certainty(first) < _FIRST_CONFIDENCE or any(_same(first, hand) for hand in hands):
                continue
            hand = self._upright(picture, first)
            surest = max(surest, hand.confidence if hand else 0.0)
            if hand is None or hand.confidence < LEAST_CONFIDENCE:
                continue
            if not any(_same(hand, other) for other in hands):
                hands.append(hand)
        hands = _apart(hands)
        if not hands:
            raise NoHandError(
                f"no hand was found (confidence {surest:.2f}, {LEAST_CONFIDENCE:g} is needed); "
                "give a radiograph of one or two whole hands that fills the picture."
            )
        return sorted(hands, key=lambda hand: float(hand.point("mcp3")[0]))

    def _upright(self, picture: _Picture, first: _Look) -> LocatedHand | None:
        """The hand that a first look saw, looked at again; None where it is gone then."""
        look = first
        for _ in range(2):
            view = _pose(look)
            if view is None:
                return None
            looks = self._look(picture, [view, replace(view, mirrored=True)])
            # Both sides of a hand have the same names: mirrored, only the picture changes.
            weights = np.stack([one.confidences for one in looks])[..., None] + 1e-9
            points = (np.stack([one.points for one in looks]) * weights).sum(0) / weights.sum(0)
            look = _Look(view, points, np.mean([one.confidences for one in looks], axis=0))
        return _hand(look)

    def _look(self, picture: _Picture, views: Sequence[_View]) -> list[_Look]:
        looks = []
        for view in views:  # one at a time: a batch takes more memory and no less time
            logits = self._logits(picture.show(view)[None])
            cells, confidences = decode_heatmaps(logits[0])
            matrix = view.to_picture()
            points = (2 * cells + 0.5) @ matrix[:, :2].T + matrix[:, 2]
            looks.append(_Look(view, points, confidences))
        return looks


@dataclass(frozen=True)
class _Look:
    """What the network saw in a view: points in pixels of the picture."""

    view: _View
    points: Float64
    confidences: Float64


@dataclass(frozen=True)
class _Picture:
    """The picture stretched between its 1st and 99th percentile, and smaller ones of it."""

    levels: tuple[Float32, ...]
    step: float  # pixels of the picture for each of the first level

    @classmethod
    def of(cls, image: Float32) -> _Picture:
        import cv2

        height, width = image.shape
        step = max(1.0, max(height, width) / (4 * LOOK_PX))
        size = (max(1, round(width / step)), max(1, round(height / step)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if step > 1 else image
        low, high = np.percentile(small, (1, 99))
        small = np.clip((small - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
        levels = [small]
        while max(levels[-1].shape) > LOOK_PX and min(levels[-1].shape) > 1:
            rows, columns = (side // 2 * 2 for side in levels[-1].shape)
            half = cv2.resize(
                levels[-1][:rows, :columns], (columns // 2, rows // 2), interpolation=cv2.INTER_AREA
            )
            levels.append(np.asarray(half, dtype=np.float32))
        return cls(tuple(levels), step)

    def show(self, view: _View) -> Float32:
        """Float32 [192,192]; outside the picture 0."""
        import cv2

        zoom = view.side / LOOK_PX / self.step  # of the first level's pixels
        level = min(max(int(math.log2(max(zoom, 1)) + 0.3), 0), len(self.levels) - 1)
        step = self.step * 2.0**level
        matrix = view.to_picture()
        linear = matrix[:, :2] / step
        offset = (matrix[:, 2] + 0.5) / step - 0.5
        plane = 1 - self.levels[level] if view.negative else self.levels[level]
        if view.part is not None:
            left, top, right, bottom = (round(edge / step) for edge in view.part)
            part = np.zeros_like(plane)
            part[top:bottom, left:right] = plane[top:bottom, left:right]
            plane = part
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        shown = cv2.warpAffine(
            plane, np.column_stack((linear, offset)), (LOOK_PX, LOOK_PX), flags=flags
        )
        return np.asarray(shown, dtype=np.float32)


def decode_heatmaps(logits: Float32) -> tuple[Float64, Float64]:
    """Points [L,2], x and y in cells, and confidences [L] of logits [L,96,96].

    The probability of a cell is exp(logit) / (1 + sum of exp): 1 stands for "elsewhere". A point is
    the mean of the cells within 3 of the likeliest one, its confidence their probability.
    """
    count, height, width = logits.shape
    flat = logits.reshape(count, -1).astype(np.float64)
    top = np.maximum(flat.max(axis=1, keepdims=True), 0)
    weights = np.exp(flat - top)
    probabilities = weights / (weights.sum(axis=1, keepdims=True) + np.exp(-top))
    points, confidences = np.zeros((count, 2)), np.zeros(count)
    for index, plane in enumerate(probabilities.reshape(logits.shape)):
        y, x = divmod(int(plane.argmax()), width)
        rows = np.arange(max(y - _REACH, 0), min(y + _REACH + 1, height))
        columns = np.arange(max(x - _REACH, 0), min(x + _REACH + 1, width))
        part = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        mass = float(part.sum())
        confidences[index] = mass
        points[index] = (part.sum(0) @ columns / mass, part.sum(1) @ rows / mass)
    return points, confidences


def _certainty(look: _Look) -> float:
    return float(look.confidences[:-_WRIST].mean())


def _found(points: Float64, confidences: Float64) -> Float64:
    known = points[confidences >= LEAST_LANDMARK]
    return known if len(known) >= 2 else points


def _pose(look: _Look) -> _View | None:
    """The view that shows the hand upright, in the middle and at one size."""
    sure = look.confidences >= LEAST_LANDMARK
    if np.count_nonzero(sure) < 6:
        return None
    known = look.points[sure]
    up = _up(look.points, look.confidences)
    degrees = math.degrees(math.atan2(up[0], -up[1]))
    low, high = known.min(axis=0), known.max(axis=0)
    size = float(np.max(high - low))
    if size < 16:
        return None
    centre = (low + high) / 2
    return replace(
        look.view,
        centre=(float(centre[0]), float(centre[1])),
        side=size / _UPRIGHT_SCALE,
        degrees=degrees,
        mirrored=False,
    )


def _up(points: Float64, confidences: Float64) -> Float64:
    """Along the palm towards the fingers, by the rays 2 to 5 that are sure, at least the surest."""
    index = {name: n for n, name in enumerate(LANDMARKS)}
    rays = [
        (min(confidences[index[f"mcp{n}"]], confidences[index[f"cmc{n}"]]), n) for n in range(2, 6)
    ]
    sure = [n for confidence, n in rays if confidence >= LEAST_LANDMARK] or [max(rays)[1]]
    vectors = [points[index[f"mcp{n}"]] - points[index[f"cmc{n}"]] for n in sure]
    up = np.mean([vector / max(float(np.hypot(*vector)), 1e-6) for vector in vectors], axis=0)
    return up if float(np.hypot(*up)) > 1e-6 else np.array([0.0, -1.0])


def side_by_thumb(points: Float64, confidences: Float64) -> Side:
    """The side of a hand with these landmarks, as if the picture were not mirrored."""
    up = _up(points, confidences)
    right = np.array([-up[1], up[0]])
    index = {name: n for n, name in enumerate(LANDMARKS)}
    thumb = points[[index[name] for name in ("mcp1", "ip1", "tip1")]].mean(axis=0)
    fingers = points[[index[f"mcp{n}"] for n in range(2, 6)]]
    across = float((fingers[0] - fingers[3]) @ right) + float(
        (thumb - fingers.mean(axis=0)) @ right
    )
    return "left" if across > 0 else "right"


def _hand(look: _Look) -> LocatedHand:
    up = _up(look.points, look.confidences)
    turned = math.degrees(math.atan2(up[0], -up[1]))
    return LocatedHand(
        look.points,
        look.confidences,
        side_by_thumb(look.points, look.confidences),
        turned,
        look.view.negative,
    )


def _halves(width: int, height: int) -> Iterable[_View]:
    """The left and right half, or the upper and lower, or both pairs of a square picture, where
    they have room for a hand of some size."""
    if width > 0.75 * height and math.hypot(width / 2, height) >= LEAST_LENGTH_PX:
        for left, right in ((0.0, width / 2), (width / 2, float(width))):
            side = max(width / 2, float(height))
            centre = ((left + right - 1) / 2, (height - 1) / 2)
            yield _View(centre, min(side, 1.3 * width), part=(left, 0.0, right, float(height)))
    if height > 0.75 * width and math.hypot(width, height / 2) >= LEAST_LENGTH_PX:
        for top, bottom in ((0.0, height / 2), (height / 2, float(height))):
            side = max(height / 2, float(width))
            centre = ((width - 1) / 2, (top + bottom - 1) / 2)
            yield _View(centre, min(side, 1.3 * height), part=(0.0, top, float(width), bottom))


def _apart(hands: Iterable[LocatedHand]) -> list[LocatedHand]:
    """Without those that lie in a surer one: bones of a palm may look like a small hand."""
    import cv2

    kept: list[LocatedHand] = []
    for hand in sorted(hands, key=lambda hand: hand.confidence, reverse=True):
        points = _found(hand.points, hand.confidences)
        hulls = [
            cv2.convexHull(_found(other.points, other.confidences).astype(np.float32))
            for other in kept
        ]
        inside = [
            np.mean([cv2.pointPolygonTest(hull, tuple(map(float, p)), False) >= 0 for p in points])
            for hull in hulls
        ]
        if all(share < _MOST_INSIDE for share in inside):
            kept.append(hand)
    return kept


def _same(one: _Look | LocatedHand, other: LocatedHand) -> bool:
    joints = slice(0, len(JOINTS))
    apart = np.median(np.hypot(*(one.points[joints] - other.points[joints]).T))
    return bool(apart < _SAME_HAND * other.length_px)
