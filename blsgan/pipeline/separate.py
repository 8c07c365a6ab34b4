"""Separate one joint from files to files: layers, a panel and a record."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.errors import InputError
from blsgan.io import results
from blsgan.io.files import FileBytes, read_file
from blsgan.io.listing import Item
from blsgan.io.masks import BONES, decode_masks
from blsgan.io.predicted import prediction_notes, prediction_of
from blsgan.io.radiograph import (
    Radiograph,
    anonymous_name,
    decode_radiograph,
    is_path_private,
)
from blsgan.joint.geometry import bounding_box, row_blocks
from blsgan.joint.zone import PREDICTED_MARGIN_PX
from blsgan.pipeline.joint import Joint, milliseconds, protect_drawn, residual_encoding
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
    Zone,
)
from blsgan.tasks.backend import beside
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
) -> Outcome[Joint, SeparationRecord]:
    """Read, separate and write one joint; every error names its file.

    The result lands in ``output / item.folder``; that of a DICOM file, whose path may tell who the
    patient is, in ``output`` itself under a name made of hashes. An up to date result is left
    alone, and ``found`` is None, unless ``overwrite``. Where the item has neither mask,
    ``segmenter`` gives what predicts and writes them; without it that is an error.
    """
    started = time.perf_counter()
    if item.upper is None and item.lower is None and segmenter is not None:
        if not overwrite:
            protect_drawn(output / item.folder, item.name)
        masks_options = SegmentationOptions(bit_depth=options.bit_depth, invert=options.invert)
        # Of a large picture there is no room for what was found beside its files.
        files = segment_item(segmenter(), item, output, masks_options, overwrite=overwrite).files
        item = replace(item, upper=files[0], lower=files[1])
    read = JointFiles.read(item)
    folder = output if read.private else output / item.folder
    names = results.result_names(read.name, options.format, panel=options.panels)
    files = [folder / file for file in names]
    made_from = made_from_hashes(separator, read.hashes, options)
    if not overwrite and (known := results.finished(SeparationRecord, files, made_from)):
        return Outcome(files, known, None, read.private)
    joint, private = read.separate(separator, options, started), read.private
    del read  # the bytes of a large file have no room beside its results
    made = joint.write(folder, overwrite=overwrite)
    return Outcome(files, made, joint, private)


@dataclass(frozen=True)
class JointFiles:
    """The files of one joint, read and hashed.

    Attributes:
        item: where they lie.
        image, masks: their bytes.
    """

    item: Item
    image: FileBytes
    masks: tuple[FileBytes, FileBytes]

    @classmethod
    def read(cls, item: Item) -> JointFiles:
        """Read what an item names; raises :class:`InputError` for a mask that is missing."""
        upper, lower = require_masks(item)
        image = read_file(item.image, what="image")
        return cls(item, image, (read_file(upper, what="mask"), read_file(lower, what="mask")))

    @property
    def hashes(self) -> tuple[str, str, str]:
        """Of the image and of the masks of the upper and the lower bone."""
        return self.image.sha256, self.masks[0].sha256, self.masks[1].sha256

    @functools.cached_property
    def private(self) -> bool:
        """Whether the path may tell who the patient is, as that of a DICOM file may."""
        return is_path_private(self.image)

    @property
    def name(self) -> str:
        """What the result is called; where the path is private, by hashes."""
        return (
            anonymous_name(self.image.sha256, self.hashes[1:]) if self.private else self.item.name
        )

    def separate(self, separator: Separator, options: SeparationOptions, started: float) -> Joint:
        """The joint, read since ``started`` (of ``perf_counter``); errors name its file."""
        radiograph = decode_as_asked(self.image, options)
        height, width = radiograph.pixels.shape
        masks = decode_masks(*self.masks, (height, width)).masks
        try:
            return separate_read(
                separator,
                radiograph,
                masks,
                made_from_hashes(separator, self.hashes, options),
                name=self.name,
                file_name=None if self.private else self.item.image.name,
                prediction=prediction_of(*self.masks),
                started=started,
                sources=(self.item.image, self.masks[0].path, self.masks[1].path),
            )
        except InputError as error:
            raise type(error)(f"{self.item.image}: {error}") from error


def decode_as_asked(file: FileBytes, options: SeparationOptions) -> Radiograph:
    """A radiograph whose bytes were read."""
    spacing = options.pixel_spacing_mm
    return decode_radiograph(
        file,
        bit_depth=options.bit_depth,
        invert=options.invert,
        pixel_spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
    )


@dataclass(frozen=True)
class Work:
    """How the joints of a list are separated; what it loads, it loads once in each process.

    Attributes:
        output: folder of the results.
        options, overwrite: see :func:`separate_item`.
        weights, segmenter: names or files of weights; None: those that ship.
        backend, device, threads: of both networks.
        require_masks: missing masks are an error instead of being predicted.
    """

    output: Path
    options: SeparationOptions
    overwrite: bool = False
    weights: str | None = None
    backend: str = "auto"
    device: str | None = None
    segmenter: str | None = None
    require_masks: bool = False
    threads: int | None = None

    @functools.cached_property
    def separator(self) -> Separator:
        """The network; raises what :meth:`blsgan.Separator.from_pretrained` raises."""
        return Separator.from_pretrained(
            self.weights,
            self.backend,
            threads=self.threads,
            device=self.device,
            mirrored=self.options.mirrored,
        )

    @functools.cached_property
    def _segmenter(self) -> Segmenter:
        backend, device = beside(self.separator.backend, self.backend)
        return Segmenter.from_pretrained(
            self.segmenter, backend, threads=self.threads, device=device
        )

    def __call__(self, item: Item) -> Outcome[Joint, SeparationRecord]:
        """:func:`separate_item`."""
        return separate_item(
            self.separator,
            item,
            self.output,
            self.options,
            overwrite=self.overwrite,
            segmenter=None if self.require_masks else lambda: self._segmenter,
        )


def made_from_hashes(
    separator: Separator, hashes: tuple[str, str, str], options: SeparationOptions
) -> dict[str, Any]:
    """What decides a result: fields of its record, known before it is made.

    ``hashes`` are of the image and of the masks of the upper and the lower bone.
    """
    roles = ("image", "upper_mask", "lower_mask")
    return {
        "kind": "separation",
        "blsgan": __version__,
        "inputs": {
            role: InputFile(sha256=sha256) for role, sha256 in zip(roles, hashes, strict=True)
        },
        "options": options,
        "weights": weights_record(separator.weights),
    }


def separate_read(
    separator: Separator,
    radiograph: Radiograph,
    masks: NDArray[Any],
    made_from: dict[str, Any],
    *,
    name: str,
    file_name: str | None,
    prediction: MasksRecord | None,
    started: float,
    sources: tuple[Path, ...] = (),
) -> Joint:
    """Separate what was read since ``started`` (of ``perf_counter``).

    ``made_from`` is that of :func:`made_from_hashes`, ``name`` the result's, ``file_name`` the
    picture's, None where it may tell the patient; ``prediction`` where the masks are one;
    ``sources`` are files that no result may replace. Raises :class:`InputError`, without a file's
    name.
    """
    read = time.perf_counter()
    margin_px = 0 if prediction is None else PREDICTED_MARGIN_PX
    separation = separator(radiograph.pixels, masks, margin_px=margin_px)
    if masks.dtype != np.bool_:  # it takes others, too; a large picture has no room for a copy
        masks = masks != 0
    separated = time.perf_counter()
    tissue = separation.tissue
    record = SeparationRecord(
        schema=1,
        name=name,
        **made_from,
        masks=_masks_record(prediction),
        image=image_record(radiograph, file_name),
        pixel_spacing_mm=_spacing_record(radiograph),
        soft_tissue=float(tissue.mean(dtype=np.float64)) if len(tissue) else None,
        zone=_zone_record(tissue),
        overlap=_overlap_record(radiograph, separation),
        reconstruction_error=ReconstructionError(
            mse=_reconstruction_mse(separation, masks),
            max_abs=float(max(separation.residual.max(), -separation.residual.min())),
        ),
        working_scale=separation.scale,
        residual_encoding=residual_encoding(made_from["options"].format),
        backend=Backend(**separator.backend.facts()),
        versions={"python": platform.python_version(), "numpy": np.__version__},
        times_ms={
            "read": milliseconds(started, read),
            "separate": milliseconds(read, separated),
        },
        notes=[*radiograph.notes, *prediction_notes(prediction), *separation.notes],
    )
    return Joint(
        **vars(separation), radiograph=radiograph, masks=masks, record=record, sources=sources
    )


def require_masks(item: Item) -> tuple[Path, Path]:
    """Both masks of an item; raises :class:`InputError` where one is missing."""
    if item.upper is None or item.lower is None:
        missing = " and ".join(
            bone for bone, path in zip(BONES, (item.upper, item.lower), strict=True) if path is None
        )
        raise InputError(
            f"{item.image} has no {missing} mask beside it; add it or say how masks are named with "
            "--mask-pattern."
        )
    return item.upper, item.lower


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


def _reconstruction_mse(separation: Separation, masks: np.ndarray) -> float:
    top, left, bottom, right = bounding_box(masks)
    residual = separation.residual[top:bottom, left:right]  # 0 where no bone is
    squares = (np.square(residual[rows], dtype=np.float64).sum() for rows in row_blocks(residual))
    union = sum(map(np.count_nonzero, masks)) - np.count_nonzero(separation.overlap)
    return float(sum(squares) / union)


def _spacing_record(radiograph: Radiograph) -> Spacing | None:
    spacing = radiograph.pixel_spacing
    if spacing is None:
        return None
    return Spacing(row=spacing.row_mm, column=spacing.column_mm, source=spacing.source)


def _zone_record(tissue: np.ndarray) -> Zone | None:
    if not len(tissue):
        return None
    return Zone(
        area_px=len(tissue),
        soft_tissue_least=float(tissue.min()),
        soft_tissue_greatest=float(tissue.max()),
    )


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
