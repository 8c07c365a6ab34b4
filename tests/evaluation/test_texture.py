"""Texture of phantoms whose spectrum is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from blsgan.evaluation.texture import texture_ratio


@pytest.fixture
def masks():
    masks = np.zeros((2, 160, 160), bool)
    masks[0, :100, 20:140] = True
    masks[1, 80:, 60:100] = True  # hides the middle of the upper bone's end
    return masks


@pytest.fixture
def noise():
    return np.random.default_rng(3).normal(0.5, 0.05, (160, 160))


def test_the_same_texture_everywhere_is_one(masks, noise):
    assert texture_ratio(noise, masks, 0) == pytest.approx(1, abs=0.15)


def test_the_ratio_is_one_of_power(masks, noise):
    overlap = masks[0] & masks[1]
    louder = np.where(overlap, 0.5 + 2 * (noise - 0.5), noise)
    assert texture_ratio(louder, masks, 0) == pytest.approx(4, abs=0.6)


def test_a_blur_is_found_and_a_slope_is_none(masks, noise):
    overlap = masks[0] & masks[1]
    blurred = np.where(overlap, gaussian_filter(noise, 2), noise)
    assert texture_ratio(blurred, masks, 0) < 0.2
    slope = np.linspace(0, 0.3, 160)[:, None]
    assert texture_ratio(noise + slope, masks, 0) == pytest.approx(1, abs=0.2)


def test_a_rim_with_more_texture_is_compared_with_the_rim_beside(masks, noise):
    noisy_rim = noise.copy()
    noisy_rim[88:100] = 0.5 + 3 * (noise[88:100] - 0.5)
    # Its sides, as deep below the outline, are not noisy: 1 within a half; power differs by 9.
    assert texture_ratio(noisy_rim, masks, 0) == pytest.approx(1, abs=0.5)


def test_too_little_overlap_has_no_ratio(masks, noise):
    assert texture_ratio(noise, masks, 0, np.zeros((160, 160), bool)) is None
    masks[1, :100] = False
    assert texture_ratio(noise, masks, 0) is None
