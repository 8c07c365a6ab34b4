"""A whole hand from file to files: its joints, an overview and one record."""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from blsgan import __version__
from blsgan.anatomy import LANDMARKS, Side, finger_of, title
from blsgan.errors import InputError
from blsgan.hands.chain import Hand, HandJoint, HandSeparator
from blsgan.hands.picture import draw_overview, put_back
from blsgan.io import results
from blsgan.io.atomic import atomic_path, atomic_paths, output_error
from blsgan.io.files import FileBytes, read_file
from blsgan.io.listing import Item
from blsgan.io.radiograph import Radiograph, anonymous_name, decode_radiograph, is_path_private
from blsgan.pipeline.segment import image_record, weights_record
from blsgan.pipeline.separate import separate_item
from blsgan.records.hand import HandOptions, HandRecord, JointOfHand, Placement
from blsgan.records.masks import Confidence
from blsgan.records.record import Backend, InputFile, Spacing
from blsgan.records.separation import SeparationOptions

if TYPE_CHECKING:
    pass

RECORD_NAME = "hand.json"
PICTURES = (
    "hand_upper.png",
    "hand_lower.png",
    "hand_mask_upper.png",
    "hand_mask_lower.png",
    "hand_overview.png",
)


@dataclass(frozen=True)
class HandResult:
    """A hand on the disk: its folder, its record, and whether it was there already."""

    folder: Path
    record: HandRecord
    skipped: bool = False

    @property
    def overview(self) -> Path:
        return self.folder / PICTURES[-1]


