"""A whole hand from file to files: its joints, an overview and one record."""

from __future__ import annotations

import io
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blsgan import __version__
from blsgan.anatomy import LANDMARKS, Side, finger_of, title
from blsgan.errors import InputError
from blsgan.hands.chain import Hand, HandJoint, HandSeparator
from blsgan.hands.picture import draw_overview, put_back
from blsgan.io import results
from blsgan.io.atomic import atomic_path, atomic_paths, output_error
from blsgan.io.files import FileBytes, read_file
from blsgan.io.listing import Item, list_folder, name_results, natural_key
from blsgan.io.masks import BONES
from blsgan.io.predicted import predicted_names
from blsgan.io.radiograph import Radiograph, anonymous_name, decode_radiograph, is_path_private
from blsgan.pipeline.joint import milliseconds
from blsgan.pipeline.segment import image_record, predicted, weights_record
from blsgan.pipeline.separate import separate_item
from blsgan.records.hand import HandOptions, HandRecord, JointOfHand, Placement
from blsgan.records.masks import Confidence, SegmentationOptions
from blsgan.records.record import Backend, InputFile, Spacing
from blsgan.records.separation import SeparationOptions

RECORD_NAME = "hand.json"
PICTURES = (
    "hand_upper.png",
    "hand_lower.png",
    "hand_mask_upper.png",
    "hand_mask_lower.png",
    "hand_overview.png",
)

_SQUARE = 1e-3  # of a pixel's sides, their relative difference


@dataclass(frozen=True)
class Header:
    """What a DICOM header says: side, date (YYYYMMDD) and patient's ID, each None where it does
    not."""

    side: Side | None = None
    date: str | None = None
    patient: str | None = None


@dataclass(frozen=True)
class HandResult:
    """A hand on the disk.

    Attributes:
        folder, record: where it lies, and what its record says.
        hand: None where it was there already.
        header: what a DICOM file says of its patient; it is written nowhere.
    """

    folder: Path
    record: HandRecord
    hand: Hand | None
    header: Header

    @property
    def overview(self) -> Path:
        """The picture to look at."""
        return self.folder / PICTURES[-1]


def hand_items(images: Sequence[Path], output: Path) -> list[Item]:
    """The pictures that a user names by files and folders, those of a folder by name.

    Files of one name (visit1/hand.png, visit2/hand.png) get their folder's in front.

    Raises:
        InputError: a file or folder is missing, or a folder holds no picture.
    """
    entries: list[tuple[Path, Path]] = []
    stems = Counter(path.stem for path in dict.fromkeys(images))
    for path in images:
        if path.is_dir():
            found = list_folder(path, exclude=output)
            found.sort(key=lambda item: natural_key(str(item.folder / item.name)))
            entries += [(item.image, item.folder) for item in found]
        else:
            repeated = stems[path.stem] > 1
            entries.append((path, Path(path.absolute().parent.name) if repeated else Path()))
    # A picture that is named twice is one result.
    folders = dict(reversed(entries))
    named = name_results((image, None, None, folders[image]) for image in dict.fromkeys(folders))
    items = {item.image: item for item in named}
    return [items[image] for image, _ in entries]


