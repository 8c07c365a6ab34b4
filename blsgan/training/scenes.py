"""What the mask segmenter learns from: real joints, phantoms, and pictures without a joint.

Every sample is drawn by a generator of its own, seeded by (run, step, place in the batch), so a
resumed run sees what an uninterrupted one would have seen and no random state is kept. A joint is
moved, turned by up to 15 degrees, scaled, flipped, cut and changed in tone; *negatives* (noise,
clouds, piles of shapes, flat fields, whole hands, shafts, joints lying on their side) have empty
masks, so that the network learns to say "there is no joint" instead of finding one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blsgan.data.layout import JointImage, read_joint
from blsgan.joint.geometry import GRID_PX
from blsgan.synthesis.hand import hand_phantom
from blsgan.synthesis.phantoms import joint_phantom

Array = NDArray[Any]  # float32; OpenCV's stubs know no more

LEAST_OVERLAP_PX = 150
"""From here on the Dice coefficient of the overlap says something (evaluation.md)."""

TURN_DEGREES = 15.0
BORDER_PX = 3
"""Pixels this near to a bone's border weigh more in the loss."""

_PHANTOMS = 120
_HANDS = 24
_POOL_SEED = 20_000  # phantoms of training; tests and examples use small seeds

_UPSIDE_DOWN = 0.06
"""Share of joints shown upside down. Each bone keeps its channel, so that a picture which is upside
down is known by its upper bone lying below."""

_CENTRE = (GRID_PX - 1) / 2


@dataclass(frozen=True)
class SceneBatch:
    """Pictures on the segmenter's grid.

    Attributes:
        image: float32 [B,1,256,256] in [0,1].
        masks: float32 [B,2,256,256] in [0,1], upper and lower bone, soft at the border; 0 where
            there is no joint.
        border: float32 [B,1,256,256] in [0,1], 1 within 3 px of either bone's border.
    """

    image: Tensor
    masks: Tensor
    border: Tensor

    @staticmethod
    def of(samples: Sequence[tuple[Array, Array]]) -> SceneBatch:
        """A batch of pictures [256,256] with their masks [2,256,256]."""
        return SceneBatch(
            torch.from_numpy(np.stack([image[None] for image, _ in samples])),
            torch.from_numpy(np.stack([masks for _, masks in samples])),
            torch.from_numpy(np.stack([_border(masks) for _, masks in samples])),
        )

    @staticmethod
    def join(first: SceneBatch, second: SceneBatch) -> SceneBatch:
        """The two batches one after the other."""
        return SceneBatch(
            *(
                torch.cat(pair)
                for pair in zip(vars(first).values(), vars(second).values(), strict=True)
            )
        )


@dataclass(frozen=True)
class _Joint:
    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]


