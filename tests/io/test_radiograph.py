"""Every format at every depth gives the same intensities; everything ambiguous is refused."""

from __future__ import annotations

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from blsgan.errors import InputError, UsageError
from blsgan.io.radiograph import read_radiograph

GRADIENT = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40)
GREY8 = (GRADIENT % 256).astype(np.uint8)
GREY16 = (GRADIENT * 68).astype(np.uint16)


def save(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


def png_of_size(width, height):
    """A valid PNG header for any size, with hardly any pixel data behind it."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".PNG"])
def test_8_bit_is_read_exactly(tmp_path, suffix):
    radiograph = read_radiograph(save(tmp_path / f"a{suffix}", GREY8))
    assert radiograph.pixels.dtype == np.float32
    assert radiograph.bits == 8
    np.testing.assert_array_equal(radiograph.pixels, (GREY8 / 255).astype(np.float32))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_is_read_exactly(tmp_path, suffix):
    radiograph = read_radiograph(save(tmp_path / f"a{suffix}", GREY16))
    assert radiograph.bits == 16
    np.testing.assert_array_equal(radiograph.pixels, (GREY16 / 65535).astype(np.float32))


def test_big_endian_and_compressed_tiff(tmp_path):
    for name, options in (("be", {"byteorder": ">"}), ("z", {"compression": "zlib"})):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, GREY16, photometric="minisblack", **options)
        np.testing.assert_array_equal(
            read_radiograph(path).pixels, (GREY16 / 65535).astype(np.float32)
        )


@pytest.mark.parametrize("values", [GREY8, GREY16])
def test_white_is_zero_tiff_is_inverted(tmp_path, values):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="miniswhite")
    full = np.iinfo(values.dtype).max
    np.testing.assert_array_equal(
        read_radiograph(path).pixels, ((full - values) / full).astype(np.float32)
    )


def test_white_is_zero_counts_in_floating_point(tmp_path):
    values = (GREY16 / 65535).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    np.testing.assert_array_equal(read_radiograph(tmp_path / "a.tif").pixels, 1 - values)


def test_signed_8_bit_tiff(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, (GREY8 // 2).astype(np.int8), photometric="minisblack")
    np.testing.assert_array_equal(
        read_radiograph(path).pixels, ((GREY8 // 2) / 255).astype(np.float32)
    )
    tifffile.imwrite(path, (GREY8.astype(int) - 128).astype(np.int8), photometric="minisblack")
    with pytest.raises(InputError, match="signed 8-bit values below 0"):
        read_radiograph(path)


def test_grey_jpeg(tmp_path):
    smooth = np.tile(np.linspace(20, 230, 64), (48, 1)).astype(np.uint8)
    path = save(tmp_path / "a.jpg", smooth, quality=95)
    assert np.abs(read_radiograph(path).pixels - smooth / 255).max() < 0.02
    colour = save(tmp_path / "b.jpg", np.stack([smooth] * 3, axis=-1), quality=95)
    assert np.abs(read_radiograph(colour).pixels - smooth / 255).max() < 0.02


def test_12_bits_in_a_16_bit_file_are_recognised_and_said(tmp_path):
    values = (GRADIENT * 4).astype(np.uint16)  # up to 3836
    radiograph = read_radiograph(save(tmp_path / "a.png", values))
    assert radiograph.bits == 12
    assert "16-bit file taken as 12 bit" in radiograph.notes[0]
    assert read_radiograph(tmp_path / "a.png", bit_depth=12).notes == ()  # nothing was assumed
    np.testing.assert_array_equal(radiograph.pixels, (values / 4095).astype(np.float32))
    full = read_radiograph(tmp_path / "a.png", bit_depth=16)
    np.testing.assert_array_equal(full.pixels, (values / 65535).astype(np.float32))


def test_bit_depth_too_small_or_impossible(tmp_path):
    path = save(tmp_path / "a.png", GREY16)
    with pytest.raises(InputError, match="more than 12 bits"):
        read_radiograph(path, bit_depth=12)
    with pytest.raises(UsageError, match="between 1 and 16"):
        read_radiograph(path, bit_depth=0)


def test_invert_and_spacing(tmp_path):
    path = save(tmp_path / "a.png", GREY8)
    inverted = read_radiograph(path, invert=True, pixel_spacing_mm=(0.1, 0.2))
    np.testing.assert_array_equal(inverted.pixels, 1 - (GREY8 / 255).astype(np.float32))
    assert inverted.pixel_spacing.area_mm2 == pytest.approx(0.02)
    assert inverted.pixel_spacing.source == "user"
    for spacing in ((0.0, 0.1), (-0.1, 0.1), (1e-6, 1e-6), (0.1, 11.0), (float("nan"), 0.1)):
        with pytest.raises(UsageError, match=r"mm is not between 0\.001 and 10 mm"):
            read_radiograph(path, pixel_spacing_mm=spacing)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_grey_pictures_in_colour_modes(tmp_path, mode):
    values = np.where(GREY8 > 127, 255, 0).astype(np.uint8) if mode == "1" else GREY8
    Image.fromarray(values).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_radiograph(tmp_path / "a.png").pixels, (values / 255).astype(np.float32)
    )


def test_colour_whose_channels_differ(tmp_path):
    colour = np.stack([GREY8, GREY8, np.roll(GREY8, 1)], axis=-1)
    with pytest.raises(InputError, match=r"colour picture.*differ by up to \d+ of 255"):
        read_radiograph(save(tmp_path / "a.png", colour))


def test_transparency(tmp_path):
    rgba = np.stack([GREY8, GREY8, GREY8, np.full_like(GREY8, 255)], axis=-1)
    rgba[0, 0, 3] = 7
    with pytest.raises(InputError, match="transparent"):
        read_radiograph(save(tmp_path / "a.png", rgba))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_level_of_a_grey_picture(tmp_path, bits):
    """PNG's tRNS chunk: one level is transparent, harmless where no pixel has it."""
    levels = np.array([[0, 1, 1], [0, 1, 0]], np.uint16) * (2**bits - 1)
    rows = [
        b"\0" + (row.astype(">u2").tobytes() if bits == 16 else _packed(row, bits))
        for row in levels
    ]
    for level, transparent in ((2**bits - 1, True), (1, bits == 1)):
        (tmp_path / "a.png").write_bytes(_grey_png(rows, (3, 2), bits, level))
        if transparent:
            with pytest.raises(InputError, match="partly transparent"):
                read_radiograph(tmp_path / "a.png")
        else:
            pixels = read_radiograph(tmp_path / "a.png").pixels
            np.testing.assert_array_equal(pixels, levels / (2**bits - 1))


def _packed(row, bits):
    text = "".join(f"{value:0{bits}b}" for value in row)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def _grey_png(rows, size, bits, transparent_level):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, 0, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">H", transparent_level)),
            chunk(b"IDAT", zlib.compress(b"".join(rows))),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_colour_would_lose_half_its_bits(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), np.stack([GREY16] * 3, axis=-1))
    with pytest.raises(InputError, match="16 bit per channel"):
        read_radiograph(path)


