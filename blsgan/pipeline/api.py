"""The Python functions that do what the commands do: ``blsgan.separate``, ``segment`` and so on."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError, UsageError
from blsgan.io.atomic import check_writable_folder
from blsgan.io.files import read_file
from blsgan.io.listing import DEFAULT_MASK_PATTERN, Item
from blsgan.io.predicted import encode_mask
from blsgan.io.radiograph import (
    Radiograph,
    anonymous_name,
    is_path_private,
    read_radiograph,
)
from blsgan.io.spacing import user_spacing
from blsgan.io.stored import StoredResult
from blsgan.jsn.visits import (
    PairResult,
    check_same_joint,
    measure_pair,
    read_visit,
)
from blsgan.pipeline.joint import Joint, check_format
from blsgan.pipeline.measure import separation_by, visit_files, write_measurement
from blsgan.pipeline.segment import PredictedMasks, predict, segment_item, segment_joint
from blsgan.pipeline.separate import (
    JointFiles,
    decode_as_asked,
    made_from_hashes,
    separate_item,
    separate_read,
)
from blsgan.pipeline.worklist import work_list
from blsgan.records.masks import SegmentationOptions
from blsgan.records.narrowing import ReadOptions
from blsgan.records.separation import Format, SeparationOptions, SeparationRecord
from blsgan.tasks.backend import beside
from blsgan.tasks.segmentation import Segmentation, Segmenter
from blsgan.tasks.separation import Separator, as_plane, as_unit_interval

Name = os.PathLike[str] | str
Array = NDArray[Any]
Source = Name | Array
Masks = Array | tuple[Name, Name]
Progress = Callable[[int, int], object] | bool
"""Called with the number of joints that are done and of all; True shows a bar on stderr."""

_BITS = {"uint8": 8, "uint16": 16}


def read(
    path: Name,
    *,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing: float | None = None,
) -> Radiograph:
    """Read a radiograph: PNG, JPEG, TIFF, BMP or DICOM.

    >>> image = blsgan.read("joint.png")
    >>> image.pixels.shape, image.pixels.dtype
    ((128, 128), dtype('float32'))

    Args:
        path: the file.
        bit_depth: of a 16-bit file's values; default: from the values.
        invert: the image shows bone dark.
        pixel_spacing: side of a pixel in mm; default: the file's own.

    Returns:
        ``pixels`` float32 [H,W] in [0,1], white = dense; ``pixel_spacing`` in mm, or None;
        ``notes`` say what was decided on the way.

    Raises:
        InputError: the file cannot be used.
        UsageError: a bit depth or a spacing that cannot be.
    """
    return read_radiograph(
        _path(path),
        bit_depth=bit_depth,
        invert=invert,
        pixel_spacing_mm=_square_spacing(pixel_spacing),
    )


@overload
def separate(  # type: ignore[overload-overlap]  # a str is a sequence of str too
    source: Source,
    masks: Masks | None = None,
    *,
    output: Name | None = None,
    overwrite: bool = False,
    weights: Separator | Name | None = None,
    segmenter: Segmenter | Name | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    mirrored: bool = False,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing: float | None = None,
    format: Format = "png",
    panels: bool = True,
    mask_pattern: str = DEFAULT_MASK_PATTERN,
    progress: Progress = False,
) -> Joint: ...
@overload
def separate(
    source: Sequence[Source],
    masks: Sequence[Masks | None] | None = None,
    *,
    output: None = None,
    overwrite: bool = False,
    weights: Separator | Name | None = None,
    segmenter: Segmenter | Name | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    mirrored: bool = False,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing: float | None = None,
    format: Format = "png",
    panels: bool = True,
    mask_pattern: str = DEFAULT_MASK_PATTERN,
    progress: Progress = False,
) -> list[Joint]: ...
@overload
def separate(
    source: Sequence[Source],
    masks: Sequence[Masks | None] | None = None,
    *,
    output: Name,
    overwrite: bool = False,
    weights: Separator | Name | None = None,
    segmenter: Segmenter | Name | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    mirrored: bool = False,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing: float | None = None,
    format: Format = "png",
    panels: bool = True,
    mask_pattern: str = DEFAULT_MASK_PATTERN,
    progress: Progress = False,
) -> list[StoredResult]: ...
def separate(
    source: Source | Sequence[Source],
    masks: Masks | Sequence[Masks | None] | None = None,
    *,
    output: Name | None = None,
    overwrite: bool = False,
    weights: Separator | Name | None = None,
    segmenter: Segmenter | Name | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    mirrored: bool = False,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing: float | None = None,
    format: Format = "png",
    panels: bool = True,
    mask_pattern: str = DEFAULT_MASK_PATTERN,
    progress: Progress = False,
) -> Joint | list[Joint] | list[StoredResult]:
    """Take the overlapping bones of radiographs apart, as the command ``blsgan separate`` does.

    >>> joint = blsgan.separate("joint.png")
    >>> joint.upper.shape, joint.upper.dtype
    ((128, 128), dtype('float32'))
    >>> files = joint.save("out")
    >>> files[-1].name
    'joint.json'
    >>> [result.name for result in blsgan.separate(["folder"], output="out")]
    ['a', 'b']

    Args:
        source: a file, or an array [H,W] (floating point in [0,1], uint8 or uint16); or a list of
            files, folders, lists of the public dataset and arrays. Arrays are called joint,
            joint_2 and so on.
        masks: of the upper and the lower bone: an array [2,H,W], or the names of two files; for a
            list a list of them, None where there are none. Without: those beside the file, by
            ``mask_pattern``; where there are none they are predicted.
        output: a folder to write what the command writes, the same bytes. What is finished there is
            not made again unless ``overwrite``.
        weights, segmenter: names or files of weights, or what was loaded from them.
        backend: "auto", "onnx", "openvino", "torch", "tensorrt" or "tensorrt-rtx".
        device: "cpu", "gpu" (an engine for it beside the weights, else ONNX Runtime's TensorRT-RTX,
            else its CUDA), "cuda", "tensorrt" or "tensorrt-rtx", of both networks; "cuda:1" is the
            second GPU. It runs there, or an error says why not; default: the CPU, or an engine.
        threads: of the network; default: the usable cores.
        mirrored: the mean of the network's answers for the joint and for its mirror image.
        bit_depth, invert, pixel_spacing: of files, see :func:`read`.
        format: of the layers' files.
        panels: whether a panel is drawn beside them.
        mask_pattern: names of masks beside a file, with {stem} and {bone}.
        progress: True for a bar on stderr, or a function of two numbers: joints done, joints.

    Returns:
        For one source a joint: ``upper``, ``lower``, ``reconstruction``, ``residual`` float32
        [H,W], ``soft_tissue``, ``overlap``, ``notes``; ``save(folder)``, ``panel()``. For a list a
        list of them; with ``output``, whose layers may not fit into memory together, of results
        whose ``planes()`` are read when they are asked for.

    Raises:
        InputError: data that cannot be used. With ``output`` and a list, the others are finished
            first, and the message counts those that failed.
        UsageError: a call that cannot be meant. WeightsError, BackendError, OutputError: as said.
    """
    check_format(format)
    options = SeparationOptions(
        format=format,
        bit_depth=bit_depth,
        invert=invert,
        pixel_spacing_mm=None if pixel_spacing is None else [pixel_spacing] * 2,
        mirrored=mirrored,
        panels=panels,
    )
    _square_spacing(pixel_spacing)
    separator = _separator(weights, backend, device, threads, mirrored)
    work = _Separating(
        separator,
        options,
        functools.cache(
            lambda: _segmenter(segmenter, *beside(separator.backend, backend), threads)
        ),
        None if output is None else Path(output),
        overwrite,
        mask_pattern,
    )
    if work.output is not None:
        check_writable_folder(work.output)
    _refuse_other_arrays(source)
    if isinstance(source, (str, os.PathLike, np.ndarray)):
        jobs = work.joints(source, _one_pair(masks))
        if len(jobs) != 1 or (not isinstance(source, np.ndarray) and Path(source).is_dir()):
            raise UsageError(f"{source} names many radiographs; give it in a list: [{source!r}].")
        return jobs[0]()
    sources = list(source)
    pairs = list(zip(sources, _pairs(masks, len(sources)), strict=True))
    if work.output is None:
        jobs = [job for pair in pairs for job in work.joints(*pair)]
        return [job() for job in _tracked(jobs, progress, "separating")]
    return work.all([job for pair in pairs for job in work.results(*pair)], progress)


class _Separating:
    """The work of one call of :func:`separate`."""

    def __init__(
        self,
        separator: Separator,
        options: SeparationOptions,
        load_segmenter: Callable[[], Segmenter],
        output: Path | None,
        overwrite: bool,
        pattern: str,
    ) -> None:
        self.separator = separator
        self.options = options
        self.segmenter = load_segmenter
        self.output = output
        self.overwrite = overwrite
        self.pattern = pattern
        self._places = _Places(output)

    def joints(self, source: Source, masks: Masks | None) -> list[Callable[[], Joint]]:
        """What separates each joint of an entry, and writes it where there is a folder."""
        if isinstance(source, np.ndarray):
            name = self._places.of_array()
            return [functools.partial(self._saved, self._array, source, masks, name)]
        array = masks if isinstance(masks, np.ndarray) else None
        return [
            functools.partial(self._saved, self._file, item, array)
            for item in self._items(source, masks)
        ]

    def results(self, source: Source, masks: Masks | None) -> list[Callable[[], Path]]:
        """What writes each joint of an entry, unless it is finished; gives the record's path."""
        if isinstance(source, np.ndarray) or isinstance(masks, np.ndarray):
            return [
                functools.partial(_record_path, self, job) for job in self.joints(source, masks)
            ]
        return [functools.partial(self._result, item) for item in self._items(source, masks)]

    def all(self, jobs: list[Callable[[], Path]], progress: Progress) -> list[StoredResult]:
        """Do ``jobs``, whatever becomes of each; what failed is told at the end."""
        done = [_tried(job) for job in _tracked(jobs, progress, "separating")]
        failures = [str(error) for error in done if isinstance(error, InputError)]
        if failures:
            raise InputError(
                f"{len(failures)} of {len(jobs)} joints failed, the others are in {self.output}: "
                f"{failures[0]}"
            )
        return [self._stored(path) for path in done if isinstance(path, Path)]

    def _items(self, source: Name, masks: Masks | None) -> list[Item]:
        given = _paths(masks) if isinstance(masks, tuple) else None
        items, _ = work_list(
            Path(source), self.output, masks=given or (None, None), pattern=self.pattern
        )
        return self._places.of_items(items)

    def _stored(self, path: Path) -> StoredResult:
        assert self.output is not None, "asked for by who calls"
        record = SeparationRecord.read(path)
        assert record is not None, "it was written or checked just now"
        return StoredResult(path, path.relative_to(self.output).with_suffix(""), record)

    def _result(self, item: Item) -> Path:
        assert self.output is not None, "asked for by who calls"
        return separate_item(
            self.separator,
            item,
            self.output,
            self.options,
            overwrite=self.overwrite,
            segmenter=self.segmenter,
        ).files[-1]

    def _saved(self, make: Callable[..., Joint], *source: Any) -> Joint:
        joint = make(*source)
        if self.output is not None:
            joint.save(self.output, overwrite=self.overwrite)
        return joint

    def _file(self, item: Item, array_masks: Array | None) -> Joint:
        started = time.perf_counter()
        if array_masks is None and (item.upper is not None or item.lower is not None):
            return JointFiles.read(item).separate(self.separator, self.options, started)
        file = read_file(item.image, what="image")
        private = is_path_private(file)
        name, file_name = (None, None) if private else (item.name, item.image.name)
        radiograph = decode_as_asked(file, self.options)
        try:
            return self._in_memory(
                radiograph, array_masks, name=name, file_name=file_name, started=started
            )
        except InputError as error:
            raise type(error)(f"{item.image}: {error}") from error

    def _array(self, image: Array, masks: Masks | None, name: str) -> Joint:
        started = time.perf_counter()
        if isinstance(masks, tuple):
            raise UsageError("an image that is an array needs masks as an array [2,H,W], or none.")
        plane, notes = as_plane(image)
        pixels, more = as_unit_interval(plane)
        spacing = self.options.pixel_spacing_mm
        radiograph = Radiograph(
            pixels,
            hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest(),
            "array",
            _BITS.get(str(image.dtype), 32),
            None if spacing is None else user_spacing(spacing[0], spacing[1]),
            (*notes, *more),
        )
        return self._in_memory(radiograph, masks, name=name, file_name=None, started=started)

    def _in_memory(
        self,
        radiograph: Radiograph,
        masks: Array | None,
        *,
        name: str | None,
        file_name: str | None,
        started: float,
    ) -> Joint:
        """Masks that are no files: an array, or to be predicted; ``name`` None: made of hashes."""
        predicted: PredictedMasks | None = None
        if masks is None:
            predicted = predict(
                self.segmenter(),
                radiograph,
                SegmentationOptions(bit_depth=self.options.bit_depth, invert=self.options.invert),
                name or anonymous_name(radiograph.sha256),
                file_name,
                started,
            )
            masks = predicted.segmentation.masks
        masks = np.asarray(masks)
        digests = [hashlib.sha256(encode_mask(mask != 0)).hexdigest() for mask in masks]
        if len(digests) != 2:
            raise InputError(f"masks have shape {list(masks.shape)}; give [2,H,W] (upper, lower).")
        hashes = (radiograph.sha256, digests[0], digests[1])
        joint = separate_read(
            self.separator,
            radiograph,
            masks,
            made_from_hashes(self.separator, hashes, self.options),
            name=name or anonymous_name(hashes[0], hashes[1:]),
            file_name=file_name,
            prediction=None if predicted is None else predicted.record,
            started=started,
        )
        return replace(joint, predicted=predicted)


