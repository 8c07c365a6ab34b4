"""Checkpoints that survive a kill at any moment, and damage to any one of them.

A checkpoint is two safetensors files, the weights and the training state apart, written under
temporary names, flushed and renamed. Their SHA-256 go into ``index.json`` afterwards, so files that
the index names are complete; a damaged checkpoint is passed over for the one before it. There is
nothing in them that could run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from blsgan.errors import InputError
from blsgan.io.atomic import atomic_path

_INDEX = "index.json"
_Entry = dict[str, Any]  # as in the index: step, file, sha256, and state with file, sha256


@dataclass(frozen=True)
class Checkpoint:
    """A step and everything needed to go on from it, by name.

    Attributes:
        step: steps made.
        weights: of the networks.
        state: of the optimisers and the random numbers.
    """

    step: int
    weights: dict[str, Tensor]
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Both."""
        return {**self.weights, **self.state}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Writes a checkpoint and removes all but the last ``keep``.

    Raises:
        OutputError: the folder is not writable or the disk is full; older checkpoints stay.
    """
    stem = f"step-{checkpoint.step:08d}"
    entry = {
        "step": checkpoint.step,
        **_write_tensors(folder / f"{stem}.safetensors", checkpoint.weights),
        "state": _write_tensors(folder / f"{stem}.state.safetensors", checkpoint.state),
    }
    entries = [entry for entry in _entries(folder) if int(entry["step"]) < checkpoint.step]
    entries = [*entries, entry][-keep:]
    _write_index(folder, entries)
    kept = {part["file"] for entry in entries for part in _parts(entry)}
    for path in folder.glob("step-*.safetensors"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What the index says of the file."""
    data = save_tensors({key: value.contiguous() for key, value in tensors.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}


def _parts(entry: _Entry) -> list[dict[str, str]]:
    """The files of a checkpoint: the weights', then the state's (older runs: one file for both)."""
    return [entry, *([entry["state"]] if "state" in entry else [])]


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
        raise InputError(
            f"{folder}: holds no checkpoint to resume from; start the run anew "
            "without --resume in another folder"
        )
    for entry in reversed(entries):
        read = []
        for part in _parts(entry):
            path = folder / part["file"]
            try:
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() != part["sha256"]:
                    raise ValueError("its SHA-256 is not the one noted when it was written")
                read.append(load_tensors(data))
            except (OSError, ValueError, SafetensorError) as error:
                warn(f"{path}: is damaged ({error}); trying the checkpoint before it")
                break
        else:
            return Checkpoint(int(entry["step"]), *read)
    raise InputError(
        f"{folder}: all of its {len(entries)} checkpoints are damaged; start the run "
        "anew in another folder"
    )


def latest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint that the index names, or None."""
    entries = _entries(folder)
    return int(entries[-1]["step"]) if entries else None


def _entries(folder: Path) -> list[_Entry]:
    """What the index names, in the order of steps; entries without their files are passed over."""
    try:
        entries = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable_index(folder) from error
    if not isinstance(entries, list):
        raise _unreadable_index(folder)
    return sorted(filter(_is_whole, entries), key=lambda entry: int(entry["step"]))


def _unreadable_index(folder: Path) -> InputError:
    return InputError(
        f"{folder / _INDEX}: is not a readable index of checkpoints, without whose hashes none is "
        "trusted; copy it back, or start another run with --init and a .safetensors file beside it"
    )


def _is_whole(entry: object) -> bool:
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return False
    stem = f"step-{entry['step']:08d}"
    named = {f"{stem}.safetensors": entry}
    if "state" in entry:
        named[f"{stem}.state.safetensors"] = entry["state"]
    return all(
        isinstance(part, dict) and part.get("file") == name and "sha256" in part
        for name, part in named.items()
    )


def _write_index(folder: Path, entries: list[_Entry]) -> None:
    with atomic_path(folder / _INDEX) as temporary:
        temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