def test_several_pages(tmp_path):
    page = Image.fromarray(GREY8)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    with pytest.raises(InputError, match="3 pictures"):
        read_radiograph(tmp_path / "a.tif")


def test_float_tiff(tmp_path):
    values = (GREY8 / 255).astype(np.float32)
    np.testing.assert_array_equal(read_radiograph(save(tmp_path / "a.tif", values)).pixels, values)
    for bad, message in ((np.nan, "NaN"), (np.inf, "NaN or infinite"), (1.5, "outside 0 to 1")):
        values[3, 3] = bad
        with pytest.raises(InputError, match=message):
            read_radiograph(save(tmp_path / "b.tif", values))


def test_32_bit_integers(tmp_path):
    values = GRADIENT.astype(np.int32) * 60
    np.testing.assert_array_equal(
        read_radiograph(save(tmp_path / "a.tif", values)).pixels,
        (values / 65535).astype(np.float32),
    )
    values[0, 0] = -5
    with pytest.raises(InputError, match="from -5 to"):
        read_radiograph(save(tmp_path / "a.tif", values))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: viewers rotate by 90 degrees
    path = save(tmp_path / "a.png", GREY8, exif=exif)
    radiograph = read_radiograph(path)
    assert radiograph.pixels.shape == (40, 24)
    assert "EXIF" in radiograph.notes[0]