@overload
def segment(  # type: ignore[overload-overlap]
    source: Source,
    *,
    output: Name | None = None,
    overwrite: bool = False,
    weights: Segmenter | Name | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    bit_depth: int | None = None,
    invert: bool = False,
    progress: Progress = False,
) -> Segmentation: ...
@overload
def segment(
    source: Sequence[Source],
    *,
    output: Name | None = None,
    overwrite: bool = False,
    weights: Segmenter | Name | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    bit_depth: int | None = None,
    invert: bool = False,
    progress: Progress = False,
) -> list[Segmentation]: ...
def segment(
    source: Source | Sequence[Source],
    *,
    output: Name | None = None,
    overwrite: bool = False,
    weights: Segmenter | Name | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    bit_depth: int | None = None,
    invert: bool = False,
    progress: Progress = False,
) -> Segmentation | list[Segmentation]:
    """Predict the masks of both bones, as the command ``blsgan segment`` does.

    >>> found = blsgan.segment("joint.png")
    >>> found.masks.shape, found.masks.dtype
    ((2, 128, 128), dtype('bool'))

    Args:
        source: a file or an array, or a list of files, folders and arrays; see :func:`separate`.
        output: a folder to write what the command writes, the same bytes.
        overwrite, weights, backend, device, threads, bit_depth, invert, progress: see
            :func:`separate`.

    Returns:
        ``masks`` bool [2,H,W] (upper, lower), ``confidence``, ``doubts``; for a list a list.

    Raises:
        NoJointError: a picture shows no joint. InputError, UsageError, OutputError: as said.
    """
    loaded = _segmenter(weights, backend, device, threads)
    options = SegmentationOptions(bit_depth=bit_depth, invert=invert)
    folder = None if output is None else Path(output)
    if folder is not None:
        check_writable_folder(folder)

    def one(item: Item) -> Segmentation:
        if folder is not None:
            found = segment_item(loaded, item, folder, options, overwrite=overwrite).found
            if found is not None:  # None: it was finished before, and files hold no probabilities
                return found
        radiograph = read_radiograph(item.image, bit_depth=bit_depth, invert=invert)
        try:
            return segment_joint(loaded, radiograph.pixels)
        except InputError as error:
            raise type(error)(f"{item.image}: {error}") from error

    def array(image: Array) -> Segmentation:
        if folder is not None:
            raise UsageError("an array has no name to write masks by; leave out output.")
        return segment_joint(loaded, image)

    _refuse_other_arrays(source)
    if isinstance(source, np.ndarray):
        return array(source)
    if isinstance(source, (str, os.PathLike)):
        items, single = work_list(Path(source), folder, pattern=None)
        if not single:
            raise UsageError(f"{source} names many radiographs; give it in a list: [{source!r}].")
        return one(items[0])
    jobs: list[Callable[[], Segmentation]] = []
    places = _Places(folder)
    for entry in source:
        if isinstance(entry, np.ndarray):
            jobs.append(functools.partial(array, entry))
        else:
            items, _ = work_list(Path(entry), folder, pattern=None)
            jobs += [functools.partial(one, item) for item in places.of_items(items)]
    return [job() for job in _tracked(jobs, progress, "segmenting")]


