"""A DICOM radiograph as intensities in [0,1], dense bone bright; pydicom does the reading.

What its grey values mean is :mod:`blsgan.io.greyscale`. Of everything the header holds, only the
pixel spacing is kept, and no message quotes it.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io.files import FileBytes
from blsgan.io.greyscale import Header, apply_voi, inversion, read_modality
from blsgan.io.levels import guess_bits
from blsgan.io.raster import check_size
from blsgan.io.spacing import RANGE_MM, PixelSpacing, is_believable
from blsgan.joint.geometry import row_blocks

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom", ".ima")

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

_JPEG_FRAME_HEADERS = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Markers after which a JPEG (ISO 10918-1 B.2.2) or JPEG-LS (ISO 14495-1) says its size."""
_J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, ISO 15444-1 A.5.1

_RADIOGRAPHY = ("radiograph", "x-ray", "secondary capture", "hardcopy", "vl ")
"""Words in the names of the storage classes (PS3.4 B.5) that may hold a conventional radiograph."""

_VRS = frozenset(b"AE AS CS DA DS DT IS LO LT OB OW PN SH SQ ST TM UI UL UN US UT".split())


@dataclass(frozen=True)
class DicomRadiograph:
    """``pixels`` float32 [H,W] in [0,1], of ``bits`` bits."""

    pixels: NDArray[np.float32]
    bits: int
    pixel_spacing: PixelSpacing | None
    notes: tuple[str, ...]


def is_dicom(file: FileBytes) -> bool:
    """Whether the bytes are DICOM's, with its preamble or without, or the name says so."""
    return looks_like_dicom(file.data) or file.path.suffix.lower() in SUFFIXES


def looks_like_dicom(data: bytes) -> bool:
    """Whether ``data``, the first 132 bytes of a file or more, begin as a DICOM file does.

    That is the preamble, or, before it was the standard, an element of the group 2 or 8, explicit
    (with a name of its type) or implicit.
    """
    if data[128:132] == b"DICM":
        return True
    if len(data) < 132:
        return False
    group, element, length = struct.unpack_from("<HHI", data)
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    return data[4:6] in _VRS or (length <= 64 and length % 2 == 0)


def decode_dicom(file: FileBytes, bit_depth: int | None = None) -> DicomRadiograph:
    """Decode a single-frame greyscale DICOM file.

    Without a VOI transform [0,1] is the range of the stored bits after the modality transform:
    ``bit_depth``, else BitsStored, else, where that only says how wide the container is, the usual
    depth that holds the values, as for 16-bit PNG. It is never this picture's own range, which
    would give every picture another scale. Raises :class:`InputError` for several frames, no pixel
    data, colour, what is no radiograph (a segmentation, a report, a slice, a localiser), a transfer
    syntax that no installed plugin decodes, and damaged files, naming what is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about every value out of its VR's range
        header = Header(file.path, _parse(file))
        try:
            return _radiograph(header, bit_depth)
        except MemoryError as error:
            raise InputError(
                f"{file.path} does not fit into memory; crop it to the joint first."
            ) from error


def _parse(file: FileBytes) -> Dataset:
    import pydicom

    try:
        _refuse_deflated(file)
        return pydicom.dcmread(io.BytesIO(file.data), force=file.data[128:132] != b"DICM")
    except InputError:
        raise
    except Exception as error:  # any that pydicom's parsers reach on damaged bytes
        # The exception's text can quote header values, so only its type is shown.
        raise InputError(
            f"{file.path} is a damaged DICOM file: its elements cannot be told apart "
            f"({type(error).__name__}); export it again."
        ) from error


def _radiograph(header: Header, bit_depth: int | None) -> DicomRadiograph:
    path = header.path
    _check(header)
    notes: list[str] = []
    bits = header.whole("BitsStored")
    signed = header.whole("PixelRepresentation") == 1
    stored = _without_overlay(_decode(header), bits, signed)
    # A transform is of grey levels: it is computed of each that occurs, not of every pixel.
    levels = _levels(stored)
    modality = read_modality(header, signed=signed, notes=notes)
    values = modality(levels)
    windowed = apply_voi(header, values, signed=signed, notes=notes)
    if windowed is not None:
        if np.ptp(windowed) == 0 < np.ptp(values):
            raise InputError(
                f"{path}: its window or VOI table makes every pixel the same; export it with one "
                "that shows the bones, or with none."
            )
        pixels = windowed
        if bit_depth is not None:
            notes.append("the bit depth given was not used: the file has a VOI transform")
    else:
        bits = bit_depth or _used_bits(header, levels, bits, signed, notes)
        first, last = _stored_range(bits, signed)
        if levels.min() < first or levels.max() > last:
            raise InputError(
                f"{path} has values from {levels.min()} to {levels.max()}, more than {bits} bits "
                "hold; give a larger bit depth."
            )
        low, high = modality.range(first, last)
        pixels = (values - low) / (high - low)
        notes.append(f"no VOI transform: {low:g} to {high:g} ({bits} bit) mapped to 0 to 1")
    if not np.isfinite(pixels).all():
        raise InputError(
            f"{path} has NaN or infinite values after its transforms; export it again."
        )
    pixels = np.clip(pixels, 0.0, 1.0)
    if reason := inversion(header):
        pixels = 1.0 - pixels
        notes.append(f"{reason}: inverted after the VOI transform")
    spacing = _spacing(header, notes)
    return DicomRadiograph(
        _on_pixels(stored, levels, pixels.astype(np.float32)),
        bits,
        spacing,
        tuple(notes),
    )


def _levels(stored: NDArray[Any]) -> NDArray[Any]:
    """The values that occur, ascending; all of the picture where they may be more than 2**16."""
    low, high = int(stored.min()), int(stored.max())
    if high - low >= 2**16:
        return stored
    occurs = np.zeros(high - low + 1, np.bool_)
    for rows in row_blocks(stored):
        occurs[stored[rows].astype(np.int64) - low] = True
    return np.flatnonzero(occurs) + low


def _on_pixels(
    stored: NDArray[Any], levels: NDArray[Any], values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What ``values`` are of ``levels``, as a picture."""
    if levels is stored:
        return values
    low = int(levels[0])
    table = np.zeros(int(levels[-1]) - low + 1, np.float32)
    table[levels - low] = values
    pixels = np.empty(stored.shape, np.float32)
    for rows in row_blocks(stored):
        pixels[rows] = table[stored[rows].astype(np.int64) - low]
    return pixels


