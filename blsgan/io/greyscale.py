"""From the stored values of a DICOM picture to intensities: modality, VOI and presentation.

Order and formulas are the standard's (PS3.3 C.11.1, C.11.2, C.11.6, PS3.4 N.2). Hospitals' files
keep to it in their own ways: an element may be there and empty, which says as much as none at all;
a table may declare more bits than its entries have. What had to be decided is noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io.levels import guess_bits

if TYPE_CHECKING:
    from pydicom import Dataset

Float64 = NDArray[np.float64]


class Header:
    """The elements of a data set, each read by itself, so that a damaged one can be named."""

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self.path = path
        self.dataset = dataset

    def get(self, keyword: str) -> Any:
        """An element's value; None where it is absent or empty."""
        try:
            value = self.dataset.get(keyword)
            empty = value is None or (hasattr(value, "__len__") and len(value) == 0)
        except Exception as error:  # any that a damaged element raises in pydicom's parsers
            raise self.unreadable(keyword) from error
        return None if empty else value

    def text(self, keyword: str) -> str:
        """The first value as text; "" where there is none."""
        value = self.get(keyword)
        if value is not None and not isinstance(value, str):
            value = value[0] if hasattr(value, "__getitem__") else value
        return "" if value is None else str(value).strip()

    def number(self, keyword: str) -> float | None:
        """The first value as a finite number; None where there is none."""
        value = self.get(keyword)
        if value is None:
            return None
        try:
            number = float(value[0] if hasattr(value, "__getitem__") else value)
        except (TypeError, ValueError) as error:
            raise self.unreadable(keyword) from error
        if not np.isfinite(number):
            raise self.unreadable(keyword)
        return number

    def whole(self, keyword: str, default: int | None = None) -> int:
        """The first value as a whole number; without a default it has to be there."""
        number = self.number(keyword)
        if number is None and default is None:
            raise InputError(
                f"{self.path} lacks the element {keyword}, without which its pixels cannot be "
                "read; export it again."
            )
        return int(number) if number is not None else int(default or 0)

    def decimals(self, keyword: str) -> list[float | None]:
        """Each value of an element of numbers; None for what is none (a comma, letters)."""
        try:
            if keyword not in self.dataset:
                return []
            from pydicom.datadict import tag_for_keyword

            raw = self.dataset.get_item(tag_for_keyword(keyword) or keyword)
            value = raw.value
        except Exception as error:
            raise self.unreadable(keyword) from error
        if isinstance(value, bytes):
            parts: list[Any] = value.decode("latin-1").strip("\0 ").split("\\")
        else:
            parts = [value] if isinstance(value, (str, float, int)) else list(value or ())
        return [_decimal(part) for part in parts if part not in (None, "")]

    def unreadable(self, keyword: str) -> InputError:
        return InputError(
            f"{self.path}: its element {keyword} is damaged and cannot be read; export it again."
        )


