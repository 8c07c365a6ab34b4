"""Whole images as the published method trains on them, made in batches on the training device.

All images of a split lie on the device as bytes; a step's synthetic overlaps are one call of the op
``synthesize_overlap`` and one resampling, with no Python for each image. The settings are the
evaluation protocol's (docs/explanation/evaluation.md): whole shifts of 2 to 8 px, 8 px cropped on
every side, resized back.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blsgan.data.layout import MIN_OVERLAP_PX, JointArrays, JointImage, overlap_px, read_joint
from blsgan.errors import InputError
from blsgan.ops import synthesize_overlap
from blsgan.synthesis.overlap import CROP_PX, PROTOCOL_SHIFT_PX
from blsgan.training.pairs import PairBatch


class WholeImages:
    """Synthetic overlaps of the images without one, and the real overlaps of the others.

    Args:
        images: the joints to draw from.
        size: side of what is drawn, in px; images of another size are resampled to it.
        device: where the images lie and the pairs are made.

    Raises:
        InputError: no image without overlap has a background, the images are not square and of
            one size, or a file is missing or damaged.
    """

    def __init__(self, images: Sequence[JointImage], size: int, device: torch.device) -> None:
        self.size = size
        free: list[JointArrays] = []
        overlapped: list[JointArrays] = []
        shapes = set()
        for joint in images:
            arrays = read_joint(joint)
            shapes.add(arrays.image.shape)
            if overlap_px(arrays.masks) >= MIN_OVERLAP_PX:
                overlapped.append(arrays)
            elif arrays.background is not None:
                free.append(arrays)
        if len(shapes) > 1 or any(height != width for height, width in shapes):
            raise InputError(
                f"the images have sizes {sorted(shapes)} px; training needs square "
                "images of one size"
            )
        if not free:
            raise InputError(
                "the split has no joint without overlap and with a soft-tissue "
                "background; synthetic pairs cannot be made of it"
            )
        self._free = _stacked([a.image for a in free], [a.masks for a in free], size, device)
        backgrounds = [a.background for a in free if a.background is not None]
        self._backgrounds = _bytes(backgrounds, size).to(device)
        self._real = _stacked(
            [a.image for a in overlapped], [a.masks for a in overlapped], size, device
        )

    @property
    def synthetic_count(self) -> int:
        """Images without overlap."""
        return len(self._free[0])

    @property
    def real_count(self) -> int:
        """Images with an overlap."""
        return len(self._real[0])

    def synthetic(self, index: Tensor, shifts_px: Tensor) -> PairBatch:
        """Pushes bones together.

        Args:
            index: int64 [B] on the device, from 0 to ``synthetic_count`` - 1.
            shifts_px: float32 [B,2] on the device, rows: the upper bone's down, the lower one's up.

        Returns:
            Images [B,1,size,size] with their true layers, valid in the overlap.
        """
        pixels, masks = self._free
        pair = synthesize_overlap(
            pixels[index].float() / 255,
            masks[index],
            self._backgrounds[index].float() / 255,
            shifts_px[:, 0],
            shifts_px[:, 1],
        )
        count = pair.masks.shape[1]
        stack = torch.cat((pair.image, pair.layers, pair.masks.to(pair.image.dtype)), dim=1)
        inner = stack[..., CROP_PX:-CROP_PX, CROP_PX:-CROP_PX]
        inner = F.interpolate(inner, (self.size, self.size), mode="bilinear", align_corners=False)
        moved = (inner[:, 1 + count :] > 0.5).float()
        layers = inner[:, 1 : 1 + count] * moved
        image = inner[:, :1] * moved.amax(dim=1, keepdim=True)
        return PairBatch(image, moved, layers, _overlapped(moved).float(), pair.soft_tissue)

    def real(self, index: Tensor) -> PairBatch:
        """Real overlaps: no layer and no k is known, nothing is valid.

        Args:
            index: int64 [B] on the device, from 0 to ``real_count`` - 1.
        """
        masks = self._real[1][index].float()
        image = self._real[0][index].float() / 255 * masks.amax(dim=1, keepdim=True)
        unknown = torch.full((len(index),), torch.nan, device=image.device)
        return PairBatch(
            image,
            masks,
            torch.zeros_like(masks),
            torch.zeros_like(masks),
            unknown,
        )


class Deck:
    """Every number from 0 to ``count`` - 1 once, then all again in another order.

    What a draw gives depends on the seed and on its position alone, so a resumed run needs no
    state of it.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self._seed = count, seed
        self._order: tuple[int, Tensor] | None = None

    def draw(self, first: int, count: int) -> Tensor:
        """int64 [count]: draws number ``first`` to ``first + count - 1``."""
        parts = []
        while count:
            round_, start = divmod(first, self.count)
            taken = min(count, self.count - start)
            parts.append(self._round(round_)[start : start + taken])
            first, count = first + taken, count - taken
        return torch.cat(parts)

    def _round(self, number: int) -> Tensor:
        if self._order is None or self._order[0] != number:
            seed = (self._seed * 1_000_003 + number) % 2**63
            random = torch.Generator().manual_seed(seed)
            self._order = number, torch.randperm(self.count, generator=random)
        return self._order[1]


def protocol_shifts(count: int, random: torch.Generator) -> Tensor:
    """Shifts of both bones as the protocol draws them: whole px, float32 [count,2]."""
    low, high = PROTOCOL_SHIFT_PX
    return torch.randint(low, high + 1, (count, 2), generator=random).float()


def _overlapped(masks: Tensor) -> Tensor:
    return ((masks.sum(dim=1, keepdim=True) > 1) & (masks > 0)).contiguous()


def _stacked(
    images: list[np.ndarray], masks: list[np.ndarray], size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """uint8 [n,1,size,size] and masks, uint8 in {0,1}, [n,2,size,size]."""
    flat = [plane.astype(np.uint8) * 255 for pair in masks for plane in pair]
    planes = _bytes(flat, size).view(-1, 2, size, size) >= 128
    return _bytes(images, size).to(device), planes.to(torch.uint8).to(device)


def _bytes(images: list[np.ndarray], size: int) -> Tensor:
    if not images:
        return torch.zeros(0, 1, size, size, dtype=torch.uint8)
    if images[0].shape != (size, size):
        way = cv2.INTER_AREA if images[0].shape[0] > size else cv2.INTER_LINEAR
        images = [cv2.resize(image, (size, size), interpolation=way) for image in images]
    return torch.from_numpy(np.stack(images))[:, None]
