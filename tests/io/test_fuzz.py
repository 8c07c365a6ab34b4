"""Damaged files of every format: either an array that keeps its promises, or one clear error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from blsgan.errors import InputError
from blsgan.io.masks import read_masks
from blsgan.io.radiograph import read_radiograph

CASES = 250
SIZE = (40, 48)
_RNG = np.random.default_rng(7)
NOISE = _RNG.integers(0, 65536, SIZE, dtype=np.uint16)


def encode(file_format, values, **options):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format=file_format, **options)
    return stream.getvalue()


def dicom(compress):
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.Rows, made.Columns = SIZE
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME1"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
    made.WindowCenter, made.WindowWidth = 30000, 50000
    made.PixelSpacing = [0.1, 0.1]
    made.PixelData = NOISE.tobytes()
    if compress:
        made.compress(RLELossless, generate_instance_uid=False)
    stream = io.BytesIO()
    dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()


GREY8 = (NOISE >> 8).astype(np.uint8)
FILES = {
    "png16.png": lambda: encode("PNG", NOISE),
    "rgb.png": lambda: encode("PNG", np.stack([GREY8] * 3, axis=-1)),
    "baseline.jpg": lambda: encode("JPEG", GREY8),
    "progressive.jpg": lambda: encode("JPEG", GREY8, progressive=True),
    "raw.tif": lambda: encode("TIFF", NOISE),
    "deflate.tif": lambda: encode("TIFF", NOISE, compression="tiff_adobe_deflate"),
    "lzw.tif": lambda: encode("TIFF", GREY8, compression="tiff_lzw"),
    "grey.bmp": lambda: encode("BMP", GREY8),
    "plain.dcm": lambda: dicom(False),
    "rle.dcm": lambda: dicom(True),
}


def mutate(data, rng):
    """One of: flipped bytes (most often in the header), a cut, a lost or a doubled piece."""
    damaged = bytearray(data)
    kind = rng.integers(5)
    if kind <= 1:
        reach = min(len(data), 300) if kind else len(data)
        for position in rng.integers(0, reach, rng.integers(1, 9)):
            damaged[position] = rng.integers(256)
        return bytes(damaged)
    start, stop = sorted(rng.integers(0, len(data), 2))
    if kind == 2:
        return bytes(damaged[:start])
    if kind == 3:
        return bytes(damaged[:start] + damaged[stop:])
    return bytes(damaged[:stop] + damaged[start:])


@pytest.mark.parametrize("name", FILES)
def test_damaged_images(tmp_path, name):
    data = FILES[name]()
    path = tmp_path / name
    path.write_bytes(data)
    assert read_radiograph(path).pixels.shape == SIZE
    rng = np.random.default_rng([11, len(data)])
    refused = 0
    for _ in range(CASES):
        path.write_bytes(mutate(data, rng))
        try:
            radiograph = read_radiograph(path)
        except InputError as error:
            refused += 1
            assert name in str(error)
            assert "\n" not in str(error)
            continue
        pixels = radiograph.pixels
        assert pixels.dtype == np.float32
        assert pixels.ndim == 2
        assert pixels.flags.c_contiguous
        assert pixels.min() >= 0
        assert pixels.max() <= 1  # also false for NaN
    assert refused > CASES / 10


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_damaged_masks(tmp_path, file_format):
    mask = np.zeros(SIZE, np.uint8)
    mask[5:25, 10:40] = 255
    lower = tmp_path / "lower.png"
    Image.fromarray(np.roll(mask, 12, axis=0)).save(lower)
    upper = tmp_path / f"upper.{file_format.lower()}"
    data = encode(file_format, mask)
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(CASES):
        upper.write_bytes(mutate(data, rng))
        try:
            masks = read_masks(upper, lower, SIZE).masks
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert masks.shape == (2, *SIZE)
        assert masks.any(axis=(1, 2)).all()
    assert refused > CASES / 10
