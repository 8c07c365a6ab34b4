"""``blsgan evaluate``: the protocol's tables on a split of the public dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blsgan.cli import options
from blsgan.cli.tables import print_tables
from blsgan.cli.terminal import Progress, figures_wanted, say
from blsgan.errors import InputError, UsageError

if TYPE_CHECKING:
    from blsgan.evaluation.methods import Method

_SHEET = "sheet"
_PARTS = ("layers", "real", "synthetic", _SHEET)


@click.command("evaluate", epilog="Example: blsgan evaluate --data Data -o evaluation")
@options.data()
@options.split
@click.option(
    "--weights", help="Name, file or training run of the weights; the shipped ones by default."
)
@options.backend()
@click.option(
    "--mirrored", is_flag=True, help="Ask the network twice, as blsgan separate --mirrored does."
)
@click.option("--no-model", is_flag=True, help="Closed forms alone; needs no weights.")
@options.several("--part", "parts", "What to measure.", choices=_PARTS)
@options.seed("the synthetic shifts and of the bootstrap")
@click.option(
    "--inception",
    type=click.Path(path_type=Path),
    help="The FID's Inception network (TorchScript or ONNX): adds the FID.",
)
@click.option(
    "--extractor",
    type=click.Path(path_type=Path),
    help="Another feature network (TorchScript or ONNX) for a Fréchet distance.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for JSON, markdown, CSV, figures and registered visits "
    "(a rerun replaces the results and reuses the registration).",
)
@options.figures
def command(
    root: Path,
    split: str,
    weights: str | None,
    backend: str,
    mirrored: bool,
    no_model: bool,
    parts: tuple[str, ...],
    seed: int,
    inception: Path | None,
    extractor: Path | None,
    output: Path | None,
    figures: bool | None,
) -> None:
    """Measure how well bones are separated, with the closed forms beside the model.

    Layers of real overlaps are judged by other visits of the same joint, where the hidden bone lies
    free: the outline of the other bone, the error without the truth's own noise, texture, realism,
    and all of it with predicted and moved masks. Synthetic overlaps have known layers. With -o
    sheets of 40 random overlaps at four times their size are drawn to look at; --part sheet draws
    nothing else. Every figure names the split, the number of images, the seed and the weights'
    hash.
    """
    if _SHEET in parts and (no_model or output is None):
        raise UsageError(
            "the sheet shows a model's layers; leave out --no-model"
            if no_model
            else "the sheet needs a folder to be drawn into; add -o FOLDER"
        )
    sheet = not no_model and output is not None and (not parts or _SHEET in parts)
    parts = tuple(part for part in parts or _PARTS if part != _SHEET)
    if no_model and (weights is not None or backend != "auto" or mirrored):
        raise UsageError(
            "--no-model runs no network; leave out --weights, --backend and --mirrored"
        )
    if figures and output is None:
        raise UsageError("--figures needs a folder to write to; add -o FOLDER")

    from rich.console import Console

    from blsgan.data.dataset import load_root
    from blsgan.data.layout import check_complete
    from blsgan.data.splits import select
    from blsgan.evaluation.frechet import load_extractor, patch_extractor
    from blsgan.evaluation.networks import from_weights, load_supervisor, predict_masks, run_of
    from blsgan.evaluation.run import run_evaluation
    from blsgan.evaluation.sheet import draw_sheet
    from blsgan.io.atomic import check_writable_folder

    if output is not None:
        check_writable_folder(output)
    images = select(load_root(root), split)
    if not images:
        raise InputError(
            f"{root}: no joint of its lists belongs to the split {split}; use --split all"
        )
    check_complete(root, images)
    model: Method | None = None if no_model else from_weights(weights, backend, mirrored=mirrored)
    written: list[Path] = []
    with Progress() as progress:
        evaluation = None
        if parts:
            extractors = [patch_extractor()]
            extractors += [load_extractor(inception, inception=True)] if inception else []
            extractors += [load_extractor(extractor)] if extractor is not None else []
            run = None if no_model else run_of(weights)
            evaluation = run_evaluation(
                images,
                model,
                split=split,
                parts=parts,
                seed=seed,
                cache=output,
                extractors=extractors,
                predict=predict_masks() if model is not None and "layers" in parts else None,
                supervise=load_supervisor(run) if run is not None else None,
                progress=progress.track,
                left_out=lambda reason: progress.say(f"left out: {reason}"),
            )
        # Files first: a reader of standard output that goes away (head, less) must not lose them.
        if output is not None:
            if evaluation is not None:
                written += evaluation.write(output)
            if sheet and model is not None:
                written += draw_sheet(images, model, output, seed=seed, progress=progress.track)
            if evaluation is not None and figures_wanted(figures):
                from blsgan.evaluation.figures import draw_all

                progress.step("drawing figures")
                written += draw_all(evaluation, images, model, output)
    if written:
        say("wrote " + ", ".join(str(path) for path in written))
    if evaluation is not None:
        print_tables(evaluation.heading(), evaluation.tables(), Console())