def _decimal(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


@dataclass(frozen=True)
class Table:
    """A lookup table: ``values`` for the inputs from ``first`` on, of ``bits`` bits."""

    values: Float64
    first: int
    bits: int

    def __call__(self, inputs: Float64) -> Float64:
        """What the inputs become; those beyond the table are its first and last entries."""
        index = np.clip(np.rint(inputs) - self.first, 0, len(self.values) - 1)
        return np.asarray(self.values[index.astype(np.int64)])

    @property
    def highest(self) -> float:
        """The largest value of its bits."""
        return float(2**self.bits - 1)


def read_table(header: Header, sequence: str, *, signed: bool, notes: list[str]) -> Table | None:
    """The first table of a LUT sequence; None where there is none, or its item is empty.

    Its range is that of the bits its entries have, which may be fewer than it declares.
    """
    from pydicom.sequence import Sequence

    items = header.get(sequence)
    if items is None:
        return None
    if not isinstance(items, Sequence) or not items:
        raise header.unreadable(sequence)
    item = Header(header.path, items[0])
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or data is None:
        notes.append(f"{sequence} was ignored: its item is empty")
        return None
    try:
        count, first, depth = (int(part) for part in descriptor)
    except (TypeError, ValueError) as error:
        raise item.unreadable("LUTDescriptor") from error
    count = count % 2**16 or 2**16  # 0 says 65536; it may have been read as signed
    if signed and first >= 2**15:
        first -= 2**16
    entries = _entries(item, data, count, depth)
    if len(entries) < count:
        raise InputError(
            f"{header.path}: the table of its {sequence} has {len(entries)} of {count} entries; "
            "export it again."
        )
    entries = entries[:count]
    bits = guess_bits(int(entries.max()), depth if 1 <= depth <= 16 else 16)
    if entries.max() >= 2**bits:
        bits = guess_bits(int(entries.max()), 16)
    if bits != depth:
        notes.append(f"{sequence}: a table of {depth} bit that holds {bits} bit, taken as these")
    return Table(entries.astype(np.float64), first, bits)


def _entries(item: Header, data: Any, count: int, depth: int) -> NDArray[Any]:
    """Entries as the table has them: words, or bytes where it is of 8 bits and packed."""
    try:
        little = item.dataset.original_encoding[1] is not False
        word = "<u2" if little else ">u2"
        if not isinstance(data, bytes):
            values = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
            if depth > 8 or len(values) >= count:
                return values
            data = values.astype(word).tobytes()
        if depth <= 8 and len(data) < 2 * count:
            return np.frombuffer(data, np.uint8)
        return np.frombuffer(data[: len(data) // 2 * 2], word)
    except (TypeError, ValueError) as error:
        raise item.unreadable("LUTData") from error


@dataclass(frozen=True)
class Modality:
    """The modality transform: a table, or a line."""

    table: Table | None
    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, stored: NDArray[Any]) -> Float64:
        values = stored.astype(np.float64)
        return self.table(values) if self.table else values * self.slope + self.intercept

    def range(self, first: int, last: int) -> tuple[float, float]:
        """What it makes of the stored range ``first``..``last``, ascending."""
        if self.table:
            return 0.0, self.table.highest
        low, high = sorted(first * self.slope + self.intercept for first in (first, last))
        return low, high


def read_modality(header: Header, *, signed: bool, notes: list[str]) -> Modality:
    """The modality transform of a picture; the identity where the header has none."""
    table = read_table(header, "ModalityLUTSequence", signed=signed, notes=notes)
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    if slope == 0:
        raise InputError(
            f"{header.path} says RescaleSlope 0, which makes every pixel the same; export it again."
        )
    return Modality(table, 1.0 if slope is None else slope, intercept or 0.0)


def apply_voi(header: Header, values: Float64, *, signed: bool, notes: list[str]) -> Float64 | None:
    """Values after the VOI transform, scaled to [0,1]; None where the header has none to use."""
    table = read_table(header, "VOILUTSequence", signed=signed, notes=notes)
    if table is not None:
        return table(values) / table.highest
    centers, widths = header.decimals("WindowCenter"), header.decimals("WindowWidth")
    window = next(
        (
            (center, width)
            for center, width in zip(centers, widths, strict=False)
            if center is not None and width is not None and width > 0
        ),
        None,
    )
    if window is None:
        if centers or widths:
            notes.append("the window was ignored: it has no centre with a width above 0")
        return None
    if (centers[0], widths[0]) != window:
        notes.append("the first windows were ignored: no centre with a width above 0")
    center, width = window
    function = header.text("VOILUTFunction").upper() or "LINEAR"
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        notes.append("VOILUTFunction was ignored: it is none of the standard's; LINEAR was used")
        function = "LINEAR"
    if function == "LINEAR" and width < 1:
        # The formula of LINEAR counts grey levels; below one of them only the exact line is one.
        notes.append("a window width below 1: LINEAR_EXACT was used")
        function = "LINEAR_EXACT"
    if function == "LINEAR":
        if width == 1:
            return (values > center - 0.5).astype(np.float64)
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def inversion(header: Header) -> str | None:
    """Why the picture has to be inverted after the VOI transform; None where it has not.

    MONOCHROME1 and the presentation LUT shape INVERSE say the same: together they invert once.
    """
    if header.text("PhotometricInterpretation") == "MONOCHROME1":
        return "MONOCHROME1"
    if header.text("PresentationLUTShape").upper() == "INVERSE":
        return "PresentationLUTShape INVERSE"
    return None
