"""``blsgan compare``: runs, weights and evaluations side by side, with paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blsgan.cli import options
from blsgan.cli.tables import print_tables
from blsgan.cli.terminal import Progress, figures_wanted, say
from blsgan.errors import InputError, UsageError

if TYPE_CHECKING:
    from blsgan.data.layout import JointImage
    from blsgan.evaluation.compare import Recorded
    from blsgan.evaluation.methods import Method

EVALUATIONS = "evaluations"


@click.command("compare", epilog="Example: blsgan compare lite runs/mine --data Data -o comparison")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@options.data(
    "The dataset's folder Data or its packed file, for a RUN that is no evaluation.",
    required=False,
)
@options.split
@options.seed("the synthetic shifts and of the bootstrap of such an evaluation")
@click.option(
    "--closed-forms/--no-closed-forms",
    default=True,
    show_default=True,
    help="Also compare with the closed forms.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for JSON, markdown, a figure, and the evaluations that had to be made.",
)
@options.figures
def command(
    runs: tuple[str, ...],
    root: Path | None,
    split: str,
    seed: int,
    closed_forms: bool,
    output: Path | None,
    figures: bool | None,
) -> None:
    """Set two or more RUNs side by side; the first is what the others are compared with.

    A RUN is a folder or JSON file of `blsgan evaluate`, or, with --data, the run folder of `blsgan
    train`, or a name or file of weights, which is evaluated now. Evaluations of other data, another
    split or another seed are refused.
    """
    if figures and output is None:
        raise UsageError("--figures needs a folder to write to; add -o FOLDER")
    if len(runs) < 2:
        raise UsageError("one RUN cannot be compared; give two or more")

    from rich.console import Console

    from blsgan.evaluation.compare import (
        COMPARISON_FIGURE,
        compare,
        find_evaluation,
        load_evaluation,
    )
    from blsgan.evaluation.methods import Method
    from blsgan.evaluation.networks import from_weights
    from blsgan.io.atomic import check_writable_folder

    labels = _labels(runs)
    missing = [run for run in runs if find_evaluation(Path(run)) is None]
    if missing and root is None:
        raise UsageError(
            f"{missing[0]} is no evaluation; give a folder that `blsgan evaluate -o` "
            "wrote, or --data to evaluate it now"
        )
    if missing and output is None:
        raise UsageError(
            f"{missing[0]} has to be evaluated, which takes a while; add -o FOLDER to keep it"
        )
    if output is not None:
        check_writable_folder(output)
    # All that can be refused comes first, an evaluation takes minutes.
    found: dict[str, Recorded | Method] = {}
    for run, label in zip(runs, labels, strict=True):
        path = find_evaluation(Path(run))
        found[label] = load_evaluation(path, label) if path is not None else from_weights(run)
    images = _images(root, split) if missing and root is not None else []
    evaluations = []
    for label, given in found.items():
        if isinstance(given, Method):
            assert output is not None, "asked for above"
            given = _evaluate(given, label, images, split, seed, output)
        evaluations.append(given)
    comparison = compare(evaluations, closed_forms=closed_forms)
    if output is not None:
        written = comparison.write(output)
        if figures_wanted(figures):
            from blsgan.evaluation.figures import draw_differences

            written.append(output / COMPARISON_FIGURE)
            draw_differences(comparison, written[-1])
        say("wrote " + ", ".join(str(path) for path in written))
    print_tables(comparison.heading(), comparison.tables(), Console())


def _labels(runs: Sequence[str]) -> list[str]:
    """A short name for each: the last part of its path, more of it where that is not enough."""

    def short(run: str, parts: int) -> str:
        path = Path(run)
        path = path.parent if path.name == "evaluation.json" else path
        return "/".join(path.absolute().parts[-parts:]) if path.exists() else run

    if len(set(runs)) < len(runs):
        raise UsageError(f"{Counter(runs).most_common(1)[0][0]} is given twice")
    for parts in range(1, 64):
        labels = [short(run, parts) for run in runs]
        if len(set(labels)) == len(labels):
            return labels
    return list(runs)


def _images(root: Path, split: str) -> list[JointImage]:
    """The split's images, all of whose files are there."""
    from blsgan.data.dataset import load_root
    from blsgan.data.layout import check_complete
    from blsgan.data.splits import select

    images = select(load_root(root), split)
    if not images:
        raise InputError(
            f"{root}: no joint of its lists belongs to the split {split}; use --split all"
        )
    check_complete(root, images)
    return images


def _evaluate(
    model: Method,
    label: str,
    images: Sequence[JointImage],
    split: str,
    seed: int,
    output: Path,
) -> Recorded:
    """Evaluates weights now, or finds the evaluation of the same weights and images made before."""
    from blsgan.data.layout import content_digest
    from blsgan.evaluation.compare import find_evaluation, load_evaluation
    from blsgan.evaluation.frechet import patch_extractor
    from blsgan.evaluation.run import PARTS, run_evaluation

    name = f"{model.description['weights']}-{model.description['sha256'][:12]}"
    folder = output / EVALUATIONS / name
    path = find_evaluation(folder)
    if path is not None:
        try:
            known = load_evaluation(path, label)
        except InputError:  # of an earlier version, or damaged: made again below
            known = None
        wanted = {"split": split, "seed": seed, "model": model.description}
        if (
            known is not None
            and known.report.layers is not None  # which earlier versions did not measure here
            and known.report.dataset.get("sha256") == content_digest(images)
            and all(getattr(known.report, key) == value for key, value in wanted.items())
        ):
            return known
    say(f"evaluating {label}")
    with Progress() as progress:
        evaluation = run_evaluation(
            images,
            model,
            split=split,
            parts=PARTS,
            seed=seed,
            cache=output / EVALUATIONS,
            extractors=[patch_extractor()],
            progress=progress.track,
            left_out=lambda reason: progress.say(f"left out: {reason}"),
        )
    evaluation.write(folder)
    return load_evaluation(folder / "evaluation.json", label)
