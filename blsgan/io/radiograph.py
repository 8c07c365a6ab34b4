"""Reading a radiograph in the formats hospitals and datasets hand out, as float32 in [0,1]."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError, UsageError
from blsgan.io import dicom, raster
from blsgan.io.files import FileBytes, read_file
from blsgan.io.levels import guess_bits
from blsgan.io.spacing import PixelSpacing, user_spacing
from blsgan.joint.geometry import row_blocks

SUFFIXES = (*raster.SUFFIXES, *dicom.SUFFIXES)
"""File name endings that a folder is searched for."""


@dataclass(frozen=True, repr=False)
class Radiograph:
    """A radiograph ready for separation.

    ``pixels`` is float32 [H,W] in [0,1], white = dense. ``sha256`` is the hash of the file,
    ``bits`` the depth of its grey values. ``notes`` say what was decided on the way (bit depth,
    inversion, spacing) without a figure of this picture alone, so that they can be counted.
    """

    pixels: NDArray[np.float32]
    sha256: str
    format: str
    bits: int
    pixel_spacing: PixelSpacing | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        height, width = self.pixels.shape
        return f"<Radiograph: {width}x{height} px, {self.format} of {self.bits} bits>"


def is_path_private(file: FileBytes) -> bool:
    """Whether no part of the file's path may reach an output: so it is for every DICOM file.

    Comparing names with the header would not do: they hold initials, other scripts, transcriptions
    and dates.
    """
    return dicom.is_dicom(file)


def anonymous_name(image_sha256: str, mask_sha256s: tuple[str, str] | None = None) -> str:
    """What the results of a DICOM file are called: by its content and that of its two masks.

    One radiograph of a hand shows many joints, each with masks of its own; they share the first
    twelve digits, which are the file's SHA-256. Masks that are predicted from it (None) need no
    more than these.
    """
    if mask_sha256s is None:
        return f"anonymous-{image_sha256[:12]}"
    masks = hashlib.sha256("".join(mask_sha256s).encode()).hexdigest()
    return f"anonymous-{image_sha256[:12]}-{masks[:8]}"


def read_radiograph(
    path: os.PathLike[str] | str,
    *,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing_mm: tuple[float, float] | None = None,
) -> Radiograph:
    """Read PNG, JPEG, TIFF, BMP (8 or 16 bit, float TIFF) or single-frame DICOM.

    ``bit_depth`` overrides the guess for 16-bit files that hold fewer bits; ``invert`` is for
    pictures that show bone dark; ``pixel_spacing_mm`` (row, column) replaces the file's own.
    Raises :class:`InputError` with one sentence for everything that cannot be used, and
    :class:`UsageError` for a bit depth or a spacing that cannot be.
    """
    return decode_radiograph(
        read_file(path, what="image"),
        bit_depth=bit_depth,
        invert=invert,
        pixel_spacing_mm=pixel_spacing_mm,
    )


def decode_radiograph(
    file: FileBytes,
    *,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing_mm: tuple[float, float] | None = None,
) -> Radiograph:
    """:func:`read_radiograph` for bytes that were read already (and hashed)."""
    if bit_depth is not None and not 1 <= bit_depth <= 16:
        raise UsageError(f"bit depth {bit_depth} is not between 1 and 16.")
    if dicom.is_dicom(file):
        decoded = dicom.decode_dicom(file, bit_depth)
        radiograph = Radiograph(
            decoded.pixels,
            file.sha256,
            "DICOM",
            decoded.bits,
            decoded.pixel_spacing,
            decoded.notes,
        )
    else:
        radiograph = _from_raster(file, bit_depth)
    if invert:
        radiograph = replace(
            radiograph,
            pixels=np.float32(1) - radiograph.pixels,
            notes=(*radiograph.notes, "inverted (asked for)"),
        )
    if pixel_spacing_mm is not None:
        radiograph = replace(radiograph, pixel_spacing=user_spacing(*pixel_spacing_mm))
    if float(np.ptp(radiograph.pixels)) == 0.0:
        raise InputError(
            f"{file.path} is constant (every pixel is {radiograph.pixels.flat[0]:g}); give a "
            "radiograph."
        )
    return radiograph


def _from_raster(file: FileBytes, bit_depth: int | None) -> Radiograph:
    picture = raster.decode_raster(file)
    values, bits, notes = picture.values, picture.bits, list(picture.notes)
    highest: Any = values.max()
    if values.dtype == np.float32:
        lowest = values.min()
        if not np.isfinite(values).all():
            raise InputError(
                f"{file.path} has NaN or infinite values; export it again without them."
            )
        if lowest < 0 or highest > 1:
            raise InputError(
                f"{file.path} has float values from {lowest:g} to {highest:g}, outside 0 to 1; "
                "scale it to [0, 1] or save it as 16-bit greyscale."
            )
        pixels = values
    else:
        if bits > 8:
            # These formats do not say how many of their bits are used.
            bits = bit_depth or guess_bits(int(highest), bits)
            if bits != picture.bits and bit_depth is None:
                notes.append(
                    f"{picture.bits}-bit file taken as {bits} bit, by its largest value (a bit "
                    "depth given says it for certain)"
                )
        if highest > 2**bits - 1:
            raise InputError(
                f"{file.path} has values up to {highest}, more than {bits} bits hold; give a "
                "larger bit depth."
            )
        pixels = unit_interval(values, bits)
    return Radiograph(pixels, file.sha256, picture.format, bits, None, tuple(notes))


def unit_interval(values: NDArray[Any], bits: int) -> NDArray[np.float32]:
    """Integer grey levels of ``bits`` bits as float32 in [0,1], correctly rounded."""
    levels = (np.arange(2**bits, dtype=np.float64) / (2**bits - 1)).astype(np.float32)
    pixels = np.empty(values.shape, np.float32)
    for rows in row_blocks(values):  # NumPy makes 64-bit indices of the values that it looks up
        pixels[rows] = levels[values[rows]]
    return pixels
