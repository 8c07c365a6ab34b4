"""Figures of quality: ``evaluation.json``, ``comparison.json``, ``segmentation.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from blsgan.records.record import Record


class EvaluationRecord(Record):
    """Figures of ``blsgan evaluate`` without their single records; a part that was not run is None.

    Attributes:
        dataset: ``images`` and ``joints`` of the split, ``sha256`` of their names and files.
        model: what identifies the model; empty for closed forms alone.
    """

    schema_: Literal[2] = Field(alias="schema")
    kind: Literal["evaluation"] = "evaluation"
    blsgan: str = "?"
    split: str
    seed: int
    dataset: dict[str, Any]
    model: dict[str, Any]
    versions: dict[str, str] = Field(default_factory=dict)
    synthetic: dict[str, Any] | None
    real: dict[str, Any] | None
    layers: dict[str, Any] | None = None


class ComparisonRecord(Record):
    """Figures of several rows and their differences to the row ``reference``."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["comparison"] = "comparison"
    blsgan: str
    split: str
    seed: int
    dataset: dict[str, Any]
    reference: str
    models: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, dict[str, float]]]
    differences: dict[str, dict[str, dict[str, float]]]
    frechet: dict[str, dict[str, float]]


class MasksEvaluationRecord(Record):
    """How near predicted masks come to drawn ones; the figures are fields of their own names."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["masks-evaluation"] = "masks-evaluation"
    blsgan: str
    seed: int
