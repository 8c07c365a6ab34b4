"""The picture a reader looks at first: input, layers, reconstruction and residual side by side.

Drawn with Pillow and NumPy alone; a plotting library would cost more than the separation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.joint.geometry import around, bounding_box, joint_window, row_blocks

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

UPPER_COLOUR = (255, 159, 28)
LOWER_COLOUR = (46, 196, 255)
RESIDUAL_FLOOR = 1 / 255
"""Least half-range of the residual's colour scale: one grey level of an 8-bit picture."""

_BACKGROUND = (255, 255, 255)
_INK = (24, 28, 34)
_MUTED = (96, 104, 116)
_FRAME = (255, 255, 255)
_TILE_PX = 256
_OVERLAY_PX = 512
_GAP_PX = 12
_MARGIN_PX = 18
_BAR_PX = 14
_BLUR_PX = 1
_TITLE_PX = 24
_BAR_LENGTHS_MM = (0.2, 0.5, 1, 2, 5, 10, 20, 50)

# Blue below zero, red above it, and nearly white where there is nothing to see.
_SIGNED = np.array(
    [(22, 58, 148), (70, 130, 210), (160, 200, 236), (247, 247, 244),
     (246, 186, 150), (222, 96, 66), (150, 16, 32)],
    dtype=np.float64,
)  # fmt: skip
OUTSIDE = (190, 196, 204)
"""Where no bone is: darker than a residual of zero."""


@dataclass(frozen=True)
class _View:
    """A window of the image (rows top:bottom, columns left:right) drawn ``width`` x ``height``."""

    top: int
    left: int
    bottom: int
    right: int
    width: int
    height: int

    def cut(self, plane: NDArray[Any]) -> NDArray[Any]:
        return plane[self.top : self.bottom, self.left : self.right]


