"""The page of a patient: hands over the visits, each joint's narrowing with a verdict."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.anatomy import JOINTS, title
from blsgan.errors import InputError
from blsgan.io.atomic import ESCAPED, atomic_path, output_error
from blsgan.io.files import read_file
from blsgan.io.tables import signed
from blsgan.records.hand import HandRecord
from blsgan.records.hand_visits import HandVisitsRecord, JointInterval
from blsgan.report.plots import IntervalPlot, plot_intervals
from blsgan.report.templating import render

if TYPE_CHECKING:
    from PIL import Image

Grey = NDArray[np.uint8]

TITLE = "Finger joints of a hand"

_OVERVIEW_PX, _SMALL_PX = 820, 420
_JOINT_PX = 300
_MOST_LARGE = 4  # overviews; of more visits the pictures are small
_NORMAL = 1.96


@dataclass(frozen=True)
class VisitPage:
    """A visit on the page: its hand's folder and record."""

    folder: Path
    record: HandRecord


def write_hand_page(
    path: Path,
    record: HandVisitsRecord,
    visits: Sequence[VisitPage],
    pictures: Mapping[tuple[str, str], tuple[Grey, Grey]],
) -> Path:
    """Write the page of a patient.

    Args:
        path: the file.
        record: what was compared.
        visits: of each of its visits.
        pictures: of (side, joint) two visits on one grid, uint8 [S,S].

    Raises:
        InputError: an overview is damaged.
        OutputError: the page cannot be written.
    """
    sides = [
        _side(side, record, visits, pictures)
        for side in ("left", "right")
        if any(visit.side == side for visit in record.visits)
    ]
    text = render(
        "hand.html",
        ("page.css", "hand.css", "compare.js"),
        generator="blsgan hand",
        title=TITLE,
        sides=sides,
        notes=record.notes,
        weights=record.weights.name,
    )
    with atomic_path(path) as temporary:
        try:
            temporary.write_text(text, encoding="utf-8", errors=ESCAPED)
        except OSError as error:
            raise output_error(path, error) from error
    return path


def _side(
    side: str,
    record: HandVisitsRecord,
    visits: Sequence[VisitPage],
    pictures: Mapping[tuple[str, str], tuple[Grey, Grey]],
) -> dict[str, Any]:
    places = [index for index, visit in enumerate(record.visits) if visit.side == side]
    first = places[0]
    days = [record.visits[index].day for index in places]
    names = [_visit_name(number, day) for number, day in enumerate(days, start=1)]
    size_px = _OVERVIEW_PX if len(places) <= _MOST_LARGE else _SMALL_PX
    intervals = {
        (one.joint, one.earlier, one.later): one for one in record.intervals if one.side == side
    }
    shown = [visits[index] for index in places]
    joints = []
    for name in JOINTS:
        against_first = [intervals.get((name, first, later)) for later in places]
        steps = [intervals.get((name, later - 1, later)) for later in places]
        cells = [
            _cell(visit.record, name, one, step)
            for visit, one, step in zip(shown, against_first, steps, strict=True)
        ]
        cells[0]["lines"] += [
            f"space {_length(one.width_px[0], one.pixel_mm)}"
            for one in against_first
            if one is not None and one.width_px[0] is not None
        ][:1]
        joints.append(
            {
                "name": name,
                "label": title(name),
                "experimental": shown[0].record.joints[name].experimental,
                "cells": cells,
                "plot": _plot(against_first, days),
                "pictures": _slider(pictures.get((side, name))),
                "flags": _flags(shown, names, name, against_first),
            }
        )
    return {
        "name": side,
        "label": f"{side.capitalize()} hand",
        "visits": names,
        "overviews": [
            {
                "caption": f"{name}: {visit.record.name}",
                "picture": _jpeg(_opened(visit.folder / "hand_overview.png"), size_px),
                "notes": visit.record.notes,
                "side_source": visit.record.side_source,
                "spacing": _spacing(visit.record),
            }
            for name, visit in zip(names, shown, strict=True)
        ],
        "joints": joints,
        "followed": len(places) > 1,
        "verdicts": _count(intervals.values(), first, places[-1]),
    }


def _visit_name(number: int, day: int | None) -> str:
    return f"Visit {number}" if day is None else f"Visit {number}, day {day}"


