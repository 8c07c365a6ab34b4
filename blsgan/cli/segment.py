"""``blsgan segment``: radiographs in; masks of both bones, an overlay and a record for each out."""

from __future__ import annotations

from pathlib import Path

import click

from blsgan.cli import options
from blsgan.cli.batch import run_all
from blsgan.cli.terminal import quiet, say
from blsgan.errors import UsageError
from blsgan.io.atomic import check_writable_folder
from blsgan.io.listing import Item, describe_passed_over
from blsgan.pipeline.segment import segment_item
from blsgan.pipeline.worklist import Outcome, attempt, work_list
from blsgan.records.masks import MasksRecord, SegmentationOptions
from blsgan.tasks.segmentation import Segmentation, Segmenter


@click.command(epilog="Example: blsgan segment joint.png -o masks")
@click.argument("image", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the results."
)
@click.option("--overwrite", is_flag=True, help="Predict again what is finished.")
@options.weights("segmenter")
@options.backend(engines=False)
@options.runs_on
@options.threads
@options.bit_depth
@options.invert
def command(
    image: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    weights: str | None,
    backend: str,
    device: str | None,
    threads: int | None,
    bit_depth: int | None,
    invert: bool,
) -> int:
    """Predict the masks of both bones of each IMAGE.

    IMAGE is a radiograph of one finger joint (PNG, JPEG, TIFF, BMP, DICOM), a folder of them, or a
    list file of the public dataset. Writes NAME_mask_upper.png, NAME_mask_lower.png,
    NAME_mask_overlay.png and NAME_mask.json; results that are complete and up to date are skipped.
    A picture that shows no joint is refused; masks that look doubtful are written and said to be.
    """
    items: list[Item] = []
    single = len(image) == 1
    for path in image:
        passed_over: list[Path] = []
        found, one = work_list(path, output, pattern=None, passed_over=passed_over)
        if said := describe_passed_over(path, passed_over):
            say(said)
        items += found
        single &= one
    _check_names(items)
    check_writable_folder(output)
    options = SegmentationOptions(bit_depth=bit_depth, invert=invert)
    segmenter = Segmenter.from_pretrained(weights, backend, threads=threads, device=device)
    if single:
        _report_one(
            items[0], segment_item(segmenter, items[0], output, options, overwrite=overwrite)
        )
        return 0

    def work(item: Item) -> Outcome[Segmentation, MasksRecord]:
        return segment_item(segmenter, item, output, options, overwrite=overwrite)

    return run_all(
        (attempt(work, item) for item in items),
        len(items),
        output,
        doing="segmenting",
        done="segmented",
    )


def _check_names(items: list[Item]) -> None:
    """Refuse two pictures whose results would be one."""
    taken: dict[Path, Path] = {}
    for item in items:
        target = item.folder / item.name
        if taken.setdefault(target, item.image) != item.image:
            raise UsageError(
                f"{taken[target]} and {item.image} would have results of one name; give them "
                "output folders of their own."
            )


def _report_one(item: Item, outcome: Outcome[Segmentation, MasksRecord]) -> None:
    if quiet():
        return
    overlay = outcome.files[-2]
    if outcome.renamed:
        click.echo(f"{item.image} became {overlay}")
    if outcome.found is None:
        click.echo(f"{overlay} and the rest are up to date (--overwrite predicts again)")
        return
    area, confidence = outcome.record.area_px, outcome.record.confidence
    click.echo(
        f"upper bone {area['upper']} px, lower bone {area['lower']} px, overlap {area['overlap']} "
        f"px; confidence {confidence.score:.2f}"
    )
    for note in outcome.record.notes:
        click.echo(f"note: {note}")
    click.echo(f"wrote {overlay} and {len(outcome.files) - 1} more files")
