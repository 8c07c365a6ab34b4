"""``blsgan ablate``: what each part of the method is worth, on a small budget."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blsgan.cli.tables import print_tables
from blsgan.errors import BackendError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from blsgan.evaluation.ablation import Row, Study

_DEFAULT_STEPS = 170  # blsgan.evaluation.ablation.DEFAULT_STEPS, which is slow to import for --help


@click.command("ablate")
@click.option(
    "--data",
    "root",
    type=click.Path(path_type=Path),
    help="The dataset's folder Data (with LS_K1_all_train, ...), or its packed file.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the study: runs, evaluations, tables. Finished rows are kept.",
)
@click.option(
    "--row",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this row, beside the complete method; repeatable.  [default: all]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=3),
    default=_DEFAULT_STEPS,
    show_default=True,
    help="Optimiser steps of every row.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of every run and of the evaluation.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--list", "list_rows", is_flag=True, help="Print the rows and their keys, run none.")
@click.option(
    "--figures/--no-figures",
    default=None,
    help="Draw the figure; by default where matplotlib is installed.",
)
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

    from blsgan.evaluation.ablation import run_study
    from blsgan.io.atomic import check_writable_folder

    check_writable_folder(output)
    status = Console(stderr=True)
    with _Bar(status, steps) as bar:
        study = run_study(
            root,
            output,
            names=names,
            steps=steps,
            seed=seed,
            device=device,
            started=bar.start,
            report=bar.report,
            progress=bar.progress,
            warn=bar.warn,
        )
    written = study.write(output)
    written += _draw(study, output, figures, status)
    click.echo("wrote " + ", ".join(str(path) for path in written), err=True)
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


class _Bar:
    """A bar over all rows' steps, and a line for each row that begins."""

    def __init__(self, console: Console, steps: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._console, self._steps, self._index = console, steps, 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("registering visits", total=None)
        if not console.is_terminal:
            console.print("registering visits (minutes at the first run)")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()

    def start(self, row: Row, index: int, count: int) -> None:
        self._index = index
        self._bar.update(
            self._task,
            description=row.name,
            total=count * self._steps,
            completed=index * self._steps,
        )
        if not self._console.is_terminal:
            self._console.print(f"row {index + 1} of {count}: {row.name}", highlight=False)

    def report(self, row: Row, step: int) -> None:
        self._bar.update(self._task, completed=self._index * self._steps + step)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", highlight=False)

    def progress(self, items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        task = self._bar.add_task(label, total=total)
        yield from self._bar.track(items, total=total, task_id=task)
        self._bar.remove_task(task)


def _draw(study: Study, output: Path, wanted: bool | None, status: Console) -> list[Path]:
    from importlib.util import find_spec

    if wanted is False or not study.comparison.differences:
        return []
    if wanted is None and find_spec("matplotlib") is None:
        status.print(
            "no figure: matplotlib is not installed; pip install 'blsgan[figures]'", highlight=False
        )
        return []
    from blsgan.evaluation.ablation import FIGURE_NAME
    from blsgan.evaluation.figures import draw_differences

    draw_differences(study.comparison, output / FIGURE_NAME)
    return [output / FIGURE_NAME]