@functools.cache
def _signed_table() -> NDArray[np.uint8]:
    position = np.linspace(0, len(_SIGNED) - 1, 257)  # odd, so that zero has a colour of its own
    channels = [np.interp(position, np.arange(len(_SIGNED)), part) for part in _SIGNED.T]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def signed_colours(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Colours [...,3] of values in [-1,1] (clipped): blue -1, nearly white 0, red 1."""
    steps = np.rint(128 * np.clip(values, -1, 1)).astype(np.int16) + 128
    return _signed_table()[steps]


def draw_panel(
    image: NDArray[np.float32],
    masks: NDArray[np.bool_],
    upper: NDArray[np.float32],
    lower: NDArray[np.float32],
    reconstruction: NDArray[np.float32],
    residual: NDArray[np.float32],
    *,
    zone: NDArray[np.bool_] | None = None,
    pixel_mm: float | None = None,
    caption: str = "",
) -> Image.Image:
    """Draw the panel of one joint; arrays are [H,W] ([2,H,W] for ``masks``).

    First row: the joint (the whole picture if the bones fill it). Second row: the overlap,
    enlarged; left out where there is none. Grey is one scale for all pictures of the panel: black
    is 0, white the brightest pixel of the bones, so a layer can be compared with the input by eye.
    With ``pixel_mm`` (along a row) the input carries scale bars; the ``zone`` bool [H,W] in which
    both layers are estimated is outlined faintly in the enlargement.
    """
    from PIL import Image, ImageDraw

    views = [_fit(*joint_window(masks), _TILE_PX)]
    overlap = masks[0] & masks[1]
    titles = ["Joint"]
    zoom = _overlap_view(overlap, views[0]) if overlap.any() else None
    if zoom is not None:
        views.append(zoom)
        titles.append(f"Overlap, {_magnification(views[0], zoom):.1f}x")
    del overlap  # a large picture has no room for what is only looked at once
    box = bounding_box(masks)  # nothing but background lies outside it
    bones = np.s_[box[0] : box[2], box[1] : box[3]]
    bright, first, second = image[bones], masks[0][bones], masks[1][bones]
    peaks = [
        float(bright[rows][first[rows] | second[rows]].max(initial=0))
        for rows in row_blocks(bright)
    ]
    white = max(*peaks, 1e-6)
    reach = max(float(residual[bones].max()), -float(residual[bones].min()), RESIDUAL_FLOOR)

    bar_width = 92
    width = 2 * _MARGIN_PX + 5 * _TILE_PX + 4 * _GAP_PX + bar_width
    rows = [view.height for view in views]
    height = _MARGIN_PX + _TITLE_PX + sum(rows) + _GAP_PX * (len(rows) - 1) + 34 + _MARGIN_PX
    page = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(page)

    columns = [_MARGIN_PX + index * (_TILE_PX + _GAP_PX) for index in range(5)]
    page.paste(_titles(width), (0, 0))
    y = _MARGIN_PX + _TITLE_PX
    for view, title in zip(views, titles, strict=True):
        tiles: list[Image.Image] = [
            _grey_tile(plane, view, white) for plane in (image, upper, lower, reconstruction)
        ]
        _outline(tiles[0], masks, view)
        if zone is not None and view is zoom:
            _outline(tiles[0], zone[None], view, (_MUTED,), 0.5)
        tiles.append(_residual_tile(residual, masks, view, reach))
        if zoom is not None and view is not zoom:
            for tile in tiles:
                _mark(tile, view, zoom, _MUTED if tile is tiles[-1] else _FRAME)
        for x, tile in zip(columns, tiles, strict=True):
            page.paste(tile, (x + (_TILE_PX - view.width) // 2, y))
        _label(page, columns[0] + 6, y + 5, title)
        if pixel_mm is not None:
            _scale_bar(page, columns[0] + 8, y + view.height - 10, view, pixel_mm)
        y += view.height + _GAP_PX
    bar = colour_bar(rows[0], reach)
    page.paste(bar, (columns[4] + _TILE_PX + 13, _MARGIN_PX + _TITLE_PX - 8))
    _legend(draw, columns[0], y, caption)
    return page


def draw_masks(
    image: NDArray[np.float32], masks: NDArray[np.bool_], *, caption: str = ""
) -> Image.Image:
    """Draw the whole picture [H,W] beside itself with the outlines of both masks [2,H,W]."""
    from PIL import Image, ImageDraw

    height, width = image.shape
    view = _fit(0, 0, height, width, _OVERLAY_PX)
    white = max(float(image.max()), 1e-6)
    tiles = [_grey_tile(image, view, white) for _ in range(2)]
    _outline(tiles[1], masks, view)
    page_width = 2 * _MARGIN_PX + 2 * _OVERLAY_PX + _GAP_PX
    page = Image.new("RGB", (page_width, 2 * _MARGIN_PX + view.height + 34), _BACKGROUND)
    for index, tile in enumerate(tiles):
        x = _MARGIN_PX + index * (_OVERLAY_PX + _GAP_PX)
        page.paste(tile, (x + (_OVERLAY_PX - view.width) // 2, _MARGIN_PX))
    _legend(ImageDraw.Draw(page), _MARGIN_PX, _MARGIN_PX + view.height + _GAP_PX, caption)
    return page


def _overlap_view(overlap: NDArray[np.bool_], joint: _View) -> _View:
    top, left, bottom, right = bounding_box(overlap)
    pad = 0.12 * (joint.right - joint.left)
    extent_x = (right - left) + pad
    extent_y = max((bottom - top) + pad, 0.55 * extent_x)
    centre = (top + bottom) / 2, (left + right) / 2
    return _fit(*around(centre, (extent_y, extent_x), overlap.shape), _TILE_PX)


def _magnification(joint: _View, zoom: _View) -> float:
    """How much larger the second row is than the first."""
    return (zoom.width / (zoom.right - zoom.left)) / (joint.width / (joint.right - joint.left))


def _fit(top: int, left: int, bottom: int, right: int, side: int) -> _View:
    height, width = bottom - top, right - left
    factor = side / max(height, width)
    return _View(
        top, left, bottom, right, max(1, round(width * factor)), max(1, round(height * factor))
    )


def _grey_tile(plane: NDArray[np.float32], view: _View, white: float) -> Image.Image:
    from PIL import Image

    seen = view.cut(plane)
    grey = np.empty(seen.shape, np.uint8)
    for rows in row_blocks(seen):
        grey[rows] = np.rint(np.clip(seen[rows] / white, 0, 1) * 255)
    tile = Image.fromarray(grey).resize((view.width, view.height), Image.Resampling.BICUBIC)
    return tile.convert("RGB")


def _residual_tile(
    residual: NDArray[np.float32], masks: NDArray[np.bool_], view: _View, reach: float
) -> Image.Image:
    from PIL import Image

    # Sampled first: a large picture has many more pixels than its tile.
    seen = np.ix_(
        _nearest(view.top, view.bottom, view.height), _nearest(view.left, view.right, view.width)
    )
    colours = signed_colours(residual[seen] / reach)
    colours[~(masks[0][seen] | masks[1][seen])] = OUTSIDE
    return Image.fromarray(colours)


def _nearest(start: int, stop: int, count: int) -> NDArray[np.intp]:
    """The pixels of start:stop that ``count`` pixels of a screen show."""
    return start + ((np.arange(count) + 0.5) * ((stop - start) / count)).astype(np.intp)


def _outline(
    tile: Image.Image,
    masks: NDArray[np.bool_],
    view: _View,
    colours: Sequence[tuple[int, int, int]] = (UPPER_COLOUR, LOWER_COLOUR),
    opacity: float = 1.0,
) -> None:
    """Draw the masks' contours, one screen pixel and a half wide, on ``tile``."""
    from PIL import Image, ImageFilter

    # Interpolated and blurred, a mask is a ramp across its border: the height on it is the distance
    # from the border in pixels of the screen.
    ramp_px = max(1.0, view.width / (view.right - view.left)) + 2 * _BLUR_PX
    distance_px = (np.arange(256) / 255 - 0.5) * ramp_px
    line = np.clip(1.25 - np.abs(distance_px), 0, 1)
    strength = np.rint(255 * opacity * line).astype(int).tolist()
    blur = ImageFilter.BoxBlur(_BLUR_PX)
    for mask, colour in zip(masks, colours, strict=True):
        grey = Image.fromarray(view.cut(mask).view(np.uint8) * np.uint8(255))
        ramp = grey.resize((view.width, view.height), Image.Resampling.BILINEAR).filter(blur)
        tile.paste(colour, (0, 0), ramp.point(strength))


def _mark(tile: Image.Image, view: _View, zoom: _View, colour: tuple[int, int, int]) -> None:
    """Frame what the second row enlarges."""
    from PIL import ImageDraw

    factor = view.width / (view.right - view.left)
    box = (
        round((zoom.left - view.left) * factor),
        round((zoom.top - view.top) * factor),
        round((zoom.right - view.left) * factor) - 1,
        round((zoom.bottom - view.top) * factor) - 1,
    )
    ImageDraw.Draw(tile).rectangle(box, outline=colour)


def _label(page: Image.Image, x: int, y: int, text: str) -> None:
    label, opacity = _lettering(text)
    page.paste(label, (x - 3, y - 3), opacity)


@functools.lru_cache(64)
def _lettering(text: str) -> tuple[Image.Image, Image.Image]:
    """White letters with a black rim, and where they are opaque; a batch repeats a few of them."""
    from PIL import Image, ImageDraw

    font = _font(13)
    size = round(font.getlength(text)) + 8, 24
    label, opacity = Image.new("RGB", size), Image.new("L", size)
    for canvas, rim, ink in ((label, (0, 0, 0), (255, 255, 255)), (opacity, 255, 255)):
        ImageDraw.Draw(canvas).text(
            (3, 3), text, fill=ink, font=font, stroke_width=2, stroke_fill=rim
        )
    return label, opacity


def _scale_bar(page: Image.Image, x: int, y: int, view: _View, pixel_mm: float) -> None:
    """A bar of a round number of millimetres, at most a third of the view's width."""
    field_mm = (view.right - view.left) * pixel_mm
    lengths = [length for length in _BAR_LENGTHS_MM if length <= field_mm / 3]
    if not lengths:
        return
    from PIL import ImageDraw

    length, draw = max(lengths), ImageDraw.Draw(page)
    end = x + round(length / field_mm * view.width)
    draw.line((x - 1, y, end + 1, y), fill=(0, 0, 0), width=5)
    draw.line((x, y, end, y), fill=(255, 255, 255), width=3)
    _label(page, x, y - 19, f"{length:g} mm")


@functools.lru_cache(8)
def _titles(width: int) -> Image.Image:
    """The names of the columns, which are those of every panel."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, _MARGIN_PX + _TITLE_PX), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for index, text in enumerate(
        ("Input", "Upper layer", "Lower layer", "Reconstruction", "Residual (input - rec.)")
    ):
        x = _MARGIN_PX + index * (_TILE_PX + _GAP_PX)
        draw.text((x, _MARGIN_PX - 4), text, fill=_INK, font=_font(15))
    return strip


@functools.lru_cache(8)
def colour_bar(height: int, reach: float) -> Image.Image:
    """The scale of residuals up to ``reach``, with its figures; exact splits all have one."""
    from PIL import Image, ImageDraw

    bar = Image.new("RGB", (78, height + 16), _BACKGROUND)
    draw = ImageDraw.Draw(bar)
    ramp = signed_colours(np.linspace(1, -1, height))[:, None]
    bar.paste(Image.fromarray(np.repeat(ramp, _BAR_PX, axis=1)), (1, 8))
    draw.rectangle((0, 7, 1 + _BAR_PX, 8 + height), outline=_MUTED)
    for share in (1.0, 0.5, 0.0, -0.5, -1.0):
        tick = 8 + round((1 - share) / 2 * (height - 1))
        draw.line((1 + _BAR_PX, tick, 5 + _BAR_PX, tick), fill=_MUTED)
        text = "0" if share == 0 else f"{share * reach:+.4f}"
        draw.text((9 + _BAR_PX, tick), text, fill=_INK, font=_font(12), anchor="lm")
    return bar


def _legend(draw: ImageDraw.ImageDraw, x: int, y: int, caption: str) -> None:
    for colour, text in ((UPPER_COLOUR, "upper bone"), (LOWER_COLOUR, "lower bone")):
        draw.line((x, y + 9, x + 22, y + 9), fill=colour, width=3)
        draw.text((x + 28, y + 9), text, fill=_INK, font=_font(13), anchor="lm")
        x += 128
    draw.text((x + 8, y + 9), caption, fill=_MUTED, font=_font(13), anchor="lm")


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