def separate_hands(
    separator: HandSeparator,
    image: Path,
    output: Path,
    options: HandOptions,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[HandResult]:
    """Read one picture, take every joint of its one or two hands apart and write all of it.

    A hand lands in ``output / NAME``, of two hands in ``NAME_left`` and ``NAME_right``; that of a
    DICOM file under a name made of its hash. Its joints have folders of their own in there. What is
    finished and up to date is left alone unless ``overwrite``.

    Raises:
        NoHandError: the picture shows no hand.
        InputError: it cannot be read or used.
        OutputError: the results cannot be written.
    """
    file = read_file(image, what="image")
    private = is_path_private(file)
    name = anonymous_name(file.sha256) if private else image.stem
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
    if not overwrite and (known := _finished(output, name, made_from)):
        return known
    started = time.perf_counter()
    spacing = options.pixel_spacing_mm
    radiograph = decode_radiograph(
        file,
        bit_depth=options.bit_depth,
        invert=options.invert,
        pixel_spacing_mm=None if spacing is None else (spacing, spacing),
    )
    said, date = _header(file) if private else (None, None)
    read = time.perf_counter()
    try:
        hands = separator(radiograph.pixels, side=options.side, progress=progress)
    except InputError as error:
        raise type(error)(f"{image}: {error}") from error
    found = time.perf_counter()
    written = []
    for number, hand in enumerate(hands, start=1):
        side, source, notes = _side(hand, options, said if len(hands) == 1 else None)
        folder = output / _folder_name(name, hands, number)
        files = _write_joints(separator, hand, folder, radiograph, overwrite=overwrite)
        record = HandRecord(
            schema=1,
            **made_from,
            name=folder.name,
            image=image_record(radiograph, None if private else image.name),
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
            backend=Backend(
                name=separator.locator.backend.name, version=separator.locator.backend.version
            ),
            versions={"python": platform.python_version(), "numpy": np.__version__},
            times_ms={
                "read": round(1000 * (read - started), 1),
                "separate": round(1000 * (found - read), 1),
                "write": round(1000 * (time.perf_counter() - found), 1),
            },
            notes=[*radiograph.notes, *_spacing_notes(radiograph), *notes, *hand.notes],
            date=date,
        )
        _write_hand(folder, radiograph, hand, record, files)
        written.append(HandResult(folder, HandRecord.read(folder / RECORD_NAME) or record))
    return written


def _folder_name(name: str, hands: list[Hand], number: int) -> str:
    if len(hands) == 1:
        return name
    if len({hand.side for hand in hands}) == len(hands):
        return f"{name}_{hands[number - 1].side}"
    return f"{name}_{number}"


def _finished(output: Path, name: str, made_from: dict[str, Any]) -> list[HandResult]:
    """The finished hands of a picture, or none of them."""
    for folders in ((name,), (f"{name}_left", f"{name}_right"), (f"{name}_1", f"{name}_2")):
        found = []
        for folder in folders:
            record = HandRecord.read(output / folder / RECORD_NAME)
            if record is None or record.hands != len(folders):
                break
            files = [*_nested(output / folder, record), output / folder / RECORD_NAME]
            known = results.finished(HandRecord, files, made_from)
            if known is None:
                break
            found.append(HandResult(output / folder, known, skipped=True))
        if len(found) == len(folders):
            return sorted(found, key=lambda result: result.record.hand)
    return []


def _nested(folder: Path, record: HandRecord) -> list[Path]:
    """The files whose hashes a hand's record gives."""
    joints = [joint.folder for joint in record.joints.values() if joint.folder is not None]
    return [
        *(folder / picture for picture in PICTURES),
        *(folder / joint / f"{joint}{ending}" for joint in joints for ending in (".png", ".json")),
    ]


def _write_joints(
    separator: HandSeparator, hand: Hand, folder: Path, radiograph: Radiograph, *, overwrite: bool
) -> list[Path]:
    """Every joint that has masks, in a folder of its own; returns crops and records."""
    spacing = radiograph.pixel_spacing
    options = SeparationOptions(
        bit_depth=16,
        pixel_spacing_mm=None if spacing is None else [spacing.row_mm, spacing.column_mm],
    )
    files = []
    for joint in hand.joints:
        if joint.segmentation is None:
            continue
        place = folder / joint.name
        crop = place / f"{joint.name}.png"
        _write_crop(crop, results.to_uint16(joint.image))
        item = Item(crop, None, None, Path(), joint.name)
        separate_item(
            separator.separator,
            item,
            place,
            options,
            overwrite=overwrite,
            segmenter=lambda: separator.segmenter,
        )
        files += [crop, place / f"{joint.name}.json"]
    return files


def _write_crop(path: Path, values: Any) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        try:
            Image.fromarray(values).save(temporary, format="PNG", compress_level=4)
        except OSError as error:
            raise output_error(path, error) from error


def _write_hand(
    folder: Path, radiograph: Radiograph, hand: Hand, record: HandRecord, files: list[Path]
) -> None:
    pixels = 1 - radiograph.pixels if hand.located.negative else radiograph.pixels
    height, width = pixels.shape
    planes = put_back(hand, (height, width))
    overview = draw_overview(pixels, hand, _caption(record))
    targets = [*(folder / picture for picture in PICTURES), folder / RECORD_NAME]
    with atomic_paths(targets) as (*pictures, record_path):
        current = targets[0]
        try:
            values = [
                *(results.to_uint16(planes[bone]) for bone in ("upper", "lower")),
                *(planes[f"{bone}_mask"].astype(np.uint8) * 255 for bone in ("upper", "lower")),
            ]
            for target, path, plane in zip(targets, pictures, values, strict=False):
                current = target
                _save(plane, path)
            current = targets[-2]
            overview.save(pictures[-1], format="PNG", compress_level=4)
            current = targets[-1]
            results.write_record(record_path, record, [*targets[:-1], *files], [*pictures, *files])
        except OSError as error:
            raise output_error(current, error) from error


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


def _header(file: FileBytes) -> tuple[Side | None, str | None]:
    """Side and date (YYYYMMDD) that a DICOM header gives."""
    import pydicom

    tags = ["ImageLaterality", "Laterality", "AcquisitionDate", "ContentDate", "StudyDate"]
    try:
        header = pydicom.dcmread(
            io.BytesIO(file.data), stop_before_pixels=True, specific_tags=tags, force=True
        )
        values = {tag: str(header.get(tag) or "").strip() for tag in tags}
    except Exception:  # pydicom raises what damaged bytes lead it to; the pixels were read
        return None, None
    letters = values["ImageLaterality"] or values["Laterality"]
    side: dict[str, Side] = {"L": "left", "R": "right"}
    dates = [values[tag] for tag in tags[2:] if len(values[tag]) == 8 and values[tag].isdigit()]
    return side.get(letters.upper()), dates[0] if dates else None


def _spacing(radiograph: Radiograph) -> Spacing | None:
    spacing = radiograph.pixel_spacing
    if spacing is None:
        return None
    return Spacing(row=spacing.row_mm, column=spacing.column_mm, source=spacing.source)


def _spacing_notes(radiograph: Radiograph) -> list[str]:
    spacing = radiograph.pixel_spacing
    if spacing is not None and spacing.source == "ImagerPixelSpacing":
        return ["millimetres are those of the detector: the hand is smaller (magnification)"]
    return []


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