def measure(
    baseline: Name,
    followup: Name,
    *,
    baseline_masks: tuple[Name, Name] | None = None,
    followup_masks: tuple[Name, Name] | None = None,
    output: Name | None = None,
    separation: bool = True,
    weights: Separator | Name | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing: float | None = None,
    fit_scale: bool = False,
    mask_pattern: str = DEFAULT_MASK_PATTERN,
) -> PairResult:
    """Measure joint space narrowing between two visits, as the command ``blsgan jsn`` does.

    >>> found = blsgan.measure("a.png", "b.png", separation=False)
    >>> found.record.mismatch, round(abs(found.record.narrowing_px), 1)
    (False, 0.0)

    Args:
        baseline, followup: radiographs of one joint.
        baseline_masks, followup_masks: files of the upper and the lower bone's mask; default: those
            beside the radiograph, else predicted.
        output: a folder to write what the command writes.
        separation: False registers the image inside each mask and needs no weights.
        weights, backend, device, threads, mask_pattern: see :func:`separate`.
        bit_depth, invert, pixel_spacing: see :func:`read`.
        fit_scale: also fit a change of magnification.

    Returns:
        ``record`` with ``narrowing_px``, ``narrowing_mm`` (positive: the bones came closer),
        ``mismatch`` and the rest of ``jsn.json``; ``measurement``, ``visits``.

    Raises:
        NoJointError: masks were to be predicted and there is no joint. InputError: visits that
        cannot be measured. UsageError: one mask was not found.
    """
    one, other = _path(baseline), _path(followup)
    check_same_joint(one, other)
    options = ReadOptions(bit_depth=bit_depth, invert=invert, pixel_spacing_mm=pixel_spacing)
    if output is not None:
        check_writable_folder(Path(output))
    with tempfile.TemporaryDirectory() as scratch:  # for predicted masks that nobody asked for
        folder = Path(scratch if output is None else output)
        files = [
            visit_files(
                image,
                _paths(masks),
                mask_pattern,
                options,
                folder,
                lambda: _segmenter(None, backend, device, threads),
            )
            for image, masks in ((one, baseline_masks), (other, followup_masks))
        ]
        visits = [read_visit(visit, options) for visit in files]
    separator = _separator(weights, backend, device, threads, False) if separation else None
    try:
        result = measure_pair(visits[0], visits[1], *separation_by(separator), fit_scale=fit_scale)
    except InputError as error:
        raise InputError(f"{one}, {other}: {error}") from error
    if output is not None:
        inputs = [path for visit in files for path in visit.paths]
        write_measurement(result, Path(output), inputs)
    return result


