"""A joint over the visits of a patient: how far it narrowed, how sure that is, and a verdict.

The error of one measurement between real visits was told by joints with three visits: A to B and B
to C must add up to A to C (docs/explanation/jsn.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blsgan.io.tables import signed
from blsgan.joint.window import TYPICAL_BONE_WIDTH_PX

Verdict = Literal["narrowed", "not detectable", "not measurable"]

CLOSURE_PX = 0.78
"""90th percentile of |(A to B) + (B to C) - (A to C)| over 63 validation joints whose pairs are
not flagged, in pixels of the public dataset (`blsgan jsn study --part consistency`)."""

STANDARD_ERROR_SHARE = CLOSURE_PX / (1.645 * math.sqrt(3)) / TYPICAL_BONE_WIDTH_PX
"""Standard error of a narrowing between real visits, over the bones' width: three independent
normal errors that add up to :data:`CLOSURE_PX` in one of ten cases."""

COPY_ERROR_PX = 0.05
"""What a turned, shifted and noisy copy of a picture seems to have narrowed by, whatever the size
of its bones: no standard error is below."""

MOST_TILT_DEG = 8.0
"""Bones that turned against each other by more lie otherwise than before, or are subluxed."""

MOST_SIDEWAYS_SHARE = 0.06
"""Nor may one have moved across the joint by more than this share of its width."""

WIDTH_TOLERANCE_SHARE = 0.035
"""Of the bones' width: what predicted masks may say of the joint space's change beside the bones'
movement. Half of 41 pairs of validation joints, masks predicted, differ by more than 0.009, one in
twenty by more than 0.034."""

_CONTRADICTION = 3.0  # or smallest detectable differences, where these are more


@dataclass(frozen=True)
class Pair:
    """What was measured between two visits of a joint; lengths in px of the earlier one.

    Attributes:
        narrowing_px: see :class:`blsgan.jsn.quantification.Measurement`.
        disagreement_px: of there and back.
        sideways_px, tilt_deg: of the lower bone against the upper one.
        widths_px: mean joint space width of both visits, None where there is none.
        bone_width_px: of the earlier visit.
        problems: why it is a mismatch; empty for a measurement.
        doubtful: whether one of the masks is.
        identical: whether both visits are one file.
    """

    narrowing_px: float
    disagreement_px: float
    sideways_px: float
    tilt_deg: float
    widths_px: tuple[float | None, float | None]
    bone_width_px: float
    problems: tuple[str, ...] = ()
    doubtful: bool = False
    identical: bool = False


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on.

    Attributes:
        verdict: ``narrowed`` only where the narrowing is larger than what can be detected and
            nothing speaks against the measurement.
        standard_error_px: of the narrowing.
        detectable_px: the smallest detectable difference, 1.96 sqrt(2) standard errors.
        flags: what a reader should look at.
    """

    verdict: Verdict
    standard_error_px: float
    detectable_px: float
    flags: tuple[str, ...]


def judge(pair: Pair) -> Judgement:
    """The verdict on one joint between two visits."""
    if pair.identical:
        return Judgement(
            "not detectable", 0.0, 0.0, ("both visits are the same file: the narrowing is 0",)
        )
    error = math.hypot(
        STANDARD_ERROR_SHARE * pair.bone_width_px, COPY_ERROR_PX, pair.disagreement_px / 2
    )
    detectable = 1.96 * math.sqrt(2) * error
    flags = list(pair.problems)
    spoiling = bool(pair.problems)
    if abs(pair.tilt_deg) > MOST_TILT_DEG:
        spoiling = True
        flags.append(
            f"the bones turned {abs(pair.tilt_deg):.0f} degrees against each other: another "
            "position, or a subluxation"
        )
    if abs(pair.sideways_px) > MOST_SIDEWAYS_SHARE * pair.bone_width_px:
        spoiling = True
        flags.append(
            f"the bones moved {abs(pair.sideways_px):.1f} px across the joint: another position, "
            "or a subluxation"
        )
    if pair.doubtful:
        flags.append("masks of a visit are doubtful")
    earlier, later = pair.widths_px
    if earlier is not None and later is not None:
        change = earlier - later
        tolerance = max(_CONTRADICTION * detectable, WIDTH_TOLERANCE_SHARE * pair.bone_width_px)
        if abs(change - pair.narrowing_px) > tolerance:
            spoiling = True
            flags.append(
                f"the width of the masks says {signed(change, 2)} px where the bones say "
                f"{signed(pair.narrowing_px, 2)} px"
            )
    if -pair.narrowing_px > detectable:
        flags.append("the joint space seems to have widened: another position, more likely")
    if spoiling:
        return Judgement("not measurable", error, detectable, tuple(flags))
    narrowed = pair.narrowing_px > detectable
    return Judgement("narrowed" if narrowed else "not detectable", error, detectable, tuple(flags))


def order(dates: Sequence[str | None]) -> tuple[list[int], str | None]:
    """Indices of visits in time, and a note where that is not the order given.

    Args:
        dates: YYYYMMDD of each visit, None where it is not known; only where all are known do they
            decide.
    """
    given = list(range(len(dates)))
    known = [date for date in dates if date is not None]
    if len(known) < len(dates):
        note = None
        if known:
            note = "not every visit has a date, so the visits are in the order given"
        return given, note
    by_date = sorted(given, key=lambda index: (known[index], index))
    return by_date, None if by_date == given else "the visits were put in the order of their dates"
