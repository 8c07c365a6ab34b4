"""What all records have in common, and the parts that several of them share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_BYTES = 2**22
"""Larger files are no records."""

_FROM_FILE = "file"


class Part(BaseModel):
    """A piece of a record, immutable; fields that this version does not know are kept."""

    model_config = ConfigDict(
        frozen=True, extra="allow", strict=True, allow_inf_nan=False, populate_by_name=True
    )

    @model_validator(mode="after")
    def _has_every_field(self, info: ValidationInfo) -> Self:
        # What is read is written again as it was, without what it lacked; what is made has it all.
        if info.context != _FROM_FILE:
            self.model_fields_set.update(type(self).model_fields)
        return self

    @classmethod
    def parse(cls, content: object) -> Self:
        """What ``content`` is, as it was decoded from JSON.

        Raises:
            ValueError: it is none; says of the first field that does not fit what is wrong with it.
        """
        try:
            return cls.model_validate(content, context=_FROM_FILE)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "all of it"
            raise ValueError(f"{where}: {first['msg']}") from error


class Record(Part):
    """The content of one JSON file."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in ``path``, or None where there is none that can be understood."""
        content = read_json(path)
        return None if content is None else cls.of(content)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self | None:
        """The record that ``content`` is, or None where it is none."""
        try:
            return cls.parse(content)
        except ValueError:
            return None

    def fields(self) -> dict[str, Any]:
        """The JSON object: dictionaries, lists and plain values, in the file's order."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def text(self, indent: int = 2) -> str:
        """The file's content; that of a file that was read is what was read.

        Raises:
            ValueError: a figure is not finite.
        """
        return json.dumps(self.fields(), indent=indent, allow_nan=False) + "\n"


class Result(Record):
    """A record that is written last and completes the files beside it.

    ``outputs`` is the SHA-256 of each of them, by its name: by them a rerun knows a finished
    result.
    """

    outputs: dict[str, str] = Field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        fields = super().fields()
        outputs = fields.pop("outputs", {})
        return {**fields, "outputs": outputs}


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``, or None where there is none that can be read."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


class InputFile(Part):
    """A file that went in, by its content; paths may tell a patient's name."""

    sha256: str


class Weights(Part):
    """The weights that ran."""

    name: str = "?"
    architecture: str = "?"
    file: str = "?"
    sha256: str


class ImageFacts(Part):
    """The picture as it was read; ``file`` is None where its name may tell the patient."""

    file: str | None = None
    format: str = "?"
    bit_depth: int | None = None
    height_px: int
    width_px: int


class Spacing(Part):
    """Distance of rows and of columns in mm, and where it comes from."""

    row: float
    column: float
    source: str


class Backend(Part):
    """The runtime that ran, and where; "?" in records of before 0.2."""

    name: str
    version: str
    device: str = "?"
