"""What is written is what every reader of PNG reads."""

import cv2
import numpy as np
import pytest
from PIL import Image

from blsgan.io.png import _BLOCK_BYTES, write_png

SHAPES = [(1, 1), (3, 5), (_BLOCK_BYTES // 4, 4), (_BLOCK_BYTES // 3 * 2 + 1, 3), (2, 2**17)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("uint16", 1), ("uint8", 3)])
def test_every_reader_reads_what_was_written(tmp_path, shape, dtype, channels):
    full = (*shape, 3) if channels == 3 else shape
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, full).astype(dtype)
    path = tmp_path / "a.png"
    write_png(path, pixels)
    with Image.open(path) as picture:
        assert "dpi" not in picture.info
        np.testing.assert_array_equal(np.asarray(picture).astype(dtype), pixels)
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read[..., ::-1] if channels == 3 else read, pixels)


def test_pixels_have_their_size(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8), pixel_mm=(0.1, 0.2))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["dpi"] == pytest.approx((254, 127))
