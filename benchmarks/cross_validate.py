"""Layers of real overlaps by cross-validation: every joint judged by a network that never saw it.

    python benchmarks/cross_validate.py --data Data -o FOLDER
    python benchmarks/cross_validate.py --data Data -o FOLDER --steps 1000 --set data.visits=8

Each of N folds of joints (``blsgan train --set held_out=K/N``) is held out of a run of the preset
with fewer steps, and judged by ``blsgan evaluate --split K/N --part layers``; what is measured of
all folds is then one table, with intervals over joints, beside the closed forms on the same joints.
A validation split has too few pairs of visits to tell two designs apart; this has all there are.

A study that was stopped goes on: a fold's training from its last checkpoint, and folds that were
judged are not judged again. Other settings ask for another folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from blsgan.cli import options
from blsgan.cli.terminal import Progress, say
from blsgan.data.dataset import load_root
from blsgan.data.layout import check_complete
from blsgan.data.splits import MOST_FOLDS, select
from blsgan.data.truths import cached_visit_truths, lend_registrations
from blsgan.data.visits import PROTOCOL, TRAINING
from blsgan.errors import UsageError
from blsgan.evaluation.layers import DRAWN, summarise_layers
from blsgan.evaluation.networks import from_weights
from blsgan.evaluation.run import run_evaluation
from blsgan.io.atomic import atomic_path
from blsgan.io.tables import write_csv
from blsgan.training import CONFIG_FILE, WEIGHTS
from blsgan.training.config import load_config
from blsgan.training.run import run_config, train

MODEL = "blsgan lite, cross-validated"
RECORDS = "records.json"


def fold_records(
    root: Path, output: Path, held_out: str, changes: list[str], progress: Progress
) -> list[dict[str, Any]]:
    """Trains without a fold, judges its joints, and keeps what was measured of each."""
    folder = output / f"fold-{held_out.split('/')[0]}"
    name = folder.name
    config = load_config("lite", [*changes, f"held_out={held_out}", f"name={name}"])
    resume = (folder / CONFIG_FILE).is_file()
    if resume and run_config(folder) != config:
        raise UsageError(f"{folder}: holds a run with other settings; choose another folder")
    kept = folder / RECORDS
    if kept.is_file():
        records: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
        return records
    if not (folder / WEIGHTS / f"{name}.json").is_file():
        lend_registrations(output, folder)
        last = -1

        def report(state: Any) -> None:
            nonlocal last
            if state.step // 100 != last:
                last = state.step // 100
                say(f"{name}: step {state.step}")

        train(root, folder, config, resume=resume, report=report, warn=say)
    evaluation = run_evaluation(
        select(load_root(root), held_out),
        from_weights(folder),
        split=held_out,
        parts=("layers",),
        cache=output,
        progress=progress.track,
    )
    assert evaluation.layers is not None
    records = [
        {**record, "method": MODEL if record["method"] == f"blsgan {name}" else record["method"]}
        for record in evaluation.layers.records
    ]
    with atomic_path(kept) as temporary:
        temporary.write_text(json.dumps(records), encoding="utf-8")
    return records


def rows_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each threshold, method and bone, with drawn masks."""
    rows = []
    for thresholds, by_masks in summary["thresholds"].items():
        for method, by_bone in by_masks[DRAWN].items():
            for bone, figures in by_bone.items():
                row: dict[str, Any] = {"thresholds": thresholds, "method": method, "bone": bone}
                for key in ("comparisons", "pairs", "joints_of_pairs", "outline_worst"):
                    row[key] = figures.get(key)
                for key in ("corrected_db", "plain_db", "ring_bias", "ring_plain_db"):
                    for part in ("mean", "low", "high"):
                        row[f"{key}_{part}"] = figures.get(key, {}).get(part)
                gains = by_masks[DRAWN].get(MODEL, {}).get(bone, {}).get("gains", {})
                for part in ("mean", "low", "high"):
                    found = gains.get(method, {}).get("corrected_db", {})
                    row[f"gain_of_lite_db_{part}"] = found.get(part)
                row["texture_median"] = figures.get("texture", {}).get("median")
                rows.append(row)
    return rows


@click.command()
@options.data()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--folds", type=click.IntRange(2, MOST_FOLDS), default=4, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of the preset.")
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Where the table goes.")
def main(
    root: Path, output: Path, folds: int, steps: int, changes: tuple[str, ...], table: Path | None
) -> None:
    """Judge the preset lite on every joint, by networks that never saw it."""
    images = load_root(root)
    check_complete(root, images)
    output.mkdir(parents=True, exist_ok=True)
    common = [f"stages.0.steps={steps}", f"validate_every={steps}", *changes]
    records: list[dict[str, Any]] = []
    with Progress() as progress:
        for thresholds in (TRAINING, PROTOCOL):
            cached_visit_truths(images, output, thresholds, progress.track)
        for fold in range(1, folds + 1):
            say(f"fold {fold} of {folds}")
            records += fold_records(root, output, f"{fold}/{folds}", common, progress)
    summary = summarise_layers(records)
    rows = [{"folds": folds, "steps": steps, **row} for row in rows_of(summary)]
    path = table or output / "cross_validation.csv"
    write_csv(path, rows)
    say(f"wrote {path}")


if __name__ == "__main__":
    main()
