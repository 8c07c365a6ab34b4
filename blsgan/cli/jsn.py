"""``blsgan jsn``: joint space narrowing between two visits, over a list of pairs, and its study."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blsgan import backends
from blsgan.errors import BlsganError, InputError, OutputError, UsageError
from blsgan.io.listing import DEFAULT_MASK_PATTERN, check_mask_pattern

if TYPE_CHECKING:
    from rich.console import Console

    from blsgan.jsn.study import Study
    from blsgan.jsn.visits import PairResult, ReadOptions, Separate
    from blsgan.separation import Separator

RECORD_NAME, PICTURE_NAME, PAIRS_NAME = "jsn.json", "jsn.png", "jsn.csv"
RESIDUAL_NAMES = ("jsn_residual_upper.png", "jsn_residual_lower.png")
_DEFAULT = "measure"
_SAVE_EVERY = 50  # pairs; a list of thousands must not be lost to an interruption
_VISITS_KEPT = 16  # pairs of one joint follow each other and share their visits


class _MeasureByDefault(click.Group):
    """``jsn A B`` is ``jsn measure A B``: what names no command is a radiograph or an option."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or not (args[0] in self.commands or args[0] in context.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(context, args)


@click.group(cls=_MeasureByDefault, subcommand_metavar="BASELINE FOLLOWUP -o OUT | COMMAND ...")
def command() -> None:
    """Measure how much a joint's space narrowed between two visits.

    BASELINE and FOLLOWUP are radiographs of one joint, with masks of both bones; without the name
    of a command, "measure" runs (its options: blsgan jsn measure --help).
    """


_fit_scale = click.option(
    "--fit-scale",
    is_flag=True,
    help="Also fit a change of magnification (visits of different scanners without spacing).",
)


def _network_options(function: Any) -> Any:
    for option in (
        click.option("--threads", type=click.IntRange(1), help="Threads.  [default: usable cores]"),
        click.option(
            "--backend",
            type=click.Choice(backends.NAMES),
            default="auto",
            show_default=True,
            help="Runtime.",
        ),
        click.option("--weights", help="Name or file of the weights.  [default: lite]"),
    ):
        function = option(function)
    return function


