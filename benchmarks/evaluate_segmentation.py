"""Predicted masks of the validation joints against the drawn ones, and what separation loses.

    python benchmarks/evaluate_segmentation.py --data Data -o benchmarks/results

Writes segmentation.json and segmentation.csv. ``--check`` ends with status 1 when a target is
missed: Dice 0.975 and HD95 4 px for each bone, Dice 0.78 of overlaps of 150 px and more, at most
1 % refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from blsgan import Segmenter, Separator
from blsgan.data.dataset import load_root
from blsgan.data.splits import SPLITS, select
from blsgan.data.truths import cached_visit_truths
from blsgan.evaluation.protocol import describe_images
from blsgan.evaluation.segmentation import evaluate_masks, evaluate_separation

LEAST_DICE, MOST_HD95_PX, LEAST_OVERLAP_DICE, MOST_REFUSED = 0.975, 4.0, 0.78, 0.01


@click.command()
@click.option(
    "--data",
    "root",
    required=True,
    type=click.Path(path_type=Path),
    help="The dataset's folder Data.",
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="val",
    show_default=True,
    help="Joints to judge; nobody trained on those of val.",
)
@click.option("--weights", help="Name or file of the segmenter's weights.  [default: segmenter]")
@click.option("--separator", "separator_weights", help="The separator's.  [default: lite]")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the synthetic shifts and of the bootstrap.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: usable cores]")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder that keeps the registered visits."
)
@click.option("--no-visits", is_flag=True, help="No truth from other visits: minutes less.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the results."
)
@click.option("--check", is_flag=True, help="Status 1 when a target is missed.")
def main(
    root: Path,
    split: str,
    weights: str | None,
    separator_weights: str | None,
    seed: int,
    threads: int | None,
    cache: Path | None,
    no_visits: bool,
    output: Path,
    check: bool,
) -> None:
    """Judge predicted masks."""
    console = Console(stderr=True)

    def progress(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        return track(items, label, total, console=console, disable=not console.is_terminal)

    images = select(load_root(root), split)
    segmenter = Segmenter.from_pretrained(weights, threads=threads)
    separator = Separator.from_pretrained(separator_weights, threads=threads)
    evaluation = evaluate_masks(images, segmenter, seed=seed, progress=progress)
    truths = [] if no_visits else cached_visit_truths(images, cache)
    evaluate_separation(evaluation, images, truths, segmenter, separator, progress=progress)
    about = {
        "split": split,
        "dataset": describe_images(images),
        "segmenter": {"file": segmenter.weights.path.name, "sha256": segmenter.weights.sha256},
        "separator": {"file": separator.weights.path.name, "sha256": separator.weights.sha256},
        "backend": f"{segmenter.backend.name} {segmenter.backend.version}",
    }
    written = evaluation.write(output, about)
    figures = evaluation.summary()
    click.echo(json.dumps(figures, indent=1))
    click.echo("wrote " + ", ".join(map(str, written)))
    missed = _missed(figures)
    for line in missed:
        click.echo(f"missed: {line}", err=True)
    if check and missed:
        sys.exit(1)


def _missed(figures: dict[str, Any]) -> list[str]:
    lines = []
    for bone in ("upper", "lower"):
        if figures[f"{bone}_dice"]["mean"] < LEAST_DICE:
            lines.append(f"Dice of the {bone} bone {figures[f'{bone}_dice']['mean']:.4f}")
        if figures[f"{bone}_hd95_px"]["mean"] > MOST_HD95_PX:
            lines.append(f"HD95 of the {bone} bone {figures[f'{bone}_hd95_px']['mean']:.2f} px")
    overlap = figures.get("overlap_dice")
    if overlap is not None and overlap["mean"] < LEAST_OVERLAP_DICE:
        lines.append(f"Dice of the overlap {overlap['mean']:.3f}")
    if figures["refused"] > MOST_REFUSED * figures["images"]:
        lines.append(f"{figures['refused']} of {figures['images']} refused")
    return lines


if __name__ == "__main__":
    main()
