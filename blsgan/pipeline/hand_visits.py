"""The hands of several visits compared: each joint's narrowing with its error and a verdict."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.anatomy import JOINTS, Side
from blsgan.errors import InputError
from blsgan.hands.visits import Pair, judge, order
from blsgan.io.atomic import atomic_paths
from blsgan.io.tables import write_csv
from blsgan.joint.window import around, cut
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
from blsgan.pipeline.segment import weights_record
from blsgan.records.hand_visits import HandVisitsRecord, JointInterval, VisitOfHand
from blsgan.records.narrowing import ReadOptions
from blsgan.report.hand import VisitPage, write_hand_page
from blsgan.tasks.separation import Separator

RECORD_NAME, TABLE_NAME, PAGE_NAME = "visits.json", "visits.csv", "hands.html"
_SIDES: tuple[Side, ...] = ("left", "right")
_VISITS_KEPT = 3
_PICTURE_WIDTHS = 1.3  # side of a joint's picture, in bone widths

Grey = NDArray[np.uint8]


@dataclass
class Compared:
    """Visits that were compared.

    Attributes:
        record: what ``visits.json`` says.
        hands: the hand of each of its visits.
        pictures: of (side, joint) the first and the last visit that were measured against each
            other, uint8 [S,S], the later one laid on the earlier by its upper bone.
    """

    record: HandVisitsRecord
    hands: list[HandResult]
    pictures: dict[tuple[str, str], tuple[Grey, Grey]] = field(default_factory=dict)


def compare_visits(
    separator: Separator,
    results: Sequence[Sequence[HandResult]],
    output: Path,
    *,
    progress: Callable[[str], None] | None = None,
) -> Compared:
    """Measures every joint of a side between consecutive visits, and from the first to each.

    Args:
        separator: takes the bones apart.
        results: the hands of each visit, in the order given.
        output: where ``visits.json`` and ``visits.csv`` go; the hands lie below.
        progress: called with what is measured.

    Raises:
        InputError: the headers name several patients.
        OutputError: the files cannot be written.
    """
    _check_one_patient(results)
    visits: list[VisitOfHand] = []
    intervals: list[JointInterval] = []
    notes: list[str] = []
    compared: list[HandResult] = []
    pictures: dict[tuple[str, str], tuple[Grey, Grey]] = {}
    for side in _SIDES:
        hands = list(_of_side(results, side, notes))
        if len(hands) == 1 and len(results) > 1:
            notes.append(
                f"only one visit shows the {side} hand ({hands[0].folder.name}); if it is another "
                "visit's, that is mirrored: give its --side"
            )
        indices, note = order([hand.header.date for hand in hands])
        if note is not None and len(hands) > 1:
            notes.append(f"{side} hand: {note}")
        hands = [hands[index] for index in indices]
        first = len(visits)
        for hand, day in zip(hands, _days([hand.header.date for hand in hands]), strict=True):
            visits.append(
                VisitOfHand(
                    folder=hand.folder.relative_to(output).as_posix(),
                    side=side,
                    day=day,
                    image_sha256=hand.record.inputs["image"].sha256,
                )
            )
        compared += hands
        if len(hands) > 1:
            places = _Places(separator, hands, side, first, pictures)
            intervals += places.measure(progress or (lambda text: None))
    spacings = [(hand.folder.name, hand.record.pixel_spacing_mm) for hand in compared]
    magnified = [name for name, mm in spacings if mm and mm.source == "ImagerPixelSpacing"]
    if magnified and intervals:
        notes.append(
            f"millimetres are the detector's in {', '.join(magnified)}: the hand lies before it "
            "and is some percent smaller"
        )
    record = HandVisitsRecord(
        schema=1,
        blsgan=__version__,
        weights=weights_record(separator.weights),
        visits=visits,
        intervals=intervals,
        notes=notes,
    )
    with atomic_paths([output / TABLE_NAME, output / RECORD_NAME]) as (table, text):
        write_csv(table, [_row(interval, visits) for interval in intervals])
        text.write_text(record.text(), encoding="utf-8")
    return Compared(record, compared, pictures)


def write_page(compared: Compared, output: Path) -> Path:
    """The patient's page; errors are those of :func:`blsgan.report.hand.write_hand_page`."""
    visits = [VisitPage(hand.folder, hand.record) for hand in compared.hands]
    return write_hand_page(output / PAGE_NAME, compared.record, visits, compared.pictures)


def _check_one_patient(results: Sequence[Sequence[HandResult]]) -> None:
    patients = {hand.header.patient for hands in results for hand in hands if hand.header.patient}
    if len(patients) > 1:
        raise InputError(
            f"the headers of the visits name {len(patients)} patients, so nothing was compared; "
            "give the visits of one patient, or --no-visits."
        )


