"""Millimetres per pixel, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

from blsgan.errors import UsageError

RANGE_MM = (1e-3, 10.0)
"""Spacings that are believed, in mm: from a microscope's to a scout view's. What lies outside is a
mistake (metres, dots per inch), and no picture format could carry it."""


@dataclass(frozen=True)
class PixelSpacing:
    """Distance between pixel centres: down a column (``row_mm``) and along a row (``column_mm``).

    ``source`` names the DICOM attribute, or "user".
    """

    row_mm: float
    column_mm: float
    source: str

    @property
    def area_mm2(self) -> float:
        """Area of one pixel, in mm²."""
        return self.row_mm * self.column_mm


def is_believable(row_mm: float, column_mm: float) -> bool:
    """Whether both distances are within :data:`RANGE_MM` (NaN is not)."""
    low, high = RANGE_MM
    return low <= row_mm <= high and low <= column_mm <= high


def user_spacing(row_mm: float, column_mm: float) -> PixelSpacing:
    """The spacing a user gave; raises :class:`UsageError` when it is outside :data:`RANGE_MM`."""
    if not is_believable(row_mm, column_mm):
        raise UsageError(
            f"pixel spacing {row_mm:g} x {column_mm:g} mm is not between {RANGE_MM[0]:g} and "
            f"{RANGE_MM[1]:g} mm; give the side of one pixel in millimetres."
        )
    return PixelSpacing(row_mm, column_mm, "user")