def separate_hands(
    separator: HandSeparator,
    item: Item,
    output: Path,
    options: HandOptions,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[HandResult]:
    """Read one picture, take every joint of its one or two hands apart and write all of it.

    A hand lands in ``output / item.folder / item.name``, of two hands in ``NAME_left`` and
    ``NAME_right``; that of a DICOM file in ``output`` under a name made of its hash. Its joints
    have folders of their own in there. What is finished and up to date is left alone unless
    ``overwrite``.

    Raises:
        NoHandError: the picture shows no hand.
        InputError: it cannot be read or used.
        UsageError: masks of that name are there that no prediction wrote.
        OutputError: the results cannot be written.
    """
    file = read_file(item.image, what="image")
    private = is_path_private(file)
    base = output / (anonymous_name(file.sha256) if private else item.folder / item.name)
    made_from: dict[str, Any] = {
        "kind": "hand",
        "blsgan": __version__,
        "inputs": {"image": InputFile(sha256=file.sha256)},
        "options": options,
        "weights": {
            "locator": weights_record(separator.locator.weights),
            "segmenter": weights_record(separator.segmenter.weights),
            "separator": weights_record(separator.separator.weights),
        },
    }
    header = _header(file) if private else Header()
    if not overwrite and (known := _finished(base, made_from)):
        return [HandResult(folder, record, None, header) for folder, record in known]
    started = time.perf_counter()
    spacing = options.pixel_spacing_mm
    radiograph = _square_pixels(
        decode_radiograph(
            file,
            bit_depth=options.bit_depth,
            invert=options.invert,
            pixel_spacing_mm=None if spacing is None else (spacing, spacing),
        )
    )
    read = time.perf_counter()
    try:
        hands = separator.masks(radiograph.pixels, side=options.side, progress=progress)
    except InputError as error:
        raise type(error)(f"{item.image}: {error}") from error
    found = time.perf_counter()
    names = _folder_names(base.name, hands)
    written = []
    for number, (hand, name) in enumerate(zip(hands, names, strict=True), start=1):
        side, source, notes = _side(hand, options, header.side if len(hands) == 1 else None)
        folder = base.with_name(name)
        hand = replace(
            hand,
            side=side,
            joints=tuple(_write_joint(separator, one, folder, radiograph) for one in hand.joints),
        )
        record = HandRecord(
            schema=1,
            **made_from,
            name=name,
            image=image_record(radiograph, None if private else item.image.name),
            pixel_spacing_mm=_spacing(radiograph),
            side=side,
            side_source=source,
            hands=len(hands),
            hand=number,
            turned_deg=round(hand.located.turned_deg, 2),
            negative=hand.located.negative,
            confidence=round(hand.located.confidence, 4),
            landmarks=_landmarks(hand),
            joints={joint.name: _joint_record(joint) for joint in hand.joints},
            backend=Backend(**separator.locator.backend.facts()),
            versions={"python": platform.python_version(), "numpy": np.__version__},
            times_ms={
                "read": milliseconds(started, read),
                "masks": milliseconds(read, found),
                "layers": milliseconds(found, time.perf_counter()),
            },
            notes=[*radiograph.notes, *notes, *hand.notes],
        )
        record = _write_hand(folder, radiograph, hand, record)
        written.append(HandResult(folder, record, hand, header))
    return written


def _square_pixels(radiograph: Radiograph) -> Radiograph:
    """Joints are turned upright, so a pixel must be as high as it is wide; else mm are left out."""
    spacing = radiograph.pixel_spacing
    if spacing is None or abs(spacing.row_mm / spacing.column_mm - 1) < _SQUARE:
        return radiograph
    note = "its pixels are not square, so lengths are in px only"
    return replace(radiograph, pixel_spacing=None, notes=(*radiograph.notes, note))


def _folder_names(name: str, hands: list[Hand]) -> list[str]:
    if len(hands) == 1:
        return [name]
    if len({hand.side for hand in hands}) == len(hands):
        return [f"{name}_{hand.side}" for hand in hands]
    return [f"{name}_{number}" for number in range(1, len(hands) + 1)]


def _finished(base: Path, made_from: dict[str, Any]) -> list[tuple[Path, HandRecord]]:
    """The finished hands of a picture, or none of them."""
    for endings in (("",), ("_left", "_right"), ("_1", "_2")):
        found = []
        for folder in (base.with_name(base.name + ending) for ending in endings):
            record = HandRecord.read(folder / RECORD_NAME)
            if record is None or record.hands != len(endings):
                break
            files = [*_nested(folder, record), folder / RECORD_NAME]
            known = results.finished(HandRecord, files, made_from)
            if known is None:
                break
            found.append((folder, known))
        if len(found) == len(endings):
            return sorted(found, key=lambda one: one[1].hand)
    return []


def _nested(folder: Path, record: HandRecord) -> list[Path]:
    """The files whose hashes a hand's record gives."""
    joints = [joint.folder for joint in record.joints.values() if joint.folder is not None]
    return [
        *(folder / picture for picture in PICTURES),
        *(path for joint in joints for path in _joint_files(folder / joint)),
    ]


def _joint_files(place: Path) -> list[Path]:
    """A joint's crop, masks and record; the record's own hashes hold the layers."""
    name = place.name
    return [place / f"{name}.png", *(place / mask for mask in predicted_names(name)[:2]),
            place / f"{name}.json"]  # fmt: skip


def _write_joint(
    separator: HandSeparator, joint: HandJoint, folder: Path, radiograph: Radiograph
) -> HandJoint:
    """Crop, masks, layers, panel and records of a joint that has masks, in a folder of its own."""
    if joint.segmentation is None:
        return joint
    place = folder / joint.name
    crop = place / f"{joint.name}.png"
    _write_crop(crop, results.to_uint16(joint.image))
    spacing = radiograph.pixel_spacing
    cut = replace(
        radiograph, pixels=joint.image, sha256=results.hash_file(crop), format="PNG", bits=16,
        notes=(),
    )  # fmt: skip
    upper, lower = predicted(
        separator.segmenter,
        joint.segmentation,
        cut,
        SegmentationOptions(bit_depth=16),
        joint.name,
        crop.name,
        {},
    ).write(place)[:2]
    options = SeparationOptions(
        bit_depth=16,
        pixel_spacing_mm=None if spacing is None else [spacing.row_mm, spacing.column_mm],
    )
    item = Item(crop, upper, lower, Path(), joint.name)
    made = separate_item(separator.separator, item, place, options, overwrite=True)
    return replace(joint, separation=made.found)


def _write_crop(path: Path, values: Any) -> None:
    with atomic_path(path) as temporary:
        try:
            _save(values, temporary)
        except OSError as error:
            raise output_error(path, error) from error


def _write_hand(folder: Path, radiograph: Radiograph, hand: Hand, record: HandRecord) -> HandRecord:
    pixels = 1 - radiograph.pixels if hand.located.negative else radiograph.pixels
    height, width = pixels.shape
    planes = put_back(hand, (height, width))
    overview = draw_overview(pixels, hand, _caption(record))
    files = _nested(folder, record)
    nested = files[len(PICTURES) :]
    targets = [*files[: len(PICTURES)], folder / RECORD_NAME]
    with atomic_paths(targets) as (*pictures, record_path):
        current = targets[0]
        try:
            values = [
                *(results.to_uint16(planes[bone]) for bone in BONES),
                *(planes[f"{bone}_mask"].astype(np.uint8) * np.uint8(255) for bone in BONES),
            ]
            for target, path, plane in zip(targets, pictures, values, strict=False):
                current = target
                _save(plane, path)
            current = targets[-2]
            overview.save(pictures[-1], format="PNG", compress_level=4)
            current = targets[-1]
            results.write_record(
                record_path, record, [*targets[:-1], *nested], [*pictures, *nested]
            )
        except OSError as error:
            raise output_error(current, error) from error
    made = HandRecord.read(folder / RECORD_NAME)
    assert made is not None, "written above"
    return made


def _save(plane: Any, path: Path) -> None:
    from PIL import Image

    Image.fromarray(plane).save(path, format="PNG", compress_level=2)


def _caption(record: HandRecord) -> str:
    counts = record.counts()
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return (
        f"{record.side} hand (side by {record.side_source}), confidence {record.confidence:.2f}; "
        f"joints: {text}. Masks are predicted; PIP and IP are experimental. Not a medical device."
    )


def _side(
    hand: Hand, options: HandOptions, said: Side | None
) -> tuple[Side, Literal["user", "DICOM", "thumb"], list[str]]:
    """The user's word first, then the header's, then the thumb; a contradiction is said."""
    if options.side is not None:
        notes = []
        if said is not None and said != options.side:
            notes.append(f"the DICOM header says {said}, --side said {options.side}")
        return options.side, "user", notes
    if said is None:
        return hand.side, "thumb", []
    notes = []
    if said != hand.side:
        notes.append(
            f"the DICOM header says {said}, the thumb lies as a {hand.side} hand's would: the "
            "picture is mirrored, shows the palm, or the header is wrong"
        )
    return said, "DICOM", notes


def _header(file: FileBytes) -> Header:
    import pydicom

    tags = ["ImageLaterality", "Laterality", "AcquisitionDate", "ContentDate", "StudyDate",
            "PatientID"]  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged files, which reading the pixels names
            header = pydicom.dcmread(
                io.BytesIO(file.data), stop_before_pixels=True, specific_tags=tags, force=True
            )
        values = {tag: str(header.get(tag) or "").strip() for tag in tags}
    except Exception:  # pydicom raises what damaged bytes lead it to; the pixels were read
        return Header()
    letters = values["ImageLaterality"] or values["Laterality"]
    sides: dict[str, Side] = {"L": "left", "R": "right"}
    dates = [values[tag] for tag in tags[2:5] if len(values[tag]) == 8 and values[tag].isdigit()]
    return Header(
        sides.get(letters.upper()), dates[0] if dates else None, values["PatientID"] or None
    )


def _spacing(radiograph: Radiograph) -> Spacing | None:
    spacing = radiograph.pixel_spacing
    if spacing is None:
        return None
    return Spacing(row=spacing.row_mm, column=spacing.column_mm, source=spacing.source)


def _landmarks(hand: Hand) -> dict[str, list[float]]:
    """x, y and confidence of each."""
    return {
        name: [round(float(x), 2), round(float(y), 2), round(float(confidence), 4)]
        for name, (x, y), confidence in zip(
            LANDMARKS, hand.located.points, hand.located.confidences, strict=True
        )
    }


def _joint_record(joint: HandJoint) -> JointOfHand:
    segmentation = joint.segmentation
    return JointOfHand(
        status=joint.status,
        reasons=list(joint.reasons),
        experimental=joint.experimental,
        finger=finger_of(joint.name),
        folder=None if segmentation is None else joint.name,
        located_px={"x": round(joint.located[0], 2), "y": round(joint.located[1], 2)},
        crop=Placement(**joint.crop.record()),
        bone_width_px=round(joint.bone_width_px, 2),
        figures={name: round(value, 4) for name, value in joint.figures.items()},
        confidence=None if segmentation is None else Confidence(**segmentation.confidence.record()),
        overlap_px=None if segmentation is None else int(np.count_nonzero(segmentation.overlap)),
    )


def joint_lines(record: HandRecord) -> list[str]:
    """A line for each joint that is not plainly fine."""
    return [
        f"{title(name)}: {joint.status}: {'; '.join(joint.reasons)}"
        for name, joint in record.joints.items()
        if joint.status != "ok"
    ]
