"""``blsgan evaluate``: the protocol's tables on a split of the public dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blsgan import backends
from blsgan.errors import InputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from blsgan.data.layout import JointImage
    from blsgan.evaluation.methods import Method
    from blsgan.evaluation.results import Evaluation, Table

_PARTS = ("synthetic", "real")


def _parse_parts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    parts = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        raise click.BadParameter(f"'{unknown[0]}' is not a part; choose from {', '.join(_PARTS)}, "
                                 "separated by commas.")
    return parts


@click.command("evaluate")
@click.option("--data", "root", required=True, type=click.Path(path_type=Path),
              help="The dataset's folder Data (with LS_K1_all_train, ...), or its packed file.")
@click.option("--split", type=click.Choice(("train", "val", "all")), default="val",
              show_default=True, help="Joints to judge; nobody trained on those of val.")
@click.option("--weights", help="Name or file of the weights; the shipped ones by default.")
@click.option("--backend", type=click.Choice(backends.NAMES), default="auto", show_default=True,
              help="What runs the network.")
@click.option("--no-model", is_flag=True, help="Closed forms alone; needs no weights.")
@click.option("--part", "parts", default=",".join(_PARTS), show_default=True,
              callback=_parse_parts, help="What to measure, separated by commas.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the synthetic shifts and of the bootstrap.")
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="Folder for JSON, markdown, CSV, figures and registered visits "
                   "(a rerun replaces the results and reuses the registration).")
@click.option("--figures/--no-figures", default=None,
              help="Draw figures into the output folder; by default where matplotlib is installed.")
def command(
    root: Path, split: str, weights: str | None, backend: str, no_model: bool,
    parts: tuple[str, ...], seed: int, output: Path | None, figures: bool | None,
) -> None:
    """Measure how well bones are separated, with the closed forms beside the model.

    Synthetic overlaps have known layers. Real overlaps are judged by another visit of the same
    joint, where the hidden bone lies free. Every figure names the split, the number of images, the
    seed and the weights' hash.
    """
    if no_model and (weights is not None or backend != "auto"):
        raise UsageError("--no-model runs no network; leave out --weights and --backend")
    if figures and output is None:
        raise UsageError("--figures needs a folder to write to; add -o FOLDER")

    from rich.console import Console

    from blsgan.data.layout import load_root
    from blsgan.data.splits import select
    from blsgan.data.truths import cached_visit_truths
    from blsgan.evaluation.methods import from_separator
    from blsgan.evaluation.protocol import (
        NothingToMeasureError,
        describe_images,
        evaluate_real,
        evaluate_synthetic,
    )
    from blsgan.evaluation.results import Evaluation
    from blsgan.io.atomic import check_writable_folder
    from blsgan.separation import Separator

    if output is not None:
        check_writable_folder(output)
    images = select(load_root(root), split)
    if not images:
        raise InputError(f"{root}: no joint of its lists belongs to the split {split}; "
                         "use --split all")
    _check_complete(root, images)
    model: Method | None = None
    if not no_model:
        model = from_separator(Separator.from_pretrained(weights, backend=backend))

    status = Console(stderr=True)

    def progress(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        from rich.progress import track

        return track(items, label, total, console=status, disable=not status.is_terminal)

    evaluation = Evaluation(
        split, seed, describe_images(images), model.description if model else {}
    )
    # A split may lack what one part measures; the other part is worth having all the same.
    empty: list[NothingToMeasureError] = []
    if "synthetic" in parts:
        try:
            evaluation.synthetic = evaluate_synthetic(images, model, seed=seed, progress=progress)
        except NothingToMeasureError as error:
            empty.append(error)
    if "real" in parts:
        with status.status("registering the visits of each joint (minutes at the first run)"):
            truths = cached_visit_truths(images, output)
        try:
            evaluation.real = evaluate_real(images, truths, model, seed=seed, progress=progress)
        except NothingToMeasureError as error:
            empty.append(error)
    if len(empty) == len(parts):
        raise empty[0]
    for reason in empty:
        click.echo(f"left out: {reason}", err=True)

    # Files first: a reader of standard output that goes away (head, less) must not lose them.
    if output is not None:
        written = evaluation.write(output)
        written += _draw(evaluation, images, model, output, figures, status)
        click.echo("wrote " + ", ".join(str(path) for path in written), err=True)
    _print(evaluation, Console())


def _check_complete(root: Path, images: Sequence[JointImage]) -> None:
    """Asks for every listed file before minutes of work, not in the middle of them."""
    from blsgan.data.layout import missing_files

    missing = missing_files(images)
    if missing:
        raise InputError(f"{root}: {len(missing)} of {3 * len(images)} files that its lists name "
                         f"are missing, the first is {missing[0]}; complete the dataset")


def _print(evaluation: Evaluation, console: Console) -> None:
    console.print(evaluation.heading(), highlight=False, soft_wrap=True)
    for table in evaluation.tables():
        if console.is_terminal:
            console.print()
            console.print(_rich_table(table))
            for note in table.notes:
                console.print(note, style="dim", highlight=False)
        else:  # into a file or another program: nothing wrapped, nothing drawn
            click.echo()
            click.echo(table.markdown(), nl=False)


def _rich_table(table: Table) -> Any:
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(title=escape(table.title), title_justify="left")
    for index, name in enumerate(table.header):
        drawn.add_column(escape(name), justify="left" if index == 0 else "right")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    return drawn


def _draw(
    evaluation: Evaluation, images: Sequence[JointImage], model: Method | None, output: Path,
    wanted: bool | None, status: Console,
) -> list[Path]:
    from importlib.util import find_spec

    part = evaluation.synthetic
    if wanted is False or part is None:
        return []
    if wanted is None and find_spec("matplotlib") is None:
        status.print("no figures: matplotlib is not installed; pip install 'blsgan[figures]'",
                     highlight=False)
        return []
    from blsgan.evaluation.figures import draw_by_size, draw_error_panel, typical_images
    from blsgan.evaluation.results import BY_SIZE_NAME, PANEL_NAME

    by_size = output / BY_SIZE_NAME
    draw_by_size(part, by_size)
    if model is None:
        return [by_size]
    panel = output / PANEL_NAME
    draw_error_panel(images, typical_images(part, model.name), model, panel,
                     seed=evaluation.seed)
    return [by_size, panel]
