"""The hands of several visits compared: each joint's narrowing with its error and a verdict."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.anatomy import Side
from blsgan.errors import InputError
from blsgan.hands.visits import order
from blsgan.io.atomic import atomic_paths
from blsgan.io.tables import write_csv
from blsgan.pipeline.hand import HandResult
from blsgan.pipeline.segment import weights_record
from blsgan.records.hand_visits import HandVisitsRecord, JointInterval, VisitOfHand
from blsgan.report.hand import VisitPage, write_hand_page
from blsgan.tasks.separation import Separator

RECORD_NAME, TABLE_NAME, PAGE_NAME = "visits.json", "visits.csv", "hands.html"
_SIDES: tuple[Side, ...] = ("left", "right")

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
                f"only one visit shows the {side} hand ({hands[0].folder.name}); if the others are "
                "of the same hand, one of them is mirrored: mirror it back"
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
            from blsgan.pipeline.hand_intervals import SideVisits  # a second that one picture saves

            measured = SideVisits(separator, hands, side, first, pictures)
            intervals += measured.measure(progress or (lambda text: None))
            notes += measured.notes()
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


def _row(interval: JointInterval, visits: Sequence[VisitOfHand]) -> dict[str, object]:
    fields = interval.model_dump()
    earlier, later = fields.pop("width_px")
    fields |= {"width_earlier_px": earlier, "width_later_px": later}
    fields["earlier"] = visits[interval.earlier].folder
    fields["later"] = visits[interval.later].folder
    fields["flags"] = "; ".join(interval.flags)
    return fields
