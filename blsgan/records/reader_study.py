"""``STUDY-key.json`` and the scores of a reader study."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from blsgan.records.record import Part, Record

Truth = Literal["real", "generated"]


class Item(Part):
    """One picture: what it shows, and the result it was cut from."""

    item: int
    truth: Truth
    bone: str
    overlap_px: int
    source: str
    record_sha256: str


class KeyRecord(Record):
    """The truth of one study; ``study`` is the hash of its pictures."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["reader-study-key"] = "reader-study-key"
    blsgan: str
    study: str
    seed: int
    min_overlap_px: int
    items: list[Item]


class ScoreRecord(Record):
    """What :class:`blsgan.report.scoring.Score` says about the answers."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["reader-study-score"] = "reader-study-score"
    study: str
    readers: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]]
    pooled: dict[str, Any]
    pooled_by_picture: list[float] | None
    agreement: dict[str, Any]
    grades: list[dict[str, Any]]
    missing: dict[str, int]
