"""A DICOM radiograph as intensities in [0,1], dense bone bright; pydicom does the reading.

Order of the transforms is the standard's (PS3.3 C.11, PS3.4 N.2): modality, VOI, then the inversion
that MONOCHROME1 asks for. Of everything the header holds, only the pixel spacing is kept.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io.files import FileBytes
from blsgan.io.raster import check_size
from blsgan.io.spacing import RANGE_MM, PixelSpacing, is_believable

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom", ".ima")

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

_JPEG_FRAME_HEADERS = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Markers after which a JPEG (ISO 10918-1 B.2.2) or JPEG-LS (ISO 14495-1) says its size."""
_J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, ISO 15444-1 A.5.1


@dataclass(frozen=True)
class DicomRadiograph:
    """``pixels`` float32 [H,W] in [0,1], of ``bits`` bits."""

    pixels: NDArray[np.float32]
    bits: int
    pixel_spacing: PixelSpacing | None
    notes: tuple[str, ...]


def is_dicom(file: FileBytes) -> bool:
    """Whether the bytes carry DICOM's preamble, or the name says DICOM (old files lack it)."""
    return file.data[128:132] == b"DICM" or file.path.suffix.lower() in SUFFIXES


def decode_dicom(file: FileBytes, bit_depth: int | None = None) -> DicomRadiograph:
    """Decode a single-frame greyscale DICOM file.

    Without a VOI transform [0,1] is the range of the stored bits (BitsStored, or ``bit_depth``
    where fewer are known to be used) after the modality transform: never this picture's own range,
    which would give every picture another scale. Raises :class:`InputError` for several frames, no
    pixel data, colour, a transfer syntax that no installed plugin decodes, and damaged files.
    """
    import pydicom

    path = file.path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns about every value out of its VR's range
            _refuse_deflated(file)
            dataset = pydicom.dcmread(io.BytesIO(file.data), force=file.data[128:132] != b"DICM")
            return _radiograph(path, dataset, bit_depth)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} does not fit into memory; crop it to the joint first.") from error
    except Exception as error:
        # As for rasters: damaged headers surface as any exception pydicom's parsers can reach.
        # The exception's text can quote header values, so only its type is shown.
        raise InputError(
            f"{path} is a damaged or incomplete DICOM file ({type(error).__name__}); export it "
            "again."
        ) from error


def _radiograph(path: Path, dataset: Dataset, bit_depth: int | None) -> DicomRadiograph:
    from pydicom.pixels import apply_modality_lut, pixel_array
    from pydicom.uid import RLELossless

    _check(path, dataset)
    notes: list[str] = []
    # pydicom's own RLE decoder: the compiled one panics, past all exceptions, on damaged data.
    rle = dataset.file_meta.TransferSyntaxUID == RLELossless
    stored = np.asarray(pixel_array(dataset, decoding_plugin="pydicom" if rle else ""))
    if stored.ndim != 2:
        raise InputError(
            f"{path} decodes to an array of shape {stored.shape}, not to one greyscale picture; "
            "export the radiograph as MONOCHROME2."
        )
    bits = int(dataset.BitsStored)
    signed = int(dataset.PixelRepresentation) == 1
    stored = _without_overlay(stored, bits, signed)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    pixels, used = _voi(dataset, values)
    if used:
        if bit_depth is not None:
            notes.append("the bit depth given was not used: the file has a VOI transform")
    else:
        bits = bit_depth or bits
        first, last = _stored_range(bits, signed)
        if stored.min() < first or stored.max() > last:
            raise InputError(
                f"{path} has values from {stored.min()} to {stored.max()}, more than {bits} bits "
                "hold; give a larger bit depth."
            )
        low, high = _rescaled_range(dataset, first, last)
        pixels = (values - low) / (high - low)
        notes.append(f"no VOI transform: {low:g} to {high:g} ({bits} bit) mapped to 0 to 1")
    if not np.isfinite(pixels).all():
        raise InputError(
            f"{path} has NaN or infinite values after its transforms; export it again."
        )
    pixels = np.clip(pixels, 0.0, 1.0)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 1.0 - pixels
        notes.append("MONOCHROME1: inverted after the VOI transform")
    spacing = _spacing(dataset, notes)
    return DicomRadiograph(
        np.ascontiguousarray(pixels, dtype=np.float32),
        bits,
        spacing,
        tuple(notes),
    )


