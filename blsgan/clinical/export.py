"""From results to DICOM files: finds the inputs by content, builds the objects, writes them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blsgan.clinical.hand import hand_report, hand_segmentation, visits_report
from blsgan.clinical.identity import Policy, describe
from blsgan.clinical.objects import (
    Reference,
    input_image,
    layer_images,
    segmentation,
)
from blsgan.clinical.reports import measurement_report
from blsgan.errors import BackendError, InputError, OutputError, debugging
from blsgan.hands.chain import Crop
from blsgan.io.atomic import atomic_paths, output_error
from blsgan.io.dicom import is_dicom
from blsgan.io.files import FileBytes, read_file
from blsgan.io.masks import BONES, decode_masks
from blsgan.io.radiograph import Radiograph, decode_radiograph
from blsgan.io.spacing import PixelSpacing
from blsgan.io.stored import StoredResult, as_result, find_by_hash, walk
from blsgan.progress import Track, silent
from blsgan.records.hand import HandRecord
from blsgan.records.hand_visits import HandVisitsRecord, JointInterval
from blsgan.records.narrowing import NarrowingRecord, VisitInputs
from blsgan.records.record import Spacing, read_json

if TYPE_CHECKING:
    from pydicom import Dataset


_STAND_IN = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
_INPUT = "input-"  # what the radiograph's own object is called, before its hash


@dataclass
class Exported:
    """What was written, why the rest was not, and what had to be left empty."""

    files: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Measurement:
    """A record of ``blsgan jsn`` for one pair; ``place`` and ``label`` as for results."""

    path: Path
    place: Path
    record: NarrowingRecord

    @property
    def label(self) -> str:
        """What to call the report: its place, or hashes where that may tell the patient."""
        if self.record.baseline.file is not None and self.record.followup.file is not None:
            return str(self.place)
        return "-".join(["jsn", *(digest[:12] for digest in self.inputs.values())])

    @property
    def visits(self) -> dict[str, VisitInputs]:
        return {"baseline": self.record.baseline, "followup": self.record.followup}

    @property
    def inputs(self) -> dict[str, str]:
        return {side: visit.sha256["image"] for side, visit in self.visits.items()}


@dataclass(frozen=True)
class _Hand:
    """A hand of ``blsgan hand``."""

    path: Path
    place: Path
    record: HandRecord

    @property
    def label(self) -> str:
        """What to call its objects: its folder, which of a DICOM file is made of its hash."""
        folder = self.place.parent
        return str(folder) if folder.name else self.path.parent.name

    @property
    def inputs(self) -> dict[str, str]:
        return {"image": self.record.inputs["image"].sha256}


@dataclass(frozen=True)
class _Visits:
    """A side of ``visits.json``, between its first visit and a later one."""

    path: Path
    place: Path
    record: HandVisitsRecord
    joints: tuple[JointInterval, ...]

    @property
    def label(self) -> str:
        one = self.joints[0]
        return str(self.place.with_name(f"visits-{one.side}-{one.earlier + 1}-{one.later + 1}"))

    @property
    def inputs(self) -> dict[str, str]:
        one = self.joints[0]
        visits = self.record.visits
        return {
            "baseline": visits[one.earlier].image_sha256,
            "followup": visits[one.later].image_sha256,
        }


_Job = StoredResult | _Measurement | _Hand | _Visits


def _patients(jobs: Iterable[_Job], sources: dict[str, Path]) -> dict[str, str]:
    """What radiographs share that a measurement makes one patient's, by their hash.

    That is the patient's ID where headers of the connected radiographs give exactly one, so that a
    radiograph without header, or without ID in it, joins them.
    """
    group = {digest: digest for job in jobs for digest in job.inputs.values()}
    for job in jobs:
        if isinstance(job, (_Measurement, _Visits)):
            one, other = (group[digest] for digest in job.inputs.values())
            for digest, key in group.items():
                if key == other:
                    group[digest] = one
    connected = {key for digest, key in group.items() if key != digest}
    ids: dict[str, set[str]] = {key: set() for key in connected}
    for digest, key in group.items():
        if key in connected and digest in sources and (known := _patient_id(sources[digest])):
            ids[key].add(known)
    return {
        digest: next(iter(ids[key])) if len(ids.get(key, ())) == 1 else key
        for digest, key in group.items()
    }


def _patient_id(path: Path) -> str:
    """The ID in a radiograph's header; empty where there is none or the file cannot be read."""
    try:
        header = _header(read_file(path, what="radiograph"))
        return "" if header is None else str(header.get("PatientID") or "")
    except Exception:  # any that a damaged header raises in pydicom; who needs the file tells
        return ""


