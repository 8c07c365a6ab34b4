"""``blsgan data verify --json``: what was found in a dataset."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from blsgan.records.record import Part, Record


class Finding(Part):
    """One fault: ``kind`` groups alike ones, ``where`` is a list, an image or a joint."""

    severity: Literal["error", "warning"]
    kind: str
    where: str
    text: str


class VerificationRecord(Record):
    """A dataset's numbers, and what is wrong with it."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["verification"] = "verification"
    root: str
    counts: dict[str, Any]
    errors: list[Finding]
    warnings: list[Finding]
