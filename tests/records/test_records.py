"""Files of earlier versions are read, and written again byte for byte; others are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from blsgan.records.masks import MasksRecord, SegmentationOptions
from blsgan.records.narrowing import NarrowingRecord, ReadOptions
from blsgan.records.separation import PredictedMasks, SeparationOptions, SeparationRecord

FILES = Path(__file__).with_name("files")  # of phantoms, written before records had models
MODELS = {
    "separation": SeparationRecord,
    "separation_predicted": SeparationRecord,
    "masks": MasksRecord,
    "jsn": NarrowingRecord,
}


def content(name):
    return json.loads((FILES / f"{name}.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_before_is_written_again_as_it_was(name):
    path = FILES / f"{name}.json"
    assert MODELS[name].read(path).text() == path.read_text()


@pytest.mark.parametrize("name", MODELS)
def test_only_its_own_model_reads_it(name):
    others = [model for model in set(MODELS.values()) if model is not MODELS[name]]
    assert [model.of(content(name)) for model in others] == [None, None]


@pytest.mark.parametrize("name", ["separation", "jsn"])
def test_the_kind_is_known_without_being_there_and_no_other_is_taken(name):
    assert MODELS[name].of(content(name)).kind == {"jsn": "narrowing"}.get(name, name)
    assert MODELS[name].of({**content(name), "kind": "masks"}) is None


def test_what_the_first_version_lacked_has_a_value():
    record = content("separation")
    del record["masks"], record["options"]["mirrored"], record["residual_encoding"]
    read = SeparationRecord.parse(record)
    assert (read.options.mirrored, read.prediction) == (False, None)
    assert read.fields() == record
    narrowing = content("jsn")
    del narrowing["baseline"]["options"]
    assert NarrowingRecord.parse(narrowing).baseline.options == ReadOptions()
    assert NarrowingRecord.parse(narrowing).fields() == narrowing


def test_a_field_of_a_later_version_stays():
    record = {**content("separation"), "lesion": {"area_px": 7}}
    assert SeparationRecord.parse(record).fields() == record


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": 2}, "schema"),
        ({"soft_tissue": "much"}, "soft_tissue"),
        ({"soft_tissue": float("nan")}, "soft_tissue"),
        ({"overlap": {"area_px": 1.5}}, "overlap.area_px"),
        ({"masks": {"source": "predicted", "confidence": 1}}, "masks.predicted.confidence"),
        ({"masks": {"source": "dreamt"}}, "masks"),
    ],
)
def test_what_does_not_fit_is_named(change, named):
    record = {**content("separation"), **change}
    with pytest.raises(ValueError, match=f"^{named}: "):
        SeparationRecord.parse(record)
    assert SeparationRecord.of(record) is None


def test_a_visit_without_its_image_is_none():
    """What refers to no radiograph cannot be exported: that was a KeyError."""
    record = content("jsn")
    del record["baseline"]["sha256"]["image"]
    assert NarrowingRecord.of(record) is None


def test_what_is_made_has_every_field():
    assert SeparationOptions().model_dump(exclude_unset=True) == {
        "format": "png",
        "bit_depth": None,
        "invert": False,
        "pixel_spacing_mm": None,
        "mirrored": False,
        "panels": True,
    }
    made = SeparationRecord(**{**content("separation"), "masks": PredictedMasks()})
    assert made.fields()["kind"] == "separation"
    assert made.fields()["masks"]["doubtful"] is False


def test_a_record_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        SegmentationOptions().invert = True


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 200_000, '{"schema": 1}'])
def test_other_files_are_none(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert SeparationRecord.read(tmp_path / "x.json") is None
    assert SeparationRecord.read(tmp_path / "y.json") is None


def test_a_name_that_is_no_text_is_kept():
    """What a file system says in bytes that are no UTF-8 comes as a lone surrogate."""
    record = content("separation")
    record["image"]["file"] = "\udcff.png"
    assert json.loads(SeparationRecord.parse(record).text()) == record
