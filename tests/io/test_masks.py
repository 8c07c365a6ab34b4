"""Masks: what is one, and what is refused rather than misread."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from blsgan.errors import InputError
from blsgan.io.files import read_file
from blsgan.io.masks import decode_masks

SIZE = (64, 80)


def blob(top, bottom, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top:bottom, 20:60] = True
    return mask


UPPER, LOWER = blob(5, 36), blob(30, 60)


def read_masks(upper, lower, size):
    return decode_masks(read_file(upper, what="mask"), read_file(lower, what="mask"), size)


@pytest.fixture
def save(tmp_path):
    def write(values, name="upper.png", **options):
        path = tmp_path / name
        (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(
            path, **options
        )
        return path

    return write


@pytest.fixture
def lower(save):
    return save(LOWER.astype(np.uint8) * 255, "lower.bmp")


@pytest.mark.parametrize(
    "values",
    [
        UPPER.astype(np.uint8) * 255,
        UPPER.astype(np.uint8),
        UPPER.astype(np.uint8) * 128,
        UPPER.astype(np.uint16) * 65535,
        UPPER,
        np.stack([UPPER.astype(np.uint8) * 255] * 3, axis=-1),
        Image.fromarray(UPPER.astype(np.uint8) * 255).convert("P"),
    ],
    ids=["0/255", "0/1", "0/128", "16 bit", "1 bit", "grey RGB", "palette"],
)
def test_encodings_of_one_mask(save, lower, values):
    pair = read_masks(save(values), lower, SIZE)
    assert pair.masks.dtype == np.bool_
    np.testing.assert_array_equal(pair.masks, np.stack([UPPER, LOWER]))
    assert len(set(pair.sha256)) == 2


def test_soft_edges_are_cut_at_half(save, lower):
    picture = Image.fromarray(UPPER.astype(np.uint8) * 255)
    soft = picture.filter(ImageFilter.GaussianBlur(0.7))
    np.testing.assert_array_equal(read_masks(save(soft), lower, SIZE).masks[0], UPPER)
    jpeg = save(picture, "upper.jpg", quality=85)
    assert (read_masks(jpeg, lower, SIZE).masks[0] == UPPER).mean() > 0.995


def test_another_size_says_both(save, lower):
    path = save(blob(1, 5, (50, 70)).astype(np.uint8) * 255)
    with pytest.raises(InputError, match=r"upper\.png is 70x50 but the image is 80x64"):
        read_masks(path, lower, SIZE)


def test_empty(save, lower):
    with pytest.raises(InputError, match=r"upper\.png is empty"):
        read_masks(save(np.zeros(SIZE, np.uint8)), lower, SIZE)


@pytest.mark.parametrize("value", [1, 255])
def test_covers_everything(save, lower, value):
    with pytest.raises(InputError, match=r"upper\.png covers everything"):
        read_masks(save(np.full(SIZE, value, np.uint8)), lower, SIZE)


def test_covers_everything_after_thresholding(save, lower):
    values = np.full(SIZE, 250, np.uint8)
    values[0, 0] = 251
    with pytest.raises(InputError, match="covers everything"):
        read_masks(save(values), lower, SIZE)


def test_together_they_cover_everything(save, lower):
    with pytest.raises(InputError, match="together cover every pixel"):
        read_masks(save((~LOWER).astype(np.uint8) * 255), lower, SIZE)


def test_not_binary(save, lower):
    ramp = np.tile(np.linspace(0, 255, SIZE[1]), (SIZE[0], 1)).astype(np.uint8)
    with pytest.raises(InputError, match="not a black and white mask"):
        read_masks(save(ramp), lower, SIZE)
    labels = UPPER.astype(np.uint8) + LOWER  # 0, 1, 2: a label map, not a mask
    with pytest.raises(InputError, match="values run from 0 to 2"):
        read_masks(save(labels), lower, SIZE)


def test_nan(save, lower):
    values = UPPER.astype(np.float32)
    values[0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        read_masks(save(values, "upper.tif"), lower, SIZE)


def test_the_same_mask_twice(save, lower):
    with pytest.raises(InputError, match="the same mask"):
        read_masks(save(LOWER.astype(np.uint8)), lower, SIZE)


def test_no_overlap_is_fine(save, lower):
    assert read_masks(save(blob(5, 20).astype(np.uint8)), lower, SIZE).masks.any(axis=(1, 2)).all()


def test_missing_and_damaged(save, lower, tmp_path):
    with pytest.raises(InputError, match="check the path of the mask"):
        read_masks(tmp_path / "none.png", lower, SIZE)
    path = save(UPPER.astype(np.uint8) * 255)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="damaged"):
        read_masks(path, lower, SIZE)