def _used_bits(
    header: Header, levels: NDArray[Any], bits: int, signed: bool, notes: list[str]
) -> int:
    """The depth of the stored values, where the header only gives the container's."""
    if bits != header.whole("BitsAllocated") or bits <= 8 or signed:
        return bits
    used = guess_bits(int(levels.max()), bits)
    if used != bits:
        notes.append(
            f"{bits} bits stored, taken as {used} bit, by the largest value (a bit depth given "
            "says it for certain)"
        )
    return used


def _decode(header: Header) -> NDArray[Any]:
    """The stored values [H,W] as the file has them."""
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import RLELossless

    path, dataset = header.path, header.dataset
    syntax = dataset.file_meta.TransferSyntaxUID
    # pydicom's own RLE decoder: the compiled one panics, past all exceptions, on damaged data.
    plugin = "pydicom" if syntax == RLELossless else ""
    try:
        stored = np.asarray(pixel_array(dataset, decoding_plugin=plugin))
    except MemoryError:
        raise
    except Exception as error:  # what a decoder stumbles over, or the absence of one
        if not syntax.is_compressed:
            raise InputError(
                f"{path}: its pixel data does not have the size that its header says; export it "
                "again."
            ) from error
        plugins = ", ".join(get_decoder(syntax).available_plugins)
        raise InputError(
            f"{path} is compressed as {syntax.name} with {header.whole('BitsStored')} bits, and no "
            f"installed plugin ({plugins}) decodes it, or it is damaged; export it uncompressed."
        ) from error
    if stored.ndim != 2:
        raise InputError(
            f"{path} decodes to an array of shape {stored.shape}, not to one greyscale picture; "
            "export the radiograph as MONOCHROME2."
        )
    return stored


