"""One side's joints between its visits: registered, measured and judged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.anatomy import JOINTS, LANDMARKS, PROMISED, Side
from blsgan.errors import InputError
from blsgan.hands.visits import Pair, judge
from blsgan.io.spacing import PixelSpacing
from blsgan.joint.geometry import around, cut
from blsgan.jsn.registration import read_registered
from blsgan.jsn.visits import (
    PairResult,
    RadiographVisit,
    VisitFiles,
    measure_pair,
    read_visit,
    separated,
)
from blsgan.pipeline.hand import HandResult
from blsgan.records.hand import HandRecord
from blsgan.records.hand_visits import JointInterval
from blsgan.records.narrowing import ReadOptions
from blsgan.tasks.joints import LEAST_LANDMARK, side_by_thumb
from blsgan.tasks.separation import Separator

LEAST_WIDTH_PX = 90.0
"""Of bones: smaller ones are measured on an enlarged picture. Between copies of a hand whose bones
are 45 px wide, with noise of a grey level, MCP joints then differ by at most 0.04 px of it, else by
up to 0.13."""

LEAST_EXPERIMENTAL_PX = 45.0
"""Of the bones of PIP and IP joints: smaller ones seem to narrow by up to 0.09 px between noisy
copies, so they are not measured. MCP joints of that size stay within 0.07 px."""

SAME_SIZE = 0.03
"""Hands without pixel spacings that differ by less are left to the fit of the magnification."""

_MOST_ENLARGED = 3
_FEWEST_BONES = 4  # that agree on a magnification
_PICTURE_WIDTHS = 1.3  # side of a joint's picture, in bone widths

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Scale:
    """Of a later visit against an earlier one.

    Attributes:
        pixel: side of its pixels in pixels of the earlier one.
        fit: whether every bone also fits a magnification of its own.
    """

    pixel: float
    fit: bool = False


@dataclass(frozen=True)
class SideVisits:
    """The visits of one side, in time.

    Attributes:
        separator: takes the bones apart.
        hands: of each visit.
        side: which.
        first: the place of the earliest in the record.
        pictures: of (side, joint); what is measured against the first visit is put in.
    """

    separator: Separator
    hands: Sequence[HandResult]
    side: Side
    first: int
    pictures: dict[tuple[str, str], tuple[Grey, Grey]]

    def measure(self, progress: Callable[[str], None]) -> list[JointInterval]:
        """Every joint between consecutive visits, and from the first to each."""
        last = len(self.hands) - 1
        places = [*itertools.pairwise(range(last + 1)), *((0, n) for n in range(2, last + 1))]
        found = []
        for earlier, later in places:
            progress(f"{self.side} hand, visits {earlier + 1} and {later + 1}")
            scale = self._scale(earlier, later)
            found += [self._interval(name, earlier, later, scale) for name in JOINTS]
        return sorted(found, key=lambda one: (JOINTS.index(one.joint), one.later, one.earlier))

    def _scale(self, earlier: int, later: int) -> Scale:
        """By the pixels or the hand's size, and then by what the bones of the MCP joints agree on:
        one that fits a magnification of its own seems to move by the noise of that."""
        records = self.hands[earlier].record, self.hands[later].record
        if _identical(records):
            return Scale(1.0)
        whole = Scale(pixel_ratio(*records), fit=True)
        scales: list[float] = []
        for name in PROMISED:
            if any(record.joints[name].status == "refused" for record in records):
                continue
            try:
                result, _ = self._measured(name, earlier, later, whole)
            except InputError:
                continue
            if not result.record.mismatch:
                found = result.measurement
                scales += [bone.transform.scale for bone in (found.upper, found.lower)]
        if len(scales) < _FEWEST_BONES:
            return replace(whole, fit=not _spaced(records))
        return Scale(whole.pixel / float(np.median(scales)))

    def _measured(
        self, name: str, earlier: int, later: int, scale: Scale
    ) -> tuple[PairResult, int]:
        """The measurement, and how many times larger its pictures are than the visits'."""
        hands = self.hands[earlier], self.hands[later]
        width = min(hand.record.joints[name].bone_width_px for hand in hands)
        times = min(max(math.ceil(LEAST_WIDTH_PX / width), 1), _MOST_ENLARGED)
        spacing = hands[0].record.pixel_spacing_mm
        unit = (1.0 if spacing is None else spacing.column) / times
        visits = [
            replace(
                _enlarged(_read(hand, name), times),
                spacing=PixelSpacing(side, side, "hand"),
                pixel_mm=side,
            )
            for hand, side in zip(hands, (unit, unit * scale.pixel), strict=True)
        ]
        separate = separated(self.separator)
        return measure_pair(visits[0], visits[1], separate, None, fit_scale=scale.fit), times

    def _interval(self, name: str, earlier: int, later: int, scale: Scale) -> JointInterval:
        hands = self.hands[earlier], self.hands[later]
        records = hands[0].record, hands[1].record
        joints = [record.joints[name] for record in records]
        doubtful = any(joint.status == "doubtful" for joint in joints)
        common: dict[str, Any] = {
            "joint": name,
            "side": self.side,
            "experimental": joints[0].experimental,
            "earlier": self.first + earlier,
            "later": self.first + later,
            "status": "doubtful" if doubtful else "ok",
        }
        refused = [
            f"{hand.folder.name}: {'; '.join(joint.reasons)}"
            for hand, joint in zip(hands, joints, strict=True)
            if joint.status == "refused"
        ]
        if refused:
            return JointInterval(
                **{**common, "status": "refused"}, verdict="not measurable", flags=refused
            )
        if len({_thumb(record) for record in records}) > 1:
            flag = (
                "one of the visits shows the other hand, or is mirrored: the thumbs' sides differ"
            )
            return JointInterval(**common, verdict="not measurable", flags=[flag])
        width = min(joint.bone_width_px for joint in joints)
        identical = _identical(records)
        if joints[0].experimental and width < LEAST_EXPERIMENTAL_PX and not identical:
            flag = (
                f"its bones are {width:.0f} px wide in a picture, {LEAST_EXPERIMENTAL_PX:.0f} are "
                "needed of a PIP or IP joint: give it in its full resolution"
            )
            return JointInterval(**common, verdict="not measurable", flags=[flag])
        try:
            result, times = self._measured(name, earlier, later, scale)
        except InputError as error:
            return JointInterval(**common, verdict="not measurable", flags=[str(error)])
        if earlier == 0 and not result.record.mismatch:
            self.pictures[self.side, name] = _pictures(result)
        found = _judged(common, result, times, joints[0].bone_width_px, doubtful, identical)
        if _spaced(records):
            return found
        return found.model_copy(update={"pixel_mm": None, "narrowing_mm": None})

    def notes(self) -> Iterator[str]:
        """Which visits were brought to the scale of the first, or show another side of a hand."""
        first = self.hands[0]
        for hand in self.hands[1:]:
            records = first.record, hand.record
            ratio, size = pixel_ratio(*records), size_ratio(*records)
            if not _spaced(records) and ratio != 1:
                yield (
                    f"{hand.folder.name} was brought to the scale of {first.folder.name} by the "
                    f"{self.side} hand's size, for want of pixel spacings (a pixel is {ratio:.2f} "
                    "of one there)"
                )
            elif _spaced(records) and abs(ratio / size - 1) > SAME_SIZE:
                yield (
                    f"by their pixel spacings the {self.side} hand is {abs(ratio / size - 1):.0%} "
                    f"{'larger' if ratio > size else 'smaller'} in {hand.folder.name} than in "
                    f"{first.folder.name}: a spacing is wrong, or it was magnified otherwise"
                )
            if _thumb(hand.record) != _thumb(first.record):
                yield (
                    f"{hand.folder.name} shows the other hand than {first.folder.name} does, or is "
                    "mirrored: the thumbs' sides differ"
                )


