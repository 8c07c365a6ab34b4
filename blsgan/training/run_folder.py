"""A run's folder and machine: what every kind of training writes, holds and asks for."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from blsgan import __version__
from blsgan.data.splits import VALIDATION, is_held_out
from blsgan.errors import InputError, UsageError, WeightsError
from blsgan.io.atomic import atomic_path, check_writable_folder
from blsgan.machine import commit_of
from blsgan.tasks.task import SEPARATION, Task, WeightsFile, find_weights
from blsgan.training import CONFIG_FILE, ENVIRONMENT_FILE


def device_of(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        UsageError: there is none, or it is neither the CPU nor a CUDA device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device '{name}' is not a torch device; use cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(
            f"device '{name}' is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
    return device


def first_weights(init: str | Path, task: Task = SEPARATION) -> WeightsFile:
    """What a run starts from instead of random weights: a name, a file or a folder.

    Raises:
        WeightsError: there is no such file, it is damaged, or no .safetensors is with it.
    """
    weights = find_weights(init, task)
    if weights.safetensors is None:
        raise WeightsError(f"weights '{weights.name}' have no .safetensors file to start from")
    return weights.load(weights.safetensors)


def check_run(run: Path, resume: bool) -> None:
    """Asks whether a run can begin in that folder, or go on there; makes nothing.

    Raises:
        UsageError: it holds a run already, or none to resume.
        OutputError: it cannot be written.
    """
    check_writable_folder(run)
    begun = (run / CONFIG_FILE).exists()
    if not resume and begun:
        raise UsageError(
            f"{run}: holds a run already; add --resume to go on with it or choose another folder"
        )
    if resume and not begun:
        # A kill before the first step leaves registered visits, which a new run there reads.
        raise UsageError(
            f"{run}: holds no run to resume (no {CONFIG_FILE}); start it there without --resume"
        )


@contextlib.contextmanager
def prepared(run: Path, resume: bool) -> Iterator[None]:
    """The run's folder, checked, made and held."""
    check_run(run, resume)
    run.mkdir(parents=True, exist_ok=True)
    with locked(run):
        yield


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run folder: two processes writing into one run would corrupt it."""
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{run}: another process is training in this folder; wait for it or "
                "choose another folder"
            ) from error
        yield


def metrics_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines already written, without those of steps that a resumed run repeats.

    A line that was cut, by a crash or a full disk, is passed over: the checkpoint is what counts.
    """
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append(line)
    return [line for line in found if line["step"] <= step]


def _read_environment(run: Path) -> dict[str, Any]:
    path = run / ENVIRONMENT_FILE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}), so what the run was is not known; "
            "copy it from a backup, or start anew in another folder"
        ) from error
    if not isinstance(described, dict):
        raise InputError(f"{path}: is not what a run wrote; start anew in another folder")
    return described


def environment(
    root: str | Path,
    data_sha256: str,
    device: torch.device,
    precision: str,
    processes: int = 1,
) -> dict[str, Any]:
    """Versions, commit, data and machine of a run, for ``environment.json``.

    Args:
        root: the dataset.
        data_sha256: of its content.
        device: that the run is on.
        precision: that its networks run in there.
        processes: that train together.
    """
    return {
        "blsgan": __version__,
        "git": commit_of(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "data": str(root),
        "data_sha256": data_sha256,
        "processes": processes,
        "device": _device_name(device),
        "precision": precision,
        "packages": _versions("numpy", "opencv-python-headless", "monai"),
    }


def _versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def describe_run(
    run: Path, described: dict[str, Any], init: WeightsFile | None, config: str
) -> None:
    """Writes what a new run is: ``environment.json``, with the weights that it starts from, and
    ``config.yaml``, which comes last because it makes the folder a run."""
    if init is not None:
        described = {**described, "init": {"file": init.path.name, "sha256": init.sha256}}
    write_text(run / ENVIRONMENT_FILE, json.dumps(described, indent=2) + "\n")
    write_text(run / CONFIG_FILE, config)


def note_precision(run: Path, precision: str, step: int, warn: Callable[[str], None]) -> None:
    """Where a resumed run goes on in another precision than before, tells so and records it."""
    path = run / ENVIRONMENT_FILE
    described = _read_environment(run)
    before = described.get("precision")  # runs begun before it was recorded have none
    if not isinstance(before, str) or not before.split() or before.split()[-1] == precision:
        return
    described["precision"] = f"{before}, from step {step} {precision}"
    write_text(path, json.dumps(described, indent=2) + "\n")
    warn(f"{run}: was trained in {before.split()[-1]} until now and goes on in {precision}")


def trained_card(
    run: Path,
    config: dict[str, Any],
    joints: Sequence[str],
    steps: int,
    metrics: Sequence[dict[str, Any]],
    *,
    limits: str,
) -> dict[str, Any]:
    """What the card of a finished run's weights says of their training and their use.

    Args:
        run: its folder, described by :func:`describe_run`.
        config: the configuration, of JSON types.
        joints: of every sample of the dataset, the name that it is split by.
        steps: made in all.
        metrics: lines of the metrics' file.
        limits: what the weights are not for.
    """
    described = _read_environment(run)
    held_out = config.get("held_out", VALIDATION)
    validation = {joint for joint in joints if is_held_out(joint, held_out)}
    return {
        "trained": {
            "config": config,
            "init": described.get("init"),
            "precision": described.get("precision"),
            "training_joints": len(set(joints) - validation),
            "validation_joints": len(validation),
            "steps": steps,
            "validation": metrics[-1] if metrics else None,
            "blsgan": __version__,
            "torch": str(torch.__version__),
        },
        "licence": "Apache-2.0",
        "intended_use": "research on hand radiographs; not a medical device",
        "limits": limits,
    }


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
