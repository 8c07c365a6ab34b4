"""The hands of several visits compared: each joint's narrowing with its error and a verdict."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from blsgan import __version__
from blsgan.anatomy import JOINTS, Side
from blsgan.errors import InputError
from blsgan.evaluation.results import write_csv
from blsgan.hands.visits import Pair, judge, order
from blsgan.io.atomic import atomic_paths
from blsgan.jsn.visits import RadiographVisit, VisitFiles, measure_pair, read_visit, separated
from blsgan.pipeline.hand import HandResult
from blsgan.pipeline.segment import weights_record
from blsgan.records.hand_visits import HandVisitsRecord, JointInterval, VisitOfHand
from blsgan.records.narrowing import NarrowingRecord, ReadOptions
from blsgan.tasks.separation import Separator

RECORD_NAME, TABLE_NAME = "visits.json", "visits.csv"
_VISITS_KEPT = 4
_SIDES: tuple[Side, ...] = ("left", "right")


def compare_visits(
    separator: Separator,
    results: Sequence[Sequence[HandResult]],
    output: Path,
    *,
    progress: Callable[[str], None] | None = None,
) -> HandVisitsRecord:
    """Measures every joint between a side's consecutive visits, and from its first to its last.

    Args:
        separator: takes the bones apart.
        results: the hands of each visit, in the order given.
        output: where ``visits.json`` and ``visits.csv`` go; the hands lie below.
        progress: called with each joint's name.

    Raises:
        InputError: no side has two visits.
        OutputError: the files cannot be written.
    """
    visits: list[VisitOfHand] = []
    intervals: list[JointInterval] = []
    notes: list[str] = []
    for side in _SIDES:
        hands = list(_of_side(results, side, notes))
        if not hands:
            continue
        if len(hands) == 1:
            notes.append(f"only one visit shows the {side} hand ({hands[0].folder.name})")
        indices, note = order([hand.record.date for hand in hands])
        if note is not None and len(hands) > 1:
            notes.append(f"{side} hand: {note}")
        first = len(visits)
        hands = [hands[index] for index in indices]
        visits += [
            VisitOfHand(
                folder=hand.folder.relative_to(output).as_posix(),
                side=side,
                date=hand.record.date,
                image_sha256=hand.record.inputs["image"].sha256,
            )
            for hand in hands
        ]
        intervals += _intervals(separator, hands, side, first, progress or (lambda name: None))
    if not intervals:
        raise InputError(
            "no hand is shown by two of the visits, so nothing can be compared; give visits of one "
            "hand, or its --side."
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
    return record


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


def _intervals(
    separator: Separator,
    hands: Sequence[HandResult],
    side: Side,
    first: int,
    progress: Callable[[str], None],
) -> Iterator[JointInterval]:
    separate = separated(separator)
    places = list(itertools.pairwise(range(len(hands))))
    if len(hands) > 2:
        places.append((0, len(hands) - 1))
    for name in JOINTS:
        progress(name)

        @lru_cache(maxsize=_VISITS_KEPT)
        def read(index: int, name: str = name) -> RadiographVisit:
            return _read(hands[index], name)

        for earlier, later in places:
            pair = hands[earlier].record.joints[name], hands[later].record.joints[name]
            common = {
                "joint": name,
                "side": side,
                "experimental": pair[0].experimental,
                "earlier": first + earlier,
                "later": first + later,
            }
            refused = [
                f"{hand.folder.name}: {'; '.join(joint.reasons)}"
                for hand, joint in zip((hands[earlier], hands[later]), pair, strict=True)
                if joint.status == "refused"
            ]
            if refused:
                yield _unmeasured(common, refused)
                continue
            try:
                found = measure_pair(read(earlier), read(later), separate, None).record
            except InputError as error:
                yield _unmeasured(common, [str(error)])
                continue
            hashes = {hands[n].record.inputs["image"].sha256 for n in (earlier, later)}
            doubtful = any(joint.status == "doubtful" for joint in pair)
            yield _interval(common, found, pair[0].bone_width_px, doubtful, len(hashes) == 1)


def _read(hand: HandResult, name: str) -> RadiographVisit:
    folder = hand.folder / name
    spacing = hand.record.pixel_spacing_mm
    masks = (folder / f"{name}_mask_{bone}.png" for bone in ("upper", "lower"))
    options = ReadOptions(
        bit_depth=16, pixel_spacing_mm=None if spacing is None else spacing.column
    )
    return read_visit(VisitFiles(folder / f"{name}.png", *masks), options)


def _unmeasured(common: dict[str, object], flags: list[str]) -> JointInterval:
    return JointInterval.parse(
        {
            **common,
            "status": "refused",
            "verdict": "not measurable",
            **dict.fromkeys(("narrowing_px", "narrowing_mm", "standard_error_px")),
            **dict.fromkeys(("detectable_px", "disagreement_px", "pixel_mm")),
            "width_px": [None, None],
            "flags": flags,
        }
    )


def _interval(
    common: dict[str, object],
    found: NarrowingRecord,
    bone_width_px: float,
    doubtful: bool,
    identical: bool,
) -> JointInterval:
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
    return JointInterval.parse(
        {
            **common,
            "status": "doubtful" if doubtful else "ok",
            "verdict": judgement.verdict,
            "narrowing_px": narrowing,
            "narrowing_mm": None if found.pixel_mm is None else narrowing * found.pixel_mm,
            "standard_error_px": judgement.standard_error_px,
            "detectable_px": judgement.detectable_px,
            "disagreement_px": found.disagreement_px,
            "width_px": widths,
            "pixel_mm": found.pixel_mm,
            "flags": list(judgement.flags),
        }
    )


def _row(interval: JointInterval, visits: Sequence[VisitOfHand]) -> dict[str, object]:
    fields = interval.fields()
    earlier, later = fields.pop("width_px")
    fields |= {"width_earlier_px": earlier, "width_later_px": later}
    fields["earlier"] = visits[interval.earlier].folder
    fields["later"] = visits[interval.later].folder
    fields["flags"] = "; ".join(interval.flags)
    return fields