class _Places:
    """Names of a list's results in a folder: no source's are written over by another's."""

    def __init__(self, output: Path | None) -> None:
        self._output = output
        self._taken: dict[Path, Path | None] = {}

    def of_items(self, items: Sequence[Item]) -> list[Item]:
        """The items; raises :class:`UsageError` where one would be written over another."""
        for item in items:
            self._take(item.folder / item.name, item.image)
        return list(items)

    def of_array(self) -> str:
        """The name of the next array: joint, joint_2 and so on."""
        number = sum(source is None for source in self._taken.values()) + 1
        name = "joint" if number == 1 else f"joint_{number}"
        self._take(Path(name), None)
        return name

    def _take(self, place: Path, source: Path | None) -> None:
        known = self._taken.setdefault(place, source)
        if known != source and self._output is not None:
            one, other = known or "an array", source or "an array"
            raise UsageError(
                f"{one} and {other} would both be written as {self._output / place}; give the "
                "folder that holds both, or write them into two folders."
            )


def _refuse_other_arrays(source: object) -> None:
    if not isinstance(source, np.ndarray) and (
        hasattr(source, "__array__") or hasattr(source, "__array_interface__")
    ):
        raise UsageError(f"{type(source).__name__} is no NumPy array; give numpy.asarray of it.")


