"""Synthetic overlaps: a joint without overlap is pushed together, so both layers are known.

The recipe is the paper's (Wang et al., AAAI 2025, pre-training pairs) with the settings that the
evaluation protocol fixes: the bones are cut out with masks dilated by one pixel, the upper bone
moves down and the lower one up by 2..8 px each, the soft tissue counted twice is divided out once,
the rim of the overlap is smoothed, 8 px are cropped on every side and the rest is resized back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np

from blsgan.data.layout import MIN_OVERLAP_PX
from blsgan.errors import InputError
from blsgan.ops import K_MAX
from blsgan.ops.native import compose_layers

PROTOCOL_SHIFT_PX = (2, 8)  # each bone's shift is drawn from this closed range
CROP_PX = 8  # the largest shift: rows that a shift leaves empty fall away


@dataclass(frozen=True)
class SyntheticOverlap:
    """A composed radiograph and what it was composed from.

    Attributes:
        image: float32 [H,W] in [0,1], 0 outside the union of the bones.
        masks: bool [2,H,W], upper and lower bone.
        layers: float32 [2,H,W] in [0,1], the true layers, 0 outside their mask. They recompose to
            ``image`` except where the rim was smoothed and where resampling mixed rim pixels.
        soft_tissue: the k of the composition, in [0, 0.95].
        down_px, up_px: how far the upper and the lower bone moved, in pixels before the resize.
    """

    image: np.ndarray
    masks: np.ndarray
    layers: np.ndarray
    soft_tissue: float
    down_px: float
    up_px: float

    @property
    def overlap(self) -> np.ndarray:
        """bool [H,W], pixels that both bones cover."""
        return np.logical_and(self.masks[0], self.masks[1])

    @property
    def union(self) -> np.ndarray:
        """bool [H,W], pixels that any bone covers."""
        return np.logical_or(self.masks[0], self.masks[1])


def image_rng(name: str, seed: int = 0) -> np.random.Generator:
    """Random numbers that depend on ``name`` and ``seed`` alone, not on the order of a data set."""
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def as_unit(image: np.ndarray) -> np.ndarray:
    """uint8, uint16 or float [H,W] as float32 in [0,1]; floats are taken to be in [0,1] already."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255)
    if image.dtype == np.uint16:
        return image.astype(np.float32) / np.float32(65535)
    return image.astype(np.float32)