@dataclass(frozen=True)
class _Finder:
    """Finds inputs by their hash and makes what objects refer to of them."""

    sources: dict[str, Path]
    policy: Policy
    patients: dict[str, str]
    notes: list[str]

    def read(self, digest: str, record: Path, what: str) -> FileBytes:
        if digest not in self.sources:
            raise InputError(
                f"{record}: its {what} (SHA-256 {digest[:12]}...) was not found; give its folder "
                "with --images."
            )
        return read_file(self.sources[digest], what=what)

    def reference(
        self, file: FileBytes, radiograph: Radiograph, spacing: PixelSpacing | None
    ) -> tuple[Reference, dict[str, Dataset]]:
        """What objects refer to, and the file to write for it (none where identity is kept)."""
        header = _header(file)
        patient = self.patients[file.sha256]
        belongs, series, instance, emptied = describe(
            self.policy, file.sha256, header, str(file.path), patient
        )
        if emptied:
            self.notes.append(
                f"{file.path}: {', '.join(emptied)} left empty, for no value there can be written"
            )
        if self.policy.keep_identity:
            sop_class = str(belongs.get("SOPClassUID") or _STAND_IN)
            belongs.SOPClassUID = _STAND_IN  # highdicom looks up the modules of the class's object
            return Reference(belongs, spacing, anonymous=False, sop_class=sop_class), {}
        if header is not None and str(header.get("BurnedInAnnotation", "")).upper() == "YES":
            raise InputError(
                f"{file.path} says that annotations are burnt into its pixels, which may tell the "
                "patient; crop it to the joint, or give --keep-identity."
            )
        image = input_image(belongs, radiograph.pixels, spacing, series, instance)
        name = f"{_INPUT}{file.sha256[:12]}.dcm"
        reference = Reference(image, spacing, anonymous=True, sop_class=str(image.SOPClassUID))
        return reference, {name: image}


def require_highdicom() -> None:
    """Raise :class:`BackendError` with the way out where highdicom is not installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "DICOM objects need highdicom, which is not installed; pip install 'blsgan[clinical]'."
        ) from error


def export(
    roots: Sequence[Path],
    output: Path,
    images: Sequence[Path],
    policy: Policy | None = None,
    track: Track = silent,
) -> Exported:
    """Write everything below ``roots`` as DICOM files into ``output``.

    For a result of ``blsgan separate``: both layers and the masks; for one of ``blsgan jsn``: the
    report; for one of ``blsgan hand``: all masks, a report of the joints, and one for each later
    visit. Where identity is not kept, the radiograph they refer to is written as well, once.
    Radiographs and masks are found by content in ``images`` and ``roots``. What fails is told and
    costs nothing else; the files of one result appear together.

    Raises:
        BackendError: highdicom is missing.
        InputError: nothing to export.
        OutputError: a file could not be written.
    """
    require_highdicom()
    policy = policy or Policy()
    jobs = _find(roots)
    wanted = {digest for job in jobs for digest in job.inputs.values()}
    sources = find_by_hash([*images, *roots], wanted)
    exported = Exported()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote the header
        patients = _patients(jobs, sources)
    finder = _Finder(sources, policy, patients, exported.notes)
    written: set[Path] = set()
    for job in track(jobs, "exporting", len(jobs)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # highdicom's quote the patient's name
                objects = _objects(job, finder)
        except InputError as error:
            exported.failures.append(str(error))
            continue
        except Exception as error:
            # What highdicom or pydicom does not take of this one; the others are exported.
            exported.failures.append(_unwritable(job.path, error))
            continue
        named = {output / name: dataset for name, dataset in objects.items()}
        twice = [path for path in written & set(named) if not _is_input(path)]
        if twice:
            exported.failures.append(
                f"{job.path}: {twice[0]} was written for another result of that name; export each "
                "run into a folder of its own."
            )
            continue
        named = {path: dataset for path, dataset in named.items() if path not in written}
        try:
            exported.files += _write(named)
        except OutputError:
            raise
        except Exception as error:
            exported.failures.append(_unwritable(job.path, error))
            continue
        written |= set(named)
    return exported


def _unwritable(path: Path, error: Exception) -> str:
    """Why one result cannot be exported; the error's own text may quote the header."""
    if debugging():
        raise error
    return (
        f"{path}: its radiograph's header or the record cannot be put into DICOM "
        f"({type(error).__name__}); export without --keep-identity or measure again."
    )


