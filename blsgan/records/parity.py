"""``MODEL.parity.json``: how far an exported model is from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from blsgan.records.record import Record, Weights

_SUFFIX = ".parity.json"


def report_path(model: Path) -> Path:
    """``model.parity.json`` for ``model.onnx``."""
    return model.with_suffix(_SUFFIX)


class ParityRecord(Record):
    """One model of ``blsgan export`` and its largest differences from torch.

    ``lowered`` is there for a precision other than float32: the float32 model that ``cases`` are
    about, and how the precision was lowered.
    """

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["parity"] = "parity"
    blsgan: str
    onnx: dict[str, Any]
    weights: Weights
    ports: dict[str, Any]
    versions: dict[str, str]
    cases: list[dict[str, Any]]
    passed: bool
    lowered: dict[str, Any] | None = None
