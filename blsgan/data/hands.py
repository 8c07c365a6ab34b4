"""Whole hands with landmarks: a folder with ``landmarks.csv`` and the pictures that it names.

A row is a hand: ``file``, and for each landmark ``NAME_x_px`` and ``NAME_y_px``, in pixels of the
file, the first pixel's centre at 0. An empty cell is a landmark that nobody marked; several rows
may name one file (two hands in a picture). Columns that are no landmark of ``blsgan.anatomy`` are
left alone.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blsgan.anatomy import LANDMARKS
from blsgan.errors import InputError
from blsgan.io.files import read_file

TABLE = "landmarks.csv"


@dataclass(frozen=True)
class MarkedHand:
    """A hand and where its landmarks are.

    Attributes:
        path: the picture.
        points: float64 [L,2], x and y in pixels, NaN where a landmark was not marked.
    """

    path: Path
    points: NDArray[np.float64]

    @property
    def joint(self) -> str:
        """The name by which training and validation are told apart."""
        return self.path.stem


def read_hands(root: str | Path) -> list[MarkedHand]:
    """The hands of a folder, in the table's order.

    Raises:
        InputError: there is no such table, it has no hand, or a row cannot be used.
    """
    root = Path(root)
    table = root / TABLE
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{table}: is not a readable table of landmarks ({error}); give a folder of whole "
            "hands with landmarks."
        ) from error
    hands = [_hand(root, table, number, row) for number, row in enumerate(rows, start=2)]
    if not hands:
        raise InputError(f"{table}: names no hand; give a folder of whole hands with landmarks.")
    return hands


def hands_digest(hands: Iterable[MarkedHand]) -> str:
    """One SHA-256 for the pictures, their names and their landmarks, in any order.

    Raises:
        InputError: a file cannot be read.
    """
    lines = []
    for hand in hands:
        content = hashlib.sha256(read_file(hand.path, what="image").data).hexdigest()
        landmarks = hashlib.sha256(hand.points.tobytes()).hexdigest()
        lines.append(f"{hand.path.name} {content} {landmarks}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _hand(root: Path, table: Path, number: int, row: dict[str, str]) -> MarkedHand:
    name = row.get("file") or ""
    path = root / name
    if not name or not path.is_file():
        raise InputError(f"{table}: line {number}: there is no file '{name}'; correct the table.")
    points = np.full((len(LANDMARKS), 2), math.nan)
    for index, landmark in enumerate(LANDMARKS):
        for axis in (0, 1):
            text = row.get(f"{landmark}_{'xy'[axis]}_px") or ""
            try:
                points[index, axis] = float(text) if text.strip() else math.nan
            except ValueError:
                raise InputError(
                    f"{table}: line {number}: '{text}' is no coordinate of {landmark}; "
                    "correct the table."
                ) from None
    points[~np.isfinite(points).all(axis=1)] = math.nan
    if np.isfinite(points[:, 0]).sum() < 2:
        raise InputError(
            f"{table}: line {number}: fewer than two landmarks of '{name}' are known; remove it."
        )
    return MarkedHand(path, points)
