"""``blsgan hand`` from the outside: one picture, visits, what cannot be used."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from blsgan.anatomy import PROMISED
from blsgan.cli import main
from blsgan.pipeline import hand_intervals
from blsgan.pipeline.hand import HandResult, Header
from blsgan.pipeline.hand_intervals import Scale, SideVisits, pixel_ratio
from blsgan.records.hand import HandRecord
from blsgan.records.hand_visits import HandVisitsRecord
from blsgan.records.record import InputFile, Spacing
from blsgan.records.separation import SeparationRecord
from blsgan.synthesis.phantoms import joint_phantom
from blsgan.tasks.separation import Separator

pytestmark = pytest.mark.slow


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(path)
    return str(path)


def moved(image, degrees, shift, noise):
    """The same radiograph, laid on the plate otherwise."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += shift
    again = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    again += np.random.default_rng(0).normal(0, noise, image.shape)
    return np.clip(again, 0, 1)


@pytest.fixture(scope="module")
def visits(hand_of_joints, tmp_path_factory):
    """Four visits of a hand and one file that is none; the first is there twice, the last is a
    hand whose joints are narrower by 2 px of the joint phantom."""
    root = tmp_path_factory.mktemp("visits")
    image, _ = hand_of_joints(1)
    narrow, _ = hand_of_joints(1, gap_px=-9.0)
    (root / "in").mkdir()
    (root / "in" / "visit3.png").write_bytes(b"no picture")
    files = [
        save(root / "in" / "visit1.png", image),
        save(root / "in" / "visit2.png", moved(image, 5.0, (6.3, -4.4), 0.004)),
        save(root / "in" / "visit10.png", narrow),
    ]
    status = main(["hand", str(root / "in"), files[0], "-o", str(root / "out"), "--threads", "1"])
    return root / "out", status


def test_every_joint_has_its_files_and_its_reasons(visits):
    out, _ = visits
    record = HandRecord.read(out / "visit1" / "hand.json")
    assert record.side == "right"
    assert record.side_source == "thumb"
    assert record.counts()["refused"] == 5  # the hand phantom's PIP joints are none
    for name, joint in record.joints.items():
        assert joint.experimental == (name not in PROMISED)
        folder = out / "visit1" / name
        assert folder.is_dir() == (joint.status != "refused")
        assert joint.reasons or joint.status == "ok"
        if folder.is_dir():
            made = SeparationRecord.read(folder / f"{name}.json")
            assert made.prediction is not None
            with Image.open(folder / f"{name}.png") as crop:
                assert crop.size == (joint.crop.side_px, joint.crop.side_px)
    with Image.open(out / "visit1" / "hand_upper.png") as layer:
        assert layer.size == (1000, 1000)
        assert np.asarray(layer).max() > 20_000


def test_one_bad_visit_is_named_and_the_rest_finished(visits, capsys):
    out, status = visits
    assert status == 1
    record = HandVisitsRecord.read(out / "visits.json")
    # By name, 2 before 10; the file that was named once more comes last.
    folders = [visit.folder for visit in record.visits]
    assert folders == ["visit1", "visit2", "visit10", "visit1"]


def test_a_copy_did_not_narrow_and_the_same_file_is_exactly_zero(visits):
    record = HandVisitsRecord.read(visits[0] / "visits.json")
    found = {(i.joint, i.earlier, i.later): i for i in record.intervals}
    for name in PROMISED:
        copy, same = found[name, 0, 1], found[name, 0, 3]
        assert abs(copy.narrowing_px) < 0.05
        assert copy.verdict != "narrowed"
        assert same.narrowing_px == 0.0
        assert same.verdict == "not detectable"
        assert "same file" in same.flags[0]
    refused = found["pip2", 0, 1]
    assert refused.verdict == "not measurable"
    assert refused.narrowing_px is None


def mirrored(record):
    return record.model_copy(
        update={"landmarks": {n: [999 - x, y, c] for n, (x, y, c) in record.landmarks.items()}}
    )