@command.command(_DEFAULT)
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
    help="Masks of the baseline.  [default: by their names]",
)
@click.option(
    "--followup-masks",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="UPPER LOWER",
    help="Masks of the follow-up.  [default: by their names]",
)
@click.option(
    "--mask-pattern",
    default=DEFAULT_MASK_PATTERN,
    show_default=True,
    help="Name of a mask, beside its image, with {stem} and {bone} (upper, lower).",
)
@click.option(
    "--no-separation", is_flag=True, help="Register the image inside each mask; needs no weights."
)
@click.option(
    "--bit-depth",
    type=click.IntRange(1, 16),
    help="Bits of a 16-bit file's values.  [default: from the values]",
)
@click.option("--invert", is_flag=True, help="The radiographs show bone dark.")
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

    Writes jsn.json, jsn.png and each bone's residual map, or jsn.csv for a list. Positive
    narrowing: the bones came closer.
    A measurement that failed is marked as a mismatch and says why.
    """
    from blsgan.io.atomic import check_writable_folder
    from blsgan.jsn.visits import ReadOptions

    _check_arguments(baseline, followup, pairs, baseline_masks, followup_masks)
    if no_separation and (weights is not None or backend != "auto" or threads is not None):
        raise UsageError(
            "--no-separation runs no network; leave out --weights, --backend and --threads."
        )
    check_mask_pattern(mask_pattern)
    check_writable_folder(output)
    options = ReadOptions(bit_depth, invert, pixel_spacing)
    if pairs is not None:
        separate, described = _separation(no_separation, weights, backend, threads)
        return _measure_list(pairs, output, options, separate, described, fit_scale=fit_scale)

    from blsgan.jsn.visits import check_same_joint, find_visit, measure_pair, read_visit

    assert baseline is not None, "checked above"
    assert followup is not None, "checked above"
    check_same_joint(baseline, followup)
    files = (
        find_visit(baseline, baseline_masks, mask_pattern),
        find_visit(followup, followup_masks, mask_pattern),
    )
    visits = [read_visit(visit, options) for visit in files]
    separate, described = _separation(no_separation, weights, backend, threads)
    try:
        result = measure_pair(visits[0], visits[1], separate, described, fit_scale=fit_scale)
    except InputError as error:
        raise InputError(f"{baseline}, {followup}: {error}") from error
    written = _write_one(result, output, [path for visit in files for path in vars(visit).values()])
    click.echo("\n".join(_summary(result.record)))
    click.echo(f"wrote {', '.join(path.name for path in written)} into {output}")
    return 0


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


def _separation(
    no_separation: bool, weights: str | None, backend: str, threads: int | None
) -> tuple[Separate, dict[str, Any] | None]:
    from blsgan.jsn.visits import separated, unseparated

    if no_separation:
        return unseparated, None
    separator = _separator(weights, backend, threads)
    file = separator.weights
    return separated(separator), {
        "name": file.name,
        "architecture": file.architecture,
        "file": file.path.name,
        "sha256": file.sha256,
    }


def _separator(weights: str | None, backend: str, threads: int | None) -> Separator:
    from blsgan.separation import Separator

    return Separator.from_pretrained(weights, backend, threads=threads)


def _write_one(result: PairResult, output: Path, inputs: list[Path]) -> list[Path]:
    import os

    import numpy as np
    from PIL import Image

    from blsgan.io.atomic import atomic_paths
    from blsgan.io.results import residual_to_uint16
    from blsgan.jsn.picture import draw_measurement
    from blsgan.jsn.quantification import residual_maps

    targets = [output / name for name in (*RESIDUAL_NAMES, PICTURE_NAME, RECORD_NAME)]
    for target in targets:
        if os.path.realpath(target) in {os.path.realpath(path) for path in inputs}:
            raise UsageError(
                f"{target} is an input and would be overwritten; choose another output folder."
            )
    picture = draw_measurement(
        [radiograph.image for radiograph in result.radiographs],
        result.visits,
        result.measurement,
        _summary(result.record),
    )
    text = json.dumps(result.record, indent=2, allow_nan=False) + "\n"
    residuals = residual_maps(result.visits[0], result.visits[1], result.measurement)
    with atomic_paths(targets) as (*residual_paths, picture_path, record_path):
        for path, residual in zip(residual_paths, residuals, strict=True):
            encoded = residual_to_uint16(np.nan_to_num(residual))
            encoded[np.isnan(residual)] = 0  # no residual has this value
            Image.fromarray(encoded).save(path, format="PNG")
        picture.save(picture_path, format="PNG", compress_level=4)
        record_path.write_text(text, encoding="utf-8")
    return targets[::-1]


def _summary(record: dict[str, Any]) -> list[str]:
    """The result as lines of text; the first says whether it is one."""
    narrowing = f"{record['narrowing_px']:+.3f} px"
    if record["narrowing_mm"] is not None:
        narrowing += f" = {record['narrowing_mm']:+.4f} mm"
    if record["mismatch"]:
        first = f"mismatch ({'; '.join(record['problems'])}): {narrowing} is no measurement"
    else:
        first = (
            f"narrowing {narrowing}, quality {record['quality']:.3f}, there and back "
            f"{record['disagreement_px']:.3f} px apart"
        )
    lines = [first]
    spaces = record["joint_space_width"]
    for visit, name in (("baseline", "baseline"), ("followup", "follow-up")):
        width = spaces[visit]
        if width is not None:
            text = f"{width['mean_px']:.2f} px mean, {width['minimum_px']:.2f} px minimal"
            if width["mean_mm"] is not None:
                text += f" ({width['mean_mm']:.3f} and {width['minimum_mm']:.3f} mm)"
            lines.append(f"joint space width, {name}: {text}")
    return lines + [f"note: {note}" for note in record["notes"] if "touches" not in note]


def _measure_list(
    pairs: Path,
    output: Path,
    options: ReadOptions,
    separate: Separate,
    described: dict[str, Any] | None,
    *,
    fit_scale: bool,
) -> int:
    from rich.console import Console
    from rich.progress import track

    from blsgan.jsn.visits import check_same_joint, load_pairs, measure_pair, read_visit

    listed, repeated = load_pairs(pairs)
    read = lru_cache(maxsize=_VISITS_KEPT)(read_visit)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    status = Console(stderr=True)
    for pair in track(listed, "measuring", console=status, disable=not status.is_terminal):
        names = {
            "joint": pair.joint,
            "baseline": pair.baseline.image.name,
            "followup": pair.followup.image.name,
        }
        try:
            check_same_joint(pair.baseline.image, pair.followup.image)
            visits = [read(visit, options) for visit in (pair.baseline, pair.followup)]
            result = measure_pair(visits[0], visits[1], separate, described, fit_scale=fit_scale)
        except OutputError:
            raise
        except BlsganError as error:
            failures.append(f"{pair.joint}: {error}")
            rows.append({**names, "mismatch": True, "problems": str(error)})
        except MemoryError:
            failures.append(f"{pair.joint}: {names['baseline']} does not fit into memory; crop it.")
            rows.append({**names, "mismatch": True, "problems": "out of memory"})
        else:
            rows.append({**names, **_row(result.record)})
        if len(rows) % _SAVE_EVERY == 0:
            _write_rows(rows, output)
    path = _write_rows(rows, output)
    mismatches = sum(row["mismatch"] for row in rows) - len(failures)
    again = f" ({repeated} repeated entries left out)" if repeated else ""
    click.echo(
        f"{len(rows)} pairs{again}: {len(rows) - mismatches - len(failures)} measured, "
        f"{mismatches} mismatches, {len(failures)} failed; wrote {path}"
    )
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if failures else 0


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as one line of a table."""
    spaces = record["joint_space_width"]
    row: dict[str, Any] = {
        key: record[key]
        for key in (
            "narrowing_px",
            "narrowing_mm",
            "sideways_px",
            "mismatch",
            "quality",
            "disagreement_px",
        )
    }
    for bone, found in record["bones"].items():
        row |= {
            f"{bone}_{key}": found[key]
            for key in ("correlation", "coverage", "rotation_deg", "scale", "pixels", "converged")
        }
    for visit in ("baseline", "followup"):
        for key in ("mean_px", "minimum_px", "mean_mm", "minimum_mm"):
            row[f"jsw_{visit}_{key}"] = spaces[visit][key] if spaces[visit] else None
    row["weights_sha256"] = record["weights"]["sha256"] if record["weights"] else None
    row["problems"] = "; ".join(record["problems"])
    row["notes"] = "; ".join(record["notes"])
    return row


