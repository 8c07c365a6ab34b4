"""``NAME.json``: a result of ``blsgan separate``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from blsgan.records.masks import Confidence
from blsgan.records.record import Backend, ImageFacts, InputFile, Part, Result, Spacing, Weights

Format = Literal["png", "tiff", "npz"]


class SeparationOptions(Part):
    """What decides the content of a result, besides inputs and weights.

    Attributes:
        format: of the layers' files.
        bit_depth: of a 16-bit file's values; None: from the values.
        invert: the image shows bone dark.
        pixel_spacing_mm: of rows and columns, where the user gave it.
        mirrored: the mean of the network's answers for the joint and for its mirror image.
        panels: whether a panel is drawn.
    """

    format: Format = "png"
    bit_depth: int | None = None
    invert: bool = False
    pixel_spacing_mm: list[float] | None = None
    mirrored: bool = False
    panels: bool = True


class GivenMasks(Part):
    """Masks that were there before."""

    source: Literal["given"] = "given"


class PredictedMasks(Part):
    """Masks that nobody drew, and how far they can be trusted."""

    source: Literal["predicted"] = "predicted"
    weights: Weights | None = None
    confidence: Confidence | None = None
    doubtful: bool = False
    doubts: list[str] = Field(default_factory=list)


class BoundingBox(Part):
    """Rows top..bottom and columns left..right, the end not included."""

    top: int
    left: int
    bottom: int
    right: int


class Overlap(Part):
    """Where both masks lie; the area is None without pixel spacing, the box without overlap."""

    area_px: int
    area_mm2: float | None = None
    bounding_box_px: BoundingBox | None = None


class Zone(Part):
    """Where both layers were estimated, and the soft tissue there (its mean is the record's
    own)."""

    area_px: int
    soft_tissue_least: float
    soft_tissue_greatest: float


class ReconstructionError(Part):
    """How far the layers, composed, are from the image; over ``region``."""

    mse: float
    max_abs: float | None = None
    region: str = "union of the masks"


class SeparationRecord(Result):
    """One joint: what went in, what decided the layers, and what they are."""

    schema_: Literal[1] = Field(alias="schema")
    name: str | None = None
    kind: Literal["separation"] = "separation"
    blsgan: str = "?"
    inputs: dict[str, InputFile]
    options: SeparationOptions
    weights: Weights
    masks: GivenMasks | PredictedMasks = Field(default=GivenMasks(), discriminator="source")
    image: ImageFacts
    pixel_spacing_mm: Spacing | None = None
    soft_tissue: float | None = None
    zone: Zone | None = None
    overlap: Overlap
    reconstruction_error: ReconstructionError
    working_scale: float | None = None
    residual_encoding: str | None = None
    backend: Backend | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    times_ms: dict[str, float] = Field(default_factory=dict)
    notes: list[str]

    @property
    def prediction(self) -> PredictedMasks | None:
        """What is known of masks that were predicted; None where they were given."""
        return self.masks if isinstance(self.masks, PredictedMasks) else None
