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


def ssim_map(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity at every pixel (Wang et al., 2004), [N,H,W] or [H,W] like the inputs.

    11x11 Gaussian window of sigma 1.5, population covariances, constants 0.01 and 0.03, data range
    1; images must measure at least 11x11 px.
    """
    if predicted.ndim == 3:
        return np.stack([ssim_map(p, t) for p, t in zip(predicted, truth, strict=True)])
    return structural_similarity(
        predicted.astype(np.float64), truth.astype(np.float64), data_range=1.0,
        gaussian_weights=True, sigma=SSIM_SIGMA_PX, use_sample_covariance=False, full=True,
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
    data = np.asarray(values, np.float64)
    if data.size == 0 or data.shape != (len(groups),):
        raise ValueError(f"{data.size} values for {len(groups)} groups")
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    count = np.bincount(index).astype(np.float64)
    total = np.bincount(index, weights=data)
    draws = np.random.default_rng(seed).integers(0, len(count), size=(resamples, len(count)))
    means = total[draws].sum(axis=1) / count[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high))
