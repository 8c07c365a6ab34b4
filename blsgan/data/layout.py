"""The public dataset's layout, read as it is (pokeblow/BLS-GAN, folder ``Data``).

A root holds JSON list files (``LS_K1_all_train``: single images, ``DR_K1_train``: follow-up pairs)
and ``Dataset_cases_anonymization/JOINT/HASH.jpg`` with ``HASH_mask_upper.bmp``,
``HASH_mask_lower.bmp`` beside it and a soft-tissue background
``Dataset_cases_anonymization/background/JOINT_HASH.jpg``. The folder ``JOINT``
(``00054_L_13``: patient, side, joint) groups the visits of one joint.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from blsgan.errors import InputError
from blsgan.io.files import as_read, read_file
from blsgan.io.lists import NamesBelow, read_list
from blsgan.io.masks import threshold
from blsgan.io.raster import decode_raster

LIST_FILES = ("LS_K1_all_train", "LS_K1_overlap_train", "LS_K1_nonoverlap_train")
IMAGE_FOLDER = "Dataset_cases_anonymization"
# An image counts as overlapped from this many pixels of mask intersection on (the paper's lists).
MIN_OVERLAP_PX = 20
_SHOWN = 4  # sizes in a message


class JointStore(Protocol):
    """What holds images in place of files of their own: :class:`blsgan.data.packed.PackedDataset`.

    The methods are those of this module's functions, for an image of the store.
    """

    def size(self, joint: JointImage) -> tuple[int, int]: ...
    def content_hashes(self, joint: JointImage) -> tuple[str, str, str, str]: ...
    def read(self, joint: JointImage) -> JointArrays: ...


@dataclass(frozen=True)
class JointImage:
    """One radiograph of one joint: where its four files lie.

    Of a packed dataset (``packed``) the paths only say what each part is called: FILE/JOINT/HASH.
    """

    joint: str
    image: Path
    upper: Path
    lower: Path
    background: Path | None
    packed: JointStore | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """``JOINT/HASH``: unique in the dataset, the seed of everything drawn for this image."""
        return f"{self.joint}/{as_read(self.image.stem)}"


@dataclass(frozen=True)
class JointArrays:
    """The pixels of one :class:`JointImage`.

    ``image`` and ``background`` uint8 [H,W] (``background`` is None where the dataset has none),
    ``masks`` bool [2,H,W], channel 0 the upper bone, 1 the lower bone.
    """

    image: np.ndarray
    masks: np.ndarray
    background: np.ndarray | None


def load_list(path: str | Path) -> list[JointImage]:
    """Reads one of the dataset's list files; paths in it are relative to its folder.

    Raises:
        InputError: the file is missing, is not such a list, or an entry lacks a key.
    """
    path = Path(path)
    entries = read_list(path)
    if not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: is not a JSON list of images of the public dataset")
    root = path.parent
    images = []
    for index, entry in enumerate(entries):
        try:
            image, upper, lower = (root / str(entry[key]) for key in ("image", "upper", "lower"))
        except KeyError as error:
            raise InputError(
                f"{path}: entry {index} has no {error}; every entry needs image, upper and lower"
            ) from error
        background = root / str(entry["background"]) if entry.get("background") else None
        images.append(JointImage(as_read(image.parent.name), image, upper, lower, background))
    return images


def list_files(root: Path) -> list[Path]:
    """The lists of single images (``LS_*``) in the folder ``root``, sorted by name.

    Raises:
        InputError: ``root`` is no folder, or holds none of the dataset's list files.
    """
    if not root.is_dir():
        raise InputError(f"{root}: is not a folder; give the dataset's folder Data")
    lists = [path for path in sorted(root.glob("LS_*")) if path.is_file()]
    if not lists:
        raise InputError(
            f"{root}: holds none of the dataset's list files ({', '.join(LIST_FILES)})"
            "; give the folder that contains them"
        )
    return lists


def listed_pair_path(root: Path, name: str) -> Path:
    """Where a file of a list of follow-up pairs lies: below ``root``, or below its image folder."""
    folder = root / IMAGE_FOLDER
    here, below = root / name, folder / NamesBelow(folder).of(name)
    return below if not os.path.exists(here) and os.path.exists(below) else here


def by_joint(images: Iterable[JointImage]) -> dict[str, list[JointImage]]:
    """Groups images by joint, joints sorted by name, visits in the given order."""
    groups: dict[str, list[JointImage]] = defaultdict(list)
    for image in images:
        groups[image.joint].append(image)
    return dict(sorted(groups.items()))


def _grey(path: Path, what: str) -> np.ndarray:
    """uint8 [H,W], by the same decoder as everything else."""
    if not os.path.exists(path):
        raise InputError(f"{path} is named in the dataset's list but missing; complete the dataset")
    raster = decode_raster(read_file(path, what=what))
    if raster.bits != 8:
        raise InputError(
            f"{path} has {raster.bits} bits for each pixel; the dataset's layout has "
            "8, so convert it first"
        )
    return raster.values


def missing_files(images: Iterable[JointImage]) -> list[Path]:
    """The images' and masks' files that are listed and not there; a packed dataset is whole."""
    return [
        path
        for joint in images
        if joint.packed is None
        for path in (joint.image, joint.upper, joint.lower)
        if not os.path.isfile(path)
    ]


def check_complete(root: str | Path, images: Sequence[JointImage]) -> None:
    """Asks for every listed file before minutes of work, not in the middle of them.

    Args:
        root: the dataset, for the message.
        images: those that will be read.

    Raises:
        InputError: a file is missing.
    """
    missing = missing_files(images)
    if missing:
        raise InputError(
            f"{root}: {len(missing)} of {3 * len(images)} files that its lists name "
            f"are missing, the first is {missing[0]}; complete the dataset "
            "(`blsgan data verify` shows all)"
        )


def check_one_square_size(images: Iterable[JointImage]) -> None:
    """Asks for square images of one size, as far as their headers tell.

    Raises:
        InputError: they are others, or one cannot be read.
    """
    first: dict[tuple[int, int], JointImage] = {}
    for image in images:
        first.setdefault(_size(image), image)
    if len(first) > 1 or any(height != width for height, width in first):
        listed = [f"{image.image} {width}x{height}" for (height, width), image in first.items()]
        shown = ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
        raise InputError(
            f"the images must be square and of one size in px: {shown}; "
            "`blsgan data verify` counts the sizes, make them one"
        )


def _size(joint: JointImage) -> tuple[int, int]:
    """Rows and columns."""
    from PIL import Image

    if joint.packed is not None:
        return joint.packed.size(joint)
    try:
        with Image.open(joint.image) as picture:
            return picture.height, picture.width
    except (OSError, ValueError, Image.DecompressionBombError):
        height, width = _grey(joint.image, "image").shape  # says what is wrong with it
        return int(height), int(width)


def content_hashes(joint: JointImage) -> tuple[str, str, str, str]:
    """SHA-256 of the files of image, upper mask, lower mask and background ("" where none is).

    A packed dataset knows those of the files that were packed.

    Raises:
        InputError: a file cannot be read.
    """
    if joint.packed is not None:
        return joint.packed.content_hashes(joint)
    image, upper, lower = (
        read_file(path).sha256 for path in (joint.image, joint.upper, joint.lower)
    )
    background = ""
    if joint.background is not None and os.path.exists(joint.background):
        background = read_file(joint.background).sha256
    return image, upper, lower, background


def content_digest(images: Iterable[JointImage]) -> str:
    """One SHA-256 for the names and the bytes of these images, in any order, packed or not.

    Raises:
        InputError: a file cannot be read.
    """
    lines = sorted(" ".join((image.name, *content_hashes(image))) for image in images)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_joint(joint: JointImage) -> JointArrays:
    """Reads image, masks and background of one entry.

    Raises:
        InputError: a file is missing, damaged or not 8 bit, sizes differ, or a mask is not one.
    """
    if joint.packed is not None:
        return joint.packed.read(joint)
    image = _grey(joint.image, "image")
    masks = []
    for path in (joint.upper, joint.lower):
        mask = threshold(_grey(path, "mask"), path)
        if mask.shape != image.shape:
            raise InputError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]} px but "
                f"{joint.image.name} is {image.shape[1]}x{image.shape[0]} px"
            )
        masks.append(mask)
    background = None
    if joint.background is not None and os.path.exists(joint.background):
        background = _grey(joint.background, "background")
        if background.shape != image.shape:
            raise InputError(f"{joint.background} is not of the size of {joint.image.name}")
    return JointArrays(image, np.stack(masks), background)


def overlap_px(masks: np.ndarray) -> int:
    """Pixels covered by both bones; ``masks`` bool [2,H,W]."""
    return int(np.logical_and(masks[0], masks[1]).sum())


def joints_of(images: Sequence[JointImage]) -> list[str]:
    """The joints' names, sorted, each once."""
    return sorted({image.joint for image in images})
