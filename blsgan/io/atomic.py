"""Writes that are either there, complete, or not there at all.

A file is written under a temporary name in its own folder, flushed to the disk and renamed; several
files that belong together are renamed together at the end. An error, a full disk or Ctrl-C removes
the temporary files and the folders that were made for them; what a killed process left is removed
by the next one that writes into the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from blsgan.errors import BlsganError, OutputError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "the folder is not writable; choose another one",
    errno.EPERM: "the folder is not writable; choose another one",
    errno.EFBIG: "it is larger than files may be here; raise the limit or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "part of the path is a file, not a folder; choose another one",
    errno.EEXIST: "part of the path is a file, not a folder; choose another one",
    errno.EISDIR: "a folder of that name is in the way; move it or choose another name",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
}

ESCAPED = "backslashreplace"
"""How text is encoded that holds names of files: bytes that are no UTF-8 are written as escapes."""

_TEMPORARY = re.compile(r"\.blsgan-[0-9A-Za-z]{6,12}\.tmp(\..*)?")  # blsgan-infer's too
# A temporary file that no process holds is nobody's at once where its writer ran on this machine
# since it was started; elsewhere a lock may not be seen, so its age must tell.
_LEFTOVER_S = 600.0
_HERE_LEFTOVER_S = 2.0  # a file is made before it is locked
_looked: set[str] = set()


def output_error(path: os.PathLike[str] | str, error: OSError) -> OutputError:
    """The sentence a user reads when ``path`` could not be written because of ``error``."""
    said = " ".join(str(error).split())[:200]  # libraries raise OSErrors of their own, at length
    reason = _REASONS.get(error.errno or 0) or error.strerror or said or type(error).__name__
    return OutputError(f"{os.fspath(path)} cannot be written: {reason}.")


@contextlib.contextmanager
def atomic_path(path: os.PathLike[str] | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; it becomes ``path`` when the block ends.

    The folder is made if it is missing. An exception in the block leaves an existing ``path`` as it
    was. Raises :class:`blsgan.errors.OutputError` when anything cannot be written.
    """
    with atomic_paths([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def atomic_paths(paths: Sequence[os.PathLike[str] | str]) -> Iterator[list[Path]]:
    """:func:`atomic_path` for files that belong together: all of them appear, or none does.

    The temporary paths come in the order of ``paths`` and are renamed in that order, so whatever
    says "the others are complete" belongs at the end. Should a rename fail after others replaced
    older files, those stay: each is complete, and the older ones are gone.
    """
    targets = [Path(path) for path in paths]
    temporaries: list[Path] = []
    made: list[Path] = []
    held: list[int] = []  # open and locked, so that other processes see whose they are
    current = targets[0] if targets else Path(".")
    try:
        for target in targets:
            current = target
            _make_folder(current.parent, made)
            _remove_leftovers(current.parent)
            if current.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            name = f".blsgan-{_here()}{secrets.token_hex(3)}.tmp{current.suffix}"
            temporary = current.parent / name
            temporaries.append(temporary)  # first: an interrupt right after must find it to remove
            held.append(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        current = targets[0] if targets else current
        yield temporaries
        for target, temporary in zip(targets, temporaries, strict=True):
            current = target
            _flush(temporary)
        _rename_together(list(zip(temporaries, targets, strict=True)))
        for folder in {target.parent for target in targets}:
            _flush_folder(folder)
    except BaseException as error:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink()
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # not empty: someone else uses it by now
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, BlsganError):
            raise output_error(current, error) from error
        raise
    finally:
        for descriptor in held:
            os.close(descriptor)


@functools.cache
def _here() -> str:
    """Six digits that this machine has until it is started again: they open a temporary's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        boot = os.uname().nodename
    return hashlib.sha256(f"blsgan {boot}".encode()).hexdigest()[:6]


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a process that was killed (kill -9, a power cut).

    They are those that no process holds, of this machine, or that nobody has written for a while.
    Looked for once in each folder.
    """
    key = os.path.abspath(folder)
    if key in _looked:
        return
    _looked.add(key)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _TEMPORARY.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                ours = entry.name.startswith(f".blsgan-{_here()}")
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                if age < (_HERE_LEFTOVER_S if ours else _LEFTOVER_S):
                    continue
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                finally:
                    os.close(descriptor)


def check_writable_folder(folder: os.PathLike[str] | str) -> None:
    """Raise :class:`OutputError` when files could not be made in ``folder``; makes nothing.

    Asked before long work starts, so that it is not lost at its end. A folder that does not exist
    yet is judged by its nearest existing parent.
    """
    path = Path(folder)
    existing = path
    try:
        while not existing.exists():
            if existing.is_symlink() or existing == existing.parent:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            existing = existing.parent
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise output_error(path, error) from error


def _make_folder(folder: Path, made: list[Path]) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        made.append(folder)
        folder.mkdir(exist_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    # Makes the renames themselves durable. Not every file system offers it; the files are safe.
    with contextlib.suppress(OSError):
        _flush(folder)


def _rename_together(pairs: list[tuple[Path, Path]]) -> None:
    interrupts: list[KeyboardInterrupt] = []
    appeared: list[Path] = []
    try:
        for temporary, target in pairs:
            new = not os.path.lexists(target)
            _rename_despite_interrupt(temporary, target, interrupts)
            if new:
                appeared.append(target)
    except OSError:
        for target in appeared:
            with contextlib.suppress(OSError):
                target.unlink()
        raise
    if interrupts:
        raise interrupts[0]


def _rename_despite_interrupt(
    temporary: Path, target: Path, interrupts: list[KeyboardInterrupt]
) -> None:
    """Rename; Ctrl-C is kept for later: a few renames from complete, finishing is the way out."""
    try:
        os.replace(temporary, target)
    except KeyboardInterrupt as error:
        interrupts.append(error)
        if temporary.exists():
            os.replace(temporary, target)