def _objects(job: _Job, finder: _Finder) -> dict[str, Dataset]:
    if isinstance(job, StoredResult):
        return _separation_objects(job, finder)
    if isinstance(job, _Measurement):
        return _measurement_objects(job, finder)
    return _hand_objects(job, finder) if isinstance(job, _Hand) else _visits_objects(job, finder)


def _find(roots: Sequence[Path]) -> list[_Job]:
    jobs: list[_Job] = []
    for root in roots:
        base = root if root.is_dir() else root.parent
        for path in walk(root, (".json",)):
            content = read_json(path)
            if content is None:
                continue
            place = path.relative_to(base).with_suffix("")
            result = as_result(path, place, content)
            if result is not None:
                jobs.append(result)
            elif (measured := NarrowingRecord.of(content)) is not None:
                jobs.append(_Measurement(path, place, measured))
            elif (hand := HandRecord.of(content)) is not None:
                jobs.append(_Hand(path, place, hand))
            elif (visits := HandVisitsRecord.of(content)) is not None:
                jobs += _visits_jobs(path, place, visits)
    # The joints of a hand go out with it, on the whole radiograph.
    hands = {job.path.parent for job in jobs if isinstance(job, _Hand)}
    jobs = [
        job
        for job in jobs
        if not isinstance(job, StoredResult) or job.path.parent.parent not in hands
    ]
    if not jobs:
        raise InputError(
            f"{', '.join(map(str, roots))} holds no result of blsgan separate, jsn or hand; give "
            "its output folder."
        )
    return jobs


def _visits_jobs(path: Path, place: Path, record: HandVisitsRecord) -> Iterator[_Visits]:
    """A report for each visit of a side against the first."""
    grouped: dict[tuple[str, int, int], list[JointInterval]] = {}
    for one in record.intervals:
        grouped.setdefault((one.side, one.earlier, one.later), []).append(one)
    firsts = {side: min(earlier for other, earlier, _ in grouped if other == side)
              for side, _, _ in grouped}  # fmt: skip
    for (side, earlier, _), joints in grouped.items():
        if earlier == firsts[side]:
            yield _Visits(path, place, record, tuple(joints))


def _hand_objects(hand: _Hand, finder: _Finder) -> dict[str, Dataset]:
    record, folder = hand.record, hand.path.parent
    reference, objects = _reference(finder, record, hand.path)
    shape = record.image.height_px, record.image.width_px
    masks = {}
    for name, joint in record.joints.items():
        if joint.folder is None:
            continue
        upper, lower = (
            read_file(folder / joint.folder / f"{name}_mask_{bone}.png", what="mask")
            for bone in BONES
        )
        if {upper.path.name: upper.sha256, lower.path.name: lower.sha256}.items() - (
            record.outputs.items()
        ):
            raise InputError(
                f"{hand.path}: a mask of {name} was changed after it was written; run blsgan hand "
                "again with --overwrite."
            )
        side = joint.crop.side_px
        placed = np.zeros((2, *shape), bool)
        crop = Crop.of(joint.crop)
        for plane, mask in zip(placed, decode_masks(upper, lower, (side, side)).masks, strict=True):
            part, where = crop.place(mask.astype(np.float32), shape)
            plane[where] = part >= 0.5
        masks[name] = placed
    if masks:
        objects[f"{hand.label}_masks.dcm"] = hand_segmentation(reference, masks, record)
    objects[f"{hand.label}_joints.dcm"] = hand_report(reference, record)
    return objects


def _visits_objects(visits: _Visits, finder: _Finder) -> dict[str, Dataset]:
    objects: dict[str, Dataset] = {}
    references = []
    for index in (visits.joints[0].earlier, visits.joints[0].later):
        path = visits.path.parent / visits.record.visits[index].folder / "hand.json"
        record = HandRecord.read(path)
        if record is None:
            raise InputError(f"{path} is missing or damaged; run blsgan hand again.")
        reference, extra = _reference(finder, record, path)
        references.append(reference)
        objects |= extra
    if finder.policy.keep_identity:
        _check_one_patient(visits.path, references)
    report = visits_report(references[0], references[1], visits.record, visits.joints)
    objects[f"{visits.label}.dcm"] = report
    return objects


