"""From what a user names (a file, a folder) to a work list: images, masks, names of results."""

from __future__ import annotations

import contextlib
import os
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blsgan.errors import InputError, UsageError
from blsgan.io.dicom import looks_like_dicom
from blsgan.io.files import as_read
from blsgan.io.masks import BONES
from blsgan.io.radiograph import SUFFIXES
from blsgan.io.raster import SUFFIXES as MASK_SUFFIXES

DEFAULT_MASK_PATTERN = "{stem}_mask_{bone}"
"""The public dataset's naming; without an ending, any picture format is accepted."""

_HAND_PICTURES = {"hand.json", "hand_overview.png"}
_SKIPPED_FOLDERS = frozenset({"background"})  # the public dataset's soft-tissue pictures, no joints


@dataclass(frozen=True)
class Item:
    """One joint. ``folder`` (relative) and ``name`` say where its results go."""

    image: Path
    upper: Path | None
    lower: Path | None
    folder: Path
    name: str


def check_mask_pattern(pattern: str) -> str:
    """Return ``pattern`` if it is one: a file name with {bone}, and {stem} for the image's.

    Raises :class:`UsageError` otherwise.
    """
    try:
        parsed = [part for part in string.Formatter().parse(pattern) if part[1] is not None]
    except ValueError as error:
        raise UsageError(f"mask pattern {pattern!r} has unbalanced braces ({error}).") from error
    fields = {field for _, field, _, _ in parsed}
    if "bone" not in fields or not fields <= {"bone", "stem"}:
        raise UsageError(
            f"mask pattern {pattern!r} does not say which mask is which; use {{bone}} (upper, "
            f"lower) and {{stem}} (the image's name), as in {DEFAULT_MASK_PATTERN}.png."
        )
    if any(specification or conversion for _, _, specification, conversion in parsed):
        raise UsageError(
            f"mask pattern {pattern!r} asks for a format or a conversion; write {{bone}} and "
            "{stem} without : and !."
        )
    return pattern


