"""The picture of one measurement: both visits, and what registration left of each bone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blsgan.io.panel import LOWER_COLOUR, OUTSIDE, UPPER_COLOUR, colour_bar, signed_colours
from blsgan.joint.geometry import around, bone_width_px, cut
from blsgan.jsn.quantification import Measurement, Visit, residual_maps
from blsgan.jsn.registration import Float

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

RESIDUAL_REACH = 0.10
"""The residual's colours end here, in intensity; one scale, so that pictures can be compared."""

_TILE_PX = 340
_GAP_PX = 12
_MARGIN_PX = 18
_LINE_PX = 22
_INK, _MUTED, _ALERT = (24, 28, 34), (96, 104, 116), (190, 24, 36)
_SPACE_COLOUR, _AXIS_COLOUR = (120, 230, 120), (255, 255, 255)
_GROUND = (70, 76, 84)
_MISMATCH = "MISMATCH: "
_SCALE_PX = 90


def draw_measurement(
    images: Sequence[NDArray[np.float32]],
    visits: Sequence[Visit],
    found: Measurement,
    caption: Sequence[str],
) -> Image.Image:
    """Draw baseline, follow-up and each bone's residual, on the baseline's window.

    The baseline carries its masks' outlines, the axis, and the borders between which the joint
    space is measured; the follow-up carries the baseline's outlines where registration found them:
    they lie on the bones if it is right. A residual is the baseline's layer minus the registered
    follow-up's. A mismatch is written in red.

    Args:
        images: float32 [H,W] in [0,1], baseline and follow-up.
        visits: their layers and masks.
        found: the measurement.
        caption: lines of text below.
    """
    from PIL import Image, ImageDraw

    top, left, bottom, right = window = _window(visits[0].masks, found.reference)
    factor = _TILE_PX / max(bottom - top, right - left)
    width, height = round((right - left) * factor), round((bottom - top) * factor)
    outlines = [_outline(mask) for mask in visits[0].masks]
    bones = (found.upper, found.lower)

    # The follow-up's window follows the upper bone, so that its narrowing is what the eye sees.
    carried = found.upper.transform(found.reference) - found.reference
    tiles = [
        _grey(images[0], window, (width, height)),
        _grey(images[1], _shifted(window, carried), (width, height)),
        *(
            _residual(residual, window, (width, height))
            for residual in residual_maps(visits[0], visits[1], found)
        ),
    ]
    origin = np.array([top, left], dtype=np.float64)
    _draw_lines(ImageDraw.Draw(tiles[0]), outlines, origin, factor, closed=True)
    _draw_axis(ImageDraw.Draw(tiles[0]), found, origin, factor)
    shifted = origin + np.rint(carried)
    moved = [bone.transform(outline) for bone, outline in zip(bones, outlines, strict=True)]
    _draw_lines(ImageDraw.Draw(tiles[1]), moved, shifted, factor, closed=True)

    titles = (
        "Baseline",
        "Follow-up, baseline's outlines as registered",
        "Upper bone: baseline - follow-up",
        "Lower bone: baseline - follow-up",
    )
    page_width = 2 * _MARGIN_PX + len(tiles) * width + (len(tiles) - 1) * _GAP_PX + _SCALE_PX
    headings = [wrapped(title, _font(14), width) for title in titles]
    if found.problems and caption:  # told in red, each in its line
        caption = [caption[0].rpartition("): ")[2], *caption[1:]]
    told = [
        (_ALERT if text.startswith(_MISMATCH) else _MUTED, line)
        for text in [*((_MISMATCH + problem) for problem in found.problems), *caption]
        for line in wrapped(text, _font(14), page_width - 2 * _MARGIN_PX)
    ]
    below = _MARGIN_PX + _LINE_PX * max(map(len, headings))
    page = Image.new(
        "RGB",
        (page_width, below + height + 10 + _LINE_PX * (1 + len(told)) + _MARGIN_PX),
        (255, 255, 255),
    )
    draw = ImageDraw.Draw(page)
    for index, (tile, heading) in enumerate(zip(tiles, headings, strict=True)):
        x = _MARGIN_PX + index * (width + _GAP_PX)
        for row, line in enumerate(heading):
            draw.text((x, _MARGIN_PX - 4 + row * _LINE_PX), line, fill=_INK, font=_font(14))
        page.paste(tile, (x, below))
    bar = colour_bar(height, RESIDUAL_REACH)
    page.paste(bar, (page_width - _MARGIN_PX - _SCALE_PX + _GAP_PX, below - 8))
    y = below + height + 10
    _draw_legend(draw, y, has_axis=True, has_space=found.baseline_space is not None)
    for colour, line in told:
        y += _LINE_PX
        draw.text((_MARGIN_PX, y), line, fill=colour, font=_font(14))
    return page


