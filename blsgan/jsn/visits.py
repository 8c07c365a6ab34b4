"""From files to a measurement: two radiographs of a joint and their masks, and lists of pairs."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.data.layout import listed_pair_path
from blsgan.errors import InputError, UsageError
from blsgan.io.files import read_file
from blsgan.io.lists import read_list
from blsgan.io.masks import BONES, decode_masks
from blsgan.io.predicted import prediction_notes, prediction_of
from blsgan.io.radiograph import decode_radiograph, is_path_private
from blsgan.io.results import RESIDUAL_ENCODING
from blsgan.io.spacing import PixelSpacing
from blsgan.jsn.quantification import JointSpace, Measurement, Visit, measure
from blsgan.jsn.registration import Registration
from blsgan.records.narrowing import (
    BoneMovement,
    NarrowingRecord,
    ReadOptions,
    SpaceWidth,
    SpaceWidths,
    VisitInputs,
)
from blsgan.records.record import Spacing, Weights
from blsgan.tasks.separation import Separator

MAX_SPACING_RATIO = 4.0
"""Visits whose pixels differ more than this in size are not brought to one scale."""

_SAME_SPACING = 1e-3  # relative; smaller differences are rounding in the header
_JOINT_NAME = re.compile(r"(?<![A-Za-z0-9])(\d+)_([LR])_(\d+)(?![A-Za-z0-9])")


@dataclass(frozen=True)
class VisitFiles:
    """A radiograph and the masks of its two bones, as paths."""

    image: Path
    upper: Path
    lower: Path

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """All three."""
        return self.image, self.upper, self.lower


@dataclass(frozen=True)
class RadiographVisit:
    """A visit as read: ``image`` float32 [H,W] in [0,1], ``masks`` bool [2,H,W].

    ``name`` is the image's file name, or None where that would tell who the patient is; ``inputs``
    its and the masks' SHA-256; ``spacing`` the file's own, ``pixel_mm`` the side of a pixel of
    ``image``, which may have been resampled (None: not known); ``options`` how the file was read.
    """

    image: NDArray[np.float32]
    masks: NDArray[np.bool_]
    name: str | None
    inputs: dict[str, str]
    spacing: PixelSpacing | None
    pixel_mm: float | None
    notes: tuple[str, ...]
    options: ReadOptions = field(default_factory=ReadOptions)


@dataclass(frozen=True, repr=False)
class PairResult:
    """A measured pair: the visits on one scale, as registered, and the record of the result."""

    radiographs: tuple[RadiographVisit, RadiographVisit]
    visits: tuple[Visit, Visit]
    measurement: Measurement
    record: NarrowingRecord

    def __repr__(self) -> str:
        return f"<PairResult: {self.measurement!r}>"


Separate = Callable[[RadiographVisit], tuple[Visit, tuple[str, ...]]]


def check_same_joint(baseline: Path, followup: Path) -> None:
    """Refuse visits that the public dataset's naming (``00054_L_13``) gives to different joints.

    The name is looked for in the file's and in its folder's name; where one has none, nothing can
    be told.

    Raises:
        InputError: patient, side or joint differ.
    """
    one, other = _joint_name(baseline), _joint_name(followup)
    if one is None or other is None or one == other:
        return
    parts = zip(("patient", "side", "joint"), one, other, strict=True)
    differing = [part for part, a, b in parts if a != b]
    raise InputError(
        f"{baseline} and {followup} show different joints (the {' and '.join(differing)} of "
        f"{'_'.join(one)} and {'_'.join(other)} differ); give two visits of one joint."
    )


def _joint_name(path: Path) -> tuple[str, ...] | None:
    for text in (path.stem, path.absolute().parent.name):
        if found := _JOINT_NAME.search(text):
            return found.groups()
    return None


def read_visit(files: VisitFiles, options: ReadOptions | None = None) -> RadiographVisit:
    """Read one visit.

    Raises:
        InputError: a file that is missing, damaged or unsuitable.
    """
    options = options or ReadOptions()
    image = read_file(files.image, what="image")
    masks = (read_file(files.upper, what="mask"), read_file(files.lower, what="mask"))
    side = options.pixel_spacing_mm
    radiograph = decode_radiograph(
        image,
        bit_depth=options.bit_depth,
        invert=options.invert,
        pixel_spacing_mm=None if side is None else (side, side),
    )
    height, width = radiograph.pixels.shape
    spacing = radiograph.pixel_spacing
    prediction = prediction_of(*masks)
    return RadiographVisit(
        radiograph.pixels,
        decode_masks(*masks, (height, width)).masks,
        None if is_path_private(image) else files.image.name,
        {
            "image": image.sha256,
            **{f"{bone}_mask": mask.sha256 for bone, mask in zip(BONES, masks, strict=True)},
        },
        spacing,
        None if spacing is None else spacing.column_mm,
        (*radiograph.notes, *prediction_notes(prediction)),
        options,
    )


def on_one_scale(
    baseline: RadiographVisit, followup: RadiographVisit
) -> tuple[RadiographVisit, RadiographVisit, tuple[str, ...]]:
    """Bring two visits to square pixels of one size, the baseline's, and say what was done.

    Where either spacing is not known, pixels are taken as they are and ``pixel_mm`` is None.

    Raises:
        InputError: pixels that differ more than four times in size.
    """
    if baseline.spacing is None or followup.spacing is None:
        missing = " and ".join(
            name
            for name, visit in (("baseline", baseline), ("follow-up", followup))
            if visit.spacing is None
        )
        note = f"no pixel spacing of the {missing}: the result is in px only"
        if baseline.image.shape != followup.image.shape:
            note += ", and pixels of both visits are taken to be of one size"
        return _unscaled(baseline), _unscaled(followup), (note,)
    side = baseline.spacing.column_mm
    visits, notes = [], []
    for name, visit in (("baseline", baseline), ("follow-up", followup)):
        resampled = _resampled(visit, side)
        if resampled is not visit:
            assert visit.spacing is not None, "asked for above"
            notes.append(
                f"the {name} was resampled from {visit.spacing.row_mm:g} x "
                f"{visit.spacing.column_mm:g} to {side:g} mm per pixel"
            )
        visits.append(resampled)
    return visits[0], visits[1], tuple(notes)


def _unscaled(visit: RadiographVisit) -> RadiographVisit:
    return RadiographVisit(**{**vars(visit), "pixel_mm": None})


def _resampled(visit: RadiographVisit, side_mm: float) -> RadiographVisit:
    from PIL import Image

    assert visit.spacing is not None, "only visits with a spacing are resampled"
    factors = visit.spacing.row_mm / side_mm, visit.spacing.column_mm / side_mm
    if all(abs(factor - 1) < _SAME_SPACING for factor in factors):
        return visit
    if any(not 1 / MAX_SPACING_RATIO <= factor <= MAX_SPACING_RATIO for factor in factors):
        raise InputError(
            f"{visit.name or 'a visit'} has {visit.spacing.row_mm:g} x "
            f"{visit.spacing.column_mm:g} mm per pixel where the baseline has {side_mm:g}, more "
            f"than {MAX_SPACING_RATIO:g} times apart; check the pixel spacing."
        )
    height, width = (
        max(1, math.floor(length * factor))
        for length, factor in zip(visit.image.shape, factors, strict=True)
    )
    # The box makes the scale exact: a part of a pixel at the right and lower border falls away.
    box = (0.0, 0.0, width / factors[1], height / factors[0])

    def resize(plane: NDArray[np.float32], method: Image.Resampling) -> NDArray[np.float32]:
        return np.asarray(Image.fromarray(plane).resize((width, height), method, box=box))

    image = np.clip(resize(visit.image, Image.Resampling.BICUBIC), 0, 1)
    masks = np.stack(
        [resize(mask.astype(np.float32), Image.Resampling.BILINEAR) >= 0.5 for mask in visit.masks]
    )
    for bone, mask in zip(BONES, masks, strict=True):
        if not mask.any():
            raise InputError(
                f"the {bone} mask of {visit.name or 'a visit'} vanishes at {side_mm:g} mm per "
                "pixel; check the pixel spacing."
            )
    return RadiographVisit(**{**vars(visit), "image": image, "masks": masks, "pixel_mm": side_mm})


def separated(separator: Separator) -> Separate:
    """Layers by ``separator``."""

    def separate(visit: RadiographVisit) -> tuple[Visit, tuple[str, ...]]:
        result = separator(visit.image, visit.masks)
        return Visit(result.layers, visit.masks), result.notes

    return separate


def unseparated(visit: RadiographVisit) -> tuple[Visit, tuple[str, ...]]:
    """The image inside each mask as its layer; the overlap shows both bones and counts for none."""
    note = "the bones were not separated: their overlap is left out"
    return Visit(visit.image * visit.masks, visit.masks, overlap_trust=0.0), (note,)


def measure_pair(
    baseline: RadiographVisit,
    followup: RadiographVisit,
    separate: Separate,
    weights: Weights | None,
    *,
    fit_scale: bool = False,
) -> PairResult:
    """Bring two visits to one scale, take the bones apart, register and measure.

    ``weights`` is what identifies them in the record (None: not separated); ``fit_scale`` as for
    :func:`blsgan.jsn.quantification.measure`.

    Raises:
        InputError: visits that cannot be measured.
    """
    one, other, scale_notes = on_one_scale(baseline, followup)
    (first, first_notes), (second, second_notes) = separate(one), separate(other)
    found = measure(first, second, fit_scale=fit_scale)
    notes = [
        *scale_notes,
        *(f"baseline: {note}" for note in (*one.notes, *first_notes)),
        *(f"follow-up: {note}" for note in (*other.notes, *second_notes)),
        *found.notes,
    ]
    record = _record(found, (one, other), weights, fit_scale, notes)
    return PairResult((one, other), (first, second), found, record)


def _record(
    found: Measurement,
    radiographs: tuple[RadiographVisit, RadiographVisit],
    weights: Weights | None,
    fit_scale: bool,
    notes: list[str],
) -> NarrowingRecord:
    pixel_mm = radiographs[0].pixel_mm

    def mm(length_px: float) -> float | None:
        return None if pixel_mm is None else length_px * pixel_mm

    def space(width: JointSpace | None) -> SpaceWidth | None:
        if width is None:
            return None
        return SpaceWidth(
            mean_px=width.mean_px,
            minimum_px=width.minimum_px,
            mean_mm=mm(width.mean_px),
            minimum_mm=mm(width.minimum_px),
            lines=width.lines,
        )

    return NarrowingRecord(
        schema=1,
        kind="narrowing",
        blsgan=__version__,
        baseline=_visit_record(radiographs[0]),
        followup=_visit_record(radiographs[1]),
        weights=weights,
        fit_scale=fit_scale,
        pixel_mm=pixel_mm,
        narrowing_px=found.narrowing_px,
        narrowing_mm=mm(found.narrowing_px),
        sideways_px=found.sideways_px,
        mismatch=found.mismatch,
        quality=found.quality,
        disagreement_px=found.disagreement_px,
        tilt_deg=found.tilt_deg,
        residual_encoding=f"{RESIDUAL_ENCODING}; 0 where not both visits show the bone",
        problems=list(found.problems),
        axis={"row": found.axis[0], "column": found.axis[1]},
        reference_px={"row": found.reference[0], "column": found.reference[1]},
        bones={
            bone: _bone_record(registration, found.displacement_px[index])
            for index, (bone, registration) in enumerate(
                zip(BONES, (found.upper, found.lower), strict=True)
            )
        },
        joint_space_width=SpaceWidths(
            baseline=space(found.baseline_space), followup=space(found.followup_space)
        ),
        versions={"python": platform.python_version(), "numpy": np.__version__},
        notes=notes,
    )


def _visit_record(visit: RadiographVisit) -> VisitInputs:
    spacing = visit.spacing
    return VisitInputs(
        file=visit.name,
        sha256=visit.inputs,
        options=visit.options,
        pixel_spacing_mm=None
        if spacing is None
        else Spacing(row=spacing.row_mm, column=spacing.column_mm, source=spacing.source),
    )


def _bone_record(bone: Registration, displacement: NDArray[np.float64]) -> BoneMovement:
    return BoneMovement(
        displacement_px={"row": float(displacement[0]), "column": float(displacement[1])},
        rotation_deg=bone.transform.angle_deg,
        scale=bone.transform.scale,
        correlation=bone.correlation,
        pixels=bone.pixels,
        coverage=bone.coverage,
        converged=bone.converged,
        steps=bone.steps,
        disagreement_px=bone.disagreement_px,
        quality=bone.quality,
    )


@dataclass(frozen=True)
class UnmarkedVisit:
    """A radiograph without masks."""

    image: Path


@dataclass(frozen=True)
class ListedPair:
    """An entry of a list of follow-up pairs."""

    joint: str
    baseline: VisitFiles | UnmarkedVisit
    followup: VisitFiles | UnmarkedVisit


def load_pairs(path: Path) -> tuple[list[ListedPair], int]:
    """Read a list of follow-up pairs of the public dataset (``DR_K1_train``).

    Each entry names a ``fixed`` radiograph, taken as the baseline, and a ``moving`` one, with their
    masks or without any; paths are relative to the list's folder or to
    ``Dataset_cases_anonymization`` in it.

    Returns:
        The pairs in the list's order, each once, and how many entries repeated an earlier one.

    Raises:
        InputError: the file is missing, is no such list, or an entry lacks a key.
    """
    entries = read_list(path, what="list of pairs")
    if not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path} is not a JSON list of pairs such as DR_K1_train; check the file.")
    pairs: dict[ListedPair, None] = {}
    for index, entry in enumerate(entries):
        try:
            visits = [_listed_visit(path.parent, entry, role) for role in ("fixed", "moving")]
        except KeyError as error:
            raise InputError(
                f"{path}: entry {index} has no {error}; every entry needs fixed and moving, each "
                "with _upper and _lower, or with neither."
            ) from error
        joint = str(entry.get("joint_name") or visits[0].image.parent.name)
        pairs.setdefault(ListedPair(joint, *visits))
    if not pairs:
        raise InputError(f"{path} lists no pairs; give a list such as DR_K1_train.")
    return list(pairs), len(entries) - len(pairs)


def _listed_visit(root: Path, entry: dict[str, Any], role: str) -> VisitFiles | UnmarkedVisit:
    """Raises :class:`KeyError` where an entry lacks the radiograph or one of its masks."""
    keys = [role + suffix for suffix in ("", "_upper", "_lower")]
    if entry.keys().isdisjoint(keys[1:]):
        keys = keys[:1]
    paths = [listed_pair_path(root, str(entry[key])) for key in keys]
    return UnmarkedVisit(*paths) if len(paths) == 1 else VisitFiles(*paths)


def find_visit(image: Path, masks: tuple[Path, Path] | None, pattern: str) -> VisitFiles | None:
    """A visit's files: the given masks, or those that ``pattern`` finds beside the image.

    None where there is neither mask.

    Raises:
        InputError: the image is missing, or several files could be one mask.
        UsageError: only one mask was found.
    """
    from blsgan.io.listing import find_mask

    if masks is not None:
        return VisitFiles(image, *masks)
    read_file(image, what="image")  # a missing image is what to complain about first
    upper, lower = (find_mask(image, bone, pattern) for bone in BONES)
    if upper is None and lower is None:
        return None
    if upper is None or lower is None:
        pairs = zip(BONES, (upper, lower), strict=True)
        missing = [bone for bone, path in pairs if path is None]
        raise UsageError(
            f"no {' and '.join(missing)} mask was found beside {image} "
            f"({pattern.format(stem=image.stem, bone=missing[0])}); name both with "
            "--baseline-masks or --followup-masks, or give --mask-pattern."
        )
    return VisitFiles(image, upper, lower)
