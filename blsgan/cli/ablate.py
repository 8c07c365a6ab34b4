"""``blsgan ablate``: what each part of the method is worth, on a small budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blsgan.cli import options
from blsgan.cli.tables import print_tables
from blsgan.cli.terminal import Progress, figures_wanted, say
from blsgan.errors import BackendError, UsageError

if TYPE_CHECKING:
    from blsgan.evaluation.ablation import Row

_DEFAULT_STEPS = 170  # blsgan.evaluation.ablation.DEFAULT_STEPS, which is slow to import for --help


@click.command("ablate", epilog="Example: blsgan ablate --data Data -o ablation")
@options.data(required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the study: runs, evaluations, tables. Finished rows are kept.",
)
@options.several("--row", "names", "Only these rows, beside the complete method.")
@click.option(
    "--steps",
    type=click.IntRange(min=3),
    default=_DEFAULT_STEPS,
    show_default=True,
    help="Optimiser steps of every row.",
)
@options.seed("every run and of the evaluation")
@options.device
@click.option("--list", "list_rows", is_flag=True, help="Print the rows and their keys, run none.")
@options.figures
def command(
    root: Path | None,
    output: Path | None,
    names: tuple[str, ...],
    steps: int,
    seed: int,
    device: str,
    list_rows: bool,
    figures: bool | None,
) -> None:
    """Train the method without each of its parts, and compare on validation joints.

    Every row is a short run of the preset lite-gan with a few changed keys and the same number of
    steps, evaluated on the same joints; the differences to the complete method are paired. The
    default budget is some half an hour on two cores. Stopped, it goes on with the same command.
    """
    if list_rows:
        _list_rows(steps)
        return
    for name, value in (("--data", root), ("-o", output)):
        if value is None:
            raise UsageError(f"{name} is missing; give the dataset and a folder for the study")
    assert root is not None, "asked for above"
    assert output is not None, "asked for above"
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "an ablation trains, which needs PyTorch (torch >= 2.11); pip install 'blsgan[train]'"
        ) from error
    from rich.console import Console

    from blsgan.evaluation.ablation import FIGURE_NAME, run_study
    from blsgan.io.atomic import check_writable_folder

    check_writable_folder(output)
    index = 0
    with Progress() as progress, progress.bar("reading joints", None) as bar:

        def start(row: Row, number: int, count: int) -> None:
            nonlocal index
            index = number
            progress.say(f"row {number + 1} of {count}: {row.name}")

        study = run_study(
            root,
            output,
            names=names,
            steps=steps,
            seed=seed,
            device=device,
            started=start,
            report=lambda row, step: bar.show(f"row {index + 1}, {row.name}", step, steps),
            progress=progress.track,
            warn=lambda text: progress.say(f"warning: {text}"),
        )
    written = study.write(output)
    if study.comparison.differences and figures_wanted(figures):
        from blsgan.evaluation.figures import draw_differences

        written.append(output / FIGURE_NAME)
        draw_differences(study.comparison, written[-1])
    say("wrote " + ", ".join(str(path) for path in written))
    print_tables(study.heading(), study.tables(), Console())


def _list_rows(steps: int) -> None:
    from blsgan.evaluation.ablation import PRESET, common_changes, rows

    click.echo(
        f"every row: --preset {PRESET} "
        + " ".join(f"--set {change}" for change in common_changes(steps))
    )
    for row in rows(steps):
        click.echo(f"{row.name}: {row.question}")
        for change in row.changes:
            click.echo(f"    --set {change}")
