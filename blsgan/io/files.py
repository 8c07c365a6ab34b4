"""Reading a user's file: once, whole, with its hash, and with a sentence when that cannot be."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from blsgan.errors import InputError

MAX_FILE_BYTES = 2**30
"""Larger files are refused: no radiograph of at most ``raster.MAX_PIXELS`` pixels needs more."""


@dataclass(frozen=True)
class FileBytes:
    """The content of one file and the SHA-256 of exactly that content."""

    path: Path
    data: bytes
    sha256: str


def as_read(name: str) -> str:
    """A name as it reads, for comparison: macOS writes accents apart, others do not."""
    return unicodedata.normalize("NFC", name)


def read_file(path: os.PathLike[str] | str, *, what: str = "file") -> FileBytes:
    """Read ``path``; ``what`` ("image", "mask") is the word for it in messages.

    Raises :class:`InputError` when it is missing, a folder, not a regular file, empty, too large or
    unreadable.
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is a folder where one {what} is expected; name the file.")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file; name the {what} itself.")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{path} has {status.st_size / 2**30:.1f} GiB, more than the 1 GiB that is read; "
                "crop it to the joint first."
            )
        data = path.read_bytes()
    except InputError:  # which is a ValueError too
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path of the {what}.") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read ({reason}); check the {what}.") from error
    if not data:
        raise InputError(f"{path} is empty (0 bytes); give a complete {what}.")
    return FileBytes(path, data, hashlib.sha256(data).hexdigest())
