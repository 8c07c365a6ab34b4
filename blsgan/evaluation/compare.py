"""Several evaluations of the same images side by side, with paired differences over joints.

Two models differ less from each other than either does from image to image. So each is judged on
the very same images, the difference is taken image by image (comparison by comparison on real
overlaps), and whole joints are resampled for its interval. The error that is corrected for the
truth's noise may be negative for one pair of visits: there means are compared, over the same draws
of joints.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blsgan import __version__
from blsgan.errors import InputError, UsageError
from blsgan.evaluation.hidden import pooled_db
from blsgan.evaluation.layers import DRAWN
from blsgan.evaluation.methods import model_name
from blsgan.evaluation.metrics import bootstrap_balanced_mean
from blsgan.evaluation.results import (
    JSON_NAME,
    LAYERS_CSV,
    REAL_CSV,
    SYNTHETIC_CSV,
    Table,
    with_interval,
)
from blsgan.io.atomic import ESCAPED, atomic_paths
from blsgan.io.masks import BONES
from blsgan.records.evaluation import ComparisonRecord, EvaluationRecord
from blsgan.records.record import Part

COMPARISON_JSON, COMPARISON_MARKDOWN = "comparison.json", "comparison.md"
COMPARISON_FIGURE = "comparison.png"
PARTS = ("layers", "synthetic", "real")


@dataclass(frozen=True)
class Metric:
    """A figure that is compared: its key, column title and format; ``better`` is +1 or -1."""

    key: str
    title: str
    form: str
    part: str
    better: int = 1


METRICS = (
    Metric("upper_error", "upper corrected dB", ".2f", "layers"),
    Metric("lower_error", "lower corrected dB", ".2f", "layers"),
    Metric("upper_ring_error", "upper ring corrected dB", ".2f", "layers"),
    Metric("lower_ring_error", "lower ring corrected dB", ".2f", "layers"),
    Metric("overlap_mse", "synthetic MSE", ".5f", "synthetic", -1),
    Metric("overlap_psnr_db", "synthetic PSNR dB", ".2f", "synthetic"),
    Metric("overlap_ssim", "synthetic SSIM", ".4f", "synthetic"),
    Metric("union_psnr_db", "union PSNR dB", ".2f", "synthetic"),
    Metric("union_ssim", "union SSIM", ".4f", "synthetic"),
    Metric("upper_psnr_db", "real upper PSNR dB", ".2f", "real"),
    Metric("lower_psnr_db", "real lower PSNR dB", ".2f", "real"),
    Metric("mean_psnr_db", "real mean PSNR dB", ".2f", "real"),
)


class _Dataset(Part):
    """What a comparison reads of an evaluation's ``dataset``."""

    images: int
    joints: int
    sha256: str = ""


class _Model(Part):
    """Of its ``model``."""

    weights: str
    sha256: str
    architecture: str
    backend: str


class _Distance(Part):
    """Of an entry of its ``real.frechet``: the distance of each method."""

    name: str
    distance: dict[str, float]


@dataclass(frozen=True)
class Recorded:
    """An evaluation as it was written: its report and, by method, its single records."""

    label: str
    path: Path
    report: EvaluationRecord
    synthetic: dict[str, list[dict[str, str]]]
    real: dict[str, list[dict[str, str]]]
    layers: dict[str, list[dict[str, str]]]

    @property
    def method(self) -> str:
        """The model's name among the methods.

        Raises:
            InputError: the evaluation is of the closed forms alone.
        """
        model = self.report.model
        if "weights" not in model:
            raise InputError(
                f"{self.path}: is an evaluation without a model (--no-model); compare "
                "evaluations of weights"
            )
        return model_name(model)

    def parts(self) -> list[str]:
        """The parts that were measured."""
        return [part for part in PARTS if getattr(self.report, part) is not None]


def find_evaluation(path: Path) -> Path | None:
    """The evaluation's JSON file that ``path`` is or holds; None where it is something else."""
    if path.is_dir():
        path = path / JSON_NAME
    return path if path.is_file() and path.name == JSON_NAME else None


def load_evaluation(path: Path, label: str) -> Recorded:
    """Reads an evaluation's JSON file and the CSV files beside it.

    Raises:
        InputError: a file is missing or damaged, or of another version's layout.
    """
    try:
        report = EvaluationRecord.parse(json.loads(path.read_text(encoding="utf-8")))
        json.dumps([report.dataset, report.model], allow_nan=False)  # as the comparison writes them
        _Dataset.parse(report.dataset)
        if "weights" in report.model:
            _Model.parse(report.model)
        for distance in (report.real or {}).get("frechet", []):
            _Distance.parse(distance)
        records = {
            part: _read_csv(path.with_name(name)) if getattr(report, part) is not None else {}
            for part, name in (
                ("synthetic", SYNTHETIC_CSV),
                ("real", REAL_CSV),
                ("layers", LAYERS_CSV),
            )
        }
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror}); an evaluation is "
            "compared with its CSV files, so keep the folder together"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: is no evaluation that this version can read ({error}); evaluate again"
        ) from error
    return Recorded(label, path, report, **records)


