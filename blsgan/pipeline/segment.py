"""Segment one radiograph from file to files: masks of both bones, an overlay and a record."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blsgan import __version__
from blsgan.errors import InputError, UsageError
from blsgan.io import results
from blsgan.io.files import read_file
from blsgan.io.listing import Item
from blsgan.io.panel import draw_masks
from blsgan.io.predicted import predicted_names, write_predicted
from blsgan.io.radiograph import Radiograph, anonymous_name, decode_radiograph, is_path_private
from blsgan.pipeline.worklist import Outcome
from blsgan.records.masks import Confidence, MasksRecord, SegmentationOptions
from blsgan.records.record import Backend, ImageFacts, InputFile, Weights
from blsgan.tasks.segmentation import Segmentation, Segmenter
from blsgan.tasks.task import WeightsFile


def segment_item(
    segmenter: Segmenter,
    item: Item,
    output: Path,
    options: SegmentationOptions,
    *,
    overwrite: bool = False,
) -> Outcome[Segmentation, MasksRecord]:
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
    made_from = _made_from(segmenter, image_file.sha256, options)
    folder, name = output / item.folder, item.name
    file_name: str | None = item.image.name
    private = is_path_private(image_file)
    if private:
        folder, file_name, name = output, None, anonymous_name(image_file.sha256)
    files = [folder / file for file in predicted_names(name)]
    if not overwrite and (known := results.finished(MasksRecord, files, made_from)):
        return Outcome(files, known, None, private)

    radiograph = decode_radiograph(image_file, bit_depth=options.bit_depth, invert=options.invert)
    try:
        predicted = predict(segmenter, radiograph, options, name, file_name, started)
    except InputError as error:
        raise type(error)(f"{item.image}: {error}") from error
    predicted.write(folder)
    return Outcome(files, predicted.record, predicted.segmentation, private)


@dataclass(frozen=True)
class PredictedMasks:
    """Masks of one radiograph and what is known of them; ``record`` lacks the files' hashes."""

    radiograph: Radiograph
    segmentation: Segmentation
    record: MasksRecord

    def write(self, folder: Path) -> list[Path]:
        """Write masks, overlay and record.

        Raises:
            UsageError: masks of that name are there that no prediction wrote.
            OutputError: they cannot be written.
        """
        _protect_drawn_masks([folder / file for file in predicted_names(self.record.name)])
        overlay = draw_masks(
            self.radiograph.pixels, self.segmentation.masks, caption=_caption(self.segmentation)
        )
        return write_predicted(
            folder, self.record.name, self.segmentation.masks, overlay, self.record
        )


def predict(
    segmenter: Segmenter,
    radiograph: Radiograph,
    options: SegmentationOptions,
    name: str,
    file_name: str | None,
    started: float,
) -> PredictedMasks:
    """Predict the masks of a radiograph that was read since ``started`` (of ``perf_counter``).

    ``name`` is the result's, ``file_name`` the picture's, None where it may tell the patient.
    Raises :class:`InputError`, without a file's name.
    """
    read = time.perf_counter()
    segmentation = segmenter(radiograph.pixels)
    segmented = time.perf_counter()
    record = MasksRecord(
        schema=1,
        name=name,
        **_made_from(segmenter, radiograph.sha256, options),
        image=image_record(radiograph, file_name),
        confidence=Confidence(**segmentation.confidence.record()),
        doubtful=bool(segmentation.doubts),
        doubts=list(segmentation.doubts),
        area_px={
            "upper": int(np.count_nonzero(segmentation.upper)),
            "lower": int(np.count_nonzero(segmentation.lower)),
            "overlap": int(np.count_nonzero(segmentation.overlap)),
        },
        working_scale=segmentation.scale,
        backend=Backend(name=segmenter.backend.name, version=segmenter.backend.version),
        versions={"python": platform.python_version(), "numpy": np.__version__},
        times_ms={
            "read": round(1000 * (read - started), 1),
            "segment": round(1000 * (segmented - read), 1),
        },
        notes=[*radiograph.notes, *(f"doubtful masks: {why}" for why in segmentation.doubts)],
    )
    return PredictedMasks(radiograph, segmentation, record)


def _made_from(segmenter: Segmenter, sha256: str, options: SegmentationOptions) -> dict[str, Any]:
    """What decides the masks of a picture of this hash."""
    return {
        "kind": "masks",
        "blsgan": __version__,
        "inputs": {"image": InputFile(sha256=sha256)},
        "options": options,
        "weights": weights_record(segmenter.weights),
    }


def weights_record(weights: WeightsFile) -> Weights:
    """What a record says about the weights."""
    return Weights(
        name=weights.name,
        architecture=weights.architecture,
        file=weights.path.name,
        sha256=weights.sha256,
    )


def image_record(radiograph: Radiograph, file: str | None) -> ImageFacts:
    """What a record says about the picture; ``file`` None where the name may tell the patient."""
    height, width = radiograph.pixels.shape
    return ImageFacts(
        file=file,
        format=radiograph.format,
        bit_depth=radiograph.bits,
        height_px=height,
        width_px=width,
    )


def _protect_drawn_masks(files: list[Path]) -> None:
    earlier = MasksRecord.read(files[-1])
    known = {} if earlier is None else earlier.outputs
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
