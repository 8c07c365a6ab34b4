"""Figures as text, tables as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blsgan.io.atomic import ESCAPED


def signed(value: float, decimals: int) -> str:
    """With its sign; none stands before what rounds to zero."""
    rounded = round(value, decimals)
    return f"{rounded:+.{decimals}f}" if rounded else f"{0:.{decimals}f}"


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One line for each record below their keys; what a record lacks stays empty."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    with path.open("w", encoding="utf-8", errors=ESCAPED, newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(records)