def _read_csv(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["method"], []).append(row)
    return found


def check_comparable(evaluations: Sequence[Recorded]) -> list[str]:
    """The parts that all evaluations have.

    Raises:
        UsageError: fewer than two, or of different images, splits or seeds; says what differs.
    """
    if len(evaluations) < 2:
        raise UsageError("one evaluation cannot be compared; give two or more")
    first = evaluations[0]
    facts = {
        "data": lambda e: e.report.dataset.get("sha256", "")[:12],
        "split": lambda e: e.report.split,
        "seed": lambda e: e.report.seed,
    }
    for other in evaluations[1:]:
        differing = [
            f"{name} {fact(first)} and {fact(other)}"
            for name, fact in facts.items()
            if fact(first) != fact(other)
        ]
        if differing:
            raise UsageError(
                f"{first.label} and {other.label} cannot be compared: they differ in "
                f"{', '.join(differing)}; evaluate both alike"
            )
    parts = [part for part in PARTS if all(part in e.parts() for e in evaluations)]
    if not parts:
        raise UsageError(
            "no part was measured by all: "
            + "; ".join(f"{e.label} has {' and '.join(e.parts())}" for e in evaluations)
        )
    return parts


Values = dict[tuple[str, ...], tuple[float, str]]


def _figure(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no figure")
    return value


def _values(evaluation: Recorded, method: str, metric: Metric) -> list[Values]:
    """For each of the means that make the metric: what was measured -> (value, joint)."""
    try:
        if metric.part == "synthetic":
            return [
                {
                    (r["image"],): (_figure(r[metric.key]), r["joint"])
                    for r in evaluation.synthetic.get(method, [])
                }
            ]
        if metric.part == "layers":
            bone, key = metric.key.split("_", 1)
            return [
                {
                    (r["image"], r["other"], r["third"]): (_figure(r[key]), r["joint"])
                    for r in evaluation.layers.get(method, [])
                    if (r["kind"], r["masks"], r["bone"]) == ("pair", DRAWN, bone) and r[key]
                }
            ]
        bones = BONES if metric.key.startswith("mean") else (metric.key.split("_")[0],)
        rows = [r for r in evaluation.real.get(method, []) if r["kind"] == "layer"]
        return [
            {
                (r["image"], r["other"], bone): (_figure(r["psnr_db"]), r["joint"])
                for r in rows
                if r["bone"] == bone
            }
            for bone in bones
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{evaluation.path}: its CSV files are damaged ({error!r}); run `blsgan evaluate` again"
        ) from error


def _interval(
    parts: Sequence[Values], metric: Metric, seed: int, minus: Sequence[Values] = ()
) -> dict[str, float] | None:
    """The metric, or with ``minus`` its mean difference to the same samples there."""
    if not all(parts):
        return None
    joints = [[joint for _, joint in part.values()] for part in parts]
    figures = [[value for value, _ in part.values()] for part in parts]
    others = [[other[key][0] for key in part] for part, other in zip(parts, minus, strict=False)]
    if metric.part == "layers":
        return pooled_db(
            figures[0], joints[0], minus=others[0] if others else None, seed=seed
        ).as_dict()
    if others:
        figures = [
            [a - b for a, b in zip(mine, theirs, strict=True)]
            for mine, theirs in zip(figures, others, strict=True)
        ]
    return bootstrap_balanced_mean(list(zip(figures, joints, strict=True)), seed=seed).as_dict()


def _difference(
    one: tuple[Recorded, str], other: tuple[Recorded, str], metric: Metric, seed: int
) -> dict[str, float] | None:
    """Mean of ``one`` minus ``other``, paired, with its interval."""
    own, others = _values(*one, metric), _values(*other, metric)
    for mine, theirs in zip(own, others, strict=True):
        if mine and mine.keys() != theirs.keys():
            raise InputError(
                f"{one[0].label} and {other[0].label} measured different images "
                f"({len(mine)} and {len(theirs)}, {len(mine.keys() & theirs.keys())} "
                "in common); run `blsgan evaluate` again"
            )
    return _interval(own, metric, seed, others)


@dataclass(frozen=True)
class Comparison:
    """Figures of every row, and their differences to the first one.

    ``rows``: label -> metric key -> interval; ``differences`` alike, without the first label;
    ``frechet``: metric name -> label -> value on real overlaps; ``models``: label -> weights.
    """

    split: str
    seed: int
    dataset: dict[str, Any]
    metrics: list[Metric]
    models: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, dict[str, float]]]
    differences: dict[str, dict[str, dict[str, float]]]
    frechet: dict[str, dict[str, float]]

    @property
    def reference(self) -> str:
        """What the others are compared with."""
        return next(iter(self.rows))

    def record(self) -> ComparisonRecord:
        """The JSON file's content."""
        return ComparisonRecord(
            schema=1,
            blsgan=__version__,
            split=self.split,
            seed=self.seed,
            dataset=self.dataset,
            reference=self.reference,
            models=self.models,
            rows=self.rows,
            differences=self.differences,
            frechet=self.frechet,
        )

    def heading(self) -> str:
        """One line that says what every figure below belongs to."""
        return (
            f"split {self.split}: {self.dataset['images']} images of "
            f"{self.dataset['joints']} joints; seed {self.seed}; blsgan {__version__}"
        )

    def tables(self) -> list[Table]:
        """The figures, and the paired differences to the first row."""
        header = ["", *(metric.title for metric in self.metrics), *self.frechet]
        rows = [
            [
                label,
                *(_mean(row.get(m.key), m.form) for m in self.metrics),
                *(
                    f"{values[label]:.3f}" if label in values else ""
                    for values in self.frechet.values()
                ),
            ]
            for label, row in self.rows.items()
        ]
        differences = [
            [label, *(with_interval(row.get(m.key), "+" + m.form) for m in self.metrics)]
            for label, row in self.differences.items()
        ]
        models = [
            f"{label}: sha256 {model['sha256'][:12]}, {model['architecture']}, "
            f"{model['backend']}" + (", mirrored" if model.get("mirrored") else "")
            for label, model in self.models.items()
        ]
        return [
            Table("Side by side", header, rows, ["; ".join(models) + "."]),
            Table(
                f"Difference to {self.reference} [95 %]",
                header[: len(self.metrics) + 1],
                differences,
                [
                    "Paired: image by image, intervals bootstrapped over joints. An "
                    "interval without 0 is a difference."
                ],
            ),
        ]

    def write(self, folder: Path) -> list[Path]:
        """Writes JSON and markdown into ``folder``: both or none; an older figure is removed.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        paths = [folder / COMPARISON_MARKDOWN, folder / COMPARISON_JSON]
        with atomic_paths(paths) as (markdown, report):
            text = f"# Comparison\n\n{self.heading()}\n\n"
            text += "\n".join(table.markdown() for table in self.tables())
            markdown.write_text(text, encoding="utf-8", errors=ESCAPED)
            report.write_text(self.record().text(indent=1), encoding="utf-8")
        (folder / COMPARISON_FIGURE).unlink(missing_ok=True)
        return paths


def _mean(interval: Mapping[str, float] | None, form: str) -> str:
    return "" if interval is None else format(interval["mean"], form)


def compare(evaluations: Sequence[Recorded], *, closed_forms: bool = True) -> Comparison:
    """Sets evaluations side by side.

    Args:
        evaluations: two or more; the first is what the others are compared with.
        closed_forms: add the first evaluation's closed forms as rows (those that both parts have,
            where both were measured).

    Raises:
        UsageError: they cannot be compared; says what differs.
        InputError: files are damaged, or an evaluation has no model.
    """
    parts = check_comparable(evaluations)
    first = evaluations[0]
    seed = first.report.seed
    metrics = [metric for metric in METRICS if metric.part in parts]
    subjects = {e.label: (e, e.method) for e in evaluations}
    if closed_forms:
        names = [set(getattr(first, part)) for part in parts]
        common = [
            name
            for name in getattr(first, parts[0])
            if all(name in known for known in names) and name != first.method
        ]
        subjects |= {name: (first, name) for name in common if name not in subjects}
    reference = subjects[first.label]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    differences: dict[str, dict[str, dict[str, float]]] = {}
    for label, subject in subjects.items():
        rows[label] = {}
        for metric in metrics:
            found = _interval(_values(*subject, metric), metric, seed)
            if found is not None:
                rows[label][metric.key] = found
        if label == first.label:
            continue
        differences[label] = {}
        for metric in metrics:
            found = _difference(subject, reference, metric, seed)
            if found is not None:
                differences[label][metric.key] = found
    frechet: dict[str, dict[str, float]] = {}
    for label, (evaluation, method) in subjects.items():
        for found_distance in (evaluation.report.real or {}).get("frechet", []):
            if method in found_distance["distance"]:
                value = found_distance["distance"][method]
                frechet.setdefault(found_distance["name"], {})[label] = value
    return Comparison(
        first.report.split,
        seed,
        first.report.dataset,
        metrics,
        {e.label: e.report.model for e in evaluations},
        rows,
        differences,
        frechet,
    )