def _write_rows(rows: list[dict[str, Any]], output: Path) -> Path:
    from blsgan.evaluation.results import write_csv
    from blsgan.io.atomic import atomic_path

    path = output / PAIRS_NAME
    with atomic_path(path) as temporary:
        write_csv(temporary, rows)
    return path


@command.command("study")
@click.option(
    "--data",
    "root",
    required=True,
    type=click.Path(path_type=Path),
    help="The dataset's folder Data, with its list files (LS_K1_all_train, ...).",
)
@click.option(
    "--split",
    type=click.Choice(("train", "val", "all")),
    default="val",
    show_default=True,
    help="Joints to use; nobody trained on those of val.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the displacements, positions, exposures and noise.",
)
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
@click.option(
    "--part",
    "parts",
    default="accuracy,consistency",
    show_default=True,
    help="What to measure, separated by commas.",
)
@click.option(
    "--figures/--no-figures",
    default=None,
    help="Draw the Bland-Altman plot into the folder.  [default: where matplotlib is installed]",
)
@_fit_scale
@_network_options
def study_command(
    root: Path,
    split: str,
    seed: int,
    limit: int | None,
    output: Path | None,
    parts: str,
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
    from rich.console import Console
    from rich.progress import track

    from blsgan.data.layout import load_root
    from blsgan.data.splits import select
    from blsgan.evaluation.methods import from_separator
    from blsgan.io.atomic import check_writable_folder
    from blsgan.jsn.study import PARTS, run_study

    chosen = tuple(part.strip() for part in parts.split(","))
    if unknown := set(chosen) - set(PARTS):
        raise UsageError(
            f"--part {parts}: '{min(unknown)}' is no part; choose from {', '.join(PARTS)}."
        )
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
    status = Console(stderr=True)

    def progress(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
        return track(items, label, total, console=status, disable=not status.is_terminal)

    study = run_study(
        images,
        model,
        split=split,
        seed=seed,
        limit=limit,
        fit_scale=fit_scale,
        parts=chosen,
        progress=progress,
    )
    if output is not None:
        written = study.write(output) + _draw_study(study, output, figures, status)
        click.echo("wrote " + ", ".join(str(path) for path in written), err=True)
    click.echo(study.heading())
    for table in study.tables():
        click.echo()
        click.echo(table.markdown(), nl=False)


def _draw_study(study: Study, output: Path, wanted: bool | None, status: Console) -> list[Path]:
    from importlib.util import find_spec

    from blsgan.jsn.study import BLAND_ALTMAN_NAME

    if wanted is False or not study.accuracy:
        return []
    if wanted is None and find_spec("matplotlib") is None:
        status.print(
            "no figure: matplotlib is not installed; pip install 'blsgan[figures]'", highlight=False
        )
        return []
    from blsgan.jsn.figures import draw_bland_altman

    path = output / BLAND_ALTMAN_NAME
    draw_bland_altman(study, path)
    return [path]