def _without_overlay(stored: NDArray[Any], bits: int, signed: bool) -> NDArray[Any]:
    """Stored values without the bits above BitsStored, which may hold an overlay plane."""
    if not signed:
        return stored & (2**bits - 1)
    spare = 8 * stored.dtype.itemsize - bits
    return (stored << spare) >> spare


def _stored_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of ``bits`` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _rescaled_range(dataset: Dataset, first: int, last: int) -> tuple[float, float]:
    """What the modality transform makes of the stored range ``first``..``last``, ascending."""
    sequence = dataset.get("ModalityLUTSequence")
    if sequence:
        return 0.0, float(2 ** int(sequence[0].LUTDescriptor[2]) - 1)
    if "RescaleSlope" not in dataset or "RescaleIntercept" not in dataset:
        return float(first), float(last)
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    low, high = sorted((first * slope + intercept, last * slope + intercept))
    return low, high


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


def _check(path: Path, dataset: Dataset) -> None:
    if not {"PixelData", "Rows", "Columns"} <= set(dataset.dir()):
        if len(dataset) == 0:
            raise InputError(
                f"{path} is not a DICOM file; give a PNG, JPEG, TIFF, BMP or DICOM file."
            )
        raise InputError(f"{path} is a DICOM file without pixel data; give the radiograph itself.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise InputError(
            f"{path} has {frames} frames; export the one to separate as a single image."
        )
    check_size(path, int(dataset.Rows), int(dataset.Columns))
    _check_bits(path, dataset)
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if (
        photometric not in ("MONOCHROME1", "MONOCHROME2")
        or int(dataset.get("SamplesPerPixel", 1)) != 1
    ):
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
    if meta.TransferSyntaxUID.is_compressed:
        _check_transfer_syntax(path, meta.TransferSyntaxUID)
        _check_frame(path, dataset)


def _check_bits(path: Path, dataset: Dataset) -> None:
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(dataset.get("HighBit", bits - 1))
    if not 1 <= bits <= allocated or high != bits - 1:
        raise InputError(
            f"{path} says BitsAllocated {allocated}, BitsStored {bits} and HighBit {high}, which "
            "do not fit together; export it with HighBit = BitsStored - 1."
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


def _check_frame(path: Path, dataset: Dataset) -> None:
    """Refuse a compressed picture that is not of the size that the file says.

    A decoder allocates what the picture's own header says, which may be anything.
    """
    from pydicom.encaps import generate_frames
    from pydicom.uid import RLELossless

    if dataset.file_meta.TransferSyntaxUID == RLELossless:  # without a header of its own
        return
    size = _frame_size(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    if size is None:
        raise InputError(f"{path} holds a compressed picture without a header; export it again.")
    rows, columns, channels = size
    if (rows, columns, channels) != (int(dataset.Rows), int(dataset.Columns), 1):
        raise InputError(
            f"{path} says {dataset.Columns}x{dataset.Rows} pixels in 1 channel, but its compressed "
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


def _voi(dataset: Dataset, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
    """Values after the VOI transform, scaled to [0,1], and whether there was one."""
    from pydicom import Dataset
    from pydicom.pixels import apply_voi, apply_windowing

    sequence = dataset.get("VOILUTSequence")
    if sequence:
        entries = apply_voi(values.round().astype(np.int64), dataset)
        return np.asarray(entries, dtype=np.float64) / (
            2 ** int(sequence[0].LUTDescriptor[2]) - 1
        ), True
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return values, False
    # A dataset of its own makes the output range 0..65535, whatever the rescale slope's sign.
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation = 0
    window.BitsStored = 16
    window.WindowCenter = dataset.WindowCenter
    window.WindowWidth = dataset.WindowWidth
    if dataset.get("VOILUTFunction"):
        window.VOILUTFunction = dataset.VOILUTFunction
    return np.asarray(apply_windowing(values, window), dtype=np.float64) / 65535.0, True


def _spacing(dataset: Dataset, notes: list[str]) -> PixelSpacing | None:
    for keyword in _SPACINGS:
        value = dataset.get(keyword)
        if value is None:
            continue
        try:
            row, column = (float(part) for part in value)
        except (TypeError, ValueError):
            row = column = math.nan
        if is_believable(row, column):
            if keyword == "ImagerPixelSpacing":
                notes.append("pixel spacing is the detector's (ImagerPixelSpacing), not calibrated")
            return PixelSpacing(row, column, keyword)
        notes.append(
            f"{keyword} was ignored: it is not a pair of numbers from {RANGE_MM[0]:g} to "
            f"{RANGE_MM[1]:g} mm"
        )
    return None
