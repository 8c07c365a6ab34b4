"""``NAME_mask.json``: masks that ``blsgan segment`` predicted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from blsgan.records.record import Backend, ImageFacts, InputFile, Part, Result, Weights


class SegmentationOptions(Part):
    """What decides the masks, besides the image and the weights.

    Attributes:
        bit_depth: of a 16-bit file's values; None: from the values.
        invert: the image shows bone dark.
    """

    bit_depth: int | None = None
    invert: bool = False


class Confidence(Part):
    """The figures of :class:`blsgan.segmentation.Confidence`, rounded."""

    score: float
    border_entropy: float | None = None
    flip_agreement: float | None = None
    stray: float | None = None
    gap: float | None = None
    overlap: float | None = None
    width_ratio: float | None = None


class MasksRecord(Result):
    """The masks of one joint."""

    schema_: Literal[1] = Field(alias="schema")
    name: str
    kind: Literal["masks"]
    blsgan: str
    inputs: dict[str, InputFile]
    options: SegmentationOptions
    weights: Weights
    image: ImageFacts
    confidence: Confidence
    doubtful: bool
    doubts: list[str]
    area_px: dict[str, int]
    working_scale: float
    backend: Backend
    versions: dict[str, str]
    times_ms: dict[str, float]
    notes: list[str]