def _reference(
    finder: _Finder, record: HandRecord, path: Path
) -> tuple[Reference, dict[str, Dataset]]:
    file = finder.read(record.inputs["image"].sha256, path, "radiograph")
    options = record.options
    radiograph = decode_radiograph(file, bit_depth=options.bit_depth, invert=options.invert)
    return finder.reference(file, radiograph, _recorded_spacing(record.pixel_spacing_mm))


def _separation_objects(result: StoredResult, finder: _Finder) -> dict[str, Dataset]:
    problem = result.problem()
    if problem:
        raise InputError(f"{result.path}: {problem}; separate the image again.")
    record, planes = result.record, result.planes()
    options, inputs = record.options, result.inputs
    file = finder.read(inputs["image"], result.path, "radiograph")
    radiograph = decode_radiograph(file, bit_depth=options.bit_depth, invert=options.invert)
    spacing = _recorded_spacing(record.pixel_spacing_mm)
    reference, objects = finder.reference(file, radiograph, spacing)
    upper, lower = (finder.read(inputs[f"{bone}_mask"], result.path, "mask") for bone in BONES)
    height, width = radiograph.pixels.shape
    masks = decode_masks(upper, lower, (height, width)).masks
    layers: list[NDArray[np.float32]] = [planes[bone] for bone in BONES]
    name, prediction = result.label, record.prediction
    for bone, image in zip(BONES, layer_images(reference, layers, record), strict=True):
        objects[f"{name}_{bone}.dcm"] = image
    objects[f"{name}_masks.dcm"] = segmentation(
        reference,
        masks,
        predicted=prediction is not None,
        confidence=prediction.confidence.score if prediction and prediction.confidence else None,
    )
    return objects


def _measurement_objects(measurement: _Measurement, finder: _Finder) -> dict[str, Dataset]:
    objects: dict[str, Dataset] = {}
    references = []
    for side, digest in measurement.inputs.items():
        file = finder.read(digest, measurement.path, f"radiograph of the {side}")
        visit = measurement.visits[side]
        radiograph = decode_radiograph(
            file, bit_depth=visit.options.bit_depth, invert=visit.options.invert
        )
        spacing = _recorded_spacing(visit.pixel_spacing_mm)
        reference, extra = finder.reference(file, radiograph, spacing)
        references.append(reference)
        objects |= extra
    if finder.policy.keep_identity:
        _check_one_patient(measurement.path, references)
    report = measurement_report(references[0], references[1], measurement.record)
    objects[f"{measurement.label}.dcm"] = report
    return objects


def _check_one_patient(path: Path, references: Sequence[Reference]) -> None:
    identities = {
        (str(r.dataset.get("PatientID") or ""), str(r.dataset.get("IssuerOfPatientID") or ""))
        for r in references
    }
    if len(identities) > 1:
        raise InputError(
            f"{path}: its visits belong to different patients by their headers; leave out "
            "--keep-identity, or measure again."
        )


def _recorded_spacing(entry: Spacing | None) -> PixelSpacing | None:
    return None if entry is None else PixelSpacing(entry.row, entry.column, entry.source)


def _header(file: FileBytes) -> Dataset | None:
    """The DICOM header without pixels; None for other pictures."""
    import pydicom

    if not is_dicom(file):
        return None
    return pydicom.dcmread(io.BytesIO(file.data), stop_before_pixels=True, force=True)


def _is_input(path: Path) -> bool:
    """Whether an object is a radiograph, which many results may share."""
    return re.fullmatch(_INPUT + r"[0-9a-f]{12}\.dcm", path.name) is not None


def _write(objects: dict[Path, Dataset]) -> list[Path]:
    paths = list(objects)
    current = paths[0] if paths else Path()
    with atomic_paths(paths) as temporaries:
        try:
            for current, temporary in zip(paths, temporaries, strict=True):
                encoded = io.BytesIO()  # pydicom puts a traceback into an error of the disk
                objects[current].save_as(encoded, enforce_file_format=True)
                temporary.write_bytes(encoded.getbuffer())
        except OSError as error:
            raise output_error(current, error) from error
    return paths
