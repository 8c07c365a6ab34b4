"""Measure joint space narrowing from files to files: one pair of visits, or a list of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blsgan.errors import BlsganError, OutputError, UsageError
from blsgan.io.atomic import atomic_path, atomic_paths, output_error
from blsgan.io.files import read_file
from blsgan.io.listing import Item
from blsgan.io.results import residual_to_uint16
from blsgan.io.tables import signed, write_csv
from blsgan.jsn.picture import draw_measurement
from blsgan.jsn.quantification import residual_maps
from blsgan.jsn.visits import (
    ListedPair,
    PairResult,
    Separate,
    VisitFiles,
    check_same_joint,
    find_visit,
    measure_pair,
    read_visit,
    separated,
    unseparated,
)
from blsgan.pipeline.segment import segment_item, weights_record
from blsgan.progress import Track, silent
from blsgan.records.masks import SegmentationOptions
from blsgan.records.narrowing import NarrowingRecord, ReadOptions
from blsgan.records.record import Weights
from blsgan.tasks.segmentation import Segmenter
from blsgan.tasks.separation import Separator

RECORD_NAME, PICTURE_NAME, PAIRS_NAME = "jsn.json", "jsn.png", "jsn.csv"
PICTURES_FOLDER, MASKS_FOLDER = "pairs", "masks"
RESIDUAL_NAMES = ("jsn_residual_upper.png", "jsn_residual_lower.png")
_SAVE_EVERY = 50  # pairs; a list of thousands must not be lost to an interruption
_VISITS_KEPT = 16  # pairs of one joint follow each other and share their visits


def separation_by(separator: Separator | None) -> tuple[Separate, Weights | None]:
    """How visits are taken apart, and the record of the weights; None: not at all, no weights."""
    if separator is None:
        return unseparated, None
    return separated(separator), weights_record(separator.weights)


def visit_files(
    image: Path,
    masks: tuple[Path, Path] | None,
    pattern: str,
    options: ReadOptions,
    output: Path,
    segmenter: Callable[[], Segmenter],
) -> VisitFiles:
    """A visit's files; where it has no masks they are predicted, into ``output / masks``.

    Args:
        image: the radiograph.
        masks: where they were named.
        pattern: how they are named otherwise.
        options: how the radiograph is read.
        output: folder of the results.
        segmenter: gives what predicts.

    Raises:
        NoJointError: the radiograph shows no joint.
        InputError: it cannot be read, or several files could be one mask.
        UsageError: only one mask was found.
    """
    found = find_visit(image, masks, pattern)
    return found or predicted_visit(image, options, output, segmenter)


def predicted_visit(
    image: Path, options: ReadOptions, output: Path, segmenter: Callable[[], Segmenter]
) -> VisitFiles:
    """:func:`visit_files` of a radiograph without masks."""
    digest = read_file(image, what="image").sha256
    item = Item(image, None, None, Path(), f"{image.stem}-{digest[:8]}")
    how = SegmentationOptions(bit_depth=options.bit_depth, invert=options.invert)
    upper, lower = segment_item(segmenter(), item, output / MASKS_FOLDER, how).files[:2]
    return VisitFiles(image, upper, lower)


def write_measurement(result: PairResult, output: Path, inputs: Iterable[Path]) -> list[Path]:
    """Write record, picture and residual maps of one pair, all or nothing; the record is first.

    Raises:
        UsageError: one of ``inputs`` would be overwritten.
        OutputError: the files cannot be written.
    """
    targets = [output / name for name in (*RESIDUAL_NAMES, PICTURE_NAME, RECORD_NAME)]
    for target in targets:
        if os.path.realpath(target) in {os.path.realpath(path) for path in inputs}:
            raise UsageError(
                f"{target} is an input and would be overwritten; choose another output folder."
            )
    picture = _picture(result)
    text = result.record.text()
    residuals = residual_maps(result.visits[0], result.visits[1], result.measurement)
    with atomic_paths(targets) as (*residual_paths, picture_path, record_path):
        for path, residual in zip(residual_paths, residuals, strict=True):
            encoded = residual_to_uint16(np.nan_to_num(residual))
            encoded[np.isnan(residual)] = 0  # no residual has this value
            Image.fromarray(encoded).save(path, format="PNG")
        picture.save(picture_path, format="PNG", compress_level=4)
        record_path.write_text(text, encoding="utf-8")
    return targets[::-1]


def _picture(result: PairResult) -> Image.Image:
    return draw_measurement(
        [radiograph.image for radiograph in result.radiographs],
        result.visits,
        result.measurement,
        summary(result.record),
    )


def summary(record: NarrowingRecord) -> list[str]:
    """The result as lines of text; the first says whether it is one."""
    narrowing = f"{signed(record.narrowing_px, 3)} px"
    if record.narrowing_mm is not None:
        narrowing += f" = {signed(record.narrowing_mm, 4)} mm"
    if record.mismatch:
        first = f"mismatch ({'; '.join(record.problems)}): {narrowing} is no measurement"
    else:
        first = (
            f"narrowing {narrowing}, quality {record.quality:.3f}, there and back "
            f"{record.disagreement_px:.3f} px apart"
        )
    lines = [first]
    spaces = record.joint_space_width
    for name, width in (("baseline", spaces.baseline), ("follow-up", spaces.followup)):
        if width is not None:
            text = f"{width.mean_px:.2f} px mean, {width.minimum_px:.2f} px minimal"
            if width.mean_mm is not None:
                text += f" ({width.mean_mm:.3f} and {width.minimum_mm:.3f} mm)"
            lines.append(f"joint space width, {name}: {text}")
    return lines + [f"note: {note}" for note in record.notes if "touches" not in note]


@dataclass(frozen=True)
class MeasuredList:
    """What became of a list: ``rows`` of the table at ``path``, and a sentence for each failure."""

    path: Path
    rows: list[dict[str, Any]]
    failures: list[str]

    @property
    def mismatches(self) -> int:
        """Pairs that were measured and are no measurement."""
        return sum(row["mismatch"] for row in self.rows) - len(self.failures)

    @property
    def measured(self) -> int:
        """Pairs that are a measurement."""
        return len(self.rows) - self.mismatches - len(self.failures)


def measure_list(
    listed: list[ListedPair],
    output: Path,
    options: ReadOptions,
    separate: Separate,
    weights: Weights | None,
    *,
    segmenter: Callable[[], Segmenter],
    fit_scale: bool = False,
    track: Track = silent,
) -> MeasuredList:
    """Measure every pair, whatever becomes of each, into the table :data:`PAIRS_NAME`.

    The table is written every 50 pairs and at the end, a picture of each pair into
    :data:`PICTURES_FOLDER`. ``separate`` and ``weights`` as of :func:`separation_by`; ``segmenter``
    gives what predicts masks where an entry names none; ``track`` is what shows progress.
    """
    read = lru_cache(maxsize=_VISITS_KEPT)(read_visit)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for number, pair in enumerate(track(listed, "measuring", len(listed)), start=1):
        images = pair.baseline.image, pair.followup.image
        names = {"joint": pair.joint, "baseline": images[0].name, "followup": images[1].name}
        try:
            check_same_joint(*images)
            files = [
                visit
                if isinstance(visit, VisitFiles)
                else predicted_visit(visit.image, options, output, segmenter)
                for visit in (pair.baseline, pair.followup)
            ]
            visits = [read(visit, options) for visit in files]
            result = measure_pair(visits[0], visits[1], separate, weights, fit_scale=fit_scale)
            picture = _write_picture(result, output / PICTURES_FOLDER, number, len(listed))
        except OutputError:
            raise
        except BlsganError as error:
            failures.append(f"{pair.joint}: {error}")
            rows.append({**names, "mismatch": True, "problems": str(error)})
        except MemoryError:
            failures.append(f"{pair.joint}: {names['baseline']} does not fit into memory; crop it.")
            rows.append({**names, "mismatch": True, "problems": "out of memory"})
        else:
            rows.append({**names, **_row(result.record), "picture": picture})
        if len(rows) % _SAVE_EVERY == 0:
            _write_rows(rows, output)
    return MeasuredList(_write_rows(rows, output), rows, failures)


def _write_picture(result: PairResult, folder: Path, number: int, count: int) -> str:
    """The picture of a list's pair; its name is by the pair's place, for joints' names repeat."""
    path = folder / f"pair-{number:0{len(str(count))}d}.png"
    picture = _picture(result)
    with atomic_path(path) as temporary:
        try:
            picture.save(temporary, format="PNG", compress_level=4)
        except OSError as error:
            raise output_error(path, error) from error
    return f"{folder.name}/{path.name}"


def _row(record: NarrowingRecord) -> dict[str, Any]:
    """A record as one line of a table."""
    row: dict[str, Any] = {
        key: getattr(record, key)
        for key in (
            "narrowing_px",
            "narrowing_mm",
            "sideways_px",
            "mismatch",
            "quality",
            "disagreement_px",
        )
    }
    for bone, found in record.bones.items():
        row |= {
            f"{bone}_{key}": getattr(found, key)
            for key in ("correlation", "coverage", "rotation_deg", "scale", "pixels", "converged")
        }
    spaces = record.joint_space_width
    for visit, width in (("baseline", spaces.baseline), ("followup", spaces.followup)):
        for key in ("mean_px", "minimum_px", "mean_mm", "minimum_mm"):
            row[f"jsw_{visit}_{key}"] = getattr(width, key) if width else None
    row["weights_sha256"] = record.weights.sha256 if record.weights else None
    row["problems"] = "; ".join(record.problems)
    row["notes"] = "; ".join(record.notes)
    return row


def _write_rows(rows: list[dict[str, Any]], output: Path) -> Path:
    path = output / PAIRS_NAME
    with atomic_path(path) as temporary:
        write_csv(temporary, rows)
    return path