def dilate_by_one(mask: np.ndarray) -> np.ndarray:
    """The mask grown by one pixel in all eight directions (a 3x3 mean above zero)."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def compose_image(layers: np.ndarray, masks: np.ndarray, soft_tissue: float) -> np.ndarray:
    """The radiograph that layers make together, as one image.

    Args:
        layers: float32 or float64 [N,H,W] in [0,1].
        masks: bool [N,H,W].
        soft_tissue: k, clamped to [0, 0.95].

    Returns:
        [H,W] in [0,1], of the dtype of ``layers``, 0 outside the masks.
    """
    k = np.array([soft_tissue], layers.dtype)
    return np.clip(compose_layers(layers[None], masks[None], k)[0, 0], 0, 1)


def rim_of(overlap: np.ndarray) -> np.ndarray:
    """The rim of the overlap, bool [H,W]: its Canny edge dilated by a 4x4 square."""
    edge = cv2.Canny(overlap.astype(np.uint8) * 255, 100, 200)
    return cv2.dilate(edge, np.ones((4, 4), np.uint8)) > 0


def _move_rows(array: np.ndarray, shift_px: float) -> np.ndarray:
    """Moves a float32 [H,W] image down by ``shift_px`` (up when negative); empty rows become 0.

    Whole pixels are moved exactly, fractions by linear interpolation.
    """
    height, width = array.shape
    matrix = np.array([[1, 0, 0], [0, 1, shift_px]], np.float64)
    return cv2.warpAffine(array, matrix, (width, height), flags=cv2.INTER_LINEAR)


def _crop_and_resize(array: np.ndarray) -> np.ndarray:
    height, width = array.shape
    inner = np.ascontiguousarray(array[CROP_PX:-CROP_PX, CROP_PX:-CROP_PX], np.float32)
    return cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR)


def _check(image: np.ndarray, masks: np.ndarray, background: np.ndarray) -> None:
    if image.ndim != 2 or min(image.shape) <= 2 * CROP_PX:
        raise InputError(
            f"image has the shape {image.shape}; an overlap is composed from one "
            f"greyscale image [H,W] of more than {2 * CROP_PX} px a side"
        )
    if masks.shape != (2, *image.shape):
        raise InputError(
            f"masks have the shape {masks.shape}; expected {(2, *image.shape)}, upper bone first"
        )
    if background.shape != image.shape:
        raise InputError(f"background has the shape {background.shape}; expected {image.shape}")


def synthesize_overlap(
    image: np.ndarray,
    masks: np.ndarray,
    background: np.ndarray,
    *,
    down_px: float,
    up_px: float,
    soft_tissue: float | None = None,
) -> SyntheticOverlap:
    """Pushes the two bones of a joint together and composes the radiograph that results.

    Args:
        image: uint8, uint16 or float [H,W] in [0,1]; a joint whose bones do not overlap.
        masks: bool or {0,1} [2,H,W], upper bone first.
        background: like ``image``, the joint's soft tissue alone.
        down_px: the upper bone's shift down, in px; fractions are allowed.
        up_px: the lower bone's shift up, in px.
        soft_tissue: the k to compose with; by default the mean of ``background`` over the new
            overlap (0 where the bones do not meet).

    Returns:
        A composite of the same size. The masks are resized as grey images and cut at one half; the
        layers are resized after they were cut out, so that their rims are anti-aliased just as
        the composed image's are.

    Raises:
        InputError: shapes that do not fit together, or an image no larger than the crop.
    """
    _check(image, masks, background)
    grey = as_unit(image)
    grown = [dilate_by_one(mask > 0) for mask in masks]
    shifts = (float(down_px), -float(up_px))
    moved = np.stack(
        [
            _move_rows(mask.astype(np.float32), shift) >= 0.5
            for mask, shift in zip(grown, shifts, strict=True)
        ]
    )
    layers = np.stack([_move_rows(grey, shift) for shift in shifts]) * moved
    overlap = moved[0] & moved[1]
    if soft_tissue is None:
        soft_tissue = float(as_unit(background)[overlap].mean()) if overlap.any() else 0.0
    k = float(np.clip(soft_tissue, 0, K_MAX))

    composed = compose_image(layers, moved, k)
    smooth = cv2.GaussianBlur(composed, (3, 3), 0)
    composed = np.where(rim_of(overlap), smooth, composed)

    final_masks = np.stack([_crop_and_resize(mask) > 0.5 for mask in moved])
    final_layers = np.stack([_crop_and_resize(layer) for layer in layers]) * final_masks
    final_image = _crop_and_resize(composed) * (final_masks[0] | final_masks[1])
    return SyntheticOverlap(final_image, final_masks, final_layers, k, float(down_px), float(up_px))


def protocol_overlap(
    name: str, image: np.ndarray, masks: np.ndarray, background: np.ndarray, *, seed: int = 0
) -> SyntheticOverlap | None:
    """The evaluation protocol's composite of one image; the same for every order and subset.

    Args:
        name: the image's name (``JOINT/HASH``), from which its shifts are drawn.
        image, masks, background: as for :func:`synthesize_overlap`.
        seed: another seed draws other shifts.

    Returns:
        The composite, or None where the bones meet in fewer than 20 px after the shift.

    Raises:
        InputError: as :func:`synthesize_overlap`.
    """
    low, high = PROTOCOL_SHIFT_PX
    down_px, up_px = image_rng(name, seed).integers(low, high + 1, size=2)
    pair = synthesize_overlap(image, masks, background, down_px=float(down_px), up_px=float(up_px))
    return pair if int(pair.overlap.sum()) >= MIN_OVERLAP_PX else None