class Scenes:
    """The samples that a run draws from.

    Args:
        images: the real joints; of another size than 256x256 they are resized.
        phantom_share: of the samples, phantoms of this package.
        negative_share: of the samples, pictures without a joint.
        overlap_share: of the real joints, drawn from those whose overlap has >= 150 px; the rest is
            drawn from all.

    Raises:
        InputError: a listed file is missing or damaged.
    """

    def __init__(
        self,
        images: Sequence[JointImage],
        *,
        phantom_share: float,
        negative_share: float,
        overlap_share: float = 0.0,
    ) -> None:
        self._joints = [_on_grid(image) for image in images]
        self._shares = phantom_share, negative_share
        self._overlap_share = overlap_share
        self._overlapped = [
            joint
            for joint in self._joints
            if np.count_nonzero(joint.masks.all(axis=0)) >= LEAST_OVERLAP_PX
        ]

    def draw(self, count: int, seed: Sequence[int]) -> SceneBatch:
        """``count`` samples; the same seed gives the same batch."""
        return SceneBatch.of([self.sample(np.random.default_rng([*seed, n])) for n in range(count)])

    def all(self) -> SceneBatch:
        """Every real joint once, as it is."""
        return SceneBatch.of(
            [(_unit(joint.image), joint.masks.astype(np.float32)) for joint in self._joints]
        )

    def sample(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """One picture [256,256] and its masks [2,256,256]."""
        drawn = rng.random()
        phantom, negative = self._shares
        if drawn < negative:
            image = self._negative(rng)
            return _tone(image, rng), np.zeros((2, GRID_PX, GRID_PX), np.float32)
        if drawn < negative + phantom:
            joint = _phantom(int(rng.integers(_PHANTOMS)))
        else:
            joint = self._joint(rng)
        image, masks = _move(joint, rng)
        image, masks = _cut(image, masks, rng)
        return _tone(image, rng), masks

    def _negative(self, rng: np.random.Generator) -> Array:
        makers: tuple[tuple[float, Callable[[np.random.Generator], Array]], ...] = (
            (0.08, _noise),
            (0.16, clouds),
            (0.16, shapes),
            (0.06, _flat),
            (0.14, _hand),
            (0.14, self._mosaic),
            (0.16, self._shaft),
            (0.10, self._sideways),
        )
        shares = np.cumsum([share for share, _ in makers])
        index = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        return makers[min(index, len(makers) - 1)][1](rng)

    def _joint(self, rng: np.random.Generator) -> _Joint:
        # Without a share no random number is drawn: earlier runs can be repeated.
        if self._overlap_share and self._overlapped and rng.random() < self._overlap_share:
            return self._overlapped[rng.integers(len(self._overlapped))]
        return self._any_joint(rng)

    def _any_joint(self, rng: np.random.Generator) -> _Joint:
        return self._joints[rng.integers(len(self._joints))]

    def _mosaic(self, rng: np.random.Generator) -> Array:
        """Joints as small as in a picture of a whole hand, side by side and one above another."""
        columns, rows = int(rng.integers(2, 6)), int(rng.integers(2, 5))
        picture = np.zeros((GRID_PX, GRID_PX), np.float32)
        height, width = GRID_PX // rows, GRID_PX // columns
        for row in range(rows):
            for column in range(columns):
                tile = _unit(self._any_joint(rng).image)
                side = max(16, round(min(height, width) * rng.uniform(0.8, 1.25)))
                tile = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA)
                top = row * height + int(rng.integers(-8, 9))
                left = column * width + int(rng.integers(-8, 9))
                y, x = max(top, 0), max(left, 0)
                window = picture[y : top + side, x : left + side]
                part = tile[y - top :, x - left :][: window.shape[0], : window.shape[1]]
                np.maximum(window, part, out=window)
        return picture

    def _shaft(self, rng: np.random.Generator) -> Array:
        """One bone, enlarged, without its end: no joint is in the picture."""
        joint = self._any_joint(rng)
        upper = rng.random() < 0.5
        rows = np.flatnonzero(joint.masks[1 if upper else 0].any(axis=1))
        # Above the lower bone, or below the upper one, with the joint's own end left out.
        top, bottom = (0, rows[0] - 28) if upper else (rows[-1] + 40, GRID_PX)
        if bottom - top < 40:
            return clouds(rng)
        side = int(rng.integers(40, bottom - top + 1))
        y = int(rng.integers(top, bottom - side + 1))
        columns = np.flatnonzero(joint.masks[0 if upper else 1].any(axis=0))
        x = int(np.clip(rng.integers(columns[0], columns[-1] + 1) - side // 2, 0, GRID_PX - side))
        part = _unit(joint.image)[y : y + side, x : x + side]
        return cv2.resize(part, (GRID_PX, GRID_PX), interpolation=cv2.INTER_CUBIC)

    def _sideways(self, rng: np.random.Generator) -> Array:
        """A joint lying on its side: to be turned upright by who has it, not to be guessed at."""
        degrees = 90 * rng.choice([-1.0, 1.0]) + rng.uniform(-15, 15)
        matrix = _matrix(float(rng.uniform(0.8, 1.2)), degrees, rng.uniform(-15, 15, 2))
        return _warp(_unit(self._any_joint(rng).image), matrix, cv2.BORDER_CONSTANT)


def _on_grid(image: JointImage) -> _Joint:
    arrays = read_joint(image)
    picture, masks = arrays.image, arrays.masks
    if picture.shape != (GRID_PX, GRID_PX):
        size = (GRID_PX, GRID_PX)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        masks = np.stack(
            [
                cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
                for mask in masks
            ]
        )
    return _Joint(picture, masks)


@functools.cache
def _phantom(index: int) -> _Joint:
    seed = _POOL_SEED + index
    phantom = joint_phantom(seed, GRID_PX, overlap=seed % 3 > 0)
    return _Joint(np.rint(255 * phantom.image).astype(np.uint8), phantom.masks[:2])


def _border(masks: Array) -> Array:
    """Float32 [1,H,W], 1 near the border of a bone; masks [2,H,W] in [0,1]."""
    kernel = np.ones((2 * BORDER_PX + 1, 2 * BORDER_PX + 1), np.uint8)
    levels = np.rint(255 * masks).astype(np.uint8)
    # The frame cuts bones off; that is no border of theirs.
    near = [
        cv2.morphologyEx(plane, cv2.MORPH_GRADIENT, kernel, borderType=cv2.BORDER_REPLICATE)
        for plane in levels
    ]
    return np.max(near, axis=0)[None].astype(np.float32) / np.float32(255)


def _unit(image: NDArray[np.uint8]) -> Array:
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _matrix(
    zoom: float,
    degrees: float,
    shift: NDArray[np.float64],
    stretch: float = 1.0,
    mirror: tuple[bool, bool] = (False, False),
) -> NDArray[np.float64]:
    """[2,3]: turned and magnified about the grid's centre, stretched across, moved, and mirrored
    (left to right, top to bottom)."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = (
        zoom
        * turn
        @ np.diag([-stretch if mirror[0] else stretch, -1 / stretch if mirror[1] else 1 / stretch])
    )
    centre = np.array([_CENTRE, _CENTRE])
    return np.column_stack((linear, centre + shift - linear @ centre))


def _warp(plane: Array, matrix: NDArray[np.float64], border: int) -> Array:
    return cv2.warpAffine(
        plane, matrix, (GRID_PX, GRID_PX), flags=cv2.INTER_LINEAR, borderMode=border
    )


def _move(joint: _Joint, rng: np.random.Generator) -> tuple[Array, Array]:
    # Half of the joints stay near the size that the dataset has, where accuracy is measured.
    widest = 0.18 if rng.random() < 0.5 else 0.45
    zoom = float(np.exp(rng.uniform(-widest, min(widest, 0.3))))
    matrix = _matrix(
        zoom,
        rng.uniform(-TURN_DEGREES, TURN_DEGREES),
        rng.uniform(-1, 1, 2) * (14 if widest < 0.2 else 26),
        float(np.exp(rng.uniform(-0.06, 0.06))),
        (bool(rng.random() < 0.5), bool(rng.random() < _UPSIDE_DOWN)),
    )
    # Beyond the picture either nothing is known, or the bones go on as they do in a longer picture.
    border, bones = cv2.BORDER_CONSTANT, joint.masks.astype(np.float32)
    if rng.random() < 0.6:
        border = cv2.BORDER_REPLICATE
        # Many of the dataset's upper masks start in the second or third row.
        bones[:, :2] = np.maximum(bones[:, :2], bones[:, 2:3])
    image = _unit(joint.image)
    if zoom < 0.85:
        image = cv2.GaussianBlur(image, (0, 0), 0.35 / zoom)
    masks = np.stack([_warp(bone, matrix, border) for bone in bones])
    return _warp(image, matrix, border), masks


def _cut(image: Array, masks: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A picture that is not square, or a collimated one: what lies outside is 0 and no bone."""
    if rng.random() > 0.2:
        return image, masks
    inside = np.zeros_like(image)
    if rng.random() < 0.5:
        inside[:, rng.integers(0, 40) : GRID_PX - rng.integers(0, 40)] = 1
    else:
        inside[rng.integers(0, 50) : GRID_PX - rng.integers(0, 50)] = 1
    return image * inside, masks * inside


def _tone(image: Array, rng: np.random.Generator) -> Array:
    """Brightness, contrast, tone curve, a slow gradient, blur and noise; outside stays as it is."""
    values = np.clip(image, 0, 1)
    if rng.random() < 0.8:
        values = values ** np.float32(np.exp(rng.uniform(-0.45, 0.45)))
    if rng.random() < 0.8:
        values = (values - 0.4) * rng.uniform(0.55, 1.45) + 0.4 + rng.uniform(-0.15, 0.15)
    if rng.random() < 0.25:
        slope = rng.uniform(-0.25, 0.25, 2)
        ramp = np.linspace(-0.5, 0.5, GRID_PX)
        values = values + slope[0] * ramp[:, None] + slope[1] * ramp
    if rng.random() < 0.25:
        values = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.4:
        noise: Array = rng.standard_normal(image.shape, dtype=np.float32)
        if rng.random() < 0.5:
            noise = 2 * cv2.GaussianBlur(noise, (0, 0), 0.7)
        values = values + rng.uniform(0, 0.06) * noise
    values = np.where(image > 0, values, 0)
    return np.clip(values, 0, 1).astype(np.float32)


def _hand(rng: np.random.Generator) -> Array:
    """A whole hand, a part of it with several joints, or one turned."""
    hand = _whole_hand(int(rng.integers(_HANDS)))
    zoom = float(np.exp(rng.uniform(np.log(0.7), np.log(1.7))))
    shift = rng.uniform(-30, 30, 2)
    return _warp(hand, _matrix(zoom, rng.uniform(-40, 40), shift), cv2.BORDER_CONSTANT)


@functools.cache
def _whole_hand(index: int) -> Array:
    return hand_phantom(_POOL_SEED + index, GRID_PX)


def _noise(rng: np.random.Generator) -> Array:
    noise: Array = rng.standard_normal((GRID_PX, GRID_PX), dtype=np.float32)
    if rng.random() < 0.5:
        noise = _standardised(cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.5, 6)))
    return np.clip(0.5 + rng.uniform(0.05, 0.35) * noise, 0, 1).astype(np.float32)


