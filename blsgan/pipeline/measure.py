"""Measure joint space narrowing from files to files: one pair of visits, or a list of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blsgan.errors import BlsganError, OutputError, UsageError
from blsgan.evaluation.results import write_csv
from blsgan.io.atomic import atomic_path, atomic_paths
from blsgan.io.results import residual_to_uint16
from blsgan.jsn.picture import draw_measurement
from blsgan.jsn.quantification import residual_maps
from blsgan.jsn.visits import (
    ListedPair,
    PairResult,
    Separate,
    check_same_joint,
    measure_pair,
    read_visit,
    separated,
    unseparated,
)
from blsgan.pipeline.segment import weights_record
from blsgan.progress import Track, silent
from blsgan.records.narrowing import NarrowingRecord, ReadOptions
from blsgan.records.record import Weights
from blsgan.tasks.separation import Separator

RECORD_NAME, PICTURE_NAME, PAIRS_NAME = "jsn.json", "jsn.png", "jsn.csv"
RESIDUAL_NAMES = ("jsn_residual_upper.png", "jsn_residual_lower.png")
_SAVE_EVERY = 50  # pairs; a list of thousands must not be lost to an interruption
_VISITS_KEPT = 16  # pairs of one joint follow each other and share their visits


def separation_by(separator: Separator | None) -> tuple[Separate, Weights | None]:
    """How visits are taken apart, and the record of the weights; None: not at all, no weights."""
    if separator is None:
        return unseparated, None
    return separated(separator), weights_record(separator.weights)


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
    picture = draw_measurement(
        [radiograph.image for radiograph in result.radiographs],
        result.visits,
        result.measurement,
        summary(result.record),
    )
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


def summary(record: NarrowingRecord) -> list[str]:
    """The result as lines of text; the first says whether it is one."""
    narrowing = f"{record.narrowing_px:+.3f} px"
    if record.narrowing_mm is not None:
        narrowing += f" = {record.narrowing_mm:+.4f} mm"
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


def measure_list(
    listed: list[ListedPair],
    output: Path,
    options: ReadOptions,
    separate: Separate,
    weights: Weights | None,
    *,
    fit_scale: bool = False,
    track: Track = silent,
) -> MeasuredList:
    """Measure every pair, whatever becomes of each, into the table :data:`PAIRS_NAME`.

    The table is written every 50 pairs and at the end. ``separate`` and ``weights`` as of
    :func:`separation_by`; ``track`` is what shows progress.
    """
    read = lru_cache(maxsize=_VISITS_KEPT)(read_visit)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for pair in track(listed, "measuring", len(listed)):
        names = {
            "joint": pair.joint,
            "baseline": pair.baseline.image.name,
            "followup": pair.followup.image.name,
        }
        try:
            check_same_joint(pair.baseline.image, pair.followup.image)
            visits = [read(visit, options) for visit in (pair.baseline, pair.followup)]
            result = measure_pair(visits[0], visits[1], separate, weights, fit_scale=fit_scale)
        except OutputError:
            raise
        except BlsganError as error:
            failures.append(f"{pair.joint}: {error}")
            rows.append({**names, "mismatch": True, "problems": str(error)})
        except MemoryError:
            failures.append(f"{pair.joint}: {names['baseline']} does not fit into memory; crop it.")
            rows.append({**names, "mismatch": True, "problems": "out of memory"})
        else:
            rows.append({**names, **_row(result.record)})
        if len(rows) % _SAVE_EVERY == 0:
            _write_rows(rows, output)
    return MeasuredList(_write_rows(rows, output), rows, failures)


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
