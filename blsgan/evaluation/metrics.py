"""Errors of layers over a region, their averages over images, and how sure an average is.

Everything here is float64 NumPy, so that a figure does not depend on the backend that made the
layers. The data range of every metric is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from skimage.metrics import structural_similarity

# Overlap size in px at 256x256, both ends included (the paper's figure 3).
BUCKETS: tuple[tuple[int, int | None], ...] = ((20, 199), (200, 499), (500, 999), (1000, None))
# PSNR of a perfect region is infinite and would swallow every mean: it counts as this much.
PSNR_CEILING_DB = 100.0
SSIM_SIGMA_PX = 1.5  # with scikit-image's truncation at 3.5 sigma: an 11x11 window


def bucket_name(bucket: tuple[int, int | None]) -> str:
    """``20-199``, ``>=1000``."""
    low, high = bucket
    return f">={low}" if high is None else f"{low}-{high}"


def bucket_of(overlap_px: int) -> str | None:
    """The name of the size class of an overlap; None below 20 px."""
    for low, high in BUCKETS:
        if overlap_px >= low and (high is None or overlap_px <= high):
            return bucket_name((low, high))
    return None


def psnr_db(mse: float) -> float:
    """Peak signal-to-noise ratio for data range 1, at most 100 dB."""
    if not mse >= 0:
        raise ValueError(f"a mean squared error is >= 0, not {mse}")
    return PSNR_CEILING_DB if mse < 10 ** (-PSNR_CEILING_DB / 10) else float(-10 * np.log10(mse))


def region_mse(predicted: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """Mean squared error over the pixels of a region, all layers together.

    Args:
        predicted, truth: [N,H,W] or [H,W], one shape.
        region: bool [H,W], at least one pixel.
    """
    if predicted.shape != truth.shape or region.shape != truth.shape[-2:]:
        raise ValueError(f"shapes {predicted.shape}, {truth.shape} and {region.shape} do not fit")
    if not region.any():
        raise ValueError("the region is empty: an error over no pixels has no value")
    difference = predicted[..., region].astype(np.float64) - truth[..., region]
    return float(np.mean(difference**2))


# Spatial frequency in cycles per pixel: edges of the bands of an error spectrum, up to the corners
# of the frequency plane (0.5 along both axes).
SPECTRUM_EDGES = np.linspace(0.0, np.sqrt(0.5), 24)
_SPECTRUM_LEAST_PX = 64  # smaller regions are padded to this: no band is without frequencies


def error_spectrum(predicted: np.ndarray, truth: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The mean squared error over a region, split by spatial frequency.

    The error is set to 0 outside the region and Fourier transformed; by Parseval's theorem the
    bands add up to :func:`region_mse`. The region's outline spreads every band a little, alike for
    every method.

    Args:
        predicted, truth: [N,H,W] or [H,W], one shape.
        region: bool [H,W], at least one pixel.

    Returns:
        float64 [23], one value for each band of ``SPECTRUM_EDGES``.
    """
    total = region_mse(predicted, truth, region)  # for its checks, and to scale by
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    error = np.where(region, predicted.astype(np.float64) - truth, 0)
    error = error[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    size = [max(length, _SPECTRUM_LEAST_PX) for length in error.shape[-2:]]
    power = np.abs(np.fft.fft2(error, size)) ** 2
    power = power.reshape(-1, *size).sum(axis=0)
    radius = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None])
    band = np.minimum(np.digitize(radius, SPECTRUM_EDGES) - 1, len(SPECTRUM_EDGES) - 2)
    bands = np.bincount(band.ravel(), power.ravel(), len(SPECTRUM_EDGES) - 1)
    return bands * (total / bands.sum()) if total > 0 else bands


def ssim_map(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity at every pixel (Wang et al., 2004), [N,H,W] or [H,W] like the inputs.

    11x11 Gaussian window of sigma 1.5, population covariances, constants 0.01 and 0.03, data range
    1; images must measure at least 11x11 px.
    """
    if predicted.ndim == 3:
        return np.stack([ssim_map(p, t) for p, t in zip(predicted, truth, strict=True)])
    return structural_similarity(
        predicted.astype(np.float64),
        truth.astype(np.float64),
        data_range=1.0,
        gaussian_weights=True,
        sigma=SSIM_SIGMA_PX,
        use_sample_covariance=False,
        full=True,
    )[1]


@dataclass(frozen=True)
class RegionScore:
    """Errors over one region of one image."""

    mse: float
    psnr_db: float
    ssim: float


def score_regions(
    predicted: np.ndarray, truth: np.ndarray, regions: dict[str, np.ndarray]
) -> dict[str, RegionScore]:
    """All three metrics over several regions of one image; the SSIM map is computed once.

    Args:
        predicted, truth: [N,H,W] in [0,1].
        regions: name -> bool [H,W], none empty.
    """
    similarity = ssim_map(predicted, truth)
    scores = {}
    for name, region in regions.items():
        mse = region_mse(predicted, truth, region)
        ssim = float(similarity[..., region].mean())
        scores[name] = RegionScore(mse, psnr_db(mse), ssim)
    return scores


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


def bootstrap_balanced_mean(
    parts: Sequence[tuple[Sequence[float] | np.ndarray, Sequence[str]]],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """The mean of several means (of the upper and of the lower bone), each over its own values.

    Whole joints are resampled, for all parts at once. A draw without any value of a part says
    nothing about it and is left out of the interval.

    Args:
        parts: for each mean its values and the joint of each value.
        seed: of the resampling.
        resamples: number of bootstrap draws.

    Raises:
        ValueError: no part, a part without values, or as many groups as there are not values.
    """
    data = [np.asarray(values, np.float64) for values, _ in parts]
    if not data or any(
        d.size == 0 or d.shape != (len(groups),) for d, (_, groups) in zip(data, parts, strict=True)
    ):
        raise ValueError(f"{[d.size for d in data]} values for {[len(g) for _, g in parts]} groups")
    names, index = np.unique(np.concatenate([groups for _, groups in parts]), return_inverse=True)
    draws = np.random.default_rng(seed).integers(0, len(names), size=(resamples, len(names)))
    means, start = np.zeros(resamples), 0
    for values in data:
        own = index[start : start + len(values)]
        start += len(values)
        count = np.bincount(own, minlength=len(names)).astype(np.float64)[draws].sum(axis=1)
        total = np.bincount(own, values, len(names))[draws].sum(axis=1)
        means += np.divide(total, count, out=np.full(resamples, np.nan), where=count > 0)
    means = means[np.isfinite(means)] / len(data)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean([d.mean() for d in data])), float(low), float(high))


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Mean over images with a percentile interval from resampling whole joints.

    Visits of one joint look alike; drawing images instead of joints would make the interval too
    narrow.

    Args:
        values: one per image, finite.
        groups: the joint of each image.
        seed: of the resampling.
        resamples: number of bootstrap draws.

    Raises:
        ValueError: no values, or as many groups as there are not values.
    """
    return bootstrap_balanced_mean([(values, groups)], seed=seed, resamples=resamples)
