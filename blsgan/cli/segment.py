"""``blsgan segment``: radiographs in; masks of both bones, an overlay and a record for each out."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from blsgan import __version__, backends
from blsgan.cli.batch import attempt, run_all, work_list
from blsgan.errors import InputError, UsageError
from blsgan.io import results
from blsgan.io.atomic import check_writable_folder
from blsgan.io.files import read_file
from blsgan.io.listing import Item
from blsgan.io.panel import draw_masks
from blsgan.io.predicted import predicted_names, write_predicted
from blsgan.io.radiograph import anonymous_name, decode_radiograph, is_path_private
from blsgan.segmentation import Segmentation, Segmenter


@dataclass(frozen=True)
class Options:
    """What decides the masks, besides the image and the weights."""

    bit_depth: int | None = None
    invert: bool = False

    def record(self) -> dict[str, Any]:
        return {"bit_depth": self.bit_depth, "invert": self.invert}


@dataclass(frozen=True)
class Outcome:
    """What became of one picture; ``segmentation`` is None where it had been finished before."""

    files: list[Path]
    record: dict[str, Any]
    segmentation: Segmentation | None
    renamed: bool = False

    @property
    def fresh(self) -> bool:
        return self.segmentation is not None


@click.command()
@click.argument("image", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the results."
)
@click.option("--overwrite", is_flag=True, help="Predict again what is finished.")
@click.option("--weights", help="Name or file of the weights.  [default: segmenter]")
@click.option(
    "--backend",
    type=click.Choice([name for name in backends.NAMES if name not in backends.ENGINES]),
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
@click.option("--invert", is_flag=True, help="The image shows bone dark.")
def command(
    image: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    weights: str | None,
    backend: str,
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
        found, one = work_list(path, output, pattern=None)
        items += found
        single &= one
    _check_names(items)
    check_writable_folder(output)
    options = Options(bit_depth, invert)
    segmenter = Segmenter.from_pretrained(weights, backend, threads=threads)
    if single:
        _report_one(
            items[0], segment_item(segmenter, items[0], output, options, overwrite=overwrite)
        )
        return 0

    def work(item: Item) -> Outcome:
        return segment_item(segmenter, item, output, options, overwrite=overwrite)

    return run_all(
        (attempt(work, item) for item in items),
        len(items),
        output,
        doing="segmenting",
        done="segmented",
    )


def segment_item(
    segmenter: Segmenter, item: Item, output: Path, options: Options, *, overwrite: bool = False
) -> Outcome:
    """Read one picture, predict its masks and write them; every error names its file.

    The result lands in ``output / item.folder``; that of a DICOM file in ``output`` itself, under a
    name made of its hash. An up to date result is left alone unless ``overwrite``. Mask files that
    were drawn, or changed after they were predicted, are never written over.

    Raises:
        NoJointError: the picture shows no joint.
        InputError: it cannot be read or used.
        UsageError: masks of that name are there that no prediction wrote.
        OutputError: the result cannot be written.
    """
    started = time.perf_counter()
    image_file = read_file(item.image, what="image")
    described = {
        "kind": "masks",
        "blsgan": __version__,
        "inputs": {"image": {"sha256": image_file.sha256}},
        "options": options.record(),
        "weights": weights_record(segmenter.weights),
    }
    folder, name = output / item.folder, item.name
    file_name: str | None = item.image.name
    private = is_path_private(image_file)
    if private:
        folder, file_name, name = output, None, anonymous_name(image_file.sha256)
    files = [folder / file for file in predicted_names(name)]
    if not overwrite and results.is_complete(files, described):
        return Outcome(files, results.read_record(files[-1]) or described, None, private)
    _protect_drawn_masks(files)

    radiograph = decode_radiograph(image_file, bit_depth=options.bit_depth, invert=options.invert)
    read = time.perf_counter()
    try:
        segmentation = segmenter(radiograph.pixels)
    except InputError as error:
        raise type(error)(f"{item.image}: {error}") from error
    segmented = time.perf_counter()
    height, width = radiograph.pixels.shape
    record = {
        "schema": results.SCHEMA,
        "name": name,
        **described,
        "image": {
            "file": file_name,
            "format": radiograph.format,
            "bit_depth": radiograph.bits,
            "height_px": height,
            "width_px": width,
        },
        **prediction_record(segmentation),
        "area_px": {
            "upper": int(np.count_nonzero(segmentation.upper)),
            "lower": int(np.count_nonzero(segmentation.lower)),
            "overlap": int(np.count_nonzero(segmentation.overlap)),
        },
        "working_scale": segmentation.scale,
        "backend": {"name": segmenter.backend.name, "version": segmenter.backend.version},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "times_ms": {
            "read": round(1000 * (read - started), 1),
            "segment": round(1000 * (segmented - read), 1),
        },
        "notes": [*radiograph.notes, *(f"doubtful masks: {why}" for why in segmentation.doubts)],
    }
    overlay = draw_masks(radiograph.pixels, segmentation.masks, caption=_caption(segmentation))
    write_predicted(folder, name, segmentation.masks, overlay, record)
    return Outcome(files, record, segmentation, private)


def weights_record(weights: backends.WeightsFile) -> dict[str, str]:
    """What a record says about the weights."""
    return {
        "name": weights.name,
        "architecture": weights.architecture,
        "file": weights.path.name,
        "sha256": weights.sha256,
    }


def prediction_record(segmentation: Segmentation) -> dict[str, Any]:
    """What a record says about predicted masks: the figures of confidence, and the doubts."""
    return {
        "confidence": segmentation.confidence.record(),
        "doubtful": bool(segmentation.doubts),
        "doubts": list(segmentation.doubts),
    }


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


def _protect_drawn_masks(files: list[Path]) -> None:
    outputs = (results.read_record(files[-1]) or {}).get("outputs")
    known = outputs if isinstance(outputs, dict) else {}
    for path in files[:2]:
        if path.is_file() and results.hash_file(path) != known.get(path.name):
            raise UsageError(
                f"{path} is a mask that was not predicted, or was changed since; it is left alone: "
                "choose another output folder."
            )


def _caption(segmentation: Segmentation) -> str:
    confidence = segmentation.confidence
    text = (
        f"predicted masks     confidence {confidence.score:.2f}     flip agreement "
        f"{confidence.flip_agreement:.3f}     border entropy {confidence.border_entropy:.2f} bits"
    )
    return f"{text}     DOUBTFUL: {'; '.join(segmentation.doubts)}" if segmentation.doubts else text


def _report_one(item: Item, outcome: Outcome) -> None:
    overlay = outcome.files[-2]
    if outcome.renamed:
        click.echo(f"{item.image} became {overlay}")
    if outcome.segmentation is None:
        click.echo(f"{overlay} and the rest are up to date (--overwrite predicts again)")
        return
    area, confidence = outcome.record["area_px"], outcome.record["confidence"]
    click.echo(
        f"upper bone {area['upper']} px, lower bone {area['lower']} px, overlap {area['overlap']} "
        f"px; confidence {confidence['score']:.2f}"
    )
    for note in outcome.record["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"wrote {overlay} and {len(outcome.files) - 1} more files")
