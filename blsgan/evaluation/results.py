"""An evaluation as files: JSON for programs, markdown for readers, CSV of every single record."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from blsgan import __version__
from blsgan.evaluation.layers import (
    ANOTHER_VISIT,
    DRAWN,
    ERROR_KEYS,
    NOTHING_HIDDEN,
    OUTLINE_KEYS,
)
from blsgan.evaluation.metrics import BUCKETS, bucket_name
from blsgan.evaluation.protocol import Part
from blsgan.io.atomic import ESCAPED, atomic_paths
from blsgan.io.masks import BONES
from blsgan.io.tables import write_csv
from blsgan.records.evaluation import EvaluationRecord

JSON_NAME, MARKDOWN_NAME = "evaluation.json", "evaluation.md"
LAYERS_CSV, SYNTHETIC_CSV, REAL_CSV = "layers.csv", "synthetic.csv", "real.csv"
FIGURE_NAMES = BY_SIZE_NAME, SPECTRUM_NAME, PANEL_NAME, REAL_PANEL_NAME = (
    "metric_by_overlap_size.png",
    "mse_spectrum.png",
    "error_panel.png",
    "real_panel.png",
)


@dataclass(frozen=True)
class Table:
    """A table of finished cells, first column text, the others figures."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as GitHub markdown."""
        lines = [
            f"## {self.title}",
            "",
            "| " + " | ".join(self.header) + " |",
            "|---" + "|---:" * (len(self.header) - 1) + "|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        lines += ["", *(f"{note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"


@dataclass
class Evaluation:
    """Everything one run of ``blsgan evaluate`` found.

    Attributes:
        split: ``train``, ``val`` or ``all``.
        seed: of the synthetic shifts and of the bootstrap.
        dataset: ``images`` and ``joints`` of the split, ``sha256`` of their names and files.
        model: what identifies the model (weights, hash, backend); empty for closed forms alone.
        layers, real, synthetic: the parts that were run.
    """

    split: str
    seed: int
    dataset: dict[str, Any]
    model: dict[str, Any]
    synthetic: Part | None = None
    real: Part | None = None
    layers: Part | None = None

    def record(self) -> EvaluationRecord:
        """The JSON file's content: figures without their single records."""
        return EvaluationRecord(
            schema=2,
            blsgan=__version__,
            split=self.split,
            seed=self.seed,
            dataset=self.dataset,
            model=self.model,
            versions={
                "python": platform.python_version(),
                "opencv": cv2.__version__,
                **{name: version(name) for name in ("numpy", "scipy", "scikit-image")},
            },
            synthetic=self.synthetic.summary if self.synthetic else None,
            real=self.real.summary if self.real else None,
            layers=self.layers.summary if self.layers else None,
        )

    def heading(self) -> str:
        """One line that says what every figure below belongs to."""
        model = "closed forms only"
        if self.model:
            model = (
                f"weights {self.model['weights']} (sha256 {self.model['sha256'][:12]}), "
                f"backend {self.model['backend']} {self.model['backend_version']}"
            )
            model += ", mirrored" if self.model.get("mirrored") else ""
        return (
            f"split {self.split}: {self.dataset['images']} images of "
            f"{self.dataset['joints']} joints; seed {self.seed}; {model}; "
            f"blsgan {__version__}"
        )

    def tables(self) -> list[Table]:
        """The tables of the protocol, ready to print."""
        tables = _layer_tables(self.layers.summary) if self.layers else []
        if self.real:
            tables += [_real_table(self.real.summary), _reconstruction_table(self.real.summary)]
        if self.synthetic:
            tables += [
                _synthetic_table(self.synthetic.summary),
                _bucket_table(self.synthetic.summary),
            ]
        return tables + _frechet_tables(
            *(
                part.summary.get("frechet", []) if part else []
                for part in (self.synthetic, self.real)
            )
        )

    def write(self, folder: Path) -> list[Path]:
        """Writes JSON, markdown and CSV files into ``folder``: all of them, or none.

        What an earlier run left there and this one does not replace (a part that was not run, its
        figures) is removed: all that lies there belongs together.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        parts = {LAYERS_CSV: self.layers, SYNTHETIC_CSV: self.synthetic, REAL_CSV: self.real}
        present = {name: part for name, part in parts.items() if part is not None}
        names = [*present, MARKDOWN_NAME, JSON_NAME]
        paths = [folder / name for name in names]
        with atomic_paths(paths) as temporaries:
            for temporary, part in zip(temporaries, present.values(), strict=False):
                write_csv(temporary, part.records)
            text = f"# Evaluation\n\n{self.heading()}\n\n"
            text += "\n".join(table.markdown() for table in self.tables())
            temporaries[-2].write_text(text, encoding="utf-8", errors=ESCAPED)
            temporaries[-1].write_text(self.record().text(indent=1), encoding="utf-8")
        for name in (*(name for name in parts if name not in present), *FIGURE_NAMES):
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()
        return paths


def _cell(summary: dict[str, Any], key: str, form: str) -> str:
    value = summary.get(key)
    return "" if value is None else format(value["mean"], form)


def with_interval(value: dict[str, float] | None, form: str) -> str:
    """``28.10 [27.50, 28.70]``: a mean and its interval, or nothing where there is none."""
    if value is None:
        return ""
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def _left_out(summary: dict[str, Any]) -> str:
    reasons = [f"{count} {reason}" for reason, count in summary["left_out"].items() if count]
    return f" Left out: {', '.join(reasons)}." if reasons else ""


def _layer_tables(summary: dict[str, Any]) -> list[Table]:
    tables = []
    for thresholds, by_masks in summary["thresholds"].items():
        for masks, methods in by_masks.items():
            for bone in BONES:
                table = _hidden_table(methods, bone, f"{masks} masks, {thresholds} thresholds")
                tables += [table] if table else []
    return [
        *_outline_tables(summary),
        *_trust_tables(summary),
        *tables,
        *_realism_tables(summary),
    ]


def _outline_tables(summary: dict[str, Any]) -> list[Table]:
    tables = []
    for masks, methods in summary["thresholds"]["protocol"].items():
        rows = [
            [
                f"{method}, {bone} bone ({figures['comparisons']})",
                *(with_interval(figures["outline"].get(key), "+.3f") for key in OUTLINE_KEYS),
                f"{figures['outline_worst']:+.3f}",
            ]
            for method, bones in methods.items()
            for bone, figures in bones.items()
            if figures.get("outline_worst") is not None
        ]
        if rows:
            edges = [key.removeprefix("bias_").replace("_", " to ") for key in OUTLINE_KEYS]
            tables.append(
                Table(
                    f"Outline of the other bone: mean of layer minus another visit, {masks} masks",
                    ["px from the border, - in the overlap", *edges, "worst of -3 to +4"],
                    rows,
                    ["Mean over comparisons; 95 % intervals are bootstrapped over joints."],
                )
            )
    return tables


def _trust_tables(summary: dict[str, Any]) -> list[Table]:
    """What JSN's registration takes over (``blsgan.jsn.quantification.LAYER_TRUST``)."""
    rows = [
        [
            f"{method}, {bone} bone",
            *(with_interval(figures["trust"].get(key), ".2f") for key in ERROR_KEYS),
        ]
        for method, bones in summary["thresholds"]["protocol"].get(DRAWN, {}).items()
        for bone, figures in bones.items()
        if "trust" in figures
    ]
    if not rows:
        return []
    edges = [key.removeprefix("mse_").replace("_", " to ") for key in ERROR_KEYS]
    note = (
        "Mean squared error of registered visits where nothing is hidden over that of the layer, "
        "against the same visits: the weight of a layer's pixels in registration."
    )
    header = ["px from the border, - in the overlap", *edges]
    return [Table("Weight of a layer by distance, drawn masks", header, rows, [note])]


def _hidden_table(methods: dict[str, Any], bone: str, what: str) -> Table | None:
    own = {name: bones[bone] for name, bones in methods.items() if bone in bones}
    if not any(figures["comparisons"] for figures in own.values()):
        return None
    last = list(own)[-1]
    most = max(own.values(), key=lambda figures: int(figures["comparisons"]))
    rows = []
    for name, figures in own.items():
        gain = own[last]["gains"].get(name, {}).get("corrected_db")
        texture = figures.get("texture")
        rows.append(
            [
                name,
                with_interval(figures.get("corrected_db"), ".2f"),
                with_interval(gain, "+.2f"),
                with_interval(figures.get("plain_db"), ".2f"),
                with_interval(figures.get("ring_bias"), "+.3f"),
                with_interval(figures.get("ring_corrected_db"), ".2f"),
                with_interval(figures.get("ring_plain_db"), ".2f"),
                f"{texture['median']:.2f} ({texture['images']})" if texture else "",
            ]
        )
    return Table(
        f"Hidden {bone} bone, {what}: {most['comparisons']} comparisons, "
        f"{most['pairs']} pairs of {most['joints_of_pairs']} joints",
        [
            "method",
            "corrected dB [95 %]",
            f"gain of {last} over it",
            "plain PSNR dB",
            "ring: bias",
            "ring: corrected dB",
            "ring: plain dB",
            "texture, median",
        ],
        rows,
        [
            "Corrected: mean of (layer - B)(layer - C) over the pixels where visits B and C both "
            "show the bone, averaged over pairs, then in dB; 100 where an interval holds 0. Ring: "
            "the bone's free pixels within 5 px of the overlap; its plain and corrected dB are of "
            "mean errors. Texture: power above 0.1 cycles/px against the same bone beside it."
        ],
    )


def _realism_tables(summary: dict[str, Any]) -> list[Table]:
    rows = [
        [
            method,
            *(
                f"{with_interval(bones[bone]['auc'], '.2f')} ({bones[bone]['layers']})"
                if bone in bones
                else ""
                for bone in BONES
            ),
        ]
        for method, bones in summary["realism"].items()
    ]
    if not rows:
        return []
    note = (
        "A classifier of layers against the same bone as another visit shows it free, at one place "
        "and read alike, cross-validated over joints; 0.5: it cannot tell them apart. In brackets "
        f"the number of layers. {ANOTHER_VISIT}: the free bone pasted into the image. "
        f"{NOTHING_HIDDEN}: the image's own free part, which must score 0.5."
    )
    header = ["method", *(f"{bone} bone AUC [95 %]" for bone in BONES)]
    return [Table("Realism", header, rows, [note])]


def _synthetic_table(summary: dict[str, Any]) -> Table:
    header = [
        "method",
        "MSE",
        "PSNR dB [95 %]",
        "SSIM [95 %]",
        "union MSE",
        "union PSNR dB",
        "union SSIM",
        "reconstruction MSE",
        "k error",
        "ms",
    ]
    rows = [
        [
            name,
            _cell(m, "overlap_mse", ".5f"),
            with_interval(m.get("overlap_psnr_db"), ".2f"),
            with_interval(m.get("overlap_ssim"), ".3f"),
            _cell(m, "union_mse", ".6f"),
            _cell(m, "union_psnr_db", ".2f"),
            _cell(m, "union_ssim", ".4f"),
            _cell(m, "reconstruction_mse", ".1e"),
            _cell(m, "soft_tissue_error", ".3f"),
            _cell(m, "time_ms", ".1f"),
        ]
        for name, m in summary["methods"].items()
    ]
    title = (
        f"Synthetic overlaps: {summary['images']} images of {summary['joints']} joints, "
        "layers against the true layers"
    )
    note = (
        "MSE, PSNR and SSIM over the overlap, then over the bones' union; intervals are "
        f"bootstrapped over joints.{_left_out(summary)}"
    )
    return Table(title, header, rows, [note])


def _bucket_table(summary: dict[str, Any]) -> Table:
    names = [bucket_name(bucket) for bucket in BUCKETS]
    first = next(iter(summary["methods"].values()))["buckets"]
    header = ["MSE / PSNR dB / SSIM by overlap size in px"] + [
        f"{name} (N={first[name]['images']})" if name in first else f"{name} (N=0)"
        for name in names
    ]
    rows = []
    for method, m in summary["methods"].items():
        cells = []
        for name in names:
            bucket = m["buckets"].get(name)
            cells.append(
                ""
                if bucket is None
                else f"{_cell(bucket, 'overlap_mse', '.5f')} / "
                f"{_cell(bucket, 'overlap_psnr_db', '.2f')} / "
                f"{_cell(bucket, 'overlap_ssim', '.3f')}"
            )
        rows.append([method, *cells])
    return Table("Synthetic overlaps by size", header, rows)


def _real_table(summary: dict[str, Any]) -> Table:
    counts = summary["comparisons"]
    header = [
        "method",
        *(f"{bone} bone ({counts[bone]}) PSNR dB [95 %]" for bone in BONES),
        "mean of both [95 %]",
        *(f"{bone} MSE" for bone in BONES),
    ]
    rows = []
    for name, m in summary["methods"].items():
        bones = [m.get(bone, {}) for bone in BONES]
        rows.append(
            [
                name,
                *(with_interval(bone.get("psnr_db"), ".2f") for bone in bones),
                with_interval(m.get("mean_psnr_db"), ".2f"),
                *(_cell(bone, "mse", ".5f") for bone in bones),
            ]
        )
    floor = summary["floor"]
    both = [floor[bone]["mean"] for bone in BONES if bone in floor]
    rows.append(
        [
            "floor: the registration itself",
            *(with_interval(floor.get(bone), ".2f") for bone in BONES),
            f"{np.mean(both):.2f}" if len(both) == len(BONES) else "",
            *("" for _ in BONES),
        ]
    )
    notes = [
        "The hidden bone as another visit of the joint shows it, registered and mapped to "
        "this image's intensities; the floor is the same error where nothing is hidden."
    ]
    if summary["another_visit"]:
        rows += _another_visit_rows(summary)
        notes.append(
            "Where a third visit shows the same bone: what it scores in the place of a "
            "method, and the last method on those comparisons."
        )
    if not any(counts.values()):
        notes.append("No visit of these joints shows a bone that another one hides.")
    return Table("Real overlaps: truth from another visit", header, rows, notes)


def _another_visit_rows(summary: dict[str, Any]) -> Iterator[list[str]]:
    found = [summary["another_visit"].get(bone) for bone in BONES]
    counts = " and ".join(str(one["comparisons"] if one else 0) for one in found)
    last = list(summary["methods"])[-1]
    for name, scores in (
        (f"a third visit ({counts})", [one and one["another_visit_psnr_db"] for one in found]),
        (f"{last} there", [one and one["methods"][last] for one in found]),
    ):
        both = [score["mean"] for score in scores if score]
        yield [
            name,
            *(with_interval(score, ".2f") for score in scores),
            f"{np.mean(both):.2f}" if len(both) == len(BONES) else "",
            *("" for _ in BONES),
        ]


def _reconstruction_table(summary: dict[str, Any]) -> Table:
    supervised = any("supervisor_dice" in m for m in summary["methods"].values())
    header = ["method", "MSE", "PSNR dB", "SSIM", "k"]
    header += ["supervisor: Dice with the masks", "overlap taken for real"] if supervised else []
    rows = [
        [
            name,
            _cell(m, "reconstruction_mse", ".1e"),
            _cell(m, "reconstruction_psnr_db", ".1f"),
            _cell(m, "reconstruction_ssim", ".4f"),
            _cell(m, "soft_tissue", ".3f"),
            *(
                (_cell(m, "supervisor_dice", ".4f"), _cell(m, "supervisor_real", ".3f"))
                if supervised
                else ()
            ),
        ]
        for name, m in summary["methods"].items()
        if "reconstruction_mse" in m or supervised
    ]
    title = (
        f"Real overlaps: recomposed against the image, {summary['images']} images of "
        f"{summary['joints']} joints, over the bones' union"
    )
    return Table(
        title, header, rows, [f"Methods that state no k cannot be recomposed.{_left_out(summary)}"]
    )


def _frechet_tables(
    synthetic: Sequence[dict[str, Any]], real: Sequence[dict[str, Any]]
) -> list[Table]:
    """One table for each kind of features, with a column for each part that was measured."""
    names = list(dict.fromkeys(found["name"] for found in (*synthetic, *real)))
    return [
        _frechet_table(
            *(
                next((found for found in part if found["name"] == name), None)
                for part in (synthetic, real)
            )
        )
        for name in names
    ]


def _frechet_table(synthetic: dict[str, Any] | None, real: dict[str, Any] | None) -> Table:
    found = [part for part in (synthetic, real) if part is not None]
    header, columns = ["method"], []
    if synthetic:
        header.append(f"synthetic overlaps ({synthetic['generated']} bones)")
        columns.append(synthetic["distance"])
    if real:
        header.append(f"real overlaps ({real['generated']} bones against {real['real']})")
        columns.append({"truth": real["real_halves"], **real["distance"]})
    methods = list(dict.fromkeys(name for column in columns for name in column))
    rows = [
        [name, *("" if column.get(name) is None else f"{column[name]:.3f}" for column in columns)]
        for name in methods
    ]
    extractor = found[0]["extractor"]
    notes = [
        f"{extractor['features']} features: {extractor['what']}. Synthetic: layers of one "
        "half of the joints against the true layers of the other half, both ways. Real: "
        "against bones that nothing hides; its row truth is one half of those against the "
        "other."
    ]
    if synthetic and synthetic["nearer_than_truth"]:
        notes.append(
            f"Nearer than the truth on synthetic overlaps: "
            f"{', '.join(synthetic['nearer_than_truth'])}; a closed form there means that "
            "these features cannot tell how well bones are separated."
        )
    bones = min(min(part["generated"], part.get("real", part["generated"])) for part in found)
    if "file" in extractor and bones <= extractor["features"]:
        notes.append(
            f"N = {bones} bones are no more than the {extractor['features']} features: "
            "the distance is biased upwards, and comparable only at this N."
        )
    return Table(found[0]["name"], header, rows, notes)