def clouds(rng: np.random.Generator, size: int = GRID_PX) -> Array:
    """A texture whose amplitude falls as 1/f^a, as natural images' does, a in 0.7..2.2."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * frequency ** -rng.uniform(0.7, 2.2)
    texture = _standardised(np.fft.irfft2(spectrum, s=(size, size)))
    return np.clip(0.5 + rng.uniform(0.1, 0.3) * texture, 0, 1).astype(np.float32)


def shapes(rng: np.random.Generator, size: int = GRID_PX) -> Array:
    """Things that hide each other: discs, rods and boxes of any grey and texture [size,size].

    The "dead leaves" model of natural images (Lee, Mumford & Huang, IJCV 2001), with power-law
    sizes.
    """
    picture: Array = np.full((size, size), rng.uniform(0, 0.6), np.float32)
    for _ in range(int(rng.integers(2, 60))):
        centre = tuple(int(v) for v in rng.uniform(-0.1, 1.1, 2) * size)
        radius = int(np.clip(size * 0.03 * rng.pareto(1.3) + 3, 3, size * 0.5))
        axes = (radius, max(2, int(radius * rng.uniform(0.2, 1))))
        shape = np.zeros_like(picture)
        kind = rng.random()
        angle = float(rng.uniform(0, 180))
        if kind < 0.5:
            cv2.ellipse(shape, centre, axes, angle, 0, 360, 1.0, -1, cv2.LINE_AA)
        else:
            corners = cv2.boxPoints((centre, (2.0 * axes[0], 2.0 * axes[1]), angle))
            cv2.fillPoly(shape, [corners.astype(np.int32)], 1.0, cv2.LINE_AA)
        grey = np.full_like(picture, rng.uniform(0, 1))
        if rng.random() < 0.3:
            grey += rng.uniform(0, 0.2) * rng.standard_normal(picture.shape, dtype=np.float32)
        picture = picture * (1 - shape) + grey * shape
    if rng.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 4))
    if rng.random() < 0.4:
        picture = 0.7 * picture + 0.3 * clouds(rng, size)
    return np.clip(picture, 0, 1).astype(np.float32)


def _flat(rng: np.random.Generator) -> Array:
    """An exposed field with nothing on it, or a slow gradient, or a bright box on black."""
    ramp = np.linspace(-0.5, 0.5, GRID_PX, dtype=np.float32)
    slope = rng.uniform(-0.6, 0.6, 2) * (rng.random() < 0.7)
    picture = rng.uniform(0, 1) + slope[0] * ramp[:, None] + slope[1] * ramp
    if rng.random() < 0.4:
        inside = np.zeros((GRID_PX, GRID_PX))
        top, left = rng.integers(0, 100, 2)
        inside[top : GRID_PX - rng.integers(0, 100), left : GRID_PX - rng.integers(0, 100)] = 1
        picture = picture * inside
    return np.clip(picture, 0, 1).astype(np.float32)


def _standardised(plane: Array) -> Array:
    return (plane - plane.mean()) / max(float(plane.std()), 1e-9)
