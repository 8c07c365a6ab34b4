"""``visits.json``: every joint of a patient's hands over the visits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from blsgan.records.record import Part, Record, Weights


class VisitOfHand(Part):
    """One visit of one hand; ``folder`` is relative to the record, ``date`` YYYYMMDD."""

    folder: str
    side: Literal["left", "right"]
    date: str | None
    image_sha256: str


class JointInterval(Record):
    """One joint between two visits, which are places in ``visits``, counted from 0.

    Attributes:
        status: of the visits' masks; ``refused`` where one of them has none.
        narrowing_px: in pixels of the earlier visit; None where nothing was measured.
        pixel_mm: None where the spacing of one of the visits is not known.
        width_px: mean joint space width, earlier and later.
        flags: what a reader should look at.
    """

    joint: str
    side: Literal["left", "right"]
    experimental: bool
    earlier: int
    later: int
    status: Literal["ok", "doubtful", "refused"]
    verdict: Literal["narrowed", "not detectable", "not measurable"]
    narrowing_px: float | None
    narrowing_mm: float | None
    standard_error_px: float | None
    detectable_px: float | None
    disagreement_px: float | None
    width_px: list[float | None]
    pixel_mm: float | None
    flags: list[str]


class HandVisitsRecord(Record):
    """The hands of one patient; the visits of each side are in time."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["hand-visits"] = "hand-visits"
    blsgan: str
    weights: Weights
    visits: list[VisitOfHand]
    intervals: list[JointInterval]
    notes: list[str]