class MaskFolders:
    """Pictures that may be masks, by folder; each folder is read once, when it is asked for."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def pictures(self, folder: Path, stem: str) -> list[Path]:
        """Files ``stem``.* of ``folder`` with a picture's ending, in upper or lower case.

        Names are compared as they read: a letter and its accent may be one character or two.
        """
        if folder not in self._folders:
            by_stem: defaultdict[str, list[Path]] = defaultdict(list)
            with contextlib.suppress(OSError, ValueError):
                for name in sorted(os.listdir(folder)):
                    if not os.path.isfile(folder / name):  # nor a link that leads to none
                        continue
                    root, ending = os.path.splitext(name)
                    if ending.lower() in MASK_SUFFIXES:
                        by_stem[as_read(root)].append(folder / name)
            self._folders[folder] = by_stem
        return self._folders[folder].get(as_read(stem), [])


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts ``a2`` before ``a10``."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text.casefold())
    ]


def find_mask(
    image: Path,
    bone: str,
    pattern: str = DEFAULT_MASK_PATTERN,
    folders: MaskFolders | None = None,
) -> Path | None:
    """The mask of ``bone`` ("upper", "lower") for ``image``, or None when there is none.

    ``pattern`` is relative to the image's folder; an ending matches in upper and lower case.
    ``folders`` is for who looks for many. Raises :class:`InputError` when several files match:
    which one is meant cannot be known.
    """
    named = image.parent / pattern.format(stem=image.stem, bone=bone)
    if os.path.isfile(named):  # unlike Path.is_file it takes names too long for a file
        return named
    folders = folders or MaskFolders()
    found = folders.pictures(named.parent, named.name) or [
        path
        for path in folders.pictures(named.parent, named.stem)
        if path.suffix.lower() == named.suffix.lower()
    ]
    if len(found) > 1:
        raise InputError(
            f"{image} has several {bone} masks ({', '.join(path.name for path in found)}); remove "
            "all but one or give --mask-pattern with the ending."
        )
    return found[0] if found else None


def list_folder(
    folder: Path,
    pattern: str = DEFAULT_MASK_PATTERN,
    *,
    exclude: Path | None = None,
    passed_over: list[Path] | None = None,
) -> list[Item]:
    """Every radiograph below ``folder``, sorted, with its masks (None where one is missing).

    Pictures are known by their ending, DICOM files without one (IM000001 on a CD) by how they
    begin. Files that are some image's mask are not images, nor is anything below ``exclude`` (the
    results), hidden, or in a folder called ``background``. What else lies there and is no result of
    ours is appended to ``passed_over``, and so are folders that are links or cannot be opened.
    Raises :class:`InputError` when nothing is left.
    """
    # Results written beside their inputs are told apart by name (_is_result).
    results = os.path.realpath(exclude) if exclude is not None else None
    if results == os.path.realpath(folder):
        results = None
    candidates: list[Path] = []

    def unread(path: Path) -> None:
        if passed_over is not None:
            passed_over.append(path)

    for parent, folders, files in os.walk(
        folder, onerror=lambda error: unread(Path(os.fsdecode(error.filename)))
    ):
        here = Path(parent)
        if here != folder and set(files) >= _HAND_PICTURES:  # a result of blsgan hand, all of it
            folders.clear()
            continue
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED_FOLDERS
            and os.path.realpath(here / name) != results
        )
        for name in folders:
            if os.path.islink(here / name):
                unread(here / name)
        names = set(files)
        for name in sorted(files):
            if name.startswith(".") or _is_result(name, names):
                continue
            if Path(name).suffix.lower() in SUFFIXES or _is_bare_dicom(here / name):
                candidates.append(here / name)
            elif not _is_record(name, names):
                unread(here / name)
    masks: dict[Path, tuple[Path | None, Path | None]] = {}
    taken: set[str] = set()
    folders_of_masks = MaskFolders()
    for image in candidates:
        upper, lower = (find_mask(image, bone, pattern, folders_of_masks) for bone in BONES)
        masks[image] = (upper, lower)
        taken |= {os.path.normpath(path) for path in (upper, lower) if path is not None}
    images = [image for image in candidates if os.path.normpath(image) not in taken]
    if not images:
        raise InputError(
            f"{folder} holds no image to separate; images end in {', '.join(SUFFIXES)}, or are "
            "DICOM files."
        )
    return name_results(
        (image, *masks[image], image.parent.relative_to(folder)) for image in images
    )


def name_results(
    entries: Iterable[tuple[Path, Path | None, Path | None, Path]],
) -> list[Item]:
    """Give every (image, upper, lower, folder) a name of its own within its folder.

    It is the image's stem; images of one stem in one folder (a.png, a.jpg) get their ending added.
    """
    rows = [(image, upper, lower, _inside(folder)) for image, upper, lower, folder in entries]
    stems = Counter(_key(folder, image.stem) for image, _, _, folder in rows)
    items: list[Item] = []
    used: set[tuple[str, str]] = set()
    for image, upper, lower, folder in rows:
        name = image.stem
        if stems[_key(folder, name)] > 1:
            name = f"{image.stem}_{image.suffix.lstrip('.')}"
        base, number = name, 2
        while _key(folder, name) in used:
            name, number = f"{base}_{number}", number + 1
        used.add(_key(folder, name))
        items.append(Item(image, upper, lower, folder, name))
    return items


def _key(folder: Path, name: str) -> tuple[str, str]:
    # Some file systems do not tell A from a, nor one form of an accent from the other.
    return as_read(str(folder)).casefold(), as_read(name).casefold()


def _inside(folder: Path) -> Path:
    """``folder`` without what would lead out of the results' folder (a root, "..")."""
    return Path(*(part for part in folder.parts if part not in ("..", folder.anchor)))


def _is_result(name: str, siblings: set[str]) -> bool:
    """Whether ``name`` is a picture that an earlier run wrote beside its input."""
    stem = Path(name).stem
    for kind in ("upper", "lower", "reconstruction", "residual", "panel", "overlay"):
        if stem.endswith(f"_{kind}"):
            base = stem[: -len(kind) - 1]
            if base.endswith("_mask"):  # of blsgan segment
                return {f"{base}.json", f"{base}_overlay.png"} <= siblings
            beside = {f"{base}_panel.png", f"{base}_residual.png", f"{base}_residual.tiff"}
            return f"{base}.json" in siblings and not beside.isdisjoint(siblings)
    return False


def _is_record(name: str, siblings: set[str]) -> bool:
    """Whether ``name`` is the record of a result beside it."""
    stem, ending = os.path.splitext(name)
    pictures = {f"{stem}_{kind}" for kind in ("panel.png", "overlay.png", "residual.png")}
    pictures |= {f"{stem}_residual.tiff", f"{stem}.npz"}
    return ending == ".json" and not pictures.isdisjoint(siblings)


def _is_bare_dicom(path: Path) -> bool:
    """Whether a file without a known ending begins as a DICOM file, and is not a CD's index."""
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return False
        with open(path, "rb") as stream:
            return looks_like_dicom(stream.read(132))
    except (OSError, ValueError):
        return False


def describe_passed_over(folder: Path, paths: Iterable[Path]) -> str | None:
    """What a folder holds that was not read, by ending; None where there is nothing."""
    endings = Counter(
        "folder (a link, or it cannot be opened)"
        if os.path.isdir(path)
        else path.suffix.lower() or "without ending"
        for path in paths
    )
    if not endings:
        return None
    total = sum(endings.values())
    listed = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5))
    more = ", ..." if len(endings) > 5 else ""
    files = "file was" if total == 1 else "files were"
    return f"{total} {files} not read in {folder}, being no radiograph or mask: {listed}{more}"
