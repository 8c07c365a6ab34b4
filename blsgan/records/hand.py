"""``hand.json``: a whole hand and what became of each of its joints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from blsgan.records.masks import Confidence
from blsgan.records.record import Backend, ImageFacts, InputFile, Part, Result, Spacing, Weights


class HandOptions(Part):
    """What decides a hand's results, besides the image and the weights.

    Attributes:
        bit_depth: of a 16-bit file's values; None: from the values.
        invert: the image shows bone dark (else that is told from the picture).
        pixel_spacing_mm: side of a pixel, where the user gave it.
        side: of the hand, where the user said it.
    """

    bit_depth: int | None = None
    invert: bool = False
    pixel_spacing_mm: float | None = None
    side: Literal["left", "right"] | None = None


class Placement(Part):
    """A joint's crop in the picture: x and y of its centre in px (the first pixel's at 0), how far
    its upward direction is turned clockwise, and its side."""

    centre_px: dict[str, float]
    turned_deg: float
    side_px: int


class JointOfHand(Part):
    """One joint; ``folder`` holds its files as ``blsgan separate`` writes them, None where it was
    refused."""

    status: Literal["ok", "doubtful", "refused"]
    reasons: list[str]
    experimental: bool
    finger: int
    folder: str | None
    located_px: dict[str, float]
    crop: Placement
    bone_width_px: float
    figures: dict[str, float]
    confidence: Confidence | None
    overlap_px: int | None


class HandRecord(Result):
    """One hand of one picture.

    Attributes:
        side: what is taken for it; ``side_source`` is ``user``, ``DICOM`` or ``thumb``.
        hands: how many hands the picture shows; this one is ``hand``, counted from the left.
    """

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["hand"] = "hand"
    name: str
    blsgan: str
    inputs: dict[str, InputFile]
    options: HandOptions
    weights: dict[str, Weights]
    image: ImageFacts
    pixel_spacing_mm: Spacing | None
    side: Literal["left", "right"]
    side_source: Literal["user", "DICOM", "thumb"]
    hands: int
    hand: int
    turned_deg: float
    negative: bool
    confidence: float
    landmarks: dict[str, list[float]]
    joints: dict[str, JointOfHand]
    backend: Backend
    versions: dict[str, str]
    times_ms: dict[str, float]
    notes: list[str]

    @field_validator("inputs")
    @classmethod
    def _names_the_image(cls, inputs: dict[str, InputFile]) -> dict[str, InputFile]:
        if "image" not in inputs:
            raise ValueError("it has no hash of the image")
        return inputs

    def counts(self) -> dict[str, int]:
        """Joints by status."""
        found: dict[str, Any] = {"ok": 0, "doubtful": 0, "refused": 0}
        for joint in self.joints.values():
            found[joint.status] += 1
        return found
