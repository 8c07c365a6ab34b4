"""Segment one radiograph from file to files: masks of both bones, an overlay and a record."""

from __future__ import annotations

import functools
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.errors import InputError, NoJointError, UsageError, WeightsError
from blsgan.io import results
from blsgan.io.files import read_file
from blsgan.io.listing import Item
from blsgan.io.panel import draw_masks
from blsgan.io.predicted import predicted_names, write_predicted
from blsgan.io.radiograph import Radiograph, anonymous_name, decode_radiograph, is_path_private
from blsgan.joint.geometry import bone_width_px
from blsgan.pipeline.worklist import Outcome
from blsgan.records.masks import Confidence, MasksRecord, SegmentationOptions
from blsgan.records.record import Backend, ImageFacts, InputFile, Weights
from blsgan.tasks.joints import Locator
from blsgan.tasks.segmentation import Segmentation, Segmenter
from blsgan.tasks.separation import as_plane
from blsgan.tasks.task import WeightsFile

_LEAST_WIDTH_SHARE = 0.25  # of a picture's longer side; a joint fills at least half of it


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
    segmentation = segment_joint(segmenter, radiograph.pixels)
    times = {
        "read": round(1000 * (read - started), 1),
        "segment": round(1000 * (time.perf_counter() - read), 1),
    }
    return predicted(segmenter, segmentation, radiograph, options, name, file_name, times)


def segment_joint(segmenter: Segmenter, image: NDArray[Any]) -> Segmentation:
    """What ``segmenter`` gives of a picture, unless that is a whole hand.

    A hand is looked for only where the masks are refused or doubted, or their bones are small in
    the picture.

    Raises:
        NoJointError: the picture shows no joint, or a whole hand.
        InputError: it cannot be used.
    """
    try:
        segmentation = segmenter(image)
    except NoJointError as error:
        _refuse_hand(segmenter, image, error)
        raise
    width = bone_width_px(segmentation.masks)
    if segmentation.doubts or width < _LEAST_WIDTH_SHARE * max(image.shape[-2:]):
        _refuse_hand(segmenter, image, None)
    return segmentation


def _refuse_hand(segmenter: Segmenter, image: NDArray[Any], error: NoJointError | None) -> None:
    plane, _ = as_plane(np.asarray(image))
    try:
        _locator(segmenter.backend.threads)(plane)
    except (InputError, WeightsError):  # it is none, or none can be found
        return
    raise NoJointError(
        "this is a whole hand: `blsgan hand` takes every joint of it apart; or give a radiograph "
        "of one finger joint."
    ) from error


@functools.lru_cache(maxsize=2)
def _locator(threads: int | None) -> Locator:
    return Locator.from_pretrained(threads=threads)


def predicted(
    segmenter: Segmenter,
    segmentation: Segmentation,
    radiograph: Radiograph,
    options: SegmentationOptions,
    name: str,
    file_name: str | None,
    times_ms: dict[str, float],
) -> PredictedMasks:
    """The record of masks that ``segmenter`` gave of a radiograph; the rest as for
    :func:`predict`."""
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
        backend=Backend(**segmenter.backend.facts()),
        versions={"python": platform.python_version(), "numpy": np.__version__},
        times_ms=times_ms,
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