def _spaced(records: Sequence[HandRecord]) -> bool:
    return all(record.pixel_spacing_mm is not None for record in records)


def _identical(records: Sequence[HandRecord]) -> bool:
    return len({record.inputs["image"].sha256 for record in records}) == 1


def _thumb(record: HandRecord) -> Side:
    """The side that the thumb tells, whatever user or header say."""
    values = np.array([record.landmarks[name] for name in LANDMARKS])
    return side_by_thumb(values[:, :2], values[:, 2])


def pixel_ratio(earlier: HandRecord, later: HandRecord) -> float:
    """Side of a pixel of the later visit in pixels of the earlier one.

    By their spacings where both are known; else by the hand's size, 1 where that is less than
    :data:`SAME_SIZE` away.
    """
    first, second = earlier.pixel_spacing_mm, later.pixel_spacing_mm
    if first is not None and second is not None:
        return second.column / first.column
    ratio = size_ratio(earlier, later)
    return ratio if abs(ratio - 1) > SAME_SIZE else 1.0


def size_ratio(earlier: HandRecord, later: HandRecord) -> float:
    """How many times larger in its pixels the earlier visit shows the hand.

    The median over the bones of fingers 2 to 5; 1 where none is known.
    """
    ratios = []
    for finger in range(2, 6):
        for one, other in (("cmc", "mcp"), ("mcp", "pip"), ("pip", "dip")):
            ends = [
                [record.landmarks[f"{name}{finger}"] for name in (one, other)]
                for record in (earlier, later)
            ]
            if min(point[2] for pair in ends for point in pair) >= LEAST_LANDMARK:
                lengths = [math.dist(a[:2], b[:2]) for a, b in ends]
                ratios.append(lengths[0] / max(lengths[1], 1e-6))
    return float(np.median(ratios)) if ratios else 1.0


