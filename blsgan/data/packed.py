"""The dataset in one file: uint8 images, bit-packed masks, names and hashes, mapped into memory.

The container is safetensors (docs/reference/file-formats.md), so ``safetensors.torch.load_file``
puts the same file on a GPU. Opening reads the header, the names and the hashes alone; the pixels of
an image are read, and checked against their hash, when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from blsgan.data.layout import JointArrays, JointImage, content_hashes, read_joint
from blsgan.errors import InputError
from blsgan.io.atomic import atomic_path
from blsgan.io.files import as_read

FORMAT, VERSION = "blsgan-packed", 1
_HASH_BYTES = 32
_AGAIN = "pack the dataset again with `blsgan data pack`"


@dataclass(frozen=True)
class _Row:
    """Where an image lies: its group (one for each size) and rows; no background: None."""

    joint: str
    image: str
    group: str
    row: int
    background: int | None


@dataclass
class _Group:
    """The arrays of all images of one size while they are collected."""

    image: list[np.ndarray] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    background: list[np.ndarray] = field(default_factory=list)
    sha256: list[np.ndarray] = field(default_factory=list)
    files: list[np.ndarray] = field(default_factory=list)


def pack(images: Iterable[JointImage], path: str | Path) -> str:
    """Writes ``images`` into one file, all of it or nothing; needs as much memory as the file has.

    Args:
        images: entries of a dataset, each name once.
        path: the file; an older one is replaced.

    Returns:
        The content's SHA-256, which depends on names and pixels and not on where they lay.

    Raises:
        InputError: a file is missing or damaged, or two images have one name.
        OutputError: the file cannot be written.
    """
    return _write(path, _collect(images))


def _collect(images: Iterable[JointImage]) -> tuple[list[_Row], dict[str, _Group]]:
    rows: list[_Row] = []
    groups: dict[str, _Group] = defaultdict(_Group)
    names: set[str] = set()
    for joint in images:
        if joint.name in names:
            raise InputError(f"{joint.image}: two images are called {joint.name}; rename one")
        names.add(joint.name)
        arrays = read_joint(joint)
        height, width = arrays.image.shape
        name = f"{height}x{width}"
        group = groups[name]
        background = None
        if arrays.background is not None:
            background = len(group.background)
            group.background.append(arrays.background)
        rows.append(_Row(joint.joint, joint.image.name, name, len(group.image), background))
        bits = np.packbits(arrays.masks.reshape(2, -1), axis=-1)
        group.image.append(arrays.image)
        group.masks.append(bits)
        group.sha256.append(_record_hash(arrays.image, bits, arrays.background))
        group.files.append(np.stack([_from_hex(sha256) for sha256 in content_hashes(joint)]))
    return rows, groups


def _record_hash(image: np.ndarray, bits: np.ndarray, background: np.ndarray | None) -> np.ndarray:
    digest = hashlib.sha256(image.tobytes() + bits.tobytes())
    if background is not None:
        digest.update(background.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _from_hex(sha256: str) -> np.ndarray:
    """32 bytes; all 0 for a file that is not there."""
    return np.frombuffer(bytes.fromhex(sha256) or bytes(_HASH_BYTES), np.uint8)


def _content_hash(index: str, hashes: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> str:
    digest = hashlib.sha256(index.encode())
    for name, sha256, files in hashes:
        digest.update(name.encode() + sha256.tobytes() + files.tobytes())
    return digest.hexdigest()


def _write(path: str | Path, collected: tuple[list[_Row], dict[str, _Group]]) -> str:
    rows, groups = collected
    index = json.dumps([list(vars(row).values()) for row in rows])
    content = _content_hash(
        index,
        (
            (name, np.stack(group.sha256), np.stack(group.files))
            for name, group in sorted(groups.items())
        ),
    )
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "content_sha256": content,
            "index": index,
        }
    }
    offset = 0
    stored: list[np.ndarray] = []
    for name, group in sorted(groups.items()):
        for key, arrays in vars(group).items():
            if not arrays:  # no image of this size has a background
                continue
            size = sum(array.nbytes for array in arrays)
            header[f"{name}/{key}"] = {
                "dtype": "U8",
                "shape": [len(arrays), *arrays[0].shape],
                "data_offsets": [offset, offset + size],
            }
            offset += size
            stored += arrays
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in stored:
            file.write(np.ascontiguousarray(array).data)
    return content


class PackedDataset:
    """A packed dataset, open for reading; it may be pickled (another process opens it again).

    Args:
        path: a file that :func:`pack` wrote.

    Raises:
        InputError: the file is missing, no packed dataset, of a later version, truncated, or its
            names and hashes are damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = safe_open(str(self.path), framework="numpy")
            metadata = self._file.metadata() or {}
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read ({error.strerror or error}); give a "
                "file that `blsgan data pack` wrote"
            ) from error
        except SafetensorError as error:
            raise InputError(
                f"{self.path}: is no packed dataset, or truncated ({error}); {_AGAIN}"
            ) from error
        if metadata.get("format") != FORMAT:
            raise InputError(
                f"{self.path}: is no packed dataset; give a file that `blsgan data "
                "pack` wrote, or the dataset's folder Data"
            )
        if metadata.get("version") != str(VERSION):
            raise InputError(
                f"{self.path}: is packed in version {metadata.get('version')} and "
                f"this blsgan reads version {VERSION}; {_AGAIN}"
            )
        self._rows: dict[str, _Row] = {}
        self._hashes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        try:
            self._read_index(metadata["index"])
            found = _content_hash(
                metadata["index"], ((name, *self._hashes[name]) for name in sorted(self._hashes))
            )
            if found != metadata["content_sha256"]:
                raise ValueError("the hash of its names and hashes is another one")
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: is damaged ({error}); {_AGAIN}") from error
        self.content_sha256: str = metadata["content_sha256"]

    def __reduce__(self) -> tuple[type[PackedDataset], tuple[Path]]:
        return PackedDataset, (self.path,)

    def __len__(self) -> int:
        return len(self._rows)

    def _read_index(self, text: str) -> None:
        for values in json.loads(text):
            row = _Row(*values)
            names = (row.joint, row.image, row.group)
            places = (row.row, 0 if row.background is None else row.background)
            if any(type(name) is not str for name in names) or any(
                type(place) is not int or place < 0 for place in places
            ):
                raise ValueError(f"{values} is no entry of its index")
            self._rows[f"{row.joint}/{as_read(Path(row.image).stem)}"] = row
        for name in {row.group for row in self._rows.values()}:
            rows = [row.row for row in self._rows.values() if row.group == name]
            height, width = (int(part) for part in name.split("x"))
            count = self._file.get_slice(f"{name}/image").get_shape()[0]
            shapes = {
                "image": [count, height, width],
                "masks": [count, 2, -(-height * width // 8)],
                "sha256": [count, _HASH_BYTES],
                "files": [count, 4, _HASH_BYTES],
            }
            for key, shape in shapes.items():
                part = self._file.get_slice(f"{name}/{key}")
                if part.get_shape() != shape or part.get_dtype() != "U8":
                    raise ValueError(f"{name}/{key} has shape {part.get_shape()}, not {shape}")
            if sorted(rows) != list(range(count)):
                raise ValueError(f"the names do not fit the {count} images of {name}")
            self._hashes[name] = (
                self._file.get_tensor(f"{name}/sha256"),
                self._file.get_tensor(f"{name}/files"),
            )

    def images(self) -> list[JointImage]:
        """Every image, sorted by name, as :func:`blsgan.data.dataset.load_root` gives them."""
        images = []
        for row in self._rows.values():
            image = self.path / row.joint / row.image
            upper, lower = (
                image.with_name(f"{image.stem}_mask_{bone}") for bone in ("upper", "lower")
            )
            background = None
            if row.background is not None:
                background = image.with_name(f"{image.stem}_background")
            images.append(JointImage(row.joint, image, upper, lower, background, self))
        return sorted(images, key=lambda image: image.name)

    def content_hashes(self, joint: JointImage) -> tuple[str, str, str, str]:
        """SHA-256 of the four files that an image was packed from ("" where none was)."""
        row = self._rows[joint.name]
        image, upper, lower, background = (
            sha256.tobytes().hex() for sha256 in self._hashes[row.group][1][row.row]
        )
        return image, upper, lower, background if row.background is not None else ""

    def size(self, joint: JointImage) -> tuple[int, int]:
        """Rows and columns of one image."""
        row = self._rows[joint.name]
        _, height, width = self._file.get_slice(f"{row.group}/image").get_shape()
        return height, width

    def read(self, joint: JointImage) -> JointArrays:
        """The pixels of one image, checked against their hash.

        Raises:
            InputError: they are damaged.
        """
        row = self._rows[joint.name]
        try:
            image = self._part(row, "image", row.row)
            bits = self._part(row, "masks", row.row)
            background = None
            if row.background is not None:
                background = self._part(row, "background", row.background)
        except (SafetensorError, IndexError) as error:
            raise InputError(f"{self.path}: {joint.name} is damaged ({error}); {_AGAIN}") from error
        found = _record_hash(image, bits, background)
        if not np.array_equal(found, self._hashes[row.group][0][row.row]):
            raise InputError(
                f"{self.path}: {joint.name} is damaged (its pixels have another hash); {_AGAIN}"
            )
        masks = np.unpackbits(bits, axis=-1, count=image.size).astype(bool)
        return JointArrays(image, masks.reshape(2, *image.shape), background)

    def _part(self, row: _Row, key: str, index: int) -> np.ndarray:
        return np.asarray(self._file.get_slice(f"{row.group}/{key}")[index])