def test_missing(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_radiograph(tmp_path / "nothing.png")


def test_empty(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty \(0 bytes\)"):
        read_radiograph(tmp_path / "a.png")


def test_folder_and_special_file(tmp_path):
    with pytest.raises(InputError) as raised:
        read_radiograph(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} is a folder where one image is expected; name the file."
    )
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)  # reading it would hang
    with pytest.raises(InputError) as raised:
        read_radiograph(pipe)
    assert str(raised.value) == f"{pipe} is not a regular file; name the image itself."


@pytest.mark.parametrize(
    "content", [b"hello, this is no image", b"\0" * 500, b"GIF89a" + b"\0" * 40]
)
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="not a readable image"):
        read_radiograph(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = save(tmp_path / f"a{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rf"a\{suffix} is (damaged or truncated|not a readable)"):
        read_radiograph(path)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant(tmp_path, value):
    with pytest.raises(InputError, match="constant"):
        read_radiograph(save(tmp_path / "a.png", np.full((30, 30), value, np.uint8)))


def test_1x1_is_constant(tmp_path):
    with pytest.raises(InputError, match="constant"):
        read_radiograph(save(tmp_path / "a.png", np.array([[77]], np.uint8)))


@pytest.mark.parametrize("size", [(20000, 20000), (9000, 9000), (8193, 8192), (1, 60000)])
def test_too_large_is_refused_from_the_header(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png_of_size(*size))
    with pytest.raises(InputError, match=r"8192x8192.*crop it to the joint"):
        read_radiograph(tmp_path / "a.png")


def test_a_decompression_bomb_within_limits_is_only_truncated(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_size(4000, 4000))
    with pytest.raises(InputError, match="damaged or truncated"):
        read_radiograph(tmp_path / "a.png")


def write_tiff(path, values, sample_format, *tags):
    """A TIFF of one strip, as Pillow would not write it."""
    bits = 8 * values.dtype.itemsize
    height, width = values.shape
    entries = sorted(
        [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 0),
         (277, 3, 1), (278, 4, height), (279, 4, values.nbytes), (339, 3, sample_format), *tags]
    )  # fmt: skip
    start = 8 + 2 + 12 * len(entries) + 4
    data = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, value in entries:
        data += struct.pack("<HHII", tag, kind, 1, start if tag == 273 else value)
    path.write_bytes(data + bytes(4) + values.tobytes())
    return path


def test_tiff_of_32_unsigned_bits(tmp_path):
    values = np.arange(48 * 64).reshape(48, 64)
    radiograph = read_radiograph(write_tiff(tmp_path / "a.tif", values.astype(np.uint32), 1))
    np.testing.assert_allclose(radiograph.pixels, values / 4095, atol=1e-6)
    large = write_tiff(tmp_path / "b.tif", (values + 2**31).astype(np.uint32), 1)
    with pytest.raises(InputError, match="values from 2147483648 to 2147486719, outside"):
        read_radiograph(large)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_tiff_of_a_kind_that_is_not_read_is_said(tmp_path, kind):
    values = (np.arange(48 * 64).reshape(48, 64) / 4000).astype(kind)
    with pytest.raises(InputError, match="TIFF of a kind that is not read"):
        read_radiograph(write_tiff(tmp_path / "a.tif", values, 3))


def test_a_turned_tiff_is_noted_as_a_turned_png_is(tmp_path):
    values = np.arange(48 * 64).reshape(48, 64).astype(np.uint16)
    plain = read_radiograph(write_tiff(tmp_path / "a.tif", values, 1))
    turned = read_radiograph(write_tiff(tmp_path / "b.tif", values, 1, (274, 3, 3)))
    np.testing.assert_array_equal(turned.pixels, plain.pixels[::-1, ::-1])
    assert "turned upright by its EXIF orientation" in turned.notes
    assert "turned upright by its EXIF orientation" not in plain.notes
