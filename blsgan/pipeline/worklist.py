"""What ``separate`` and ``segment`` share: the joints a user names, and what became of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from blsgan.errors import BlsganError, InputError, UsageError, debugging, unexpected, unusable
from blsgan.io.files import read_file
from blsgan.io.listing import (
    DEFAULT_MASK_PATTERN,
    Item,
    check_mask_pattern,
    find_mask,
    list_folder,
    name_results,
)
from blsgan.io.lists import begins_as_json
from blsgan.io.masks import BONES
from blsgan.io.radiograph import SUFFIXES
from blsgan.records.record import Result

Found = TypeVar("Found")
Made = TypeVar("Made", bound=Result)
Done = TypeVar("Done")


@dataclass(frozen=True)
class Outcome(Generic[Found, Made]):
    """What became of one joint.

    ``files`` ends with the picture to look at, where one was drawn, and the record; ``found`` is
    the separation or the segmentation, None where it had been finished before; ``renamed`` says
    that the result's name is not the input's.
    """

    files: list[Path]
    record: Made
    found: Found | None
    renamed: bool = False


def work_list(
    image: Path,
    output: Path | None,
    *,
    masks: tuple[Path | None, Path | None] = (None, None),
    pattern: str | None = DEFAULT_MASK_PATTERN,
    need_masks: bool = False,
    passed_over: list[Path] | None = None,
) -> tuple[list[Item], bool]:
    """The joints that a user names by a file, a folder or a list, and whether it is a single file.

    Args:
        image: what was named.
        output: folder of the results, in which no input is looked for; None: there is none.
        masks: of the upper and the lower bone, where they were named.
        pattern: how masks are named otherwise; None where they do not matter.
        need_masks: whether a single file without any mask is an error.
        passed_over: files of a folder that are no radiograph are appended to it.

    Raises:
        UsageError: masks for several files, one mask, a wrong pattern, a mask that is missing.
        InputError: nothing is there.
    """
    upper, lower = masks
    check_mask_pattern(pattern or DEFAULT_MASK_PATTERN)
    given = [path for path in (upper, lower) if path is not None]
    if image.is_dir():
        if given:
            raise UsageError(
                f"{image} is a folder, so --upper-mask and --lower-mask cannot name its masks; use "
                "--mask-pattern."
            )
        return list_folder(
            image, pattern or DEFAULT_MASK_PATTERN, exclude=output, passed_over=passed_over
        ), False
    if _is_list_file(image):
        if given:
            raise UsageError(
                f"{image} is a list that names its own masks; leave out the mask options."
            )
        from blsgan.data.layout import load_list

        entries = load_list(image)
        if not entries:
            raise InputError(f"{image} is an empty list; give one with images.")
        root = _common_root(image.parent, [entry.image.parent for entry in entries])
        return name_results(
            (entry.image, entry.upper, entry.lower, Path(os.path.relpath(entry.image.parent, root)))
            for entry in entries
        ), False
    if len(given) == 1:
        raise UsageError("one mask was given; give both --upper-mask and --lower-mask.")
    if not given:
        read_file(image, what="image")  # a missing image is what to complain about first
    if not given and pattern is not None:
        upper, lower = (find_mask(image, bone, pattern) for bone in BONES)
        if (upper is None) != (lower is None) or (upper is None and need_masks):
            missing = [
                bone for bone, path in zip(BONES, (upper, lower), strict=True) if path is None
            ]
            raise UsageError(
                f"no {' and '.join(missing)} mask was found beside {image} "
                f"({pattern.format(stem=image.stem, bone=missing[0])}); give --upper-mask and "
                "--lower-mask, or --mask-pattern."
            )
    return name_results([(image, upper, lower, Path())]), True


def _common_root(root: Path, folders: list[Path]) -> Path:
    """``root`` if all folders lie below it, else the deepest folder that they share."""
    relative = [os.path.relpath(folder, root) for folder in folders]
    if not any(path.startswith(os.pardir) for path in relative):
        return root
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _is_list_file(path: Path) -> bool:
    if path.suffix.lower() in SUFFIXES or not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return begins_as_json(stream.read(64))
    except OSError:
        return False


@dataclass(frozen=True)
class Attempt:
    """What became of one joint among many: a sentence where it failed, plain values otherwise.

    ``became`` names the picture to look at where the result's name is not the input's.
    """

    image: str
    failure: str | None = None
    skipped: bool = False
    notes: tuple[str, ...] = ()
    became: str | None = None


def attempt(work: Callable[[Item], Outcome[Any, Any]], item: Item) -> Attempt:
    """Do ``work`` on an item; what goes wrong with this one is told, not raised."""
    image = str(item.image)
    outcome, failure = told(lambda: work(item), item.image)
    if outcome is None:
        return Attempt(image, failure=failure)
    return Attempt(
        image,
        skipped=outcome.found is None,
        notes=() if outcome.found is None else tuple(outcome.record.notes),
        became=str(outcome.files[-2]) if outcome.renamed else None,
    )


def told(work: Callable[[], Done], image: Path) -> tuple[Done | None, str | None]:
    """What ``work`` on one picture among many gives, or the sentence that says why it failed."""
    try:
        return work(), None
    except BlsganError as error:
        return None, str(error)
    except MemoryError:
        return None, f"{image} does not fit into memory; crop it."
    except Exception as error:
        # A bug: it must neither cost the other files nor pass for an error of this one's.
        if debugging():
            raise
        return None, f"{image}: {unusable(error) or unexpected(error)}"
