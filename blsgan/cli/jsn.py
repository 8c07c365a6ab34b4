"""``blsgan jsn``: joint space narrowing between two visits, over a list of pairs, and its study."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blsgan.cli import options
from blsgan.cli.group import Group
from blsgan.cli.terminal import Progress, figures_wanted, say
from blsgan.errors import InputError, UsageError
from blsgan.io.listing import check_mask_pattern

if TYPE_CHECKING:
    from blsgan.jsn.study import Study
    from blsgan.jsn.visits import Separate
    from blsgan.records.narrowing import ReadOptions
    from blsgan.records.record import Weights
    from blsgan.tasks.segmentation import Segmenter
    from blsgan.tasks.separation import Separator

_DEFAULT = "measure"


class _MeasureByDefault(Group):
    """``jsn A B`` is ``jsn measure A B``: what names no command is a radiograph or an option."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        known = first in self.commands or first in context.help_option_names
        misspelt = self.meant(first, list(self.commands)) and not Path(first).exists()
        if not known and not misspelt:
            args = [_DEFAULT, *args]
        return super().parse_args(context, args)


@click.group(
    cls=_MeasureByDefault,
    subcommand_metavar="BASELINE FOLLOWUP -o OUT | COMMAND ...",
    epilog="Example: blsgan jsn 2019.png 2021.png -o out",
)
def command() -> None:
    """Measure how much a joint's space narrowed between two visits.

    BASELINE and FOLLOWUP are radiographs of one joint; without the name of a command, "measure"
    runs (its options: blsgan jsn measure --help).
    """


_fit_scale = click.option(
    "--fit-scale",
    is_flag=True,
    help="Also fit a change of magnification (visits of different scanners without spacing).",
)


def _network_options(function: Any) -> Any:
    return options.weights()(options.backend()(options.threads(function)))


@command.command(_DEFAULT, epilog="Example: blsgan jsn measure 2019.png 2021.png -o out")
@click.argument("baseline", type=click.Path(path_type=Path), required=False)
@click.argument("followup", type=click.Path(path_type=Path), required=False)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help="List of pairs of the public dataset (DR_K1_train) instead of two radiographs.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the results."
)
@click.option(
    "--baseline-masks",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="UPPER LOWER",
    help="Masks of the baseline.  [default: by their names, else predicted]",
)
@click.option(
    "--followup-masks",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="UPPER LOWER",
    help="Masks of the follow-up.  [default: by their names, else predicted]",
)
@options.mask_pattern
@click.option(
    "--no-separation", is_flag=True, help="Register the image inside each mask; needs no weights."
)
@options.bit_depth
@options.invert
@click.option(
    "--pixel-spacing",
    type=click.FloatRange(0, min_open=True),
    help="Side of a pixel in mm, of both visits.  [default: from DICOM]",
)
@_fit_scale
@_network_options
def measure_command(
    baseline: Path | None,
    followup: Path | None,
    pairs: Path | None,
    output: Path,
    baseline_masks: tuple[Path, Path] | None,
    followup_masks: tuple[Path, Path] | None,
    mask_pattern: str,
    no_separation: bool,
    bit_depth: int | None,
    invert: bool,
    pixel_spacing: float | None,
    fit_scale: bool,
    weights: str | None,
    backend: str,
    threads: int | None,
) -> int:
    """Measure the narrowing between BASELINE and FOLLOWUP, or of every pair of a list.

    Masks that are not there are predicted, into OUTPUT/masks. Writes jsn.json, jsn.png and each
    bone's residual map, or for a list jsn.csv and a picture of each pair in OUTPUT/pairs. Positive
    narrowing: the bones came closer. A measurement that failed is marked as a mismatch and says
    why; the exit status is 1 where nothing could be measured.
    """
    from blsgan.io.atomic import check_writable_folder
    from blsgan.pipeline.measure import separation_by, summary, visit_files, write_measurement
    from blsgan.records.narrowing import ReadOptions

    _check_arguments(baseline, followup, pairs, baseline_masks, followup_masks)
    if no_separation and (weights is not None or backend != "auto" or threads is not None):
        raise UsageError(
            "--no-separation runs no network; leave out --weights, --backend and --threads."
        )
    check_mask_pattern(mask_pattern)
    check_writable_folder(output)
    options = ReadOptions(bit_depth=bit_depth, invert=invert, pixel_spacing_mm=pixel_spacing)

    def separation() -> tuple[Separate, Weights | None]:
        return separation_by(None if no_separation else _separator(weights, backend, threads))

    @functools.cache
    def segmenter() -> Segmenter:
        from blsgan.tasks.segmentation import Segmenter

        return Segmenter.from_pretrained(threads=threads)

    if pairs is not None:
        separate, described = separation()
        return _measure_list(
            pairs, output, options, separate, described, segmenter, fit_scale=fit_scale
        )

    from blsgan.jsn.visits import check_same_joint, measure_pair, read_visit

    assert baseline is not None, "checked above"
    assert followup is not None, "checked above"
    check_same_joint(baseline, followup)
    files = [
        visit_files(image, masks, mask_pattern, options, output, segmenter)
        for image, masks in ((baseline, baseline_masks), (followup, followup_masks))
    ]
    visits = [read_visit(visit, options) for visit in files]
    separate, described = separation()
    try:
        result = measure_pair(visits[0], visits[1], separate, described, fit_scale=fit_scale)
    except InputError as error:
        raise InputError(f"{baseline}, {followup}: {error}") from error
    written = write_measurement(result, output, [path for visit in files for path in visit.paths])
    click.echo("\n".join(summary(result.record)))
    say(f"wrote {', '.join(path.name for path in written)} into {output}", err=False)
    return 1 if result.record.mismatch else 0


