"""Checkpoints that survive a kill at any moment, and damage to any one of them.

A checkpoint is one safetensors file, written under a temporary name, flushed and renamed. Its
SHA-256 goes into ``index.json`` afterwards, so a file the index names is complete; a damaged one
is passed over for the one before it. There is nothing in it that could run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from blsgan.errors import InputError
from blsgan.io.atomic import atomic_path

_INDEX = "index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A step and everything needed to go on from it, by name."""

    step: int
    tensors: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint and removes all but the last ``keep``.

    Raises:
        OutputError: the folder is not writable or the disk is full; older checkpoints stay.
    """
    data = save_tensors({key: value.contiguous() for key, value in checkpoint.tensors.items()})
    name = f"step-{checkpoint.step:08d}.safetensors"
    with atomic_path(folder / name) as temporary:
        temporary.write_bytes(data)
    entries = [entry for entry in _entries(folder) if int(entry["step"]) < checkpoint.step]
    entries.append({
        "file": name, "step": checkpoint.step, "sha256": hashlib.sha256(data).hexdigest()
    })
    _write_index(folder, entries[-keep:])
    kept = {str(entry["file"]) for entry in entries[-keep:]}
    for path in folder.glob("step-*.safetensors"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that is whole.

    Args:
        folder: where :func:`save_checkpoint` wrote.
        warn: called with a sentence for each damaged checkpoint that is passed over.

    Raises:
        InputError: none is there, or none is whole.
    """
    entries = _entries(folder)
    if not entries:
        raise InputError(f"{folder}: holds no checkpoint to resume from; start the run anew "
                         "without --resume in another folder")
    for entry in reversed(entries):
        path = folder / str(entry["file"])
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise ValueError("its SHA-256 is not the one noted when it was written")
            return Checkpoint(int(entry["step"]), load_tensors(data))
        except (OSError, ValueError, SafetensorError) as error:
            warn(f"{path}: is damaged ({error}); trying the checkpoint before it")
    raise InputError(f"{folder}: all of its {len(entries)} checkpoints are damaged; start the run "
                     "anew in another folder")


def latest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint that the index names, or None."""
    entries = _entries(folder)
    return int(entries[-1]["step"]) if entries else None


def _entries(folder: Path) -> list[Mapping[str, str | int]]:
    try:
        entries = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        return sorted(entries, key=lambda entry: int(entry["step"]))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _INDEX}: is not a readable index of checkpoints") from error


def _write_index(folder: Path, entries: list[Mapping[str, str | int]]) -> None:
    with atomic_path(folder / _INDEX) as temporary:
        temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