def test_hands_of_another_size_are_brought_to_one_scale(visits):
    record = HandRecord.read(visits[0] / "visit1" / "hand.json")

    def sized(factor):
        landmarks = {n: [factor * x, factor * y, c] for n, (x, y, c) in record.landmarks.items()}
        return record.model_copy(update={"landmarks": landmarks})

    assert pixel_ratio(record, sized(0.8)) == pytest.approx(1.25)
    assert pixel_ratio(record, sized(1.02)) == 1.0
    spacing = Spacing(row=0.1, column=0.1, source="PixelSpacing")
    coarser = spacing.model_copy(update={"column": 0.125, "row": 0.125})
    known = [
        one.model_copy(update={"pixel_spacing_mm": mm})
        for one, mm in ((record, spacing), (sized(0.8), spacing), (sized(0.8), coarser))
    ]
    assert pixel_ratio(*known[:2]) == 1.0
    assert pixel_ratio(known[0], known[2]) == pytest.approx(1.25)

    def notes(*records):
        hands = [
            HandResult(visits[0] / name, one, None, Header())
            for name, one in zip(("visit1", "visit2"), records, strict=True)
        ]
        return list(SideVisits(None, hands, "right", 0, {}).notes())

    (said,) = notes(record, sized(0.8))
    assert "visit2 was brought to the scale of visit1" in said
    assert "1.25" in said
    assert notes(known[0], known[2]) == []
    (said,) = notes(*known[:2])
    assert "20% smaller in visit2 than in visit1: a spacing is wrong" in said
    (said,) = notes(record, mirrored(record))
    assert "visit2 shows the other hand" in said


@pytest.mark.parametrize(("width", "said"), [(44.0, "44 px wide"), (46.0, "pip3.png")])
def test_small_experimental_joints_are_not_measured(visits, width, said):
    """The larger ones are, so their crops are read; here there are none."""
    hands = []
    for name, hashed in (("visit1", "1"), ("visit2", "2")):
        record = HandRecord.read(visits[0] / name / "hand.json")
        joint = record.joints["pip3"].model_copy(update={"status": "ok", "bone_width_px": width})
        changes = {"joints": {**record.joints, "pip3": joint}}
        changes["inputs"] = {"image": InputFile(sha256=64 * hashed)}
        hands.append(
            HandResult(visits[0] / name, record.model_copy(update=changes), None, Header())
        )
    both = SideVisits(None, hands, "left", 0, {})
    found = both._interval("pip3", 0, 1, Scale(1.0))
    assert found.verdict == "not measurable"
    assert said in found.flags[0]


def test_a_hand_has_one_magnification(visits, monkeypatch):
    """By the bones that are measured, where there are enough of them, whatever headers say."""
    records = [HandRecord.read(visits[0] / name / "hand.json") for name in ("visit1", "visit2")]
    hands = [HandResult(visits[0] / one.name, one, None, Header()) for one in records]
    sides = [Spacing(row=mm, column=mm, source="PixelSpacing") for mm in (0.1, 0.102)]
    spaced = [
        replace(hand, record=hand.record.model_copy(update={"pixel_spacing_mm": side}))
        for hand, side in zip(hands, sides, strict=True)
    ]
    both = SideVisits(Separator.from_pretrained(threads=1), hands, "right", 0, {})
    known = replace(both, hands=spaced)
    turned = Scale(pytest.approx(1.0, abs=0.001))  # and moved, no more
    assert both._scale(0, 1) == turned
    assert known._scale(0, 1) == turned
    assert both._scale(0, 0) == Scale(1.0)
    monkeypatch.setattr(hand_intervals, "PROMISED", PROMISED[:1])
    assert both._scale(0, 1) == Scale(1.0, fit=True)
    assert known._scale(0, 1) == Scale(pytest.approx(1.02))


def test_a_mirrored_visit_is_not_measured(visits):
    records = [HandRecord.read(visits[0] / name / "hand.json") for name in ("visit1", "visit2")]
    hands = [
        HandResult(visits[0] / "visit1", records[0], None, Header()),
        HandResult(visits[0] / "visit2", mirrored(records[1]), None, Header()),
    ]
    found = SideVisits(None, hands, "right", 0, {})._interval("mcp3", 0, 1, Scale(1.0))
    assert found.verdict == "not measurable"
    assert "other hand" in found.flags[0]


