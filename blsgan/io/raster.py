"""PNG, JPEG, TIFF and BMP files as one grey channel, without losing or inventing a bit.

Pillow decodes; what it would change silently is refused here instead: 16-bit colour (it keeps 8
bits), transparency (it drops it), signed 8-bit TIFF below 0; WhiteIsZero TIFF beyond 8 bit, which
it leaves inverted, is turned round.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io.files import FileBytes

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

MAX_PIXELS = 2**26
"""Largest picture read, in pixels (8192x8192): a whole hand at 50 um has half of that."""

MAX_SIDE = 20000
"""Longest side read, in pixels."""

_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_TIFF_SAMPLE_FORMAT = 339
_UNSIGNED, _SIGNED = 1, 2
_EXIF_ORIENTATION = 274


@dataclass(frozen=True)
class Raster:
    """One decoded picture.

    ``values`` is [H,W], uint8 or uint16 in steps of the file's own levels, or float32 for a
    floating-point TIFF. ``bits`` is the file's depth for one channel (32 for float).
    """

    values: NDArray[Any]
    format: str
    bits: int
    notes: tuple[str, ...] = ()


def check_size(path: Path, height: int, width: int) -> None:
    """Raise :class:`InputError` when a picture of this size is not going to be read."""
    if height < 1 or width < 1:
        raise InputError(f"{path} has no pixels ({width}x{height}); export it again.")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise InputError(
            f"{path} has {width}x{height} pixels, more than the {MAX_PIXELS / 1e6:.0f} megapixels "
            "(8192x8192) that are read; crop it to the joint first."
        )


def decode_raster(file: FileBytes) -> Raster:
    """Decode the bytes of a PNG, JPEG, TIFF or BMP file.

    Raises :class:`InputError` for anything else, for a damaged or truncated file, a colour picture
    whose channels differ, several pages, transparency, and sizes beyond :data:`MAX_PIXELS`.
    """
    from PIL import Image, UnidentifiedImageError

    path = file.path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb and metadata warnings: judged below
            with Image.open(io.BytesIO(file.data), formats=FORMATS) as picture:
                return _grey(path, picture, file.data)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        if file.data[:4] in (b"II*\0", b"MM\0*"):
            raise InputError(
                f"{path} is a TIFF of a kind that is not read (16- or 64-bit floating point, or "
                "another layout), or a damaged one; save it as 16-bit greyscale or 32-bit floating "
                "point."
            ) from error
        raise InputError(
            f"{path} is not a readable image; give a PNG, JPEG, TIFF, BMP or DICOM file."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} is larger than the {MAX_PIXELS / 1e6:.0f} megapixels (8192x8192) that are "
            f"read ({error}); crop it to the joint first."
        ) from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; crop it to the joint first.") from error
    except Exception as error:
        # A decoder fed damaged bytes raises whatever it stumbles over: SyntaxError, struct.error,
        # zlib.error, IndexError and more. All of them mean the same to the user.
        raise InputError(
            f"{path} is damaged or truncated ({_first_line(error)}); export or copy it again."
        ) from error


def _grey(path: Path, picture: Image.Image, data: bytes) -> Raster:
    from PIL import ImageOps

    check_size(path, picture.height, picture.width)
    if getattr(picture, "n_frames", 1) > 1:
        raise InputError(
            f"{path} holds {getattr(picture, 'n_frames', 2)} pictures; save the one to use as a "
            "file of its own."
        )
    notes: list[str] = []
    file_format = str(picture.format)
    tags: Any = getattr(picture, "tag_v2", {}) if file_format == "TIFF" else {}
    _refuse_deep_colour(path, picture, data, tags)
    # Pillow turns a TIFF by itself when it loads it, and forgets that it did.
    turned_by_pillow = tags.get(_EXIF_ORIENTATION, 1) in range(2, 9) if tags else False
    picture.load()

    if turned_by_pillow:
        notes.append("turned upright by its EXIF orientation")
    if picture.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1):
        turned: Image.Image = ImageOps.exif_transpose(picture)
        notes.append("turned upright by its EXIF orientation")
    else:
        turned = picture

    if turned.mode in ("1", "L"):
        values, bits = np.asarray(turned.convert("L")), 8
        _refuse_transparent_level(path, picture, data, values)
        # Pillow has no signed mode of 8 bits: -1 would be the brightest of all.
        if tags and tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0] == _SIGNED and values.max() > 127:
            raise InputError(
                f"{path} has signed 8-bit values below 0; save it as 8- or 16-bit greyscale."
            )
    elif turned.mode.startswith("I;16"):
        values, bits = np.asarray(turned).astype(np.uint16), 16
        _refuse_transparent_level(path, picture, data, values)
        if tags and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
            bits = int(tags.get(_TIFF_BITS_PER_SAMPLE, (16,))[0])
            values = (np.uint16(2**bits - 1) - values).astype(np.uint16)
    elif turned.mode == "I":
        wide = np.asarray(turned).astype(np.int64)
        if tags and tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0] == _UNSIGNED:
            wide %= 2**32  # Pillow has no unsigned mode of 32 bits
        if wide.min() < 0 or wide.max() > 65535:
            raise InputError(
                f"{path} has integer values from {wide.min()} to {wide.max()}, outside 0 to 65535; "
                "save it as 16-bit greyscale."
            )
        values, bits = wide.astype(np.uint16), 16
    elif turned.mode == "F":
        values, bits = np.asarray(turned, dtype=np.float32), 32
        if tags and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values = 1 - values
    else:
        values, bits = _one_channel(path, turned), 8
    return Raster(np.ascontiguousarray(values), file_format, bits, tuple(notes))


def _refuse_deep_colour(path: Path, picture: Image.Image, data: bytes, tags: Any) -> None:
    if picture.format == "PNG":
        depth, colour = data[24], data[25]  # IHDR: bit depth, colour type (0 grey, 3 palette)
        deep = depth == 16 and colour not in (0, 3)
    else:
        per_sample = tags.get(_TIFF_BITS_PER_SAMPLE, ()) if tags else ()
        deep = len(per_sample) > 1 and max(per_sample) > 8
    if deep:
        raise InputError(
            f"{path} stores colour or transparency at 16 bit per channel; save it as 16-bit "
            "greyscale (one channel)."
        )


def _refuse_transparent_level(
    path: Path, picture: Image.Image, data: bytes, values: NDArray[Any]
) -> None:
    """Refuse a grey PNG of which one level is transparent (its tRNS chunk), if a pixel has it."""
    level = picture.info.get("transparency") if picture.format == "PNG" else None
    if not isinstance(level, int):
        return
    if (depth := data[24]) in (2, 4):  # Pillow spreads the pixels over 8 bits, but not this level
        level *= 255 // (2**depth - 1)
    if (values == level).any():
        raise _transparent(path)


def _transparent(path: Path) -> InputError:
    return InputError(
        f"{path} is partly transparent, so its grey values are ambiguous; save it without an alpha "
        "channel."
    )


def _one_channel(path: Path, picture: Image.Image) -> NDArray[np.uint8]:
    """The common channel of a colour picture that is grey, as uint8 [H,W]."""
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        rgba = np.asarray(picture.convert("RGBA"))
        if int(rgba[..., 3].min()) < 255:
            raise _transparent(path)
        colour = rgba[..., :3]
    elif picture.mode in ("P", "RGB"):
        colour = np.asarray(picture.convert("RGB"))
    else:
        raise InputError(
            f"{path} is a {picture.mode} picture, not a greyscale one; save it as 8- or 16-bit "
            "greyscale."
        )
    spread = int((colour.max(axis=2).astype(np.int16) - colour.min(axis=2)).max())
    if spread:
        raise InputError(
            f"{path} is a colour picture (its channels differ by up to {spread} of 255); save it "
            "as greyscale."
        )
    return np.ascontiguousarray(colour[..., 0])


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:160] if lines and lines[0] else type(error).__name__
