"""Millimetres per pixel, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass


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
