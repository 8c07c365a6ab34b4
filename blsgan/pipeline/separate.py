"""Separate one joint from files to files: layers, a panel and a record."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blsgan import __version__
from blsgan.errors import InputError, UsageError
from blsgan.io import results
from blsgan.io.files import read_file
from blsgan.io.listing import Item
from blsgan.io.masks import BONES, decode_masks
from blsgan.io.panel import draw_panel
from blsgan.io.predicted import prediction_of
from blsgan.io.radiograph import (
    Radiograph,
    anonymous_name,
    decode_radiograph,
    is_path_private,
)
from blsgan.joint.geometry import bounding_box
from blsgan.pipeline.segment import image_record, segment_item, weights_record
from blsgan.pipeline.worklist import Outcome
from blsgan.records.masks import MasksRecord, SegmentationOptions
from blsgan.records.record import Backend, InputFile, Spacing
from blsgan.records.separation import (
    BoundingBox,
    GivenMasks,
    Overlap,
    PredictedMasks,
    ReconstructionError,
    SeparationOptions,
    SeparationRecord,
)
from blsgan.tasks.segmentation import Segmenter
from blsgan.tasks.separation import Separation, Separator


def separate_item(
    separator: Separator,
    item: Item,
    output: Path,
    options: SeparationOptions,
    *,
    overwrite: bool = False,
    segmenter: Callable[[], Segmenter] | None = None,
) -> Outcome[Separation, SeparationRecord]:
    """Read, separate and write one joint; every error names its file.

    The result lands in ``output / item.folder``; that of a DICOM file, whose path may tell who the
    patient is, in ``output`` itself under a name made of hashes. An up to date result is left
    alone, and ``found`` is None, unless ``overwrite``. Where the item has neither mask,
    ``segmenter`` gives what predicts and writes them; without it that is an error.
    """
    started = time.perf_counter()
    if item.upper is None and item.lower is None and segmenter is not None:
        masks_options = SegmentationOptions(bit_depth=options.bit_depth, invert=options.invert)
        predicted = segment_item(segmenter(), item, output, masks_options, overwrite=overwrite)
        item = replace(item, upper=predicted.files[0], lower=predicted.files[1])
    upper, lower = _require_masks(item)
    image_file = read_file(item.image, what="image")
    mask_files = (read_file(upper, what="mask"), read_file(lower, what="mask"))
    made_from: dict[str, Any] = {
        "kind": "separation",
        "blsgan": __version__,
        "inputs": {
            "image": InputFile(sha256=image_file.sha256),
            "upper_mask": InputFile(sha256=mask_files[0].sha256),
            "lower_mask": InputFile(sha256=mask_files[1].sha256),
        },
        "options": options,
        "weights": weights_record(separator.weights),
    }
    folder, name = output / item.folder, item.name
    file_name: str | None = item.image.name
    private = is_path_private(image_file)
    if private:
        folder, file_name = output, None
        name = anonymous_name(image_file.sha256, (mask_files[0].sha256, mask_files[1].sha256))
    files = [folder / file for file in results.result_names(name, options.format)]
    if not overwrite and (known := results.finished(SeparationRecord, files, made_from)):
        return Outcome(files, known, None, private)

    radiograph = decode_radiograph(
        image_file,
        bit_depth=options.bit_depth,
        invert=options.invert,
        pixel_spacing_mm=_pair(options.pixel_spacing_mm),
    )
    height, width = radiograph.pixels.shape
    masks = decode_masks(*mask_files, (height, width)).masks
    _protect_inputs(files, (item.image, upper, lower))

    read = time.perf_counter()
    try:
        separation = separator(radiograph.pixels, masks)
    except InputError as error:
        raise InputError(f"{item.image}: {error}") from error
    separated = time.perf_counter()
    error_mse = _reconstruction_mse(separation, masks)
    panel = draw_panel(
        radiograph.pixels,
        masks,
        separation.upper,
        separation.lower,
        separation.reconstruction,
        separation.residual,
        pixel_mm=radiograph.pixel_spacing.column_mm if radiograph.pixel_spacing else None,
        caption=_caption(radiograph, separation, error_mse),
    )
    prediction = prediction_of(*mask_files)
    record = SeparationRecord(
        schema=1,
        name=name,
        **made_from,
        masks=_masks_record(prediction),
        image=image_record(radiograph, file_name),
        pixel_spacing_mm=_spacing_record(radiograph),
        soft_tissue=separation.soft_tissue if separation.overlap.any() else None,
        overlap=_overlap_record(radiograph, separation),
        reconstruction_error=ReconstructionError(
            mse=error_mse, max_abs=float(np.abs(separation.residual).max())
        ),
        working_scale=separation.scale,
        residual_encoding=None if options.format == "npz" else results.RESIDUAL_ENCODING,
        backend=Backend(name=separator.backend.name, version=separator.backend.version),
        versions={"python": platform.python_version(), "numpy": np.__version__},
        times_ms={
            "read": _milliseconds(started, read),
            "separate": _milliseconds(read, separated),
            "draw": _milliseconds(separated, time.perf_counter()),
        },
        notes=[*radiograph.notes, *_masks_notes(prediction), *separation.notes],
    )
    results.write_result(
        folder,
        name,
        {plane: getattr(separation, plane) for plane in results.PLANES},
        panel,
        record,
        file_format=options.format,
        arrays=_arrays(radiograph, separation),
        pixel_spacing=radiograph.pixel_spacing,
    )
    return Outcome(files, record, separation, private)


def _require_masks(item: Item) -> tuple[Path, Path]:
    if item.upper is None or item.lower is None:
        missing = " and ".join(
            bone for bone, path in zip(BONES, (item.upper, item.lower), strict=True) if path is None
        )
        raise InputError(
            f"{item.image} has no {missing} mask beside it; add it or say how masks are named with "
            "--mask-pattern."
        )
    return item.upper, item.lower


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _protect_inputs(files: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write a result over one of its own inputs (a mask called NAME_upper.png)."""
    targets = {os.path.realpath(file) for file in files}
    for path in inputs:
        if os.path.realpath(path) in targets:
            raise UsageError(
                f"{path} is an input and would be overwritten by a result of that name; choose "
                "another output folder."
            )


