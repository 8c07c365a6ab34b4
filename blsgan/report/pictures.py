"""Pictures of a report as PNG data URIs: the joint's window, small, in 8 bits."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io.files import read_file
from blsgan.io.panel import LOWER_COLOUR, OUTSIDE, RESIDUAL_FLOOR, UPPER_COLOUR, signed_colours
from blsgan.io.radiograph import decode_radiograph
from blsgan.io.stored import StoredResult
from blsgan.joint.geometry import joint_window

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class VisitPictures:
    """What a visit's part of the page shows, as data URIs.

    ``whole`` says that the input is the radiograph itself: without it, only what the bones cover is
    known. ``reach`` is the half-range of the residual's colours, ``width`` and ``height`` the
    pictures' size in pixels.
    """

    input: str
    upper: str
    lower: str
    residual: str
    panel: str | None
    whole: bool
    reach: float
    width: int
    height: int


def data_uri(picture: Image.Image) -> str:
    """``picture`` as a PNG data URI, without metadata."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def visit_pictures(
    result: StoredResult, source: Path | None, *, side_px: int, panel_px: int | None
) -> VisitPictures:
    """Draw one result: grey on the panel's scale, cut to the joint, at most ``side_px`` long.

    ``source`` is the radiograph itself, where it was found; ``panel_px`` the panel's width (None:
    no panel).

    Raises:
        InputError: a file of the result is damaged.
    """
    from PIL import Image

    planes = result.planes()
    covered = (planes["upper"] > 0) | (planes["lower"] > 0)
    if not covered.any():
        raise InputError(f"{result.path} has black layers alone; separate the image again.")
    known = planes["reconstruction"] + planes["residual"]
    image = known if source is None else _radiograph(result, source)
    top, left, bottom, right = _window(planes)
    factor = min(1.0, side_px / max(bottom - top, right - left))
    size = max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor))
    white = max(float(known[covered].max()), 1e-6)

    def grey(plane: NDArray[np.float32]) -> str:
        cut = np.clip(plane[top:bottom, left:right] / white, 0, 1)
        picture = Image.fromarray(np.rint(cut * 255).astype(np.uint8))
        return data_uri(picture.resize(size, Image.Resampling.LANCZOS))

    residual = planes["residual"]
    reach = max(float(np.abs(residual).max()), RESIDUAL_FLOOR)
    colours = signed_colours(residual[top:bottom, left:right] / reach)
    colours[~covered[top:bottom, left:right]] = OUTSIDE
    return VisitPictures(
        grey(image),
        grey(planes["upper"]),
        grey(planes["lower"]),
        data_uri(_few_colours(Image.fromarray(colours).resize(size, Image.Resampling.NEAREST))),
        None if panel_px is None or result.panel is None else shrunk(result.panel, panel_px),
        source is not None,
        reach,
        *size,
    )


def _window(planes: dict[str, NDArray[np.float32]]) -> tuple[int, int, int, int]:
    masks = np.stack([planes["upper"] > 0, planes["lower"] > 0])
    if not masks.any(axis=(1, 2)).all():  # a bone that is black throughout
        return 0, 0, *masks.shape[1:]
    return joint_window(masks)


def _radiograph(result: StoredResult, source: Path) -> NDArray[np.float32]:
    """The radiograph as the separation read it."""
    options = result.record.options
    pixels = decode_radiograph(
        read_file(source, what="image"),
        bit_depth=options.bit_depth,
        invert=options.invert,
    ).pixels
    size = result.record.image.height_px, result.record.image.width_px
    if pixels.shape != size:
        raise InputError(
            f"{source} is {pixels.shape[1]}x{pixels.shape[0]}, not the {size[1]}x{size[0]} of "
            f"{result.path}; separate the image again."
        )
    return pixels


def shrunk(path: Path, width_px: int) -> str:
    """A picture that blsgan drew, at most ``width_px`` wide and in few colours."""
    from PIL import Image

    file = read_file(path, what="picture")
    try:
        with Image.open(io.BytesIO(file.data), formats=("PNG",)) as picture:
            drawn = picture.convert("RGB")
    except Exception as error:  # a decoder raises what damaged bytes lead it to
        raise InputError(
            f"{path} is damaged ({type(error).__name__}); separate or measure again."
        ) from error
    if drawn.width > width_px:
        height = max(1, round(drawn.height * width_px / drawn.width))
        drawn = drawn.resize((width_px, height), Image.Resampling.LANCZOS)
    return data_uri(_few_colours(drawn))


def _few_colours(picture: Image.Image) -> Image.Image:
    """``picture`` in the palette of what blsgan draws, a third of its size in the page."""
    from PIL import Image

    return picture.quantize(palette=_palette(), dither=Image.Dither.NONE)


@cache
def _palette() -> Image.Image:
    """143 greys, 81 colours of the residual's scale, and the outlines' on four greys of bone."""
    from PIL import Image

    greys = np.rint(np.linspace(0, 255, 143)).astype(np.uint8)
    outlines = [
        [round(share * part + (1 - share) * grey) for part in colour]
        for colour in (UPPER_COLOUR, LOWER_COLOUR)
        for share in (0.25, 0.5, 0.75, 1.0)
        for grey in (40, 100, 160, 220)
    ]
    colours = np.concatenate(
        (np.repeat(greys[:, None], 3, axis=1), signed_colours(np.linspace(-1, 1, 81)), outlines)
    )
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.astype(np.uint8).tobytes())
    return palette