def _record_path(work: _Separating, job: Callable[[], Joint]) -> Path:
    joint = job()
    assert work.output is not None, "asked for by who calls"
    return work.output / f"{joint.record.name}.json"


def _tried(job: Callable[[], Path]) -> Path | InputError:
    try:
        return job()
    except InputError as error:
        return error


def _separator(
    weights: Separator | Name | None,
    backend: str,
    device: str | None,
    threads: int | None,
    mirrored: bool,
) -> Separator:
    if isinstance(weights, Separator):
        return weights
    path = None if weights is None else os.fspath(weights)
    if path is None:  # it does not change while the program runs: a loop loads it once
        return _shipped_separator(backend, device, threads, mirrored)
    return Separator.from_pretrained(
        path, backend, device=device, threads=threads, mirrored=mirrored
    )


def _segmenter(
    weights: Segmenter | Name | None, backend: str, device: str | None, threads: int | None
) -> Segmenter:
    if isinstance(weights, Segmenter):
        return weights
    if weights is None:
        return _shipped_segmenter(backend, device, threads)
    return Segmenter.from_pretrained(os.fspath(weights), backend, device=device, threads=threads)


@functools.lru_cache(maxsize=2)
def _shipped_separator(
    backend: str, device: str | None, threads: int | None, mirrored: bool
) -> Separator:
    return Separator.from_pretrained(
        None, backend, device=device, threads=threads, mirrored=mirrored
    )


