"""Windows of a picture: where they lie, what is cut out by them, and the way back.

A network knows bones of one size. What it is given is a window of the picture at the *working
scale*, at which the bones have that size, and what it answers is brought back to the picture's
pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.joint.geometry import bone_width_px, bounding_box, row_blocks
from blsgan.joint.zone import grown, zone

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Top, left, bottom, right (both past the end) in image pixels."""

TYPICAL_BONE_WIDTH_PX = 165.0
"""Width of a bone across the joint's axis in the public dataset's 256x256 images: median over 1194
images of the two bones' geometric mean (90th percentile of the chords); the range is 124 to 223."""

SAME_SCALE = (0.70, 1.45)
"""Bones whose width is within these multiples of the typical one are not resampled; the dataset's
own images lie between 0.75 and 1.35."""

MAX_SCALE = 4.0
"""A smaller picture is enlarged at most this much: there is no detail to be had from more."""

CONTEXT_PX = (24, 32)
"""Surroundings of the overlap that a network sees, above and below it and to its sides, in pixels
at working scale. Soft tissue lies beside the bones: with 12 px to the sides 79 % of the public
dataset's overlaps show hardly any, with 32 px 1 %."""

SIZE_MULTIPLE = 8
"""The default network halves its grid three times."""

MAX_AREA_PX = 512 * 512
"""Windows are kept below this by a smaller working scale, so memory is bounded whatever the
masks."""


@dataclass(frozen=True)
class Window:
    """A part of an image at working scale.

    Attributes:
        top, left: where it begins, in image pixels; may be negative.
        height, width: in working pixels.
        scale: working pixels per image pixel.
    """

    top: float
    left: float
    height: int
    width: int
    scale: float = 1.0

    @property
    def aligned(self) -> bool:
        """Whether its pixels are the image's, so that nothing is resampled."""
        return self.scale == 1.0 and float(self.top).is_integer() and float(self.left).is_integer()

    def box(self, shape: tuple[int, ...]) -> Box:
        """The pixels of a picture of ``shape`` that lie wholly inside the window."""
        (top, bottom), (left, right) = (
            (max(math.ceil(first), 0), min(math.floor(first + extent / self.scale), count))
            for first, extent, count in zip(
                (self.top, self.left), (self.height, self.width), shape, strict=True
            )
        )
        return top, left, bottom, right

    def zone(self, masks: Bool, reach_px: int) -> Bool:
        """Where layers are estimated, [H,W], for masks [N,H,W] and a reach in working pixels.

        Bones that only touch far beside their overlap stay as they are.
        """
        reach, around, part, inner = self._around(masks, reach_px)
        reached = np.zeros(masks.shape[1:], np.bool_)
        reached[part] = zone(around, reach)[inner]
        return reached

    def grown(self, masks: Bool, margin_px: int) -> Bool:
        """Masks [N,H,W] dilated inside the window by so many working pixels, elsewhere as given."""
        margin, around, part, inner = self._around(masks, margin_px)
        larger = masks.copy()
        for mask, seen in zip(larger, around, strict=True):
            mask[part] = grown(seen, margin)[inner]
        return larger

    def _around(
        self, masks: Bool, reach_px: int
    ) -> tuple[int, Bool, tuple[slice, slice], tuple[slice, slice]]:
        """A reach in image pixels, the masks in the window and beside it, where the window lies in
        the image, and where in those masks."""
        top, left, bottom, right = self.box(masks.shape[1:])
        reach = reach_px and max(1, round(reach_px / self.scale))
        beside = 2 * reach  # as far as a zone depends on
        around = cut(masks, (top - beside, left - beside, bottom + beside, right + beside))
        inner = np.s_[beside : beside + bottom - top, beside : beside + right - left]
        return reach, around, np.s_[top:bottom, left:right], inner

    def resample(self, plane: NDArray[Any]) -> Float32:
        """Float32 [height,width] of ``plane`` [H,W]; 0 outside the image."""
        # Rounded: what the division adds to a whole number must not add a row.
        height, width = round(self.height / self.scale, 9), round(self.width / self.scale, 9)
        top, left = math.floor(self.top), math.floor(self.left)
        bottom, right = math.ceil(self.top + height), math.ceil(self.left + width)
        padded = cut(plane, (top, left, bottom, right)).astype(np.float32, copy=False)
        if self.aligned:
            return padded
        y, x = self.top - top, self.left - left
        box = (x, y, min(x + width, right - left), min(y + height, bottom - top))
        return _resize(padded, box, np.empty((self.height, self.width), np.float32))

    def restore(self, planes: Float32, box: Box, out: Float32 | None = None) -> Float32:
        """Float32 [N,h,w] on the image's pixels of ``box``, which lies inside the window, from
        ``planes`` [N,height,width]; in ``out`` where that is given."""
        top, left, bottom, right = box
        if out is None:
            out = np.empty((len(planes), bottom - top, right - left), np.float32)
        if self.aligned:
            y, x = top - int(self.top), left - int(self.left)
            out[:] = planes[:, y : y + bottom - top, x : x + right - left]
            return out
        part = (
            max((left - self.left) * self.scale, 0.0),
            max((top - self.top) * self.scale, 0.0),
            min((right - self.left) * self.scale, float(self.width)),
            min((bottom - self.top) * self.scale, float(self.height)),
        )
        for plane, restored in zip(planes, out, strict=True):
            _resize(plane, part, restored)
        return out