def _cell(
    record: HandRecord, name: str, one: JointInterval | None, step: JointInterval | None
) -> dict[str, Any]:
    joint = record.joints[name]
    lines = []
    if one is not None and one.width_px[1] is not None:
        lines.append(f"space {_length(one.width_px[1], one.pixel_mm)}")
    if one is not None and one.detectable_px == 0:
        lines.append("the same file as visit 1")
    elif one is not None and one.narrowing_px is not None and one.verdict != "not measurable":
        assert one.detectable_px is not None, "measured"
        lines.append(
            f"{_signed(one.narrowing_px, one.pixel_mm)} since visit 1, detectable from "
            f"{_length(one.detectable_px, one.pixel_mm)}"
        )
    if step is not None and step is not one and step.verdict == "narrowed":
        lines.append("narrowed since the visit before")
    return {"status": joint.status, "verdict": one.verdict if one else None, "lines": lines}


def _plot(intervals: Sequence[JointInterval | None], days: list[int | None]) -> IntervalPlot | None:
    measured = [one for one in intervals if one is not None and one.narrowing_px is not None]
    if not measured:
        return None
    in_mm = all(one.pixel_mm is not None for one in measured)

    def value(one: JointInterval | None) -> tuple[float, float, str] | None:
        if one is None or one.narrowing_px is None or one.standard_error_px is None:
            return None
        factor = one.pixel_mm if in_mm and one.pixel_mm else 1.0
        return (
            one.narrowing_px * factor,
            _NORMAL * one.standard_error_px * factor,
            one.verdict,
        )

    values = [value(one) for one in intervals]
    values[0] = (0.0, 0.0, "first visit")
    return plot_intervals(values, days, "mm" if in_mm else "px")


def _flags(
    visits: Sequence[VisitPage],
    names: list[str],
    joint: str,
    intervals: Sequence[JointInterval | None],
) -> list[str]:
    """Reasons of both kinds, each once, with the visits that they are of."""
    found: dict[str, list[str]] = {}
    for visit, name, one in zip(visits, names, intervals, strict=True):
        entry = visit.record.joints[joint]
        reasons = [f"{entry.status}: {reason}" for reason in entry.reasons]
        if one is not None and one.status != "refused":
            reasons += one.flags
        for reason in reasons:
            found.setdefault(reason, []).append(name)
    return [f"{', '.join(where)}: {reason}" for reason, where in found.items()]


def _count(intervals: Any, first: int, last: int) -> list[tuple[str, int]]:
    verdicts = [one.verdict for one in intervals if (one.earlier, one.later) == (first, last)]
    kinds = ("narrowed", "not detectable", "not measurable")
    return [(kind, verdicts.count(kind)) for kind in kinds] if verdicts else []


def _length(px: float, pixel_mm: float | None) -> str:
    return f"{px:.2f} px" if pixel_mm is None else f"{px * pixel_mm:.2f} mm"


def _signed(px: float, pixel_mm: float | None) -> str:
    return f"{signed(px, 2)} px" if pixel_mm is None else f"{signed(px * pixel_mm, 3)} mm"


def _spacing(record: HandRecord) -> str:
    spacing = record.pixel_spacing_mm
    if spacing is None:
        return "size of a pixel not known: lengths in px"
    return f"{spacing.column:g} mm per pixel ({spacing.source})"


def _slider(pair: tuple[Grey, Grey] | None) -> tuple[str, str] | None:
    if pair is None:
        return None
    from PIL import Image

    before, after = (_jpeg(Image.fromarray(plane), _JOINT_PX, grow=True) for plane in pair)
    return before, after


def _opened(path: Path) -> Image.Image:
    from PIL import Image

    file = read_file(path, what="picture")
    try:
        with Image.open(io.BytesIO(file.data), formats=("PNG",)) as picture:
            return picture.convert("RGB")
    except Exception as error:  # a decoder raises what damaged bytes lead it to
        raise InputError(
            f"{path} is damaged ({type(error).__name__}); run blsgan hand again with --overwrite."
        ) from error


def _jpeg(picture: Image.Image, side_px: int, *, grow: bool = False) -> str:
    """A JPEG data URI, its longer side at most (with ``grow``: exactly) ``side_px``."""
    from PIL import Image

    factor = side_px / max(picture.size)
    if factor < 1 or grow:
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
