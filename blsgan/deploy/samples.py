"""Inputs that networks are compared, calibrated and judged on: noise, phantoms, the public dataset.

A sample is a batch as the network takes it; where its layers are known, so is the quality.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blsgan.data.dataset import load_root
from blsgan.data.layout import MIN_OVERLAP_PX, JointImage, overlap_px, read_joint
from blsgan.data.splits import select
from blsgan.errors import InputError
from blsgan.joint.geometry import bounding_box, cut, interval
from blsgan.synthesis.overlap import protocol_overlap
from blsgan.synthesis.phantoms import joint_phantom

Float32 = NDArray[np.float32]

_PHANTOM_PX = 256  # the scale that networks are trained at


@dataclass(frozen=True)
class Sample:
    """One batch of joints.

    Attributes:
        name: what it is, for reports.
        image: float32 [B,1,H,W] in [0,1].
        masks: float32 [B,2,H,W] in {0,1}, upper and lower bone.
        layers: float32 [B,2,H,W], the true layers, or None where nobody knows them.
    """

    name: str
    image: Float32
    masks: Float32
    layers: Float32 | None = None

    @property
    def overlap(self) -> NDArray[np.bool_]:
        """bool [B,H,W], the pixels that both bones cover."""
        return (self.masks[:, 0] * self.masks[:, 1]) > 0


def random_sample(batch: int, height: int, width: int, seed: int) -> Sample:
    """Noise under two random rectangles that overlap: what no radiograph looks like."""
    rng = np.random.default_rng([seed, batch, height, width])
    image = rng.random((batch, 1, height, width), dtype=np.float32)
    masks = np.zeros((batch, 2, height, width), np.float32)
    for joint in masks:
        middle = int(rng.integers(height // 3, height - height // 3))
        reach = int(rng.integers(1, max(2, height // 6)))
        left = int(rng.integers(0, width // 4))
        right = int(rng.integers(width - width // 4, width + 1))
        joint[0, : middle + reach, left:right] = 1
        joint[1, middle - reach :, left:right] = 1
    return Sample("random", image, masks)


def phantom_sample(batch: int, height: int, width: int, seed: int) -> Sample:
    """Crops of ``height`` x ``width`` px around the overlap of joint phantoms, seeds from ``seed``.

    Their layers are known.
    """
    size = max(_PHANTOM_PX, height, width)
    crops = []
    for index in range(batch):
        phantom = joint_phantom(seed + index, size)
        crops.append(_around_overlap(phantom.image, phantom.masks, phantom.layers, (height, width)))
    return _stacked("phantoms", crops)


def dataset_samples(
    root: Path, split: str, height: int, width: int, *, limit: int, batch: int = 1
) -> list[Sample]:
    """Synthetic overlaps of the public dataset's joints, by the evaluation protocol, as crops.

    Args:
        root: the dataset's folder ``Data``.
        split: ``train`` (to calibrate) or ``val`` (to judge).
        height, width: of the crops, around the overlap.
        limit: number of crops at most, spread over the split.
        batch: crops in a sample.

    Raises:
        InputError: the folder is none of the dataset's, or no image of the split gives an overlap.
    """
    images = select(load_root(root), split)
    crops: list[tuple[Float32, Float32, Float32]] = []
    for joint in _spread(images):
        if len(crops) == limit:
            break
        arrays = read_joint(joint)
        if arrays.background is None or overlap_px(arrays.masks) >= MIN_OVERLAP_PX:
            continue
        pair = protocol_overlap(joint.name, arrays.image, arrays.masks, arrays.background, seed=0)
        if pair is not None:
            crops.append(_around_overlap(pair.image, pair.masks, pair.layers, (height, width)))
    if not crops:
        raise InputError(
            f"{root}: no joint of the split {split} gives a synthetic overlap; leave "
            "--calibration-data out to use phantoms."
        )
    return [
        _stacked(f"{split} pairs", crops[start : start + batch])
        for start in range(0, len(crops), batch)
    ]


def _spread(images: Sequence[JointImage]) -> Iterator[JointImage]:
    """All images, in an order whose every beginning is spread over the whole."""
    yield from (images[index] for index in np.random.default_rng(0).permutation(len(images)))


def _around_overlap(
    image: NDArray[np.floating],
    masks: NDArray[np.bool_],
    layers: NDArray[np.floating],
    size: tuple[int, int],
) -> tuple[Float32, Float32, Float32]:
    """Image [1,h,w], masks [2,h,w] and layers [2,h,w] of the crop; 0 outside the picture."""
    top, left, bottom, right = bounding_box(masks[0] & masks[1])
    centre = (top + bottom) // 2, (left + right) // 2
    y, x = (
        interval(middle, side, limit)[0]
        for middle, side, limit in zip(centre, size, image.shape, strict=True)
    )
    planes = np.concatenate((image[None], masks, layers), dtype=np.float32)
    stacked = cut(planes, (y, x, y + size[0], x + size[1]))
    return stacked[:1], stacked[1:3], stacked[3:]


def _stacked(name: str, crops: Sequence[tuple[Float32, Float32, Float32]]) -> Sample:
    image, masks, layers = (np.stack(part) for part in zip(*crops, strict=True))
    return Sample(name, image, masks, layers)
