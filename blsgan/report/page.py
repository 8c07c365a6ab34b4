"""The report of a run as one self-contained page, or several linked ones where joints are many."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from blsgan.errors import UsageError
from blsgan.io.atomic import ESCAPED, atomic_paths, output_error
from blsgan.io.listing import natural_key
from blsgan.io.panel import signed_colours
from blsgan.io.stored import find_by_hash
from blsgan.io.tables import signed
from blsgan.progress import Track, silent
from blsgan.records.narrowing import SpaceWidth
from blsgan.records.record import Record
from blsgan.records.separation import SeparationRecord
from blsgan.report.collect import ALERT, NOTE, WARNING, Joint, Pair, Visit, collect
from blsgan.report.pictures import shrunk, visit_pictures
from blsgan.report.plots import plot_curve, plot_histogram
from blsgan.report.templating import render

GENERATOR = "blsgan report"
TITLE = "Bone layers report"

MANY_VISITS = 100
"""From so many radiographs on pictures are smaller and panels left out, unless asked for."""

_SIDE_PX, _SMALL_SIDE_PX = 320, 200
_PANEL_PX = 1400
_LEVELS = (ALERT, WARNING, NOTE, "")
_ASSETS = ("page.css", "report.css", "compare.js", "report.js")


@dataclass(frozen=True)
class Layout:
    """How much a report shows.

    Attributes:
        per_page: radiographs on one page; a joint is never parted.
        limit: radiographs shown in detail, flagged joints first (None: all).
        panels: whether panels and registrations are shown (None: with few radiographs).
        title: heading of every page.
        sdd_px: smallest detectable difference of a narrowing, as ``blsgan jsn study`` finds it
            (None: not shown).
    """

    per_page: int = 24
    limit: int | None = None
    panels: bool | None = None
    title: str = TITLE
    sdd_px: float | None = None


@dataclass(frozen=True)
class Written:
    """What :func:`write_report` made: its pages, how many joints and how many in detail.

    Only a measurement says which radiographs are of one joint; another one is a row of its own.
    """

    pages: list[Path]
    radiographs: int
    joints: int
    detailed: int
    sources: int


def write_report(
    roots: Sequence[Path],
    output: Path,
    images: Sequence[Path] = (),
    layout: Layout | None = None,
    track: Track = silent,
) -> Written:
    """Write the report of everything below ``roots`` to ``output`` and, if it is long, beside it.

    Further pages are called ``STEM-2.html`` and so on; those that an earlier, longer report left
    are removed. Radiographs are looked for by content in ``images``; where one is missing, its
    input is shown as far as the bones reach, which the layers tell exactly.

    Raises:
        InputError: nothing to report, or a damaged file.
        UsageError: ``output`` is no HTML file, or one that no report wrote is in the way.
        OutputError: it could not be written.
    """
    layout = layout or Layout()
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output} does not end in .html; name the page, such as report.html.")
    joints = sorted(collect(roots), key=lambda joint: natural_key(joint.label))
    chosen = _choose(joints, layout.limit)
    pages = _paginate(chosen, layout.per_page) or [[]]
    files = [output, *(_page_path(output, number) for number in range(2, len(pages) + 1))]
    visits = [visit for joint in chosen for visit in joint.visits if visit.usable]
    sources = find_by_hash(images, {_image_hash(visit) for visit in visits}) if images else {}
    few = len(visits) <= MANY_VISITS
    panels = few if layout.panels is None else layout.panels
    side_px, panel_px = _SIDE_PX if few else _SMALL_SIDE_PX, _PANEL_PX if panels else None
    draw = _Draw(sources, side_px, panel_px, layout.sdd_px)

    numbers = {id(joint): number for number, joint in enumerate(chosen, start=1)}
    hrefs = {
        id(joint): f"{quote(file.name)}#joint-{numbers[id(joint)]}" if number else
        f"#joint-{numbers[id(joint)]}"
        for number, (file, page) in enumerate(zip(files, pages, strict=True))
        for joint in page
    }  # fmt: skip
    shared = {
        "title": layout.title,
        "generator": GENERATOR,
        "pages": [
            {"number": number, "href": quote(file.name)}
            for number, file in enumerate(files, start=1)
        ],
        "summary": _summary(joints),
        "histograms": _histograms(joints),
        "index": [_index_row(joint, hrefs.get(id(joint))) for joint in joints],
        "shown": len(chosen),
        "left_out": len(joints) - len(chosen),
        "residual_scale": [
            f"#{bytes(colour).hex()}" for colour in signed_colours(np.linspace(-1, 1, 33))
        ],
    }
    for file in files:
        if file.exists() and not _is_ours(file):
            raise UsageError(
                f"{file} is there and is no report of blsgan; choose another name, or move it."
            )
    with atomic_paths(files) as temporaries:
        steps = track(zip(pages, temporaries, files, strict=True), "drawing pages", len(files))
        for number, (page, temporary, file) in enumerate(steps, start=1):
            views = [_joint_view(joint, numbers[id(joint)], draw) for joint in page]
            text = render("report.html", _ASSETS, joints=views, number=number, **shared)
            try:
                temporary.write_text(text, encoding="utf-8", errors=ESCAPED)
            except OSError as error:
                raise output_error(file, error) from error
    _remove_stale(output, len(files))
    radiographs = sum(len(joint.visits) for joint in joints)
    return Written(files, radiographs, len(joints), len(chosen), len(sources))


@dataclass(frozen=True)
class _Draw:
    """How pictures are drawn, and where the radiographs lie."""

    sources: dict[str, Path]
    side_px: int
    panel_px: int | None
    sdd_px: float | None


def _choose(joints: list[Joint], limit: int | None) -> list[Joint]:
    """The joints shown in detail, in their order: flagged ones first where not all are."""
    if limit is None:
        return joints
    left = limit
    chosen = set()
    for joint in sorted(joints, key=lambda joint: _LEVELS.index(joint.level)):
        if len(joint.visits) <= left:
            chosen.add(id(joint))
            left -= len(joint.visits)
    return [joint for joint in joints if id(joint) in chosen]


def _paginate(joints: list[Joint], per_page: int) -> list[list[Joint]]:
    pages: list[list[Joint]] = []
    room = 0
    for joint in joints:
        if not pages or len(joint.visits) > room:
            pages.append([])
            room = per_page
        pages[-1].append(joint)
        room -= len(joint.visits)
    return pages


def _page_path(output: Path, number: int) -> Path:
    return output.with_name(f"{output.stem}-{number}{output.suffix}")


def _remove_stale(output: Path, count: int) -> None:
    """Remove pages that an earlier report of this name has and this one has not."""
    number = count + 1
    while (path := _page_path(output, number)).is_file() and _is_ours(path):
        with contextlib.suppress(OSError):
            path.unlink()
        number += 1


def _is_ours(path: Path) -> bool:
    """Whether an earlier report is in ``path``; what cannot be read is not touched."""
    mark = f'<meta name="generator" content="{GENERATOR}">'.encode()
    try:
        with path.open("rb") as stream:
            return mark in stream.read(4096)
    except OSError:
        return False


def _image_hash(visit: Visit) -> str:
    assert visit.result is not None, "only visits with a result are drawn"
    return visit.result.inputs["image"]


def _summary(joints: list[Joint]) -> dict[str, Any]:
    results = [visit.result for joint in joints for visit in joint.visits if visit.result]
    pairs = [pair for joint in joints for pair in joint.pairs]
    counts: Counter[tuple[str, str]] = Counter()
    for joint in joints:
        # Of joints, as the table's head says: what several visits or pairs raise counts once.
        raised = [flag for flag in joint.flags if flag.level != NOTE]
        raised += [flag for visit in joint.visits for flag in visit.flags]
        counts.update({(flag.level, flag.kind) for flag in raised})
    flags = sorted(counts.items(), key=lambda item: (_LEVELS.index(item[0][0]), -item[1]))
    return {
        # Which radiographs are of one joint only a measurement says.
        "joints": sum(bool(joint.pairs) for joint in joints),
        "visits": len(results),
        "overlapping": sum(result.record.overlap.area_px > 0 for result in results),
        "pairs": len(pairs),
        "measured": sum(pair.valid for pair in pairs),
        "alerts": sum(joint.level == ALERT for joint in joints),
        "warnings": sum(joint.level == WARNING for joint in joints),
        "predicted": sum(result.record.prediction is not None for result in results),
        "flags": [
            {"level": level, "text": kind, "count": count} for (level, kind), count in flags[:50]
        ],
    }


def _histograms(joints: list[Joint]) -> list[Any]:
    valid = [pair for joint in joints for pair in joint.pairs if pair.valid]
    in_mm = bool(valid) and all(pair.narrowing_mm is not None for pair in valid)
    narrowing = [(pair.narrowing_mm if in_mm else pair.narrowing_px) or 0.0 for pair in valid]
    areas = [
        visit.result.record.overlap.area_px
        for joint in joints
        for visit in joint.visits
        if visit.result and visit.result.record.overlap.area_px
    ]
    plots = (
        plot_histogram("Narrowing between two visits", narrowing, "mm" if in_mm else "px"),
        plot_histogram("Overlap of a radiograph", areas, "px"),
    )
    return [plot for plot in plots if plot is not None]


def _index_row(joint: Joint, href: str | None) -> dict[str, Any]:
    areas = [
        (visit.result.record.overlap.area_px, visit.result)
        for visit in joint.visits
        if visit.result
    ]
    overlap = "–"
    if areas:
        overlap = _area(max(areas, key=lambda item: item[0])[1].record)
    last = joint.curve.values[-1] if joint.curve else None
    narrowing = "–"
    if joint.curve is not None:
        unit = joint.curve.unit
        narrowing = "no measurement" if last is None else _signed(last, unit)
    return {
        "label": joint.label,
        "href": href,
        "visits": len(joint.visits),
        "overlap": overlap,
        "narrowing": narrowing,
        "level": joint.level,
    }


def _area(record: SeparationRecord) -> str:
    overlap = record.overlap
    if not overlap.area_px:
        return "none"
    area_mm2 = overlap.area_mm2
    return f"{overlap.area_px} px" + (f" ({area_mm2:.2f} mm²)" if area_mm2 is not None else "")


def _signed(value: float, unit: str) -> str:
    return f"{signed(value, 3)} mm" if unit == "mm" else f"{signed(value, 2)} px"


def _joint_view(joint: Joint, number: int, draw: _Draw) -> dict[str, Any]:
    names = {visit.key: index for index, visit in enumerate(joint.visits, start=1)}
    return {
        "label": joint.label,
        "anchor": f"joint-{number}",
        "level": joint.level,
        "flags": joint.flags,
        "plot": plot_curve(joint.curve, draw.sdd_px)
        if joint.curve and joint.curve.is_measured
        else None,
        "pairs": [_pair_view(pair, names, draw) for pair in joint.pairs],
        "visits": [
            _visit_view(visit, f"joint-{number}-visit-{index}", draw)
            for index, visit in enumerate(joint.visits, start=1)
        ],
    }


def _pair_view(pair: Pair, names: dict[tuple[str, ...], int], draw: _Draw) -> dict[str, Any]:
    narrowing = "no measurement"
    if pair.valid and pair.narrowing_px is not None:
        narrowing = _signed(pair.narrowing_px, "px")
        within = draw.sdd_px is not None and abs(pair.narrowing_px) < draw.sdd_px
        if pair.narrowing_mm is not None:
            narrowing = f"{_signed(pair.narrowing_mm, 'mm')} ({narrowing})"
        if within:
            narrowing += ", within error"
    picture = None
    if pair.picture is not None and draw.panel_px is not None:
        picture = shrunk(pair.picture, draw.panel_px)
    return {
        "valid": pair.valid,
        "names": f"visit {names[pair.baseline]} to {names[pair.followup]}",
        "narrowing": narrowing,
        "quality": "–" if pair.quality is None else f"{pair.quality:.3f}",
        "disagreement": "–" if pair.disagreement_px is None else f"{pair.disagreement_px:.3f} px",
        "widths": " → ".join(_least(width) for width in pair.widths),
        "picture": picture,
        "manifest": pair.record and _manifest(pair.record),
    }


def _least(width: SpaceWidth | None) -> str:
    if width is None:
        return "–"
    if width.minimum_mm is not None:
        return f"{width.minimum_mm:.2f} mm"
    return f"{width.minimum_px:.1f} px"


def _visit_view(visit: Visit, anchor: str, draw: _Draw) -> dict[str, Any]:
    view: dict[str, Any] = {"label": visit.label, "flags": visit.flags, "anchor": anchor}
    if visit.result is None:
        return {**view, "facts": None}
    record = visit.result.record
    pictures = None
    if visit.usable:
        pictures = visit_pictures(
            visit.result,
            draw.sources.get(_image_hash(visit)),
            side_px=draw.side_px,
            panel_px=draw.panel_px,
        )
    return {
        **view,
        "pictures": pictures,
        "facts": _facts(record),
        "manifest": _manifest(record),
    }


def _manifest(record: Record) -> str:
    return json.dumps(record.fields(), indent=2, ensure_ascii=False)


def _facts(record: SeparationRecord) -> list[tuple[str, str]]:
    spacing, k = record.pixel_spacing_mm, record.soft_tissue
    weights, image = record.weights, record.image
    facts = [("Overlap", _area(record))]
    if k is not None:
        zone = record.zone
        spread = (
            ""
            if zone is None
            else (
                f" ({zone.soft_tissue_least:.3f} to {zone.soft_tissue_greatest:.3f} "
                f"over {zone.area_px:,} px)"
            )
        )
        facts.append(("Soft tissue", f"{k:.3f}{spread}"))
    facts.append(("Reconstruction MSE", f"{record.reconstruction_error.mse:.1e}"))
    facts.append(
        (
            "Pixel",
            "size not known"
            if spacing is None
            else f"{spacing.row:g} × {spacing.column:g} mm ({spacing.source})",
        )
    )
    facts.append(("Image", f"{image.width_px} × {image.height_px}, {image.bit_depth} bit"))
    facts.append(("Weights", f"{weights.name} {weights.sha256[:12]}"))
    facts.append(("blsgan", record.blsgan))
    return facts