def _read(hand: HandResult, name: str) -> RadiographVisit:
    folder = hand.folder / name
    masks = [folder / f"{name}_mask_{bone}.png" for bone in ("upper", "lower")]
    return read_visit(VisitFiles(folder / f"{name}.png", *masks), ReadOptions(bit_depth=16))


def _enlarged(visit: RadiographVisit, times: int) -> RadiographVisit:
    """The visit with ``times`` as many rows and columns."""
    import cv2

    if times == 1:
        return visit

    def larger(plane: NDArray[np.float32], method: int) -> NDArray[np.float32]:
        size = plane.shape[1] * times, plane.shape[0] * times
        return np.asarray(cv2.resize(plane, size, interpolation=method), dtype=np.float32)

    return replace(
        visit,
        image=np.clip(larger(visit.image, cv2.INTER_CUBIC), 0, 1),
        masks=np.stack(
            [larger(mask.astype(np.float32), cv2.INTER_LINEAR) >= 0.5 for mask in visit.masks]
        ),
    )


def _judged(
    common: dict[str, Any],
    result: PairResult,
    times: int,
    bone_width_px: float,
    doubtful: bool,
    identical: bool,
) -> JointInterval:
    found = result.record
    spaces = found.joint_space_width
    widths = [
        None if one is None else one.mean_px / times for one in (spaces.baseline, spaces.followup)
    ]
    narrowing = 0.0 if identical else found.narrowing_px / times
    disagreement = None if found.disagreement_px is None else found.disagreement_px / times
    sideways = None if found.sideways_px is None else found.sideways_px / times
    pixel_mm = None if found.pixel_mm is None else found.pixel_mm * times
    judgement = judge(
        Pair(
            narrowing,
            disagreement or 0.0,
            sideways or 0.0,
            found.tilt_deg or 0.0,
            (widths[0], widths[1]),
            bone_width_px,
            tuple(found.problems),
            doubtful,
            identical,
        )
    )
    return JointInterval(
        **common,
        verdict=judgement.verdict,
        narrowing_px=narrowing,
        narrowing_mm=None if pixel_mm is None else narrowing * pixel_mm,
        standard_error_px=judgement.standard_error_px,
        detectable_px=judgement.detectable_px,
        disagreement_px=disagreement,
        sideways_px=sideways,
        tilt_deg=found.tilt_deg,
        pixel_mm=pixel_mm,
        width_px=widths,
        flags=list(judgement.flags),
    )


def _pictures(result: PairResult) -> tuple[Grey, Grey]:
    """Both visits on the baseline's grid, on one grey scale."""
    baseline, followup = (radiograph.image for radiograph in result.radiographs)
    height, width = baseline.shape
    later = np.nan_to_num(read_registered(followup, result.measurement.upper, (height, width)))
    masks = result.radiographs[0].masks
    row, column = result.measurement.reference
    side = min(round(_PICTURE_WIDTHS * float(masks.any(axis=(0, 1)).sum())), min(baseline.shape))
    window = around((float(row), float(column)), (side, side), (height, width))
    before, after = (cut(plane.astype(np.float64), window) for plane in (baseline, later))
    low, high = np.percentile(before, (0.5, 99.8))
    grey = [
        np.rint(255 * np.clip((plane - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
        for plane in (before, after)
    ]
    return grey[0], grey[1]