def test_narrowed_joints_are_found_and_the_table_says_the_same(visits):
    record = HandVisitsRecord.read(visits[0] / "visits.json")
    whole = [i for i in record.intervals if (i.earlier, i.later) == (0, 2) and not i.experimental]
    assert {i.verdict for i in whole} <= {"narrowed", "not measurable"}
    narrowed = [i for i in whole if i.verdict == "narrowed"]
    assert len(narrowed) >= 3
    for interval in narrowed:
        assert 0.6 < interval.narrowing_px < 3.0
        assert interval.narrowing_px > interval.detectable_px > 2 * interval.standard_error_px
    with (visits[0] / "visits.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(record.intervals)
    assert {row["later"] for row in rows} == {"visit1", "visit2", "visit10"}


def test_the_page_holds_all_and_loads_nothing(visits):
    page = (visits[0] / "hands.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 4 + 2 * 5
    assert "http" not in page.replace("http-equiv", "")
    for text in ("MCP 3", "experimental", "narrowed", "not measurable", "same file", "visit10"):
        assert text in page


def test_what_is_finished_is_left_alone(visits, capsys):
    out, _ = visits
    before = (out / "visit1" / "hand.json").stat().st_mtime_ns
    source = str(out.parent / "in" / "visit1.png")
    assert main(["hand", source, "-o", str(out), "--no-visits", "--threads", "1"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert (out / "visit1" / "hand.json").stat().st_mtime_ns == before


def test_two_hands_upside_down_have_their_sides(hand_of_joints, tmp_path, capsys):
    image, _ = hand_of_joints(2, size=700)
    both = np.hstack([image[:, ::-1], image])[::-1, ::-1]
    source = save(tmp_path / "both.png", both)
    args = ["hand", source, "-o", str(tmp_path / "out"), "--threads", "1"]
    assert main([*args, "--side", "left"]) == 1
    assert "2 hands" in capsys.readouterr().err
    assert main(args) == 0
    records = [
        json.loads((tmp_path / "out" / f"both_{side}" / "hand.json").read_text())
        for side in ("left", "right")
    ]
    assert [record["side"] for record in records] == ["left", "right"]
    assert all(abs(abs(record["turned_deg"]) - 180) < 20 for record in records)


@pytest.mark.parametrize("kind", ["joint", "noise", "stripes"])
def test_what_is_no_hand_is_refused_with_the_reason(kind, tmp_path, capsys):
    rng = np.random.default_rng(3)
    axis = np.linspace(0, 40, 400)
    image = {
        "joint": joint_phantom(3).image,
        "noise": rng.random((300, 400)),
        "stripes": 0.5 + 0.5 * np.sin(axis[:, None] + 0.3 * axis),
    }[kind]
    source = save(tmp_path / "x.png", image)
    assert main(["hand", source, "-o", str(tmp_path / "out"), "--threads", "1"]) == 1
    error = capsys.readouterr().err
    assert "x.png" in error
    assert "no hand was found" in error
    assert not list((tmp_path / "out").glob("**/*.json"))


def test_segment_and_separate_know_a_whole_hand(hand_of_joints, tmp_path, capsys):
    source = save(tmp_path / "hand.png", hand_of_joints(1)[0])
    for command in ("segment", "separate"):
        assert main([command, source, "-o", str(tmp_path / "out"), "--threads", "1"]) == 1
        assert "this is a whole hand" in capsys.readouterr().err


def test_a_hand_goes_out_as_dicom(visits, tmp_path):
    pytest.importorskip("highdicom")
    import pydicom

    runs, images = str(visits[0]), str(visits[0].parent / "in")
    out = tmp_path / "dicom"
    assert main(["export-dicom", runs, "--images", images, "-o", str(out)]) == 0
    assert {path.name for path in out.glob("visits-*.dcm")} == {
        f"visits-right-1-{later}.dcm" for later in (2, 3, 4)
    }
    masks = pydicom.dcmread(out / "visit1_masks.dcm")
    record = HandRecord.read(visits[0] / "visit1" / "hand.json")
    found = [name for name, joint in record.joints.items() if joint.folder]
    labels = [segment.SegmentLabel for segment in masks.SegmentSequence]
    assert len(labels) == 2 * len(found)
    assert labels[:2] == ["right MCP 1, upper bone", "right MCP 1, lower bone"]
    assert (masks.Rows, masks.Columns) == (1000, 1000)
    with Image.open(visits[0] / "visit1" / "hand_mask_upper.png") as picture:
        whole = np.asarray(picture) > 0
    planes = masks.pixel_array.reshape(-1, 1000, 1000)
    numbers = [
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for frame in masks.PerFrameFunctionalGroupsSequence
    ]
    upper = [plane for plane, number in zip(planes, numbers, strict=True) if number % 2]
    np.testing.assert_array_equal(np.any(upper, axis=0), whole)

    def texts(dataset):
        for item in dataset.get("ContentSequence", []):
            if "ConceptCodeSequence" in item:
                yield item.ConceptCodeSequence[0].CodeMeaning
            yield from texts(item)

    said = set(texts(pydicom.dcmread(out / "visits-right-1-3.dcm")))
    assert {"Finger joint", "Right", "Metacarpophalangeal joint of middle finger"} <= said | {
        text.replace("Joint", "joint") for text in said
    }
    assert "Narrowed" in said
    assert "Ok" in set(texts(pydicom.dcmread(out / "visit1_joints.dcm")))
    assert len(list(out.glob("input-*.dcm"))) == 3  # the same file twice is one


def dicom(path, image, **elements):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    pixels = np.rint(image * 4095).astype(np.uint16)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.PixelData = 0, pixels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return str(path)


def test_dicom_visits_are_ordered_by_date_and_nothing_of_the_patient_is_written(
    hand_of_joints, tmp_path, capsys
):
    wide, _ = hand_of_joints(3, size=700)
    narrow, _ = hand_of_joints(3, size=700, gap_px=-9.0)
    common = {"PatientID": "SECRET-7", "ImageLaterality": "L", "ImagerPixelSpacing": [0.3, 0.3]}
    late = dicom(tmp_path / "Doemaier_late.dcm", narrow, StudyDate="20240301", **common)
    early = dicom(tmp_path / "Doemaier_early.dcm", wide, StudyDate="20220301", **common)
    out = tmp_path / "out"
    assert main(["hand", late, early, "-o", str(out), "--threads", "1"]) == 0
    record = HandVisitsRecord.read(out / "visits.json")
    assert [visit.day for visit in record.visits] == [0, 731]
    assert any("in the order of their dates" in note for note in record.notes)
    assert any("the detector's" in note for note in record.notes)
    assert {visit.side for visit in record.visits} == {"left"}  # the header's word, not the thumb's
    hand = HandRecord.read(out / record.visits[0].folder / "hand.json")
    assert hand.side_source == "DICOM"
    assert any("the thumb lies as a right hand's" in note for note in hand.notes)
    whole = [one for one in record.intervals if one.verdict == "narrowed"]
    assert whole
    assert all(
        one.narrowing_mm == pytest.approx(0.3 * one.narrowing_px) and one.narrowing_px > 0
        for one in whole
    )
    for path in out.rglob("*"):
        assert "Doemaier" not in path.name
        if path.suffix in (".json", ".csv", ".html"):
            text = path.read_text()
            assert not any(word in text for word in ("SECRET", "Doemaier", "20220301", "20240301"))

    other = dicom(
        tmp_path / "other.dcm", wide, StudyDate="20230101", **{**common, "PatientID": "SECRET-8"}
    )
    capsys.readouterr()
    assert main(["hand", early, other, "-o", str(out), "--threads", "1"]) == 1
    assert "name 2 patients" in capsys.readouterr().err
