"""Writing a separation: 16-bit pictures or npz, the panel, and the record that completes it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from blsgan.io.atomic import atomic_paths, output_error
from blsgan.io.png import write_png
from blsgan.io.spacing import PixelSpacing
from blsgan.joint.geometry import row_blocks
from blsgan.records.record import Result
from blsgan.records.separation import SeparationRecord

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("png", "tiff", "npz")
PLANES = ("upper", "lower", "reconstruction", "residual")
RESIDUAL_ENCODING = "residual = (value - 32768) / 32767"
_RESIDUAL_ZERO = 32768

_MM_PER_INCH = 25.4


@dataclass(frozen=True)
class Scattered:
    """A float32 plane that is NaN but for some pixels, and is made a block of rows at a time.

    Attributes:
        where: bool [H,W], with H and W > 0.
        values: float32 [N], row by row, of the N pixels of ``where``.
    """

    where: NDArray[np.bool_]
    values: NDArray[np.float32]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The plane's rows, from the top."""
        start = 0
        for rows in row_blocks(self.where):
            where = self.where[rows]
            block = np.full(where.shape, np.nan, np.float32)
            end = start + np.count_nonzero(where)
            block[where] = self.values[start:end]
            yield block
            start = end


def to_uint16(plane: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Intensities in [0,1] as 0..65535, rounded; what lies outside is clipped."""
    values = np.empty(plane.shape, np.uint16)
    for rows in row_blocks(plane):
        values[rows] = np.rint(np.clip(plane[rows], 0, 1) * np.float32(65535))
    return values


def residual_to_uint16(residual: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Signed residuals in [-1,1] as 1..65535 with 0 at 32768 (:data:`RESIDUAL_ENCODING`)."""
    values = np.empty(residual.shape, np.uint16)
    for rows in row_blocks(residual):
        values[rows] = np.rint(np.clip(residual[rows], -1, 1) * 32767) + _RESIDUAL_ZERO
    return values


def residual_from_uint16(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The inverse of :func:`residual_to_uint16`."""
    return (values.astype(np.float32) - _RESIDUAL_ZERO) / np.float32(32767)


def result_names(name: str, file_format: str, *, panel: bool = True) -> list[str]:
    """Names of the files of one result; the JSON record is last, the panel before it."""
    if file_format == "npz":
        planes = [f"{name}.npz"]
    else:
        planes = [f"{name}_{plane}.{file_format}" for plane in PLANES]
    return [*planes, *([f"{name}_panel.png"] if panel else []), f"{name}.json"]


def write_result(
    folder: Path,
    name: str,
    planes: Mapping[str, NDArray[np.float32]],
    panel: Image.Image | None,
    record: SeparationRecord,
    *,
    file_format: str = "png",
    arrays: Mapping[str, NDArray[Any] | Scattered] | None = None,
    pixel_spacing: PixelSpacing | None = None,
) -> list[Path]:
    """Write all files of one result into ``folder``, or none of them.

    ``planes`` holds the float32 [H,W] arrays named in :data:`PLANES`; ``arrays`` is what an npz
    file holds besides them. The record gains ``outputs``: the SHA-256 of every other file, by which
    :func:`finished` knows a complete result. Files of an earlier result of this name that this one
    does not have are removed, once the new ones are there.

    Raises :class:`blsgan.errors.OutputError`.
    """
    names = result_names(name, file_format, panel=panel is not None)
    targets = [folder / file for file in names]
    stale = _stale_files(folder, name, set(names))
    with atomic_paths(targets) as temporaries:
        current = targets[0]
        try:
            *pictures, record_path = temporaries
            if file_format == "npz":
                with pictures[0].open("wb") as stream:
                    _write_npz(stream, {**planes, **(arrays or {})})
            else:
                for plane, target, path in zip(PLANES, targets, pictures, strict=False):
                    current = target
                    encode = residual_to_uint16 if plane == "residual" else to_uint16
                    _write_picture(path, planes[plane], encode, file_format, pixel_spacing)
            if panel is not None:
                current = targets[-2]
                write_png(pictures[-1], np.asarray(panel))
            current = targets[-1]
            write_record(record_path, record, targets[:-1], temporaries[:-1])
        except OSError as error:
            raise output_error(current, error) from error
    for path in stale:
        with contextlib.suppress(OSError):  # the new result is complete whatever becomes of it
            path.unlink()
    return targets


def _stale_files(folder: Path, name: str, new: set[str]) -> list[Path]:
    """Files that the record in ``folder`` names, as it wrote them, and the new one will not."""
    earlier = SeparationRecord.read(folder / f"{name}.json")
    outputs = {} if earlier is None else earlier.outputs
    ours = {file for other in FORMATS for file in result_names(name, other)}
    return [
        folder / file
        for file in sorted((ours - new) & set(outputs))
        if (folder / file).is_file() and hash_file(folder / file) == outputs[file]
    ]


def _write_npz(stream: IO[bytes], arrays: Mapping[str, NDArray[Any] | Scattered]) -> None:
    """What ``np.savez_compressed`` would write, with no more than a block of a plane made."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                if not isinstance(array, Scattered):
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
                    continue
                header = {"descr": "<f4", "fortran_order": False, "shape": array.where.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for rows in array.blocks():
                    file.write(rows.astype("<f4").data)


def _write_picture(
    path: Path,
    plane: NDArray[np.float32],
    encode: Callable[[NDArray[np.float32]], NDArray[np.uint16]],
    file_format: str,
    spacing: PixelSpacing | None,
) -> None:
    if file_format == "png":
        pixel_mm = None if spacing is None else (spacing.column_mm, spacing.row_mm)
        write_png(path, plane, encode=encode, pixel_mm=pixel_mm)
        return
    from PIL import Image

    options: dict[str, Any] = {"compression": "tiff_adobe_deflate"}
    if spacing is not None:
        options["dpi"] = (_MM_PER_INCH / spacing.column_mm, _MM_PER_INCH / spacing.row_mm)
    encoded = io.BytesIO()  # libtiff, given the file, would not say that the disk is full
    Image.fromarray(encode(plane)).save(encoded, format="TIFF", **options)
    path.write_bytes(encoded.getbuffer())


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


Made = TypeVar("Made", bound=Result)


def finished(model: type[Made], files: Sequence[Path], made_from: Mapping[str, Any]) -> Made | None:
    """The record of the complete result that ``made_from`` describes, None where there is none.

    Judged by content: the record, the last of ``files``, must have every field of ``made_from``
    (input hashes, weights, options), and every other file the hash that the record gives it.
    """
    record = model.read(files[-1])
    if record is None or any(getattr(record, key) != value for key, value in made_from.items()):
        return None
    return record if problem_of(record, files[:-1]) is None else None


def problem_of(record: Result, files: Sequence[Path]) -> str | None:
    """What keeps ``files`` from being what the record describes; None where nothing does."""
    for path in files:
        try:
            found = hash_file(path)
        except OSError:
            return f"{path.name} is missing"
        if found != record.outputs.get(path.name):
            return f"{path.name} was changed after it was written"
    return None


def write_record(
    path: Path, record: Result, targets: Sequence[Path], temporaries: Sequence[Path]
) -> None:
    """Write the record that completes a result: ``outputs`` are the hashes of the others."""
    outputs = {
        target.name: hash_file(temporary)
        for target, temporary in zip(targets, temporaries, strict=True)
    }
    completed = record.model_copy(update={"outputs": outputs})
    path.write_text(completed.text(), encoding="utf-8")
