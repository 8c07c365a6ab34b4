"""``blsgan hand``: whole hands in; every joint's masks and layers, and its narrowing, out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from blsgan.cli import options
from blsgan.cli.terminal import Progress, say
from blsgan.errors import InputError
from blsgan.io.atomic import check_writable_folder
from blsgan.records.hand import HandOptions

if TYPE_CHECKING:
    from blsgan.hands.chain import HandSeparator
    from blsgan.io.listing import Item
    from blsgan.pipeline.hand import HandResult
    from blsgan.records.hand_visits import HandVisitsRecord


@click.command(epilog="Example: blsgan hand 2019.dcm 2021.dcm -o patient")
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
    "--no-visits",
    is_flag=True,
    help="The pictures are no visits of one patient: compare nothing, write no page.",
)
@options.backend(engines=False)
@options.runs_on
@options.threads
@options.bit_depth
@options.invert
@click.option(
    "--pixel-spacing",
    type=click.FloatRange(0, min_open=True),
    help="Side of a pixel in mm.  [default: from DICOM]",
)
def command(
    image: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    side: Literal["left", "right"] | None,
    no_visits: bool,
    backend: str,
    device: str | None,
    threads: int | None,
    bit_depth: int | None,
    invert: bool,
    pixel_spacing: float | None,
) -> int:
    """Take every joint of whole hands apart and follow it over the visits.

    IMAGE is a radiograph of one or two hands (PNG, JPEG, TIFF, BMP, DICOM), turned by any angle, or
    a folder of them. Writes for each hand a folder: an overview with every joint outlined
    (hand_overview.png), masks and layers on the whole picture, hand.json, and for each joint a
    folder with its crop and what `blsgan separate` writes. A joint that is refused or doubtful is
    named with the reason.

    Several pictures are visits of one patient, in the order of their DICOM dates, else in the order
    given (of a folder: by name). Each joint's narrowing is measured, with a verdict, into
    visits.json and visits.csv; hands.html is the page to read.

    MCP joints are what the networks were trained on; PIP and IP are experimental.
    """
    from blsgan.hands.chain import HandSeparator
    from blsgan.pipeline.hand import hand_items

    items = hand_items(image, output)
    check_writable_folder(output)
    chosen = HandOptions(
        bit_depth=bit_depth, invert=invert, pixel_spacing_mm=pixel_spacing, side=side
    )
    separator = HandSeparator.from_pretrained(backend, threads=threads, device=device)
    with Progress() as progress:
        results, failures = _take_apart(separator, items, output, chosen, overwrite, progress)
        if results and not no_visits:
            try:
                _compare(separator, results, output, progress)
            except InputError as error:
                failures.append(str(error))
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if failures else 0


def _take_apart(
    separator: HandSeparator,
    items: list[Item],
    output: Path,
    chosen: HandOptions,
    overwrite: bool,
    progress: Progress,
) -> tuple[list[list[HandResult]], list[str]]:
    """The hands of each picture, and a sentence for each one that failed; a single one's raises."""
    from blsgan.anatomy import title
    from blsgan.pipeline.hand import separate_hands
    from blsgan.pipeline.worklist import told

    results: list[list[HandResult]] = []
    failures: list[str] = []
    alone = len(items) == 1
    for item in progress.track(items, "taking hands apart"):

        def work(item: Item = item) -> list[HandResult]:
            return separate_hands(
                separator,
                item,
                output,
                chosen,
                overwrite=overwrite,
                progress=lambda name: progress.step(f"{item.name}: {title(name)}"),
            )

        hands, failure = (work(), None) if alone else told(work, item.image)
        if hands is None:
            failures.append(str(failure))
            continue
        results.append(hands)
        for hand in hands:
            say("\n".join(_lines(hand, alone=alone)), err=False)
    return results, failures


def _lines(result: HandResult, *, alone: bool) -> list[str]:
    from blsgan.pipeline.hand import joint_lines

    record = result.record
    if result.hand is None:
        return [f"{result.folder} is up to date (--overwrite does it again)"]
    counts = ", ".join(f"{number} {status}" for status, number in record.counts().items())
    lines = [
        f"{result.folder}: {record.side} hand (side by {record.side_source}), confidence "
        f"{record.confidence:.2f}; joints: {counts}"
    ]
    if alone:
        lines += joint_lines(record)
    lines += [f"note: {note}" for note in record.notes]
    return [*lines, f"wrote {result.overview} and the joints beside it"]


def _compare(
    separator: HandSeparator, results: list[list[HandResult]], output: Path, progress: Progress
) -> None:
    from blsgan.pipeline.hand_visits import compare_visits, write_page

    compared = compare_visits(
        separator.separator,
        results,
        output,
        progress=lambda text: progress.step(f"measuring {text}"),
    )
    page = write_page(compared, output)
    if len(results) > 1:
        click.echo("\n".join(_verdicts(compared.record)))
    say(f"wrote {page}", err=False)


def _verdicts(record: HandVisitsRecord) -> list[str]:
    """What became of each side from its first to its last visit; every joint that narrowed."""
    from blsgan.anatomy import title

    lines = []
    for side in ("left", "right"):
        places = [index for index, visit in enumerate(record.visits) if visit.side == side]
        whole = [
            one
            for one in record.intervals
            if places and (one.earlier, one.later) == (places[0], places[-1])
        ]
        if not whole:
            continue
        verdicts = [one.verdict for one in whole]
        counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in dict.fromkeys(verdicts))
        lines.append(f"{side} hand, first of {len(places)} visits to last: {counts}")
        for one in whole:
            if one.verdict == "narrowed" and one.narrowing_px is not None:
                factor, unit = (one.pixel_mm, "mm") if one.pixel_mm else (1.0, "px")
                assert one.detectable_px is not None, "measured"
                lines.append(
                    f"{title(one.joint)}: narrowed by {one.narrowing_px * factor:.2f} {unit} "
                    f"(detectable from {one.detectable_px * factor:.2f})"
                )
    return lines + [f"note: {note}" for note in record.notes]