def _check_arguments(
    baseline: Path | None,
    followup: Path | None,
    pairs: Path | None,
    baseline_masks: tuple[Path, Path] | None,
    followup_masks: tuple[Path, Path] | None,
) -> None:
    if pairs is not None:
        if baseline is not None or baseline_masks is not None or followup_masks is not None:
            raise UsageError(
                f"{pairs} names radiographs and masks itself; leave out BASELINE, FOLLOWUP and "
                "their masks, or --pairs."
            )
    elif baseline is None or followup is None:
        raise UsageError(
            "two radiographs are needed: blsgan jsn BASELINE FOLLOWUP -o OUT (or --pairs LIST)."
        )


def _separator(weights: str | None, backend: str, threads: int | None) -> Separator:
    from blsgan.tasks.separation import Separator

    return Separator.from_pretrained(weights, backend, threads=threads)


def _measure_list(
    pairs: Path,
    output: Path,
    options: ReadOptions,
    separate: Separate,
    described: Weights | None,
    segmenter: Callable[[], Segmenter],
    *,
    fit_scale: bool,
) -> int:
    from blsgan.jsn.visits import load_pairs
    from blsgan.pipeline.measure import measure_list

    listed, repeated = load_pairs(pairs)
    with Progress() as progress:
        done = measure_list(
            listed,
            output,
            options,
            separate,
            described,
            segmenter=segmenter,
            fit_scale=fit_scale,
            track=progress.track,
        )
    again = f" ({repeated} repeated entries left out)" if repeated else ""
    say(
        f"{len(done.rows)} pairs{again}: {done.measured} measured, {done.mismatches} mismatches, "
        f"{len(done.failures)} failed; wrote {done.path} and a picture of each pair",
        err=False,
    )
    for failure in done.failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if done.failures or not done.measured else 0


@command.command("study", epilog="Example: blsgan jsn study --data Data -o study")
@options.data()
@options.split
@options.seed("displacements, positions, exposures and noise")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Use at most this many images and joints, spread evenly.  [default: all]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for JSON, markdown and CSV of every measurement.",
)
@options.several("--part", "parts", "What to measure.", choices=("accuracy", "consistency"))
@options.figures
@_fit_scale
@_network_options
def study_command(
    root: Path,
    split: str,
    seed: int,
    limit: int | None,
    output: Path | None,
    parts: tuple[str, ...],
    figures: bool | None,
    fit_scale: bool,
    weights: str | None,
    backend: str,
    threads: int | None,
) -> None:
    """Measure how accurate JSN is, with and without separation.

    Real joints without overlap are put together again as two visits whose sub-pixel displacement is
    known, with and without overlap; real joints with three visits tell whether A to B and B to C
    add up to A to C.
    """
    from blsgan.data.dataset import load_root
    from blsgan.data.splits import select
    from blsgan.evaluation.methods import from_separator
    from blsgan.io.atomic import check_writable_folder
    from blsgan.jsn.study import PARTS, run_study

    if figures and output is None:
        raise UsageError("--figures needs a folder to write to; add -o FOLDER.")
    if output is not None:
        check_writable_folder(output)
    images = select(load_root(root), split)
    if not images:
        raise InputError(
            f"{root}: no joint of its lists belongs to the split {split}; use --split all."
        )
    model = from_separator(_separator(weights, backend, threads))
    with Progress() as progress:
        study = run_study(
            images,
            model,
            split=split,
            seed=seed,
            limit=limit,
            fit_scale=fit_scale,
            parts=parts or PARTS,
            progress=progress.track,
        )
    if output is not None:
        written = study.write(output) + _draw_study(study, output, figures)
        say("wrote " + ", ".join(str(path) for path in written))
    click.echo(study.heading())
    for table in study.tables():
        click.echo()
        click.echo(table.markdown(), nl=False)


def _draw_study(study: Study, output: Path, wanted: bool | None) -> list[Path]:
    if not study.accuracy or not figures_wanted(wanted):
        return []
    from blsgan.jsn.figures import draw_bland_altman
    from blsgan.jsn.study import BLAND_ALTMAN_NAME

    path = output / BLAND_ALTMAN_NAME
    draw_bland_altman(study, path)
    return [path]
