"""How well measured displacements agree with known ones, or with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MISMATCH_PX = 1.0
"""A measurement farther than this from the truth is a mismatch, as is one that failed."""


@dataclass(frozen=True)
class Agreement:
    """Errors of measurements whose truth is known, in px.

    Attributes:
        count: measurements that were tried.
        mismatches: those that failed, or erred by more than 1 px. ``mean_error_px`` to ``icc`` are
            over the others.
        flagged: those that said themselves that they failed.
        mean_error_px: mean of measured minus true (the bias).
        sd_px: standard deviation of the error (N - 1).
        sdd_px: smallest detectable difference, 1.96 * sqrt(2) * sd.
        icc: ICC(2,1), measured against true; None where it is not defined.
        median_abs_px: median of the error's size.
    """

    count: int
    mismatches: int
    flagged: int
    mean_error_px: float | None
    sd_px: float | None
    sdd_px: float | None
    icc: float | None
    median_abs_px: float | None

    @property
    def mismatch_rate(self) -> float:
        """Mismatches over all measurements, 0..1; NaN where there were none."""
        return self.mismatches / self.count if self.count else math.nan

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "mismatch_rate": self.mismatch_rate if self.count else None}


@dataclass(frozen=True)
class BlandAltman:
    """Bias of the differences and the limits that hold 95 % of them: bias +- 1.96 sd."""

    bias: float
    sd: float
    low: float
    high: float


def agreement(
    measured: Sequence[float], true: Sequence[float], failed: Sequence[bool]
) -> Agreement:
    """Compare measured with true displacements (px); ``failed`` marks those that were flagged.

    Raises:
        ValueError: the three differ in length.
    """
    if not len(measured) == len(true) == len(failed):
        raise ValueError(f"{len(measured)} measurements, {len(true)} truths, {len(failed)} flags")
    values, truth = np.asarray(measured, np.float64), np.asarray(true, np.float64)
    flagged = np.asarray(failed, np.bool_)
    error = values - truth
    good = ~flagged & (np.abs(error) <= MISMATCH_PX)
    count, mismatches = len(values), int(np.count_nonzero(~good))
    if not good.any():
        return Agreement(count, mismatches, int(flagged.sum()), None, None, None, None, None)
    error = error[good]
    sd = float(error.std(ddof=1)) if len(error) > 1 else None
    return Agreement(
        count,
        mismatches,
        int(flagged.sum()),
        float(error.mean()),
        sd,
        None if sd is None else smallest_detectable_difference(sd),
        icc_2_1(np.stack((values[good], truth[good]), axis=1)),
        float(np.median(np.abs(error))),
    )


def smallest_detectable_difference(sd: float) -> float:
    """1.96 * sqrt(2) * sd: what two measurements of one thing differ by in 5 % of cases."""
    return 1.96 * math.sqrt(2) * sd


def icc_2_1(ratings: np.ndarray) -> float | None:
    """Intraclass correlation ICC(2,1): two-way random effects, absolute agreement, single rater.

    Shrout & Fleiss, Psychological Bulletin 1979, from the mean squares of a two-way analysis of
    variance. ``ratings`` [subjects,raters]; None for fewer than 2 of either, or where nothing
    varies.
    """
    subjects, raters = ratings.shape
    if subjects < 2 or raters < 2:
        return None
    grand = ratings.mean()
    rows, columns = ratings.mean(axis=1), ratings.mean(axis=0)
    between_rows = raters * np.square(rows - grand).sum() / (subjects - 1)
    between_columns = subjects * np.square(columns - grand).sum() / (raters - 1)
    rest = ratings - rows[:, None] - columns + grand
    error = np.square(rest).sum() / ((subjects - 1) * (raters - 1))
    total = between_rows + (raters - 1) * error + raters * (between_columns - error) / subjects
    return float((between_rows - error) / total) if total > 0 else None


def bland_altman(first: Sequence[float], second: Sequence[float]) -> BlandAltman | None:
    """Limits of agreement of paired measurements; None for fewer than two pairs.

    Bland & Altman, Lancet 1986.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if len(difference) < 2:
        return None
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    return BlandAltman(bias, sd, bias - 1.96 * sd, bias + 1.96 * sd)