def _without_overlay(stored: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    """Stored values without the bits above BitsStored, which may hold an overlay plane."""
    if not signed:
        return stored & (2**bits - 1)
    spare = 8 * stored.dtype.itemsize - bits
    return (stored << spare) >> spare


def _stored_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of ``bits`` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _refuse_deflated(file: FileBytes) -> None:
    """Refuse a deflated data set: pydicom would inflate it whatever its size."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    stream = io.BytesIO(file.data)
    stream.seek(132 if file.data[128:132] == b"DICM" else 0)
    meta = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag.group != 2,
    )
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise InputError(
            f"{file.path} is a deflated DICOM file, which is not read; export it uncompressed."
        )


def _check(header: Header) -> None:
    path, dataset = header.path, header.dataset
    if len(dataset) == 0:
        raise InputError(f"{path} is not a DICOM file; give a PNG, JPEG, TIFF, BMP or DICOM file.")
    _check_kind(header)
    if "PixelData" not in dataset or header.get("PixelData") is None:
        raise InputError(f"{path} is a DICOM file without pixel data; give the radiograph itself.")
    frames = header.whole("NumberOfFrames", 1)
    if frames not in (0, 1):
        raise InputError(
            f"{path} has {frames} frames; export the one to separate as a single image."
        )
    check_size(path, header.whole("Rows"), header.whole("Columns"))
    _check_bits(header)
    photometric = header.text("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or header.whole("SamplesPerPixel") != 1:
        raise InputError(
            f"{path} is {photometric or 'of unknown photometric interpretation'}, not a greyscale "
            "radiograph; export it as MONOCHROME2."
        )
    meta = getattr(dataset, "file_meta", None)
    if meta is None or "TransferSyntaxUID" not in meta:
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ImplicitVRLittleEndian

        # Files from before the preamble are, by the standard, in the default transfer syntax.
        dataset.file_meta = meta = meta if meta is not None else FileMetaDataset()
        meta.TransferSyntaxUID = ImplicitVRLittleEndian
    syntax = Header(path, meta).get("TransferSyntaxUID")
    if not getattr(syntax, "is_transfer_syntax", False):
        raise Header(path, meta).unreadable("TransferSyntaxUID")
    if syntax.is_compressed:
        _check_transfer_syntax(path, syntax)
        _check_frame(header)


def _check_kind(header: Header) -> None:
    """Refuse what is a DICOM object and no radiograph, by its class and the localiser's image type.

    An unknown or missing class is let through: many devices have their own.
    """
    name = str(getattr(header.get("SOPClassUID"), "name", ""))
    radiography = "Image" in name and any(word in name.lower() for word in _RADIOGRAPHY)
    if "Storage" in name and not radiography:
        raise InputError(f"{header.path} is a DICOM object of {name}; give the radiograph itself.")
    types = header.get("ImageType")
    if types is not None and "LOCALIZER" in str(types).upper():
        raise InputError(
            f"{header.path} is a localiser (its ImageType says so); give the radiograph itself."
        )


def _check_bits(header: Header) -> None:
    allocated, bits = header.whole("BitsAllocated"), header.whole("BitsStored")
    header.whole("PixelRepresentation")
    high = header.whole("HighBit", bits - 1)
    if not 1 <= bits <= allocated or high != bits - 1:
        raise InputError(
            f"{header.path} says BitsAllocated {allocated}, BitsStored {bits} and HighBit {high}, "
            "which do not fit together; export it with HighBit = BitsStored - 1."
        )


def _check_transfer_syntax(path: Path, syntax: Any) -> None:
    from pydicom.pixels import get_decoder

    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise InputError(
            f"{path} is compressed as {syntax.name} ({syntax}), which pydicom cannot decode; "
            "export it uncompressed."
        ) from None
    if not available:
        raise InputError(
            f"{path} is compressed as {syntax.name} ({syntax}), and no installed plugin decodes "
            "it; pip install 'blsgan[dicom]' or export it uncompressed."
        )


def _check_frame(header: Header) -> None:
    """Refuse a compressed picture that is not of the size that the file says.

    A decoder allocates what the picture's own header says, which may be anything.
    """
    from pydicom.encaps import generate_frames
    from pydicom.uid import RLELossless

    path, dataset = header.path, header.dataset
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless:  # without a header of its own
        return
    try:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        size = _frame_size(frame)
    except Exception as error:  # of damaged fragments: ValueError, struct.error, StopIteration
        raise header.unreadable("PixelData") from error
    if size is None:
        raise InputError(f"{path} holds a compressed picture without a header; export it again.")
    rows, columns, channels = size
    expected = header.whole("Rows"), header.whole("Columns")
    if (rows, columns, channels) != (*expected, 1):
        raise InputError(
            f"{path} says {expected[1]}x{expected[0]} pixels in 1 channel, but its compressed "
            f"picture has {columns}x{rows} in {channels}; export it again."
        )


def _frame_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and channels from the header of a JPEG, JPEG-LS or JPEG 2000 picture."""
    if frame[:2] == b"\xff\xd8":
        position = 2
        while position + 10 <= len(frame) and frame[position] == 0xFF:
            marker = frame[position + 1]
            if marker in _JPEG_FRAME_HEADERS:
                rows, columns, channels = struct.unpack_from(">HHB", frame, position + 5)
                return rows, columns, channels
            fill = marker == 0xFF
            position += 1 if fill else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
        return None
    # The standard wants the bare codestream; some write it inside the boxes of a JP2 file.
    start = 0 if frame.startswith(_J2K_START) else frame.find(b"jp2c" + _J2K_START) + 4
    if not frame.startswith(_J2K_START, start) or len(frame) < start + 42:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    (channels,) = struct.unpack_from(">H", frame, start + 40)
    return bottom - top, right - left, channels


def _spacing(header: Header, notes: list[str]) -> PixelSpacing | None:
    for keyword in _SPACINGS:
        sides = header.decimals(keyword)
        if not sides:
            continue
        row, column = sides if len(sides) == 2 else (None, None)
        if row is not None and column is not None and is_believable(row, column):
            if keyword == "ImagerPixelSpacing":
                notes.append("pixel spacing is the detector's (ImagerPixelSpacing), not calibrated")
            return PixelSpacing(row, column, keyword)
        notes.append(
            f"{keyword} was ignored: it is not a pair of numbers from {RANGE_MM[0]:g} to "
            f"{RANGE_MM[1]:g} mm"
        )
    return None
