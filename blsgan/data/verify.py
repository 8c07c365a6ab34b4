"""What is wrong with a dataset, found before hours of training are spent on it.

Every list, every listed file and every pixel is looked at; nothing stops at the first fault.
*Errors* make a run fail or its figures wrong; *warnings* are what a user should know.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from blsgan.data.layout import MIN_OVERLAP_PX, list_files, listed_pair_path, overlap_px
from blsgan.data.splits import is_validation
from blsgan.errors import InputError
from blsgan.io.files import as_read, read_file
from blsgan.io.lists import read_list
from blsgan.io.masks import BONES, threshold
from blsgan.io.raster import decode_raster
from blsgan.joint.geometry import doubtful_masks
from blsgan.progress import Track, silent
from blsgan.records.dataset import Finding, VerificationRecord

ERROR: Final = "error"
WARNING: Final = "warning"
_KEYS = ("image", *BONES, "background")
_PAIR_KEYS = tuple(
    f"{role}{suffix}" for role in ("fixed", "moving") for suffix in ("", "_upper", "_lower")
)
# LS_K1_all_train: single images, fold K1, part train; DR_K1_train: follow-up pairs.
_LIST_NAME = re.compile(r"^(LS|DR)_(?P<fold>[^_]+)_(?:.*_)?(?P<part>[^_]+)$")


@dataclass
class Report:
    """What a dataset holds (``counts``, nested dictionaries of figures) and what is wrong in it."""

    root: str
    counts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def error(self, kind: str, where: str, text: str) -> None:
        """Adds an error."""
        self.findings.append(Finding(severity=ERROR, kind=kind, where=where, text=text))

    def warn(self, kind: str, where: str, text: str) -> None:
        """Adds a warning."""
        self.findings.append(Finding(severity=WARNING, kind=kind, where=where, text=text))

    def of(self, severity: str) -> list[Finding]:
        """The findings of one severity, in the order they were made."""
        return [finding for finding in self.findings if finding.severity == severity]

    def record(self) -> VerificationRecord:
        """The JSON file's content."""
        return VerificationRecord(
            schema=1,
            root=self.root,
            counts=self.counts,
            errors=self.of(ERROR),
            warnings=self.of(WARNING),
        )


@dataclass
class _Image:
    """One listed image: its files by key, and which lists name it."""

    name: str
    joint: str
    paths: dict[str, Path]
    lists: set[str] = field(default_factory=set)
    shape: tuple[int, ...] | None = None
    overlap_px: int | None = None


def verify(root: str | Path, *, progress: Track = silent) -> Report:
    """Looks at everything the lists in ``root`` name.

    Args:
        root: the dataset's folder.
        progress: wraps the loop over the images.

    Raises:
        InputError: ``root`` is no folder, or holds no list file: nothing to verify.
    """
    root = Path(root)
    lists = list_files(root)
    report = Report(str(root))
    images = _read_lists(root, lists, report)
    pixels: dict[bytes, list[_Image]] = defaultdict(list)
    for image in progress(list(images.values()), "reading every image"):
        digest = _check_files(image, report)
        if digest is not None:
            pixels[digest].append(image)
    _check_sizes(images.values(), report)
    _check_overlap_lists(images.values(), report)
    _check_duplicates(pixels.values(), report)
    _check_parts(images.values(), report)
    pairs = _check_pairs(root, images, report)
    report.counts = _count(root, lists, images, pairs)
    return report