def wrapped(text: str, font: Any, width_px: int) -> list[str]:
    """``text`` in lines of at most ``width_px``; a word that is longer is cut."""
    lines = [""]
    for word in text.split():
        while font.getlength(word) > width_px:
            count = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width_px)
            lines += [word[:count]]
            word = word[count:]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line] or [""]


def _draw_legend(draw: ImageDraw.ImageDraw, y: int, *, has_axis: bool, has_space: bool) -> None:
    """What each line of the first two tiles is."""
    entries = [(UPPER_COLOUR, "outline of the upper bone"), (LOWER_COLOUR, "of the lower bone")]
    entries += [(_SPACE_COLOUR, "joint space that is measured")] if has_space else []
    entries += [(_AXIS_COLOUR, "axis that narrowing is measured along")] if has_axis else []
    x = _MARGIN_PX
    for colour, text in entries:
        draw.rectangle((x, y + 6, x + 24, y + 12), fill=_GROUND)  # white shows on it, too
        draw.line((x, y + 9, x + 24, y + 9), fill=colour, width=3)
        draw.text((x + 30, y + 9), text, fill=_INK, font=_font(13), anchor="lm")
        x += 30 + round(_font(13).getlength(text)) + 24


def _window(masks: NDArray[np.bool_], reference: Float) -> tuple[int, int, int, int]:
    """A square around the joint, 1.3 bones wide, inside the picture where it fits."""
    side = round(max(1.3 * bone_width_px(masks), 32))
    return around((float(reference[0]), float(reference[1])), (side, side), masks.shape[1:])


def _shifted(window: tuple[int, int, int, int], by: Float) -> tuple[int, int, int, int]:
    rows, columns = (round(float(step)) for step in by)
    top, left, bottom, right = window
    return top + rows, left + columns, bottom + rows, right + columns


def _grey(
    image: NDArray[Any], window: tuple[int, int, int, int], size: tuple[int, int]
) -> Image.Image:
    from PIL import Image

    seen = cut(image.astype(np.float64), window)
    white = max(float(seen.max()), 1e-6)
    grey = Image.fromarray(np.rint(np.clip(seen / white, 0, 1) * 255).astype(np.uint8))
    return grey.resize(size, Image.Resampling.BICUBIC).convert("RGB")


def _residual(
    residual: NDArray[np.float32], window: tuple[int, int, int, int], size: tuple[int, int]
) -> Image.Image:
    from PIL import Image

    seen = cut(residual.astype(np.float64), window, np.nan)
    colours = signed_colours(np.nan_to_num(seen) / RESIDUAL_REACH)
    colours[np.isnan(seen)] = OUTSIDE
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def _outline(mask: NDArray[np.bool_]) -> Float:
    """The longest contour of a mask, float64 [P,2] (row, column)."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(max(contours, key=len)[:, 0, ::-1], dtype=np.float64)


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[Float],
    origin: Float,
    factor: float,
    *,
    closed: bool,
) -> None:
    for line, colour in zip(lines, (UPPER_COLOUR, LOWER_COLOUR), strict=True):
        points = (line - origin + 0.5) * factor
        if closed:
            points = np.concatenate((points, points[:1]))
        draw.line([(float(x), float(y)) for y, x in points], fill=colour, width=1)


def _draw_axis(draw: ImageDraw.ImageDraw, found: Measurement, origin: Float, factor: float) -> None:
    space = found.baseline_space
    if space is not None:
        ends = np.stack((space.upper_border, space.lower_border), axis=1)
        for pair in (ends[::8] - origin + 0.5) * factor:
            draw.line([(float(x), float(y)) for y, x in pair], fill=_SPACE_COLOUR, width=1)
    middle = (found.reference - origin + 0.5) * factor
    tip = middle + 60 * found.axis
    draw.line([(middle[1], middle[0]), (tip[1], tip[0])], fill=_AXIS_COLOUR, width=2)
    draw.ellipse((middle[1] - 4, middle[0] - 4, middle[1] + 4, middle[0] + 4), outline=_AXIS_COLOUR)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
