"""What the joint locator learns from: marked hands, phantoms, pictures without a hand.

Every view is drawn by a generator of its own, seeded by (run, step, place in the batch), as in
``blsgan.training.scenes``. A hand is turned by up to 60 degrees, scaled, mirrored, cut and changed
in tone; part of the background goes, markers, rings, collimation edges and a piece of another hand
come. Three kinds of view have no landmark at all, so that the network learns to say so: textures
and shapes, a hand upside down, lying on its side or in negative, and a part of it that shows a few
joints only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blsgan.anatomy import LANDMARKS
from blsgan.data.hands import MarkedHand
from blsgan.errors import InputError
from blsgan.joint.geometry import HEATMAP_PX, LOOK_PX
from blsgan.synthesis.hand import marked_hand_phantom
from blsgan.training.scenes import clouds, shapes

Array = NDArray[Any]  # float32; OpenCV's stubs know no more

ELSEWHERE = -1.0
"""The coordinate of a landmark that is not in the view; NaN where nobody knows."""

TURN_DEGREES = 60.0

_STORED_PX = 640
_PHANTOMS = 60
_POOL_SEED = 30_000
_LEAST_LANDMARKS = 8  # fewer in a view: it shows a part of a hand, not a hand


@dataclass(frozen=True)
class ViewBatch:
    """Pictures on the locator's grid.

    Attributes:
        image: float32 [B,1,192,192] in [0,1].
        points: float32 [B,L,2], x and y in cells of the heatmap (the first cell's centre at 0); -1
            where the landmark is not in the view, NaN where nobody marked it.
    """

    image: Tensor
    points: Tensor


@dataclass(frozen=True)
class _Hand:
    levels: tuple[Array, ...]  # uint8, each half as large as the one before
    points: NDArray[np.float64]  # in pixels of the first level


class HandViews:
    """The views that a run draws from.

    Args:
        hands: hands with landmarks.
        phantom_share: of the views, phantoms of this package.
        negative_share: of the views, pictures without a hand.

    Raises:
        InputError: a picture cannot be read.
    """

    def __init__(
        self, hands: Sequence[MarkedHand], *, phantom_share: float, negative_share: float
    ) -> None:
        self._hands = [_read(hand) for hand in hands]
        self._shares = (negative_share, phantom_share)

    def draw(self, count: int, seed: Sequence[int]) -> ViewBatch:
        """``count`` views; the same seed gives the same batch."""
        return _batch([self.view(np.random.default_rng([*seed, n])) for n in range(count)])

    def all(self) -> ViewBatch:
        """Every hand once, upright, at one size."""
        return _batch([_show(hand, _pose(hand), 0.85, 0.0, np.zeros(2)) for hand in self._hands])

    def view(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """One picture [192,192] and its landmarks [L,2] in cells."""
        negative, phantom = self._shares
        drawn = rng.random()
        if drawn < negative:
            return self._negative(rng)
        hand = (
            _phantom(int(rng.integers(_PHANTOMS))) if drawn < negative + phantom else self._any(rng)
        )
        image, points = _pose_at_random(hand, rng)
        return self._disturb(image, points, rng), points

    def _any(self, rng: np.random.Generator) -> _Hand:
        return self._hands[rng.integers(len(self._hands))]

    def _negative(self, rng: np.random.Generator) -> tuple[Array, Array]:
        points = np.full((len(LANDMARKS), 2), ELSEWHERE)
        kind = rng.random()
        if kind < 0.15:
            image = clouds(rng, LOOK_PX)
        elif kind < 0.35:
            image = shapes(rng, LOOK_PX)
        else:
            hand = self._any(rng)
            pose = _pose(hand)
            scale, degrees = (
                float(np.exp(rng.uniform(np.log(0.5), np.log(1.1)))),
                rng.uniform(-60, 60),
            )
            shift = rng.uniform(-0.1, 0.1, 2)
            if kind < 0.7:
                degrees = 180 + rng.uniform(-75, 75)
            elif kind >= 0.85:
                scale, shift = float(rng.uniform(4, 8)), rng.uniform(-0.3, 0.3, 2) * 6
            image, _ = _show(hand, pose, scale, degrees, shift, bool(rng.random() < 0.5))
            if 0.7 <= kind < 0.85:
                image = np.where(image > 0, 1 - image, 0 if rng.random() < 0.5 else 1)
        return _tone(image.astype(np.float32), rng), points

    def _disturb(self, image: Array, points: Array, rng: np.random.Generator) -> Array:
        if rng.random() < 0.3:
            image = _without_background(image, rng)
        if rng.random() < 0.12:
            image = self._beside_another(image, points, rng)
        if rng.random() < 0.4:
            _mark(image, points, rng)
        if rng.random() < 0.25:
            _occlude(image, rng)
        if rng.random() < 0.25:
            image = _collimate(image, points, rng)
        return _tone(image, rng)

    def _beside_another(self, image: Array, points: Array, rng: np.random.Generator) -> Array:
        """A piece of another hand where this one is not."""
        known = points[np.isfinite(points).all(axis=1) & (points[:, 0] != ELSEWHERE)] * 2
        if len(known) == 0:
            return image
        left, right = known[:, 0].min(), known[:, 0].max()
        other, _ = _pose_at_random(self._any(rng), rng)
        result = image.copy()
        if left > LOOK_PX - right and left > 24:
            width = int(left - 10)
            result[:, :width] = other[:, LOOK_PX - width :]
        elif LOOK_PX - right > 24:
            width = int(LOOK_PX - right - 10)
            result[:, LOOK_PX - width :] = other[:, :width]
        return result


def _read(hand: MarkedHand) -> _Hand:
    picture = cv2.imread(str(hand.path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise InputError(f"{hand.path}: is not a readable picture; remove its row from the table.")
    scale = min(1.0, _STORED_PX / max(picture.shape))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    ratio = np.array(size) / np.array(picture.shape[::-1])
    return _Hand(_pyramid(small), (hand.points + 0.5) * ratio - 0.5)


def _pyramid(picture: Array) -> tuple[Array, ...]:
    low, high = np.percentile(picture, (1, 99))
    values = (picture.astype(np.float32) - low) / max(float(high - low), 1.0)
    levels = [np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)]
    while max(levels[-1].shape) > LOOK_PX:
        height, width = (side // 2 * 2 for side in levels[-1].shape)
        part = levels[-1][:height, :width]
        levels.append(cv2.resize(part, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return tuple(levels)


@functools.cache
def _phantom(index: int) -> _Hand:
    image, points = marked_hand_phantom(_POOL_SEED + index, 384)
    return _Hand(_pyramid(np.rint(255 * image).astype(np.uint8)), points)


def _pose(hand: _Hand) -> tuple[NDArray[np.float64], float, float]:
    """Centre, size (the longer side of the landmarks' box) and the turn in degrees that puts the
    middle finger upright."""
    known = hand.points[np.isfinite(hand.points).all(axis=1)]
    low, high = known.min(axis=0), known.max(axis=0)
    size = float(np.max(high - low))
    points = dict(zip(LANDMARKS, hand.points, strict=True))
    up = points["mcp3"] - points["cmc3"]
    if not np.isfinite(up).all():
        up = points["pip3"] - points["mcp3"]
    if not np.isfinite(up).all():
        up = np.array([0.0, -1.0])
    return (low + high) / 2, size, math.degrees(math.atan2(-up[0], -up[1]))


def _show(
    hand: _Hand,
    pose: tuple[NDArray[np.float64], float, float],
    scale: float,
    degrees: float,
    shift: NDArray[np.float64],
    mirror: bool = False,
    stretch: float = 1.0,
) -> tuple[Array, Array]:
    """The hand on the grid: ``scale`` times as long as the grid's side, turned by ``degrees`` from
    upright, its centre ``shift`` grid sides beside the grid's."""
    centre, size, upright = pose
    zoom = scale * LOOK_PX / size
    angle = math.radians(degrees - upright)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if mirror:
        turn = np.diag([-1.0, 1.0]) @ turn
    linear = zoom * turn @ np.diag([stretch, 1 / stretch])
    offset = (LOOK_PX - 1) / 2 + shift * LOOK_PX - linear @ centre
    level = min(max(int(math.log2(max(1 / zoom, 1)) + 0.3), 0), len(hand.levels) - 1)
    step = 2.0**level
    # Pixel x of a level is (x + 0.5) * step - 0.5 of the first.
    matrix = np.column_stack((linear * step, offset + linear @ np.full(2, (step - 1) / 2)))
    picture = cv2.warpAffine(hand.levels[level], matrix, (LOOK_PX, LOOK_PX), flags=cv2.INTER_LINEAR)
    points = hand.points @ linear.T + offset
    cells = (points + 0.5) / 2 - 0.5
    outside = ((cells < 0) | (cells > HEATMAP_PX - 1)).any(axis=1)
    cells[outside & np.isfinite(cells).all(axis=1)] = ELSEWHERE
    return picture.astype(np.float32) / np.float32(255), cells


def _pose_at_random(hand: _Hand, rng: np.random.Generator) -> tuple[Array, Array]:
    pose = _pose(hand)
    near = rng.random() < 0.5  # the last look is upright and of one size
    scale = (
        rng.uniform(0.75, 0.95) if near else float(np.exp(rng.uniform(np.log(0.45), np.log(1.3))))
    )
    degrees = rng.uniform(-18, 18) if near else rng.uniform(-TURN_DEGREES, TURN_DEGREES)
    free = 0.06 if near else max(0.04, (1.1 - scale) / 2)
    image, points = _show(
        hand,
        pose,
        scale,
        degrees,
        rng.uniform(-free, free, 2),
        bool(rng.random() < 0.5),
        float(np.exp(rng.uniform(-0.07, 0.07))),
    )
    if np.count_nonzero(points[:, 0] != ELSEWHERE) < _LEAST_LANDMARKS:
        points[:] = ELSEWHERE
    return image, points


def _without_background(image: Array, rng: np.random.Generator) -> Array:
    """What is darker than the soft tissue becomes one grey, or fades."""
    inside = image[image > 0]
    if inside.size < 100:
        return image
    level = float(np.percentile(inside, rng.uniform(5, 45)))
    soft = 1 / (1 + np.exp(-(cv2.GaussianBlur(image, (0, 0), 1.0) - level) / 0.03))
    return (image * soft + rng.uniform(0, 0.5) * (rng.random() < 0.4) * (1 - soft)).astype(
        np.float32
    )


def _near(points: Array, corner: Array, radius: float) -> bool:
    distance = np.hypot(*(points * 2 - corner).T)
    return bool((distance[np.isfinite(distance)] < radius).any())


def _mark(image: Array, points: Array, rng: np.random.Generator) -> None:
    """Lead letters, a plate with text, or a scale, away from the landmarks."""
    for _ in range(int(rng.integers(1, 4))):
        x, y = (int(v) for v in rng.uniform(0, LOOK_PX - 20, 2))
        if _near(points, np.array([x + 10, y + 6]), 16):
            continue
        if rng.random() < 0.4:
            end = (x + int(rng.integers(8, 34)), y + int(rng.integers(6, 16)))
            plate = 0.0 if rng.random() < 0.5 else float(rng.uniform(0, 0.4))
            cv2.rectangle(image, (x, y), end, plate, -1)
        text = "".join(rng.choice(list("LRABCEJKMTX0123456789"), int(rng.integers(1, 4))))
        stencil = np.zeros(image.shape, np.uint8)
        size, thick = float(rng.uniform(0.25, 0.7)), int(rng.integers(1, 3))
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(stencil, text, (x, y + 10), font, size, 255, thick, cv2.LINE_AA)
        share = stencil.astype(np.float32) / np.float32(255)
        image += share * (np.float32(rng.uniform(0.7, 1)) - image)


def _occlude(image: Array, rng: np.random.Generator) -> None:
    """A ring, a wire, a plate, or plaster: something dense or flat over the hand."""
    x, y = (int(v) for v in rng.uniform(20, LOOK_PX - 20, 2))
    grey = float(rng.uniform(0.6, 1))
    if rng.random() < 0.5:
        size = (int(rng.integers(3, 9)), int(rng.integers(1, 4)))
        cv2.ellipse(image, (x, y), size, float(rng.uniform(0, 180)), 0, 360, grey, -1, cv2.LINE_AA)
    elif rng.random() < 0.6:
        end = (x + int(rng.integers(-30, 31)), y + int(rng.integers(-30, 31)))
        cv2.line(image, (x, y), end, grey, int(rng.integers(1, 4)), cv2.LINE_AA)
    else:
        side = int(rng.integers(8, 28))
        window = image[y : y + side, x : x + side]
        window[:] = float(rng.uniform(0, 1)) if rng.random() < 0.5 else window.mean()


def _collimate(image: Array, points: Array, rng: np.random.Generator) -> Array:
    """A straight edge beyond which nothing, or everything, was exposed; landmarks stay inside."""
    angle = rng.uniform(0, 2 * math.pi)
    normal = np.array([math.cos(angle), math.sin(angle)])
    known = points[np.isfinite(points).all(axis=1) & (points[:, 0] != ELSEWHERE)] * 2
    reach = float((known @ normal).max()) if len(known) else LOOK_PX / 2
    axis = np.arange(LOOK_PX)
    beyond = axis * normal[0] + axis[:, None] * normal[1] > reach + rng.uniform(4, 40)
    return np.where(beyond, np.float32(rng.choice([0.0, 0.0, 1.0, 0.3])), image).astype(np.float32)


def _tone(image: Array, rng: np.random.Generator) -> Array:
    """Gamma, contrast, a slow gradient, blur and noise."""
    values = np.clip(image, 0, 1)
    if rng.random() < 0.85:
        values = values ** np.float32(np.exp(rng.uniform(np.log(0.45), np.log(2.2))))
    if rng.random() < 0.3:
        slope = rng.uniform(-0.4, 0.4, 2)
        ramp = np.linspace(-0.5, 0.5, LOOK_PX)
        values = values * (1 + slope[0] * ramp[:, None] + slope[1] * ramp)
    if rng.random() < 0.2:
        values = np.minimum(values, rng.uniform(0.5, 0.95))  # saturated
    if rng.random() < 0.25:
        values = cv2.GaussianBlur(values.astype(np.float32), (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.5:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        values = values + rng.uniform(0, 0.06) * noise
    values = np.clip(values, 0, 1)
    return (rng.uniform(0, 0.2) + rng.uniform(0.3, 0.8) * values).astype(np.float32)


def _batch(views: Sequence[tuple[Array, Array]]) -> ViewBatch:
    return ViewBatch(
        torch.from_numpy(np.stack([image[None] for image, _ in views]).astype(np.float32)),
        torch.from_numpy(np.stack([points for _, points in views]).astype(np.float32)),
    )
