"""``visits.json``: every joint of a patient's hands over the visits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from blsgan.records.record import Part, Record, Weights

Verdict = Literal["narrowed", "not detectable", "not measurable"]


class VisitOfHand(Part):
    """One visit of one hand.

    Attributes:
        folder: relative to the record's.
        day: days after the side's first visit, where every visit has a date (dates themselves
            would tell the patient).
    """

    folder: str
    side: Literal["left", "right"]
    day: int | None
    image_sha256: str


class JointInterval(Part):
    """One joint between two visits, which are places in ``visits``, counted from 0.

    Attributes:
        status: of the visits' masks; ``refused`` where one of them has none.
        narrowing_px: in pixels of the earlier visit, positive where the bones came closer; None
            where nothing was measured. Only ``verdict`` says whether it may be used.
        standard_error_px, detectable_px: of a narrowing between real visits, and its smallest
            detectable difference.
        disagreement_px: between there and back.
        sideways_px, tilt_deg: how the lower bone moved and turned against the upper one.
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
    verdict: Verdict
    narrowing_px: float | None = None
    narrowing_mm: float | None = None
    standard_error_px: float | None = None
    detectable_px: float | None = None
    disagreement_px: float | None = None
    sideways_px: float | None = None
    tilt_deg: float | None = None
    pixel_mm: float | None = None
    width_px: list[float | None] = Field(default=[None, None])
    flags: list[str] = Field(default_factory=list)


class HandVisitsRecord(Record):
    """The hands of one patient; the visits of each side are in time."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["hand-visits"] = "hand-visits"
    blsgan: str
    weights: Weights
    visits: list[VisitOfHand]
    intervals: list[JointInterval]
    notes: list[str]

    @model_validator(mode="after")
    def _intervals_are_between_visits(self) -> HandVisitsRecord:
        places = [place for one in self.intervals for place in (one.earlier, one.later)]
        if not all(0 <= place < len(self.visits) for place in places):
            raise ValueError("an interval is not between two of its visits")
        return self
