"""What each part of the method is worth: the same short training without it, on the same joints.

Every row is a run of ``blsgan train`` with the preset ``lite-gan`` and a few changed keys, all with
the same number of steps, judged on the same validation joints and compared pair by pair with the
complete method. Rows share their random draws (``draws: step``): in a given step every row that
uses a source (synthetic pairs, visits, real overlaps) draws the same joints, moves and flips of it,
and what its keys change is all that differs. A row is kept in its own folder as soon as it is
finished, so a study that was stopped goes on with the row it stood at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blsgan.data.dataset import load_root
from blsgan.data.layout import JointImage, check_complete, content_digest
from blsgan.data.splits import select
from blsgan.data.truths import cached_visit_truths, lend_registrations
from blsgan.data.visits import PROTOCOL, TRAINING
from blsgan.errors import InputError, UsageError
from blsgan.evaluation.compare import (
    Comparison,
    Recorded,
    compare,
    find_evaluation,
    load_evaluation,
)
from blsgan.evaluation.frechet import patch_extractor
from blsgan.evaluation.networks import from_weights
from blsgan.evaluation.results import Table
from blsgan.evaluation.run import run_evaluation
from blsgan.io.atomic import ESCAPED, atomic_paths
from blsgan.io.tables import write_csv
from blsgan.progress import Track, silent
from blsgan.training import CONFIG_FILE, WEIGHTS

if TYPE_CHECKING:
    from blsgan.training.config import TrainingConfig

PRESET = "lite-gan"
ROWS_FOLDER = "rows"
CSV_NAME, MARKDOWN_NAME, JSON_NAME = "ablation.csv", "ablation.md", "ablation.json"
FIGURE_NAME = "ablation.png"
DEFAULT_STEPS = 170  # 75 s a row of lite on two idle cores, minutes for larger networks
PRE_TRAINING_SHARE = 2 / 3


@dataclass(frozen=True)
class Row:
    """A run: its name (a folder's), what it asks, and the keys in which it differs."""

    name: str
    question: str
    changes: tuple[str, ...]


def common_changes(steps: int) -> tuple[str, ...]:
    """What makes every row short: ``steps`` in all, 8 crops in a step at most."""
    first = round(PRE_TRAINING_SHARE * steps)
    return (
        f"stages.0.steps={first}",
        f"stages.1.steps={steps - first}",
        "data.synthetic=1",
        "data.visits=5",
        "stages.1.data.real=2",
        "data.validation=32",
        "data.crop=[64, 128]",  # multiples of 32, which the other backbones need
        "draws=step",
        f"optimiser.warm_up_steps={max(1, steps // 12)}",
        f"validate_every={steps}",
        f"checkpoint_every={max(1, steps // 2)}",
        "keep_checkpoints=1",
    )


def rows(steps: int = DEFAULT_STEPS) -> list[Row]:
    """The study's rows, the complete method first; the quick ones before the slow ones."""
    return [
        Row("complete", "lite, exact head, both stages, supervisor, real overlaps", ()),
        Row(
            "exponential-law",
            "the exponential law, b = 7, instead of the paper's",
            ("model.configuration.law=7",),
        ),
        Row(
            "one-k",
            "one value of soft tissue for an image instead of a map",
            ("model.configuration.soft_tissue_map=false",),
        ),
        Row(
            "no-zone",
            "layers are estimated where the masks meet and nowhere else",
            ("model.configuration.reach_px=0",),
        ),
        Row(
            "no-continuation",
            "an even split as the prior, without the bones' continuations",
            ("model.configuration.continued=false",),
        ),
        Row(
            "soft-tissue-unseen",
            "a typical soft tissue instead of what lies beside the bones",
            ("model.configuration.soft_tissue_seen=false",),
        ),
        Row("masks-as-drawn", "masks that are never redrawn", ("data.redrawn_share=0",)),
        Row(
            "composites",
            "overlaps composed of bones with their blurred edges as well",
            ("data.composites=2",),
        ),
        Row(
            "synthetic-counts",
            "published pairs with a fifth of the weight, where they have a hundredth",
            ("loss.decibel=0.2", "loss.visits=4"),
        ),
        Row("no-visits", "without the truth of other visits", ("data.visits=0",)),
        Row(
            "no-supervisor",
            "without the supervisor",
            ("supervisor.enabled=false", "stages.1.data.real=0"),
        ),
        Row(
            "no-real-for-supervisor",
            "the supervisor without real overlaps",
            ("stages.1.data.real=0",),
        ),
        Row(
            "no-pre-training",
            "without pre-training: both players from the first step",
            ("stages.0.steps=0", f"stages.1.steps={steps}"),
        ),
        Row(
            "free-head",
            "free layers, sigmoid(logits) in the mask, instead of exact ones",
            ("model.configuration.head=free", "loss.reconstruction=0.3"),
        ),
        Row(
            "unet",
            "U-Net instead of lite, k from VGG-11",
            ("model.architecture=unet", "model.configuration={soft_tissue: reconstructor}"),
        ),
        Row(
            "transunet",
            "TransUNet instead of lite, k from VGG-11",
            ("model.architecture=transunet", "model.configuration={soft_tissue: reconstructor}"),
        ),
    ]


def choose(names: Sequence[str], steps: int) -> list[Row]:
    """The named rows in the study's order, with ``complete``, which the others are compared with.

    Raises:
        UsageError: a row that does not exist.
    """
    known = rows(steps)
    for name in names:
        if name not in (row.name for row in known):
            raise UsageError(
                f"'{name}' is no row of the ablation; choose from "
                f"{', '.join(row.name for row in known)}"
            )
    return [row for row in known if not names or row.name in names or row.name == "complete"]


@dataclass(frozen=True)
class Study:
    """A finished ablation: the comparison, what each row asked, how large its network is, and the
    precision that they were trained in."""

    comparison: Comparison
    chosen: list[Row]
    steps: int
    parameters: dict[str, int]
    precision: str

    def heading(self) -> str:
        """One line that says what every figure below belongs to."""
        return (
            f"{self.steps} steps of at most 8 crops for every row, preset {PRESET}, trained in "
            f"{self.precision}; "
            f"{self.comparison.heading()}"
        )

    def tables(self) -> list[Table]:
        """What each row is, and the comparison's two tables."""
        described = Table(
            "Rows",
            ["row", "parameters", "what"],
            [[row.name, f"{self.parameters[row.name]:,}", row.question] for row in self.chosen],
            [
                "A short training tells which parts help at once; it does not tell where a long "
                "one ends. Networks with more parameters are the farthest from their end."
            ],
        )
        return [described, *self.comparison.tables()]

    def write(self, folder: Path) -> list[Path]:
        """Writes ``ablation.md``, ``.json`` and ``.csv`` into ``folder``: all or none.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        paths = [folder / name for name in (CSV_NAME, MARKDOWN_NAME, JSON_NAME)]
        with atomic_paths(paths) as (table, markdown, report):
            write_csv(table, [self._flat(row) for row in self.chosen])
            text = f"# Ablation\n\n{self.heading()}\n\n"
            text += "\n".join(table.markdown() for table in self.tables())
            markdown.write_text(text, encoding="utf-8", errors=ESCAPED)
            fields = {
                "steps": self.steps,
                "precision": self.precision,
                "parameters": self.parameters,
                "questions": {row.name: row.question for row in self.chosen},
                "changes": {row.name: row.changes for row in self.chosen},
                "common_changes": common_changes(self.steps),
                "comparison": self.comparison.record().fields(),
            }
            report.write_text(
                json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
        return paths

    def _flat(self, row: Row) -> dict[str, Any]:
        flat: dict[str, Any] = {
            "row": row.name,
            "parameters": self.parameters[row.name],
            "steps": self.steps,
            "seed": self.comparison.seed,
        }
        for metric in self.comparison.metrics:
            for prefix, values in (
                ("", self.comparison.rows[row.name]),
                ("difference_", self.comparison.differences.get(row.name, {})),
            ):
                for part in ("mean", "low", "high"):
                    if metric.key in values:
                        flat[f"{prefix}{metric.key}_{part}"] = values[metric.key][part]
        return flat | {
            name: values[row.name]
            for name, values in self.comparison.frechet.items()
            if row.name in values
        }


Report = Callable[[Row, int], None]


def run_study(
    root: str | Path,
    output: Path,
    *,
    names: Sequence[str] = (),
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    device: str = "cpu",
    started: Callable[[Row, int, int], None] = lambda row, index, count: None,
    report: Report = lambda row, step: None,
    progress: Track = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> Study:
    """Trains, evaluates and compares the rows; what is finished in ``output`` is not done again.

    Args:
        root: the dataset's folder or packed file.
        output: folder of the study.
        names: rows to run; all of them by default.
        steps: optimiser steps of every row.
        seed: of every run, and of the evaluation.
        device: a torch device.
        started: called with each row, its number from 0, and their count.
        report: called with a row and the step it stands at.
        progress: wraps the loops of an evaluation.
        warn: called once with a sentence about anything a user should know of the runs.

    Raises:
        UsageError: an unknown row, the device is not there, or ``output`` holds a row of other
            settings.
        InputError: the dataset is not one, or lacks what a row needs.
        OutputError: ``output`` cannot be written.
    """
    from blsgan.training.run_folder import device_of
    from blsgan.training.sources import check_sources

    chosen = choose(names, steps)
    device_of(device)
    images = load_root(root)
    validation = select(images, "val")
    if not validation:
        raise InputError(f"{root}: no joint of its lists belongs to the split val")
    check_complete(root, images)
    check_sources(_config(chosen[0], steps, seed), images)  # it asks for all that the others do
    # Found once and lent to every run: it takes longer than a row does.
    for part, thresholds in ((select(images, "train"), TRAINING), (validation, PROTOCOL)):
        cached_visit_truths(part, output, thresholds, progress)
    digest = content_digest(validation)
    evaluations: list[Recorded] = []
    parameters: dict[str, int] = {}
    precisions: set[str] = set()
    said: set[str] = set()

    def once(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    for index, row in enumerate(chosen):
        started(row, index, len(chosen))
        folder = output / ROWS_FOLDER / row.name
        card = _train(root, folder, row, steps, seed, device, output, report, once)
        precisions.add(str(card["trained"].get("precision") or "unknown precision"))
        parameters[row.name] = int(card["parameters"])
        evaluations.append(_evaluate(folder, row, validation, digest, seed, output, progress))
    return Study(
        compare(evaluations, closed_forms=False),
        chosen,
        steps,
        parameters,
        " and ".join(sorted(precisions)),
    )


def _config(row: Row, steps: int, seed: int) -> TrainingConfig:
    from blsgan.training.config import TrainingConfig, load_config

    changes = (*common_changes(steps), *row.changes, f"seed={seed}", f"name={row.name}")
    config = load_config(PRESET, changes)
    assert isinstance(config, TrainingConfig)
    return config


def _train(
    root: str | Path,
    folder: Path,
    row: Row,
    steps: int,
    seed: int,
    device: str,
    output: Path,
    report: Report,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Trains a row, goes on with it, or finds it finished; returns its weights' card."""
    from blsgan.training.config import differences
    from blsgan.training.run import StepReport, run_config, train

    config = _config(row, steps, seed)
    resume = (folder / CONFIG_FILE).is_file()
    if resume:
        wanted, found = (c.model_dump(mode="json") for c in (config, run_config(folder)))
        # Either way round: a configuration of a model lists only what differs from its defaults.
        differing = sorted({*differences(wanted, found), *differences(found, wanted)})
        if differing:
            raise UsageError(
                f"{folder}: holds this row with other settings "
                f"({', '.join(differing)}); choose another folder or remove it"
            )
    card = folder / WEIGHTS / f"{row.name}.json"
    if not card.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        lend_registrations(output, folder)

        def show(progress: StepReport) -> None:
            report(row, progress.step)

        card = train(root, folder, config, resume=resume, device=device, report=show, warn=warn)
    fields: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
    return fields


def _evaluate(
    folder: Path,
    row: Row,
    images: Sequence[JointImage],
    digest: str,
    seed: int,
    output: Path,
    progress: Track,
) -> Recorded:
    """The row's evaluation, made now or found: of the same weights and images."""
    model = from_weights(folder)
    path = find_evaluation(folder / "evaluation")
    if path is not None:
        known = load_evaluation(path, row.name)
        same = {"seed": seed, "split": "val", "model": model.description}
        if known.report.dataset.get("sha256") == digest and all(
            getattr(known.report, key) == value for key, value in same.items()
        ):
            return known
    evaluation = run_evaluation(
        images,
        model,
        split="val",
        seed=seed,
        cache=output,
        extractors=[patch_extractor()],
        baselines=False,
        progress=progress,
    )
    evaluation.write(folder / "evaluation")
    return load_evaluation(folder / "evaluation" / "evaluation.json", row.name)
