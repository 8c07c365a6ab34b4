"""Metrics against hand computations and against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from blsgan.evaluation.metrics import (
    PSNR_CEILING_DB,
    SPECTRUM_EDGES,
    bootstrap_balanced_mean,
    bootstrap_mean,
    bucket_of,
    error_spectrum,
    psnr_db,
    region_mse,
    score_regions,
    ssim_map,
)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(2, 48, 56))
    return np.clip(truth + 0.1 * rng.standard_normal(truth.shape), 0, 1), truth


def test_region_mse_by_hand():
    predicted = np.array([[[0.5, 0.0]], [[0.2, 0.9]]])
    truth = np.array([[[0.1, 1.0]], [[0.4, 0.9]]])
    first = np.array([[True, False]])
    assert region_mse(predicted, truth, first) == pytest.approx((0.16 + 0.04) / 2)
    assert region_mse(predicted[0], truth[0], np.array([[True, True]])) == pytest.approx(1.16 / 2)


def test_region_mse_counts_float32_in_float64():
    truth = np.zeros((1, 1000, 1000), np.float32)
    predicted = np.full_like(truth, 1e-4)
    everywhere = np.ones((1000, 1000), bool)
    assert region_mse(predicted, truth, everywhere) == pytest.approx(1e-8, rel=1e-6)


@pytest.mark.parametrize(
    ("predicted", "region"),
    [((2, 4, 4), (4, 5)), ((1, 4, 4), (4, 4)), ((2, 4, 4), (4, 4))],
)
def test_region_mse_refuses_what_has_no_value(predicted, region):
    with pytest.raises(ValueError, match=r"fit|empty"):
        region_mse(np.zeros(predicted), np.zeros((2, 4, 4)), np.zeros(region, bool))


def test_psnr_by_hand_and_against_scikit_image(pair):
    assert psnr_db(0.01) == pytest.approx(20)
    assert psnr_db(0.0) == PSNR_CEILING_DB
    predicted, truth = pair
    mse = region_mse(predicted, truth, np.ones(truth.shape[1:], bool))
    expected = peak_signal_noise_ratio(truth, predicted, data_range=1)
    assert psnr_db(mse) == pytest.approx(expected)
    with pytest.raises(ValueError, match="squared"):
        psnr_db(float("nan"))


def test_ssim_is_scikit_images_with_an_11_pixel_window(pair):
    predicted, truth = pair
    similarity = ssim_map(predicted, truth)
    mean, _ = structural_similarity(
        predicted[0],
        truth[0],
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # scikit-image's own mean leaves out the border of half a window.
    assert similarity[0, 5:-5, 5:-5].mean() == pytest.approx(mean)
    moved = predicted.copy()
    moved[0, 24, 28] += 0.5
    changed = np.argwhere(np.abs(ssim_map(moved, truth)[0] - similarity[0]) > 0)
    assert changed.min(axis=0).tolist() == [24 - 5, 28 - 5]
    assert changed.max(axis=0).tolist() == [24 + 5, 28 + 5]


def test_ssim_by_hand_at_one_pixel(pair):
    predicted, truth = pair
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window)
    window /= window.sum()
    a, b = predicted[1, 15:26, 20:31], truth[1, 15:26, 20:31]
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a = (window * a * a).sum() - mean_a**2
    var_b = (window * b * b).sum() - mean_b**2
    cov = (window * a * b).sum() - mean_a * mean_b
    expected = ((2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)) / (
        (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    )
    assert ssim_map(predicted, truth)[1, 20, 25] == pytest.approx(expected, rel=1e-9)


def test_regions_are_scored_apart(pair):
    predicted, truth = pair
    left = np.zeros(truth.shape[1:], bool)
    left[:, :20] = True
    predicted = np.where(left, truth, predicted)
    scores = score_regions(predicted, truth, {"left": left, "right": ~left})
    assert scores["left"].mse == 0
    assert scores["left"].psnr_db == PSNR_CEILING_DB
    assert scores["right"].mse == pytest.approx(region_mse(predicted, truth, ~left))
    assert scores["left"].ssim > scores["right"].ssim


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (0, None),
        (19, None),
        (20, "20-199"),
        (199, "20-199"),
        (200, "200-499"),
        (499, "200-499"),
        (500, "500-999"),
        (999, "500-999"),
        (1000, ">=1000"),
        (10**6, ">=1000"),
    ],
)
def test_buckets(size, name):
    assert bucket_of(size) == name


def test_bootstrap_resamples_joints():
    rng = np.random.default_rng(1)
    joints = np.repeat(np.arange(40), 5)
    values = rng.standard_normal(40)[joints] + 0.01 * rng.standard_normal(200)
    by_joint = bootstrap_mean(values, [str(j) for j in joints])
    by_image = bootstrap_mean(values, [str(i) for i in range(200)])
    assert by_joint.mean == pytest.approx(values.mean())
    width, narrow = by_joint.high - by_joint.low, by_image.high - by_image.low
    assert width == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.3)
    assert width > 1.7 * narrow


def test_bootstrap_is_seeded_and_degenerate_without_variation():
    again = [bootstrap_mean([1.0, 2.0, 4.0], ["a", "b", "c"], seed=3) for _ in range(2)]
    assert again[0] == again[1]
    one = bootstrap_mean([1.0, 3.0], ["a", "a"])
    assert (one.low, one.mean, one.high) == (2, 2, 2)
    with pytest.raises(ValueError, match="values"):
        bootstrap_mean([], [])
    with pytest.raises(ValueError, match="values"):
        bootstrap_mean([1.0], ["a", "b"])


def test_metrics_are_torchmetrics(pair):
    """Two libraries, one answer: scikit-image makes our maps, torchmetrics checks them."""
    pytest.importorskip("torchmetrics")
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio as their_psnr,
    )
    from torchmetrics.functional.image import (
        structural_similarity_index_measure as their_ssim,
    )

    predicted, truth = (torch.from_numpy(images)[:, None] for images in pair)
    everywhere = np.ones(pair[0].shape[1:], bool)
    mse = region_mse(*pair, everywhere)
    assert psnr_db(mse) == pytest.approx(float(their_psnr(predicted, truth, data_range=1.0)))
    _, theirs = their_ssim(predicted, truth, sigma=1.5, data_range=1.0, return_full_image=True)
    ours = ssim_map(*pair)
    inner = (..., slice(10, -10), slice(10, -10))  # they pad by reflection of another kind
    np.testing.assert_allclose(theirs.numpy()[:, 0][inner], ours[inner], atol=1e-6)


def test_spectrum_adds_up_to_the_error(pair):
    region = np.zeros((48, 56), bool)
    region[10:20, 5:50] = True
    region[12, 7] = False
    bands = error_spectrum(*pair, region)
    assert bands.shape == (len(SPECTRUM_EDGES) - 1,)
    assert bands.min() >= 0
    assert bands.sum() == pytest.approx(region_mse(*pair, region), rel=1e-12)
    assert not error_spectrum(pair[0], pair[0], region).any()
    np.testing.assert_allclose(
        error_spectrum(pair[0][0], pair[1][0], region).sum(),
        region_mse(pair[0][0], pair[1][0], region),
    )


@pytest.mark.parametrize("cycles", [4, 9, 20, 31])
def test_a_wave_has_its_frequency(cycles):
    wave = np.sin(2 * np.pi * cycles * np.arange(64) / 64)
    error = np.broadcast_to(0.1 * wave, (64, 64))
    bands = error_spectrum(error, np.zeros((64, 64)), np.ones((64, 64), bool))
    band = np.digitize(cycles / 64, SPECTRUM_EDGES) - 1
    assert bands[band] > 0.99 * bands.sum()


def test_balanced_mean_weighs_parts_alike_and_resamples_them_together():
    parts = [([10.0] * 30, ["a"] * 30), ([20.0], ["b"])]
    assert bootstrap_balanced_mean(parts).mean == 15
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(50)
    names = [str(i) for i in range(50)]
    opposite = bootstrap_balanced_mean([(shared, names), (-shared, names)])
    assert (opposite.low, opposite.high) == (pytest.approx(0), pytest.approx(0))
    alike = bootstrap_balanced_mean([(shared, names), (shared, names)])
    assert alike == bootstrap_mean(shared, names)
    with pytest.raises(ValueError, match="values"):
        bootstrap_balanced_mean([])
    with pytest.raises(ValueError, match="values"):
        bootstrap_balanced_mean([([1.0], ["a"]), ([], [])])
