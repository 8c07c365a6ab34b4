"""Writes are complete or absent: errors, full disks, interrupts and folders in the way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blsgan.errors import InputError, OutputError
from blsgan.io import atomic
from blsgan.io.atomic import atomic_path, atomic_paths, check_writable_folder


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_complete_with_ordinary_permissions(tmp_path):
    target = tmp_path / "new" / "deep" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("content")
        assert not target.exists()
        assert temporary.suffix == ".txt"
    assert target.read_text() == "content"
    assert listing(target.parent) == ["file.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143)])
def test_an_error_in_the_block_leaves_the_old_file_and_no_temporary(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


def test_folders_made_for_a_failed_write_are_removed(tmp_path):
    with pytest.raises(InputError), atomic_path(tmp_path / "a" / "b" / "c.txt"):
        raise InputError("no")
    assert listing(tmp_path) == []


def test_full_disk_while_writing(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(OutputError, match=r"file\.txt cannot be written: the disk is full"),
        atomic_path(tmp_path / "file.txt"),
        open("/dev/full", "wb") as stream,
    ):
        stream.write(b"x" * 100_000)
    assert listing(tmp_path) == []


def test_full_disk_while_flushing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="disk is full"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert listing(tmp_path) == []


def test_files_that_belong_together_appear_together_or_not_at_all(tmp_path, monkeypatch):
    targets = [tmp_path / name for name in ("one", "two", "three")]
    with atomic_paths(targets) as temporaries:
        for temporary in temporaries:
            temporary.write_text("x")
        assert not any(target.exists() for target in targets)
    assert listing(tmp_path) == ["one", "three", "two"]

    replace, calls = os.replace, []

    def fails_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_second)
    for target in targets:
        target.unlink()
    with pytest.raises(OutputError), atomic_paths(targets):
        pass
    assert listing(tmp_path) == []


def test_what_was_replaced_stays_when_a_later_rename_fails(tmp_path, monkeypatch):
    targets = [tmp_path / name for name in ("one", "two", "three")]
    for target in (targets[0], targets[2]):
        target.write_text("old")
    replace = os.replace

    def fails_third(source, target):
        if target.name == "three":
            raise OSError(errno.EIO, "input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_third)
    with pytest.raises(OutputError), atomic_paths(targets) as temporaries:
        list(map(Path.write_text, temporaries, ["new"] * 3))
    assert listing(tmp_path) == ["one", "three"]
    assert (tmp_path / "one").read_text() == "new"
    assert (tmp_path / "three").read_text() == "old"


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_among_the_renames_finishes_them(tmp_path, monkeypatch, late):
    targets = [tmp_path / name for name in ("one", "two", "three")]
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:
            if late:
                replace(source, target)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_paths(targets):
        pass
    assert listing(tmp_path) == ["one", "three", "two"]


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "out" / "a.png"
    with pytest.raises(OutputError, match="part of the path is a file"), atomic_path(below):
        pass
    with pytest.raises(OutputError, match="part of the path is a file"):
        check_writable_folder(below.parent)
    assert listing(tmp_path) == ["file"]


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match="a folder of that name"), atomic_path(tmp_path / "a.png"):
        pass


def test_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root
    with pytest.raises(OutputError, match="not writable"):
        check_writable_folder(tmp_path / "new")


def test_check_makes_nothing(tmp_path):
    check_writable_folder(tmp_path / "new" / "deep")
    assert listing(tmp_path) == []


def test_name_too_long(tmp_path):
    with pytest.raises(OutputError, match="too long"), atomic_path(tmp_path / ("x" * 300)):
        pass
    assert listing(tmp_path) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from blsgan.io.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"])
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    elsewhere, old = (tmp_path / f".blsgan-{token}.tmp.png" for token in ("0" * 12, "1" * 12))
    own = tmp_path / ".blsgan-notes"
    for path in (elsewhere, old, own):
        path.write_bytes(b"")
    seconds_ago = time.time() - 5  # a lock of another machine may not be seen, so its file is left
    for path in (left, elsewhere):
        os.utime(path, (seconds_ago, seconds_ago))
    for path in (old, own):
        os.utime(path, (0, 0))
    with atomic_path(tmp_path / "b.txt") as temporary:
        temporary.write_text("b")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [elsewhere.name, own.name, "b.txt"]
    )


def test_what_another_process_is_writing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_looked", set())
    with atomic_path(tmp_path / "slow.txt") as slow:
        os.utime(slow, (0, 0))
        monkeypatch.setattr(atomic, "_looked", set())
        with atomic_path(tmp_path / "quick.txt") as quick:
            quick.write_text("quick")
        slow.write_text("slow")
    assert (tmp_path / "slow.txt").read_text() == "slow"