def _days(dates: Sequence[str | None]) -> list[int | None]:
    """Days after the first of dates YYYYMMDD; None for all where one is not known or no date."""
    try:
        known = [datetime.datetime.strptime(date, "%Y%m%d") for date in dates if date is not None]
    except ValueError:
        known = []
    if len(known) < len(dates):
        return [None] * len(dates)
    return [(day - known[0]).days for day in known]


def _of_side(
    results: Sequence[Sequence[HandResult]], side: Side, notes: list[str]
) -> Iterator[HandResult]:
    for hands in results:
        found = [hand for hand in hands if hand.record.side == side]
        if len(found) > 1:
            notes.append(
                f"{found[0].folder.name} and {found[1].folder.name} are two {side} hands of one "
                "picture: neither is compared"
            )
        elif found:
            yield found[0]


@dataclass(frozen=True)
class _Places:
    """The visits of one side, in time; ``first`` is the place of the earliest in the record."""

    separator: Separator
    hands: Sequence[HandResult]
    side: Side
    first: int
    pictures: dict[tuple[str, str], tuple[Grey, Grey]]

    def measure(self, progress: Callable[[str], None]) -> Iterator[JointInterval]:
        last = len(self.hands) - 1
        places = [*itertools.pairwise(range(last + 1)), *((0, n) for n in range(2, last + 1))]
        for name in JOINTS:
            progress(f"{self.side} {name}")
            read = lru_cache(maxsize=_VISITS_KEPT)(self._reader(name))
            for earlier, later in sorted(places, key=lambda pair: (pair[1], pair[0])):
                yield self._interval(name, earlier, later, read)

    def _reader(self, name: str) -> Callable[[int], RadiographVisit]:
        return lambda index: _read(self.hands[index], name)

    def _interval(
        self, name: str, earlier: int, later: int, read: Callable[[int], RadiographVisit]
    ) -> JointInterval:
        hands = self.hands[earlier], self.hands[later]
        joints = [hand.record.joints[name] for hand in hands]
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
        known = all(hand.record.pixel_spacing_mm is not None for hand in hands)
        try:
            result = measure_pair(
                read(earlier), read(later), separated(self.separator), None, fit_scale=not known
            )
        except InputError as error:
            return JointInterval(**common, verdict="not measurable", flags=[str(error)])
        if earlier == 0 and not result.record.mismatch:
            self.pictures[self.side, name] = _pictures(result)
        identical = len({hand.record.inputs["image"].sha256 for hand in hands}) == 1
        return _judged(common, result, joints[0].bone_width_px, doubtful, identical)


def _read(hand: HandResult, name: str) -> RadiographVisit:
    folder = hand.folder / name
    spacing = hand.record.pixel_spacing_mm
    masks = [folder / f"{name}_mask_{bone}.png" for bone in ("upper", "lower")]
    options = ReadOptions(
        bit_depth=16, pixel_spacing_mm=None if spacing is None else spacing.column
    )
    return read_visit(VisitFiles(folder / f"{name}.png", *masks), options)


def _judged(
    common: dict[str, Any],
    result: PairResult,
    bone_width_px: float,
    doubtful: bool,
    identical: bool,
) -> JointInterval:
    found = result.record
    spaces = found.joint_space_width
    widths = [None if one is None else one.mean_px for one in (spaces.baseline, spaces.followup)]
    judgement = judge(
        Pair(
            found.narrowing_px,
            found.disagreement_px or 0.0,
            found.sideways_px or 0.0,
            found.tilt_deg or 0.0,
            (widths[0], widths[1]),
            bone_width_px,
            tuple(found.problems),
            doubtful,
            identical,
        )
    )
    narrowing = 0.0 if identical else found.narrowing_px
    return JointInterval(
        **common,
        verdict=judgement.verdict,
        narrowing_px=narrowing,
        narrowing_mm=None if found.pixel_mm is None else narrowing * found.pixel_mm,
        standard_error_px=judgement.standard_error_px,
        detectable_px=judgement.detectable_px,
        disagreement_px=found.disagreement_px,
        sideways_px=found.sideways_px,
        tilt_deg=found.tilt_deg,
        pixel_mm=found.pixel_mm,
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


def _row(interval: JointInterval, visits: Sequence[VisitOfHand]) -> dict[str, object]:
    fields = interval.model_dump()
    earlier, later = fields.pop("width_px")
    fields |= {"width_earlier_px": earlier, "width_later_px": later}
    fields["earlier"] = visits[interval.earlier].folder
    fields["later"] = visits[interval.later].folder
    fields["flags"] = "; ".join(interval.flags)
    return fields
