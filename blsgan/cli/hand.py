"""``blsgan hand``: whole hands in; masks, layers and a record for every joint out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blsgan.errors import BlsganError, debugging, unexpected
from blsgan.io.atomic import check_writable_folder
from blsgan.io.listing import list_folder
from blsgan.records.hand import HandOptions
from blsgan.runtimes.session import ENGINES
from blsgan.tasks.backend import CHOICES

if TYPE_CHECKING:
    from blsgan.hands.chain import HandSeparator
    from blsgan.pipeline.hand import HandResult


@click.command("hand")
@click.argument("image", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the results."
)
@click.option("--overwrite", is_flag=True, help="Do again what is finished.")
@click.option(
    "--side",
    type=click.Choice(["left", "right"]),
    help="Side of the hand, for pictures of one hand.  [default: DICOM, else the thumb's side]",
)
@click.option(
    "--backend",
    type=click.Choice([name for name in CHOICES if name not in ENGINES]),
    default="auto",
    show_default=True,
    help="Runtime.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: usable cores]")
@click.option(
    "--bit-depth",
    type=click.IntRange(1, 16),
    help="Bits of a 16-bit file's values.  [default: from the values]",
)
@click.option("--invert", is_flag=True, help="The image shows bone dark.  [default: from the hand]")
@click.option(
    "--pixel-spacing",
    type=click.FloatRange(0, min_open=True),
    help="Side of a pixel in mm.  [default: from DICOM]",
)
def command(
    image: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    side: str | None,
    backend: str,
    threads: int | None,
    bit_depth: int | None,
    invert: bool,
    pixel_spacing: float | None,
) -> int:
    """Take every joint of the whole hands in each IMAGE apart.

    IMAGE is a radiograph of one or two hands (PNG, JPEG, TIFF, BMP, DICOM), turned by any angle, or
    a folder of them. Writes for each hand a folder: an overview with every joint outlined
    (hand_overview.png), masks and layers on the whole picture, hand.json, and for each joint a
    folder with its crop and what `blsgan separate` writes. A joint that is refused or doubtful is
    named with the reason. MCP joints are what the networks were trained on; PIP and IP are
    experimental.
    """
    files: list[Path] = []
    for path in image:
        files += (
            [item.image for item in list_folder(path, exclude=output)] if path.is_dir() else [path]
        )
    check_writable_folder(output)
    options = HandOptions(
        bit_depth=bit_depth, invert=invert, pixel_spacing_mm=pixel_spacing, side=side
    )
    from blsgan.hands.chain import HandSeparator

    separator = HandSeparator.from_pretrained(backend, threads=threads)
    if len(files) == 1:
        for result in _hands(separator, files[0], output, options, overwrite):
            _tell(result)
        return 0
    return _all(separator, files, output, options, overwrite)


def _hands(
    separator: HandSeparator, path: Path, output: Path, options: HandOptions, overwrite: bool
) -> list[HandResult]:
    from rich.console import Console

    from blsgan.anatomy import title
    from blsgan.pipeline.hand import separate_hands

    with Console(stderr=True).status("looking for hands") as status:
        return separate_hands(
            separator,
            path,
            output,
            options,
            overwrite=overwrite,
            progress=lambda name: status.update(f"taking {title(name)} apart"),
        )


def _tell(result: HandResult) -> None:
    from blsgan.pipeline.hand import joint_lines

    record = result.record
    if result.skipped:
        click.echo(f"{result.folder} is up to date (--overwrite does it again)")
        return
    counts = ", ".join(f"{number} {status}" for status, number in record.counts().items())
    click.echo(
        f"{record.side} hand (side by {record.side_source}), confidence {record.confidence:.2f}; "
        f"joints: {counts}"
    )
    for line in joint_lines(record):
        click.echo(line)
    for note in record.notes:
        click.echo(f"note: {note}")
    click.echo(f"wrote {result.overview} and the joints beside it")


def _all(
    separator: HandSeparator,
    files: list[Path],
    output: Path,
    options: HandOptions,
    overwrite: bool,
) -> int:
    """Every picture, whatever becomes of each; status 1 where one failed."""
    from rich.console import Console
    from rich.progress import track

    results: list[HandResult] = []
    failures: list[str] = []
    taken: dict[str, Path] = {}
    for path in track(files, "taking hands apart", console=Console(stderr=True)):
        other = taken.setdefault(path.stem, path)
        if other != path:
            failures.append(
                f"{path} would have results of the same name as {other}; give it an output folder "
                "of its own."
            )
            continue
        found, failure = _attempt(separator, path, output, options, overwrite)
        results += found
        failures += failure
    skipped = sum(result.skipped for result in results)
    totals = {"ok": 0, "doubtful": 0, "refused": 0}
    for result in results:
        for status, number in result.record.counts().items():
            totals[status] += number
    click.echo(
        f"{len(results) - skipped} hands taken apart, {skipped} already finished, {len(failures)} "
        f"pictures failed; joints: {', '.join(f'{n} {s}' for s, n in totals.items())}; results in "
        f"{output}"
    )
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if failures else 0


def _attempt(
    separator: HandSeparator, path: Path, output: Path, options: HandOptions, overwrite: bool
) -> tuple[list[HandResult], list[str]]:
    """The hands of one picture among many; what goes wrong with this one is told, not raised."""
    from blsgan.pipeline.hand import separate_hands

    try:
        return separate_hands(separator, path, output, options, overwrite=overwrite), []
    except BlsganError as error:
        return [], [str(error)]
    except MemoryError:
        return [], [f"{path} does not fit into memory; reduce it."]
    except Exception as error:
        if debugging():
            raise
        return [], [f"{path}: {unexpected(error)}"]