def _masks_record(prediction: MasksRecord | None) -> GivenMasks | PredictedMasks:
    """Whether the masks were given or predicted, and how far they can be trusted."""
    if prediction is None:
        return GivenMasks()
    return PredictedMasks(
        weights=prediction.weights,
        confidence=prediction.confidence,
        doubtful=prediction.doubtful,
        doubts=prediction.doubts,
    )


def _masks_notes(prediction: MasksRecord | None) -> list[str]:
    if prediction is None:
        return []
    doubts = [f"doubtful masks: {why}" for why in prediction.doubts]
    return ["the masks were predicted, nobody drew them", *doubts]


def _reconstruction_mse(separation: Separation, masks: np.ndarray) -> float:
    pixels = np.count_nonzero(masks[0] | masks[1])
    return float(np.square(separation.residual, dtype=np.float64).sum() / pixels)


def _spacing_record(radiograph: Radiograph) -> Spacing | None:
    spacing = radiograph.pixel_spacing
    if spacing is None:
        return None
    return Spacing(row=spacing.row_mm, column=spacing.column_mm, source=spacing.source)


def _overlap_record(radiograph: Radiograph, separation: Separation) -> Overlap:
    pixels = int(np.count_nonzero(separation.overlap))
    spacing = radiograph.pixel_spacing
    box = None
    if pixels:
        top, left, bottom, right = bounding_box(separation.overlap)
        box = BoundingBox(top=top, left=left, bottom=bottom, right=right)
    return Overlap(
        area_px=pixels,
        area_mm2=None if spacing is None else pixels * spacing.area_mm2,
        bounding_box_px=box,
    )


def _arrays(radiograph: Radiograph, separation: Separation) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        "overlap": separation.overlap,
        "soft_tissue": np.float32(separation.soft_tissue),
    }
    if radiograph.pixel_spacing is not None:
        spacing = radiograph.pixel_spacing
        arrays["pixel_spacing_mm"] = np.array([spacing.row_mm, spacing.column_mm])
    return arrays


def _caption(radiograph: Radiograph, separation: Separation, error_mse: float) -> str:
    pixels = int(np.count_nonzero(separation.overlap))
    if not pixels:
        return "no overlap: each layer is the image inside its mask"
    spacing = radiograph.pixel_spacing
    area = "" if spacing is None else f" = {pixels * spacing.area_mm2:.2f} sq mm"
    return (
        f"overlap {pixels} px{area}     soft tissue k = {separation.soft_tissue:.3f}     "
        f"reconstruction MSE {error_mse:.1e}"
    )


def _milliseconds(start: float, stop: float) -> float:
    return round(1000 * (stop - start), 1)
