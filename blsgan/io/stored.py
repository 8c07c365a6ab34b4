"""Results read back: the records of ``blsgan separate`` below a folder, their layers, their inputs.

A record names its inputs by SHA-256 and never by path, so inputs are looked for by content.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io import results
from blsgan.io.files import FileBytes, read_file
from blsgan.io.raster import decode_raster
from blsgan.records.record import read_json
from blsgan.records.separation import SeparationRecord


@dataclass(frozen=True, repr=False)
class StoredResult:
    """One finished result: ``path`` of its record, ``place`` in the folder searched, bare."""

    path: Path
    place: Path
    record: SeparationRecord

    def __repr__(self) -> str:
        return f"<StoredResult: {self.path}>"

    @property
    def name(self) -> str:
        """What the result's files are called; the file's own name, whatever the record says."""
        return self.path.stem

    @property
    def label(self) -> str:
        """What to call the result outside: its place, or where that may tell the patient, its name.

        The name of a DICOM file's result is made of hashes; folders above it are anybody's.
        """
        return str(self.place) if self.record.image.file is not None else self.name

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of each input, by its role (``image``, ``upper_mask``, ``lower_mask``)."""
        return {role: file.sha256 for role, file in self.record.inputs.items()}

    @property
    def panel(self) -> Path | None:
        """The panel's path; None where none was drawn."""
        drawn = self.record.options.panels
        return self.path.with_name(f"{self.name}_panel.png") if drawn else None

    def problem(self) -> str | None:
        """What keeps the files from being what the record describes; None where nothing does."""
        return results.problem_of(self.record, self._files()[:-1])

    def _files(self) -> list[Path]:
        options = self.record.options
        names = results.result_names(self.name, options.format, panel=options.panels)
        return [self.path.with_name(name) for name in names]

    def planes(self) -> dict[str, NDArray[np.float32]]:
        """The float32 [H,W] planes named in ``results.PLANES``.

        Raises:
            InputError: a file is missing, damaged, or of another size than the record says.
        """
        files = self._files()
        if self.record.options.format == "npz":
            planes = _planes_of_archive(read_file(files[0], what="result"))
        else:
            planes = {
                plane: _decode(plane, read_file(path, what="layer"))
                for plane, path in zip(results.PLANES, files, strict=False)
            }
        size = self.record.image.height_px, self.record.image.width_px
        for plane, values in planes.items():
            if values.shape != size:
                raise InputError(
                    f"{self.path}: the {plane} plane is {values.shape[1]}x{values.shape[0]} where "
                    f"the record says {size[1]}x{size[0]}; separate the image again."
                )
        return planes


def _decode(plane: str, file: FileBytes) -> NDArray[np.float32]:
    values = decode_raster(file).values
    if values.dtype != np.uint16:
        raise InputError(
            f"{file.path} is not the 16-bit picture that was written; separate the image again."
        )
    if plane == "residual":
        return results.residual_from_uint16(values)
    return values.astype(np.float32) / np.float32(65535)


def _planes_of_archive(file: FileBytes) -> dict[str, NDArray[np.float32]]:
    try:
        with np.load(io.BytesIO(file.data), allow_pickle=False) as arrays:
            return {plane: np.asarray(arrays[plane], np.float32) for plane in results.PLANES}
    except Exception as error:  # zipfile and NumPy raise what damaged bytes lead them to
        raise InputError(
            f"{file.path} is damaged ({type(error).__name__}); separate the image again."
        ) from error


def as_result(path: Path, place: Path, content: dict[str, object]) -> StoredResult | None:
    """``content`` of ``path`` as a result of ``blsgan separate``, or None where it is none."""
    record = SeparationRecord.of(content)
    known = record is not None and set(record.inputs) >= {"image", "upper_mask", "lower_mask"}
    return StoredResult(path, place, record) if record is not None and known else None


def walk(root: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Files below ``root`` (or ``root`` itself, a file) with these endings, sorted, none hidden.

    Raises:
        InputError: ``root`` does not exist.
    """
    wanted = tuple(suffixes)
    if root.is_file():
        yield root
        return
    if not root.is_dir():
        raise InputError(f"{root} does not exist; name a folder of results or a file in it.")
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(wanted) and not name.startswith("."):
                yield Path(parent) / name


def find_results(root: Path) -> list[StoredResult]:
    """Every result of ``blsgan separate`` below ``root``, a folder or one record, in order.

    Raises:
        InputError: ``root`` does not exist, or holds none.
    """
    found = []
    base = root if root.is_dir() else root.parent
    for path in walk(root, (".json",)):
        content = read_json(path)
        result = content and as_result(path, path.relative_to(base).with_suffix(""), content)
        if result:
            found.append(result)
    if not found:
        raise InputError(
            f"{root} holds no result of blsgan separate (NAME.json beside its layers); give the "
            "folder that was its --output."
        )
    return found


def find_by_hash(roots: Iterable[Path], wanted: Iterable[str]) -> dict[str, Path]:
    """Pictures below ``roots`` whose SHA-256 is wanted, by it.

    Raises:
        InputError: a root does not exist.
    """
    missing = set(wanted)
    found: dict[str, Path] = {}
    for root in roots:
        for path in walk(root, ("",)):  # by content: DICOM files have any ending, or none
            if not missing:
                return found
            try:
                digest = results.hash_file(path)
            except OSError:
                continue
            if digest in missing:
                found[digest] = path
                missing.discard(digest)
    return found