def around_overlap(masks: Bool, size_multiple: int = SIZE_MULTIPLE) -> Window | None:
    """What a network sees of the overlap of masks [2,H,W]; None where there is none.

    The overlap and its surroundings at working scale, inside the image where that is large enough;
    both sides are multiples of ``size_multiple``, at least twice that.
    """
    overlap = masks[0] & masks[1]
    if not overlap.any():
        return None
    top, left, bottom, right = bounding_box(overlap)
    scale = working_scale(masks)

    def size() -> tuple[int, int]:
        height, width = (
            max(math.ceil((extent_px * scale + 2 * context) / size_multiple), 2) * size_multiple
            for extent_px, context in zip((bottom - top, right - left), CONTEXT_PX, strict=True)
        )
        return height, width

    while math.prod(size()) > MAX_AREA_PX:
        scale *= 0.9
    height, width = size()
    image_height, image_width = overlap.shape
    return Window(
        _origin(top, bottom, height / scale, image_height, whole=scale == 1.0),
        _origin(left, right, width / scale, image_width, whole=scale == 1.0),
        height,
        width,
        scale,
    )


def working_scale(masks: Bool) -> float:
    """Working pixels per image pixel for masks [2,H,W]: 1 for bones of about the dataset's size."""
    ratio = bone_width_px(masks) / TYPICAL_BONE_WIDTH_PX
    if SAME_SCALE[0] <= ratio <= SAME_SCALE[1]:
        return 1.0
    return min(1.0 / ratio, MAX_SCALE)


def joint_window(masks: Bool) -> Box:
    """A square around the joint, 1.6 bones wide, inside the picture, for people to look at.

    It is centred on the overlap of masks [2,H,W] and holds all of it, or on the middle between the
    bones' facing ends where there is none.
    """
    overlap = masks[0] & masks[1]
    if overlap.any():
        top, left, bottom, right = bounding_box(overlap)
        centre = ((top + bottom) / 2, (left + right) / 2)
        extent = max(bottom - top, right - left)
    else:
        boxes = [bounding_box(mask) for mask in masks]
        centre = ((boxes[0][2] + boxes[1][0]) / 2, (boxes[0][1] + boxes[0][3]) / 2)
        extent = 0
    side = max(1.6 * bone_width_px(masks), 1.3 * extent, 16.0)
    return around(centre, (side, side), overlap.shape)


def around(centre: tuple[float, float], size: tuple[float, float], shape: tuple[int, ...]) -> Box:
    """A box of about ``size`` around ``centre`` that lies inside a picture of ``shape``."""
    (top, bottom), (left, right) = (
        interval(middle, extent, limit)
        for middle, extent, limit in zip(centre, size, shape, strict=True)
    )
    return top, left, bottom, right


def interval(centre: float, extent: float, limit: int) -> tuple[int, int]:
    """First and past-the-last of about ``extent`` pixels around ``centre`` that lie in 0..limit."""
    size = min(max(round(extent), 1), limit)
    start = min(max(round(centre - size / 2), 0), limit - size)
    return start, start + size


def cut(planes: NDArray[Any], box: Box, fill: float = 0) -> NDArray[Any]:
    """The box of planes [...,H,W] as an array of its own, ``fill`` where it reaches beyond."""
    top, left, bottom, right = box
    height, width = planes.shape[-2:]
    window = np.full((*planes.shape[:-2], bottom - top, right - left), fill, planes.dtype)
    y0, y1 = max(top, 0), min(bottom, height)
    x0, x1 = max(left, 0), min(right, width)
    if y0 < y1 and x0 < x1:
        window[..., y0 - top : y1 - top, x0 - left : x1 - left] = planes[..., y0:y1, x0:x1]
    return window


def _origin(start: int, stop: int, size: float, limit: int, *, whole: bool) -> float:
    """First pixel of a window of ``size`` around start..stop, inside the image where it fits."""
    origin = (start + stop - size) / 2
    origin = min(max(origin, 0.0), limit - size) if size <= limit else (limit - size) / 2
    return float(math.floor(origin)) if whole else origin


def _resize(plane: Float32, box: tuple[float, float, float, float], out: Float32) -> Float32:
    """Fill ``out`` with the part of ``plane`` in ``box`` (left, top, right, bottom).

    Pillow widens its triangle when it shrinks, so nothing aliases; the box may be fractional. Which
    direction Pillow goes through first depends on its version, and with it the last bit: it is
    asked for one at a time, as csrc/runner/resample.cpp does.
    """
    from PIL import Image

    (height, width), (left, top, right, bottom) = out.shape, box
    triangle = Image.Resampling.BILINEAR
    rows = Image.fromarray(np.ascontiguousarray(plane))
    rows = rows.resize((width, rows.height), triangle, box=(left, 0, right, rows.height))
    resized = rows.resize((width, height), triangle, box=(0, top, width, bottom))
    for seen in row_blocks(out):  # at once, Pillow would write the picture twice more
        out[seen] = np.asarray(resized.crop((0, seen.start, width, min(seen.stop, height))))
    return out