def _entries(path: Path, report: Report) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list with their position; what is none is reported."""
    try:
        entries = read_list(path)
    except InputError as error:
        report.error("list", path.name, str(error))
        return []
    found = []
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            found.append((index, entry))
        else:
            report.error("list", path.name, f"entry {index} is not an object with keys")
    if not found:
        report.error("list", path.name, "names no image")
    return found


def _read_lists(root: Path, lists: Sequence[Path], report: Report) -> dict[str, _Image]:
    images: dict[str, _Image] = {}
    for path in lists:
        for index, entry in _entries(path, report):
            lacking = [key for key in _KEYS[:3] if not isinstance(entry.get(key), str)]
            if lacking:
                which = str(entry.get("image") or f"entry {index}")
                report.error("entry", path.name, f"{which} names no {' and no '.join(lacking)}")
                continue
            paths = {key: root / entry[key] for key in _KEYS if isinstance(entry.get(key), str)}
            outside = [key for key, file in paths.items() if not _inside(root, file)]
            if outside:
                report.error(
                    "entry",
                    path.name,
                    f"entry {index} leads out of the dataset "
                    f"({entry[outside[0]]}), so another machine will not find it",
                )
                continue
            image = _Image(
                as_read(f"{paths['image'].parent.name}/{paths['image'].stem}"),
                as_read(paths["image"].parent.name),
                paths,
            )
            known = images.setdefault(image.name, image)
            if known.paths != image.paths:
                report.error(
                    "entry",
                    path.name,
                    f"{image.name} is listed with other files "
                    f"elsewhere ({_first_difference(known.paths, image.paths)})",
                )
            if path.name in known.lists:
                report.warn("repeated", path.name, f"{image.name} is listed twice")
            known.lists.add(path.name)
    return images


def _real(path: Path) -> str:
    """A path without links, by which files are told apart; a name that can be no file is itself."""
    try:
        return os.path.realpath(path)
    except ValueError:  # a null byte
        return str(path)


def _inside(root: Path, path: Path) -> bool:
    return path.is_relative_to(root) and ".." not in path.parts[len(root.parts) :]


def _first_difference(one: dict[str, Path], other: dict[str, Path]) -> str:
    key = next(key for key in _KEYS if one.get(key) != other.get(key))
    return (
        f"{key}: {getattr(one.get(key), 'name', 'none')} and "
        f"{getattr(other.get(key), 'name', 'none')}"
    )


def _values(image: _Image, key: str, report: Report) -> np.ndarray | None:
    """uint8 [H,W] of one file, or None with a finding."""
    path = image.paths[key]
    if not os.path.exists(path):
        report.error("missing", image.name, f"{key}: {path.name} is listed and not there")
        return None
    try:
        raster = decode_raster(read_file(path, what=key))
    except InputError as error:
        report.error("unreadable", image.name, f"{key}: {error}")
        return None
    if raster.bits != 8:
        report.error(
            "unreadable",
            image.name,
            f"{key}: {path.name} has {raster.bits} bits for each pixel where the layout has 8",
        )
        return None
    return raster.values


def _check_files(image: _Image, report: Report) -> bytes | None:
    """Checks one image and its masks; returns a digest of its pixels where it can be read."""
    values = _values(image, "image", report)
    masks = [_check_mask(image, bone, values, report) for bone in BONES]
    if "background" not in image.paths:
        report.warn("background", image.name, "has no background, so it gives no synthetic overlap")
    else:
        background = _values(image, "background", report)
        if background is not None and values is not None and background.shape != values.shape:
            report.error(
                "size",
                image.name,
                f"the background is {_size(background.shape)} px, the "
                f"image {_size(values.shape)} px",
            )
    upper, lower = masks
    if upper is not None and lower is not None and upper.shape == lower.shape:
        _check_bones(image, np.stack((upper, lower)), report)
    if values is None:
        return None
    image.shape = values.shape
    if values.min() == values.max():
        report.error("constant", image.name, f"every pixel of the image is {values.min()}")
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).digest()


def _check_mask(
    image: _Image, bone: str, values: np.ndarray | None, report: Report
) -> np.ndarray | None:
    grey = _values(image, bone, report)
    if grey is None:
        return None
    try:
        mask = threshold(grey, image.paths[bone])
    except InputError as error:
        report.error("mask", image.name, f"{bone}: {error}")
        return None
    between = len(np.unique(grey)) - 2
    if between > 0:
        report.warn(
            "soft mask",
            image.name,
            f"{bone}: {between} grey levels beside black and white; they are cut at half of white",
        )
    if values is not None and mask.shape != values.shape:
        report.error(
            "size",
            image.name,
            f"the {bone} mask is {_size(mask.shape)} px, the image {_size(values.shape)} px",
        )
        return None
    return mask


def _check_bones(image: _Image, masks: np.ndarray, report: Report) -> None:
    if doubt := doubtful_masks(masks):
        report.error("bones", image.name, doubt)
    image.overlap_px = overlap_px(masks)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _check_sizes(images: Iterable[_Image], report: Report) -> None:
    sizes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for image in images:
        if image.shape is not None:
            sizes[image.shape].append(image.name)
    if len(sizes) > 1:
        found = sorted(sizes.items(), key=lambda item: (-len(item[1]), item[0]))
        listed = ", ".join(
            f"{_size(shape)} ({len(names)}, such as {names[0]})" for shape, names in found
        )
        report.error(
            "mixed sizes",
            "all lists",
            f"the images have {len(sizes)} sizes in px: {listed}; training takes one",
        )
    for shape, names in sizes.items():
        if shape[0] != shape[1]:
            report.error(
                "mixed sizes",
                names[0],
                f"{len(names)} images are {_size(shape)} px; training takes square ones",
            )


def _check_overlap_lists(images: Iterable[_Image], report: Report) -> None:
    for image in images:
        if image.overlap_px is None:
            continue
        for name in sorted(image.lists):
            promised = {"_overlap_": True, "_nonoverlap_": False}
            for part, has_overlap in promised.items():
                if part in name and (image.overlap_px >= MIN_OVERLAP_PX) != has_overlap:
                    report.warn(
                        "overlap list",
                        image.name,
                        f"its masks overlap in {image.overlap_px} px, but it is listed in {name}",
                    )


def _check_duplicates(groups: Iterable[list[_Image]], report: Report) -> None:
    for group in groups:
        if len(group) < 2:
            continue
        joints = sorted({image.joint for image in group})
        names = " and ".join(sorted(image.name for image in group))
        if len({is_validation(joint) for joint in joints}) > 1:
            report.error(
                "leak", names, "the same pixels, in a training joint and in a validation joint"
            )
        elif len(joints) > 1:
            report.error("duplicate", names, "the same pixels under two joints")
        else:
            report.warn("duplicate", names, "the same pixels under two names")


def _check_parts(images: Iterable[_Image], report: Report) -> None:
    """Joints that two lists of one fold put on two sides, and test joints that training takes."""
    parts: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for image in images:
        for name in image.lists:
            match = _LIST_NAME.match(name)
            if match:
                parts[match["fold"]][match["part"]].add(image.joint)
    for fold, by_part in sorted(parts.items()):
        names = sorted(by_part)
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                for joint in sorted(by_part[one] & by_part[other]):
                    report.error("leak", joint, f"is in {one} and in {other} of fold {fold}")
        taken = [
            joint
            for part in names
            if part != "train"
            for joint in by_part[part]
            if not is_validation(joint)
        ]
        if taken:
            others = ", ".join(part for part in names if part != "train")
            report.warn(
                "split",
                f"fold {fold}",
                f"{len(set(taken))} joints of its {others} lists "
                "are training joints for blsgan, which splits by a hash of the joint's "
                "name and takes every list; move those lists away before training",
            )


def _check_pairs(root: Path, images: dict[str, _Image], report: Report) -> int:
    """Follow-up pairs; returns how many there are."""
    listed = {_real(path): image for image in images.values() for path in image.paths.values()}
    count = 0
    for path in sorted(root.glob("DR_*")):
        seen: Counter[tuple[str, str]] = Counter()
        unknown: Counter[str] = Counter()
        for index, entry in _entries(path, report):
            lacking = [key for key in _PAIR_KEYS if not isinstance(entry.get(key), str)]
            if lacking:
                report.error("pair", path.name, f"entry {index} names no {lacking[0]}")
                continue
            count += 1
            files = {key: listed_pair_path(root, entry[key]) for key in _PAIR_KEYS}
            for key, file in files.items():
                if not os.path.exists(file):
                    unknown[f"{entry[key]} is not there"] += 1
                elif _real(file) not in listed:
                    unknown[f"{entry[key]} is in no LS list"] += 1
            fixed, moving = files["fixed"], files["moving"]
            joints = {
                fixed.parent.name,
                moving.parent.name,
                str(entry.get("joint_name", fixed.parent.name)),
            }
            if len(joints) > 1:
                report.error(
                    "pair",
                    path.name,
                    f"entry {index} pairs different joints ({', '.join(sorted(joints))})",
                )
            if fixed == moving:
                report.warn("pair", path.name, f"entry {index} pairs {entry['fixed']} with itself")
            seen[entry["fixed"], entry["moving"]] += 1
        for what, times in unknown.items():
            report.error("pair", path.name, f"{what} ({times} entries)")
        repeated = sum(times - 1 for times in seen.values())
        if repeated:
            report.warn(
                "repeated",
                path.name,
                f"{repeated} of its {sum(seen.values())} pairs repeat an earlier one",
            )
    return count


def _count(
    root: Path, lists: Sequence[Path], images: dict[str, _Image], pairs: int
) -> dict[str, Any]:
    everything = list(images.values())
    visits = Counter(Counter(image.joint for image in everything).values())
    overlaps = [image.overlap_px for image in everything if image.overlap_px is not None]
    sizes = Counter(_size(image.shape) for image in everything if image.shape is not None)
    named = {_real(path) for image in everything for path in image.paths.values()}
    folders = {path.parent for image in everything for path in image.paths.values()}
    on_disk = {
        _real(file)
        for folder in folders
        if os.path.isdir(folder)
        for file in folder.iterdir()
        if os.path.isfile(file)
    }

    def side(validation: bool) -> dict[str, int]:
        chosen = [image for image in everything if is_validation(image.joint) == validation]
        return {"images": len(chosen), "joints": len({image.joint for image in chosen})}

    patients = {
        validation: {
            image.joint.split("_")[0]
            for image in everything
            if is_validation(image.joint) == validation
        }
        for validation in (False, True)
    }
    return {
        "lists": {
            path.name: sum(path.name in image.lists for image in everything) for path in lists
        },
        "images": len(everything),
        "joints": len({image.joint for image in everything}),
        "joints_by_visits": {str(count): visits[count] for count in sorted(visits)},
        "with_overlap": sum(size >= MIN_OVERLAP_PX for size in overlaps),
        "without_overlap": sum(size < MIN_OVERLAP_PX for size in overlaps),
        "sizes_px": dict(sizes.most_common()),
        "follow_up_pairs": pairs,
        "split": {"train": side(False), "val": side(True)},
        "patients_with_joints_in_both_splits": len(patients[False] & patients[True]),
        "files_not_listed": len(on_disk - named),
    }
