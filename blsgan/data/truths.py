"""Registered visits, kept in a file: finding them takes longer than what is done with them."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np

from blsgan.data import visits
from blsgan.data.layout import JointImage, by_joint, content_hashes
from blsgan.data.visits import PROTOCOL, Thresholds, VisitTruth, visit_truths
from blsgan.io.atomic import atomic_path
from blsgan.progress import Track, silent

_FORMAT = 6
_MARGIN_PX = 3


FOLDER = "registration"
"""Name of the folder, below a run's or an evaluation's, that holds a file for each joint."""


def registration_key(images: Sequence[JointImage], thresholds: Thresholds = PROTOCOL) -> str:
    """A digest of all that the registration depends on: files' bytes, thresholds, visits.py.

    Raises:
        InputError: a listed file cannot be read.
    """
    digest = hashlib.sha256(f"{_FORMAT} {thresholds}".encode())
    digest.update(inspect.getsource(visits).encode())
    for image in images:
        digest.update(image.name.encode())
        for sha256 in content_hashes(image)[:3]:
            digest.update(sha256.encode())
    return digest.hexdigest()


def cached_visit_truths(
    images: Sequence[JointImage],
    folder: Path | None,
    thresholds: Thresholds = PROTOCOL,
    progress: Track = silent,
) -> list[VisitTruth]:
    """What ``visit_truths`` finds among ``images``, read where it was found before.

    What is found of a joint is kept at once, in ``registration/`` below ``folder``, so that a start
    that was stopped goes on, and another split of the same joints finds them there; without a
    folder nothing is read or kept. ``progress`` counts joints.

    A file's name holds the digest of its inputs, so it cannot belong to other images or another
    protocol; a damaged file is made again. Of ``truth`` only pixels where ``clear_px`` is not 0
    or in ``guide``, and within 3 px of them, are kept; the others are 0.

    Raises:
        InputError: a listed file is missing or damaged.
        OutputError: the file cannot be written.
    """
    joints = list(by_joint(images).values())
    found: list[VisitTruth] = []
    for of_joint in progress(joints, "registering visits", len(joints)):
        path = None
        if folder is not None and len(of_joint) > 1:
            path = folder / FOLDER / f"{registration_key(of_joint, thresholds)[:16]}.npz"
        kept = None if path is None else _load_kept(path)
        if kept is None:
            kept = [_near_used_pixels(truth) for truth in visit_truths(of_joint, thresholds)]
            if path is not None:
                _save(path, kept)
        found += kept
    return found


def lend_registrations(source: Path, target: Path) -> None:
    """Gives a run or an evaluation in ``target`` what was registered for ``source``.

    Raises:
        OSError: a file cannot be written.
    """
    (target / FOLDER).mkdir(parents=True, exist_ok=True)
    for kept in (source / FOLDER).glob("*.npz"):
        lent = target / FOLDER / kept.name
        if lent.exists():
            continue
        try:
            os.link(kept, lent)
        except OSError:  # another file system, or one without links
            shutil.copy(kept, lent)


def _load_kept(path: Path) -> list[VisitTruth] | None:
    """What a file holds; a damaged one is removed."""
    try:
        return _load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, BadZipFile, EOFError):
        path.unlink(missing_ok=True)
        return None


def _near_used_pixels(truth: VisitTruth) -> VisitTruth:
    # Training turns and zooms a truth, which reads the neighbours of the pixels that it compares.
    size = 2 * _MARGIN_PX + 1
    used = (truth.clear_px != 0) | truth.guide
    near = cv2.dilate(used.astype(np.uint8), np.ones((size, size), np.uint8))
    kept = np.where(near > 0, truth.truth, np.float32(0))
    return VisitTruth(**{**vars(truth), "truth": kept})


def _save(path: Path, truths: Sequence[VisitTruth]) -> None:
    # Images may differ in size: one pair of arrays for each truth, columns for everything scalar.
    arrays: dict[str, Any] = {
        "image": np.array([t.image for t in truths], dtype=str),
        "other": np.array([t.other for t in truths], dtype=str),
        "bone": np.array([t.bone for t in truths], dtype=np.int64),
        "correlation": np.array([t.correlation for t in truths], dtype=np.float64),
        "floor_mse": np.array([t.floor_mse for t in truths], dtype=np.float64),
        "overlap_px": np.array([t.overlap_px for t in truths], dtype=np.int64),
    }
    for index, truth in enumerate(truths):
        arrays[f"truth_{index}"] = truth.truth
        arrays[f"clear_{index}"] = truth.clear_px
        arrays[f"where_{index}"] = np.packbits(np.stack((truth.valid, truth.guide)), axis=-1)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _load(path: Path) -> list[VisitTruth]:
    truths = []
    with np.load(path, allow_pickle=False) as arrays:
        for index, image in enumerate(arrays["image"]):
            truth = arrays[f"truth_{index}"]
            packed = arrays[f"where_{index}"]
            where = np.unpackbits(packed, axis=-1, count=truth.shape[1]).astype(bool)
            truths.append(
                VisitTruth(
                    image=str(image),
                    other=str(arrays["other"][index]),
                    bone=int(arrays["bone"][index]),
                    truth=truth,
                    valid=where[0],
                    clear_px=arrays[f"clear_{index}"],
                    guide=where[1],
                    correlation=float(arrays["correlation"][index]),
                    floor_mse=float(arrays["floor_mse"][index]),
                    overlap_px=int(arrays["overlap_px"][index]),
                )
            )
    return truths
