"""A DICOM radiograph as intensities in [0,1], dense bone bright; pydicom does the reading.

Order of the transforms is the standard's (PS3.3 C.11, PS3.4 N.2): modality, VOI, then the inversion
that MONOCHROME1 asks for. Of everything the header holds, only the pixel spacing is kept; words of
the patient's name and identifier are returned apart, so that output names can avoid them.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io.files import FileBytes
from blsgan.io.levels import guess_bits
from blsgan.io.raster import check_size
from blsgan.io.spacing import PixelSpacing

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom", ".ima")

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_IDENTITY = ("PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthName")


@dataclass(frozen=True)
class DicomRadiograph:
    """``pixels`` float32 [H,W] in [0,1]; ``bits`` stored; ``identity``: words names must avoid."""

    pixels: NDArray[np.float32]
    bits: int
    pixel_spacing: PixelSpacing | None
    notes: tuple[str, ...]
    identity: frozenset[str]


def is_dicom(file: FileBytes) -> bool:
    """Whether the bytes carry DICOM's preamble, or the name says DICOM (old files lack it)."""
    return file.data[128:132] == b"DICM" or file.path.suffix.lower() in SUFFIXES


def decode_dicom(file: FileBytes, bit_depth: int | None = None) -> DicomRadiograph:
    """Decode a single-frame greyscale DICOM file.

    ``bit_depth`` overrides the depth for files without a VOI transform. Raises
    :class:`InputError` for several frames, no pixel data, colour, a transfer syntax that no
    installed plugin decodes, and damaged files.
    """
    import pydicom

    path = file.path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns about every value out of its VR's range
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
    unsigned = int(dataset.PixelRepresentation) == 0
    if unsigned:  # bits above BitsStored may hold an overlay plane
        stored = stored & (2**bits - 1)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    pixels, used = _voi(dataset, values)
    if not used:
        rescaled = "RescaleSlope" in dataset or bool(dataset.get("ModalityLUTSequence"))
        if unsigned and not rescaled:
            depth = bit_depth or guess_bits(int(stored.max()), bits)
            pixels = values / (2**depth - 1)
            notes.append(f"no VOI transform: stored values taken as {depth} bit")
        else:
            low, high = float(values.min()), float(values.max())
            pixels = (values - low) / max(high - low, 1e-12)
            notes.append(f"no VOI transform: values {low:g} to {high:g} mapped to 0 to 1")
    if not np.isfinite(pixels).all():
        raise InputError(
            f"{path} has NaN or infinite values after its VOI transform; export it again."
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
        _identity(dataset),
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
    _check_transfer_syntax(path, meta.TransferSyntaxUID)


def _check_transfer_syntax(path: Path, syntax: Any) -> None:
    if not syntax.is_compressed:
        return
    from pydicom.pixels import get_decoder

    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise InputError(
            f"{path} is compressed as {syntax.name} ({syntax}), which pydicom cannot decode; "
            "export "
            "it uncompressed."
        ) from None
    if not available:
        raise InputError(
            f"{path} is compressed as {syntax.name} ({syntax}), and no installed plugin "
            "decodes it; "
            "pip install 'blsgan[dicom]' or export it uncompressed."
        )


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
        if math.isfinite(row) and math.isfinite(column) and row > 0 and column > 0:
            if keyword == "ImagerPixelSpacing":
                notes.append("pixel spacing is the detector's (ImagerPixelSpacing), not calibrated")
            return PixelSpacing(row, column, keyword)
        notes.append(f"{keyword} is not a pair of positive numbers and was ignored")
    return None


def _identity(dataset: Dataset) -> frozenset[str]:
    text = " ".join(str(dataset.get(keyword) or "") for keyword in _IDENTITY)
    words = re.split(r"[\W_]+", text.casefold())
    return frozenset(word for word in words if len(word) >= 3)
