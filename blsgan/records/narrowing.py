"""``jsn.json``: joint space narrowing between two visits; and the study of its accuracy."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from blsgan.records.record import Part, Record, Spacing, Weights


class ReadOptions(Part):
    """How a visit's radiograph is read.

    Attributes:
        bit_depth: of a 16-bit file's values; None: from the values.
        invert: the image shows bone dark.
        pixel_spacing_mm: side of a pixel, where the user gave it.
    """

    bit_depth: int | None = None
    invert: bool = False
    pixel_spacing_mm: float | None = None


class VisitInputs(Part):
    """One visit; ``file`` is None where its name may tell the patient.

    Earlier records lack ``options`` and are read as if all were the defaults.
    """

    file: str | None
    sha256: dict[str, str]
    options: ReadOptions = ReadOptions()
    pixel_spacing_mm: Spacing | None

    @field_validator("sha256")
    @classmethod
    def _names_the_image(cls, hashes: dict[str, str]) -> dict[str, str]:
        if "image" not in hashes:
            raise ValueError("it has no hash of the image")
        return hashes


class SpaceWidth(Part):
    """Joint space width of one visit; the mm are None where the pixel spacing is not known."""

    mean_px: float
    minimum_px: float
    mean_mm: float | None
    minimum_mm: float | None
    lines: int | None = None


class SpaceWidths(Part):
    """Of both visits, None where there is none."""

    baseline: SpaceWidth | None
    followup: SpaceWidth | None


class BoneMovement(Part):
    """Where one bone of the follow-up lies; see :class:`blsgan.jsn.registration.Registration`."""

    displacement_px: dict[str, float]
    rotation_deg: float
    scale: float
    correlation: float
    pixels: int
    coverage: float
    converged: bool
    steps: int
    disagreement_px: float
    quality: float


class NarrowingRecord(Record):
    """One pair of visits; the fields' meaning: :class:`blsgan.jsn.quantification.Measurement`."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["narrowing"] = "narrowing"
    blsgan: str = "?"
    baseline: VisitInputs
    followup: VisitInputs
    weights: Weights | None
    fit_scale: bool
    pixel_mm: float | None
    narrowing_px: float
    narrowing_mm: float | None
    sideways_px: float | None = None
    mismatch: bool
    quality: float
    disagreement_px: float | None = None
    tilt_deg: float | None = None
    residual_encoding: str | None = None
    problems: list[str]
    axis: dict[str, float] = Field(default_factory=dict)
    reference_px: dict[str, float] = Field(default_factory=dict)
    bones: dict[str, BoneMovement] = Field(default_factory=dict)
    joint_space_width: SpaceWidths
    versions: dict[str, str] = Field(default_factory=dict)
    notes: list[str]


class NarrowingStudyRecord(Record):
    """``jsn_study.json``: how accurate narrowing is, without the single measurements."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["narrowing-study"] = "narrowing-study"
    blsgan: str
    split: str
    seed: int
    images: int
    joints: int
    model: dict[str, Any]
    fit_scale: bool
    left_out: dict[str, Any]
    accuracy: list[dict[str, Any]]
    consistency: list[dict[str, Any]]