@functools.lru_cache(maxsize=2)
def _shipped_segmenter(backend: str, device: str | None, threads: int | None) -> Segmenter:
    return Segmenter.from_pretrained(None, backend, device=device, threads=threads)


def _square_spacing(side: float | None) -> tuple[float, float] | None:
    if side is None:
        return None
    user_spacing(side, side)  # says what is wrong with it
    return side, side


def _path(file: object) -> Path:
    if not isinstance(file, (str, os.PathLike)):
        raise UsageError(f"{type(file).__name__} is no path; give the path of one file.")
    return Path(file)


def _paths(masks: tuple[Name, Name] | None) -> tuple[Path, Path] | None:
    return None if masks is None else (Path(masks[0]), Path(masks[1]))


def _one_pair(masks: Masks | Sequence[Masks | None] | None) -> Masks | None:
    if masks is None or isinstance(masks, np.ndarray):
        return masks
    if len(masks) == 2 and all(isinstance(mask, (str, os.PathLike)) for mask in masks):
        return Path(masks[0]), Path(masks[1])  # type: ignore[arg-type]
    if len(masks) == 2 and all(isinstance(mask, np.ndarray) for mask in masks):
        return np.stack(masks)  # type: ignore[arg-type]
    raise UsageError("masks are those of two bones: an array [2,H,W], or the names of two files.")


def _pairs(masks: Masks | Sequence[Masks | None] | None, count: int) -> Sequence[Masks | None]:
    if masks is None:
        return [None] * count
    if len(masks) != count:
        raise UsageError(f"{count} sources came with masks for {len(masks)}; give one each.")
    return [_one_pair(pair) for pair in masks]  # type: ignore[arg-type]


def _tracked(items: Sequence[Any], progress: Progress, doing: str) -> Iterator[Any]:
    """``items``, and after each the news that it is done."""
    if progress is True:
        from rich.console import Console
        from rich.progress import track

        yield from track(items, doing, console=Console(stderr=True))
        return
    for done, item in enumerate(items, start=1):
        yield item
        if callable(progress):
            progress(done, len(items))
