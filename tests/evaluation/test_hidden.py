"""Estimators of hidden bones' errors, on phantoms whose noise, line and error are known."""

import numpy as np
import pytest

from blsgan.evaluation.hidden import (
    OUTLINE_EDGES_PX,
    border_distance_px,
    corrected_error,
    error_db,
    one_radiograph_error,
    outline_bias,
    pooled_db,
    ring_of,
)

SIZE = 96
NOISE = 0.04


@pytest.fixture
def masks():
    """Two blocks that share rows 40 to 55."""
    masks = np.zeros((2, SIZE, SIZE), bool)
    masks[0, 10:56, 8:88] = True
    masks[1, 40:90, 8:88] = True
    return masks


@pytest.fixture
def random():
    return np.random.default_rng(7)


def test_distance_counts_rows_from_the_border(masks):
    upper, lower = (border_distance_px(masks, bone) for bone in range(2))
    np.testing.assert_allclose(upper[36:44, 40], [3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.5])
    np.testing.assert_allclose(lower[52:60, 40], [-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    assert np.isnan(upper[70, 40])
    assert np.isnan(upper[0, 0])


def test_without_an_overlap_there_is_no_border(masks):
    masks[1, :60] = False
    assert np.isnan(border_distance_px(masks, 0)).all()
    assert not ring_of(masks, 0).any()


def test_the_ring_is_five_free_rows(masks):
    assert set(np.nonzero(ring_of(masks, 0))[0]) == {35, 36, 37, 38, 39}


def test_a_known_line_is_found_through_the_truths_noise(masks, random):
    bone = np.full((SIZE, SIZE), 0.5)
    layer = bone.copy()
    layer[38] += 0.05  # 1.5 px beside the overlap
    distance = border_distance_px(masks, 0)
    found = np.mean(
        [
            outline_bias(layer, bone + random.normal(0, NOISE, bone.shape), distance, masks[0])
            for _ in range(50)
        ],
        axis=0,
    )
    expected = np.where(OUTLINE_EDGES_PX[:-1] == 1, 0.05, 0)
    np.testing.assert_allclose(found, expected, atol=4 * NOISE / np.sqrt(50 * 80))


def test_a_bin_without_pixels_has_no_bias(masks):
    distance = border_distance_px(masks, 0)
    bias = outline_bias(np.ones((SIZE, SIZE)), np.zeros((SIZE, SIZE)), distance, distance > 0)
    assert np.isnan(bias[:4]).all()
    np.testing.assert_array_equal(bias[4:], 1)


def test_the_truths_noise_leaves_the_corrected_error(random):
    bone = random.uniform(0.3, 0.7, (200, 200))
    error = random.normal(0, 0.03, bone.shape)
    first, second = (bone + random.normal(0, NOISE, bone.shape) for _ in range(2))
    where = np.ones(bone.shape, bool)
    corrected = corrected_error(bone + error, first, second, where)
    assert corrected == pytest.approx(np.mean(error**2), rel=0.05)
    plain = np.mean((bone + error - first) ** 2)
    assert plain == pytest.approx(np.mean(error**2) + NOISE**2, rel=0.05)
    assert one_radiograph_error(first, second, where) == pytest.approx(NOISE**2, rel=0.05)


def test_a_perfect_layer_has_errors_of_both_signs(random):
    bone = np.full((20, 20), 0.5)
    where = np.ones(bone.shape, bool)
    errors = [
        corrected_error(bone, *(bone + random.normal(0, NOISE, (2, 20, 20))), where)
        for _ in range(200)
    ]
    assert min(errors) < 0 < max(errors)
    assert abs(np.mean(errors)) < 4 * NOISE**2 / np.sqrt(200 * 400)


def test_no_shared_pixel_is_an_error():
    plane = np.zeros((4, 4))
    for estimator in (
        lambda w: corrected_error(plane, plane, plane, w),
        lambda w: one_radiograph_error(plane, plane, w),
    ):
        with pytest.raises(ValueError, match="no pixel"):
            estimator(np.zeros((4, 4), bool))


def test_errors_are_pooled_before_the_logarithm():
    interval = pooled_db([0.01, -0.005, 0.001], ["a", "b", "c"])
    assert interval.mean == pytest.approx(-10 * np.log10(0.002))
    assert interval.low < interval.mean < interval.high == 100
    assert error_db(-1) == 100


def test_intervals_are_over_joints(random):
    errors = np.repeat(random.uniform(0.001, 0.01, 8), 10)
    many = pooled_db(errors, [str(i) for i in range(80)])
    few = pooled_db(errors, [str(i // 10) for i in range(80)])
    assert few.high - few.low > 2 * (many.high - many.low)


def test_paired_gains_leave_out_what_both_methods_share(random):
    shared = random.uniform(0.002, 0.02, 60)
    joints = [str(i) for i in range(60)]
    gain = pooled_db(shared / 2, joints, minus=shared)
    assert gain.mean == pytest.approx(10 * np.log10(2))
    assert gain.high - gain.low < 1e-9
    with pytest.raises(ValueError, match="errors for"):
        pooled_db(shared, joints, minus=shared[:-1])
