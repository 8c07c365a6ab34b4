"""DICOM objects read back: what they show, whom they belong to, what they refer to."""

import json
import os
import re
import shutil
import warnings

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image

from blsgan.cli import main
from blsgan.clinical.identity import Policy
from blsgan.errors import InputError
from blsgan.io.masks import BONES
from blsgan.io.stored import find_results
from blsgan.synthesis.phantoms import joint_phantom


def export(case, output, *options):
    runs = [str(case.results), str(case.jsn)]
    return main(["export-dicom", *runs, "--images", str(case.images), "-o", str(output), *options])


@pytest.fixture(scope="module")
def anonymous(case, tmp_path_factory):
    out = tmp_path_factory.mktemp("anonymous")
    assert export(case, out, "--salt", "pepper") == 0
    return out


@pytest.fixture(scope="module")
def kept(case, tmp_path_factory):
    out = tmp_path_factory.mktemp("kept")
    assert export(case, out, "--keep-identity") == 0
    return out


def read(folder, ending):
    return [pydicom.dcmread(path) for path in sorted(folder.rglob(f"*{ending}.dcm"))]


def reports(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("jsn-*.dcm"))]


def everything(folder):
    return read(folder, "")


def test_what_is_written(anonymous, kept):
    assert len(read(anonymous, "_upper")) == len(read(anonymous, "_lower")) == 2
    assert len(read(anonymous, "_masks")) == 2
    assert len(list(anonymous.glob("input-*.dcm"))) == 2
    assert len(list(anonymous.glob("jsn-*.dcm"))) == 1
    assert len(everything(anonymous)) == 9
    assert len(everything(kept)) == 7
    assert not list(kept.glob("input-*.dcm"))


def test_layers_hold_what_was_separated(case, anonymous):
    results = {result.name: result for result in find_results(case.results)}
    for bone in BONES:
        for path in anonymous.glob(f"*_{bone}.dcm"):
            image = pydicom.dcmread(path)
            layer = results[path.stem.removesuffix(f"_{bone}")].planes()[bone]
            np.testing.assert_array_equal(image.pixel_array, np.rint(layer * np.float32(65535)))
            assert image.SOPClassUID.name == "Secondary Capture Image Storage"
            assert list(image.ImageType)[:2] == ["DERIVED", "SECONDARY"]
            assert image.ImageType[3] == f"{bone.upper()}_LAYER"
            assert image.PhotometricInterpretation == "MONOCHROME2"
            assert [float(side) for side in image.PixelSpacing] == [0.2, 0.2]
            assert image.ImagerPixelSpacing == image.PixelSpacing
            record = results[path.stem.removesuffix(f"_{bone}")].record
            assert record.weights.sha256 in image.DerivationDescription
            assert record.inputs["image"].sha256 in image.DerivationDescription
            assert image.Modality == "DX"
            assert image.ImageLaterality == "L"


def test_a_viewer_shows_a_layer_as_it_is(anonymous):
    from pydicom.pixels import apply_windowing

    image = read(anonymous, "_upper")[0]
    shown = apply_windowing(image.pixel_array, image)
    np.testing.assert_allclose(shown, image.pixel_array, atol=1.0)


def test_masks_are_segments_that_may_overlap(case, anonymous):
    for segmentation in read(anonymous, "_masks"):
        found = highdicom.seg.Segmentation.from_dataset(segmentation)
        assert [segment.SegmentLabel for segment in found.SegmentSequence] == [
            "upper bone", "lower bone",
        ]  # fmt: skip
        source = found.SourceImageSequence[0].ReferencedSOPInstanceUID
        frames = found.get_pixels_by_source_instance([source])
        masks = np.moveaxis(frames[0].astype(bool), -1, 0)
        phantom = next(p for p in case.phantoms if np.array_equal(p.masks[:2], masks))
        assert phantom.overlap.any()
        assert {segment.SegmentAlgorithmType for segment in found.SegmentSequence} == {"MANUAL"}
        assert [float(side) for side in found.PixelSpacing] == [0.2, 0.2]


def values(document):
    """Measurements of a report by their code, with unit."""
    report = highdicom.sr.EnhancedSR.from_dataset(document).content
    return {
        measurement.name.value: (measurement.value, measurement.unit.value)
        for group in report.get_image_measurement_groups()
        for measurement in group.get_measurements()
    }


def codes_of(document):
    report = highdicom.sr.EnhancedSR.from_dataset(document).content
    return [
        evaluation.value.value
        for group in report.get_image_measurement_groups()
        for evaluation in group.get_qualitative_evaluations()
    ]


def test_the_report_holds_the_measurement(case, anonymous):
    record = json.loads((case.jsn / "jsn.json").read_text())
    (document,) = reports(anonymous)
    found = values(document)
    assert not record["mismatch"]
    assert found["JSN"] == (pytest.approx(record["narrowing_mm"]), "mm")
    assert found["QUALITY"][0] == pytest.approx(record["quality"])
    width = record["joint_space_width"]["followup"]
    assert found["JSWMIN"] == (pytest.approx(width["minimum_mm"]), "mm")
    assert codes_of(document) == ["MEASURED"]
    assert document.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    inputs = {image.SOPInstanceUID for image in (
        pydicom.dcmread(path) for path in anonymous.glob("input-*.dcm"))}  # fmt: skip
    evidence = highdicom.sr.EnhancedSR.from_dataset(document).get_evidence()
    assert {entry[2] for entry in evidence} == inputs


def test_a_mismatch_measures_nothing_and_says_why(case, tmp_path):
    jsn = tmp_path / "jsn"
    shutil.copytree(case.jsn, jsn)
    record = json.loads((jsn / "jsn.json").read_text())
    record |= {"mismatch": True, "problems": ["the bones would have moved 23 px"]}
    (jsn / "jsn.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    assert main(["export-dicom", str(jsn), "--images", str(case.images), "-o", str(out)]) == 0
    (document,) = reports(out)
    assert "JSN" not in values(document)
    assert codes_of(document) == ["MISMATCH"]
    comments = [item.TextValue for item in document.ContentSequence if "TextValue" in item]
    assert "the bones would have moved 23 px" in comments


def test_without_spacing_the_report_is_in_pixels(case, tmp_path):
    jsn = tmp_path / "jsn"
    shutil.copytree(case.jsn, jsn)
    record = json.loads((jsn / "jsn.json").read_text())
    record |= {"pixel_mm": None, "narrowing_mm": None}
    (jsn / "jsn.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    assert main(["export-dicom", str(jsn), "--images", str(case.images), "-o", str(out)]) == 0
    (document,) = reports(out)
    assert values(document)["JSN"] == (pytest.approx(record["narrowing_px"]), "{pixels}")


def test_anonymous_objects_tell_nobody(anonymous, identifying):
    for path in anonymous.rglob("*.dcm"):
        data = path.read_bytes()
        for text in identifying:
            assert text.encode() not in data, (path.name, text)
        dataset = pydicom.dcmread(path)
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.PatientID.startswith("ANON-")
        assert not dataset.StudyDate
        assert not dataset.PatientBirthDate
        assert not any(element.tag.is_private for element in dataset)
        purposes = {item.PurposeOfReferenceCodeSequence[0].CodeValue
                    for item in dataset.ContributingEquipmentSequence}  # fmt: skip
        assert "109101" not in purposes


def test_no_folder_of_the_results_becomes_a_name(case, tmp_path, identifying):
    """Results lie in a folder called after the patient; the run is named from above it."""
    out = tmp_path / "dicom"
    run = case.results.parent
    assert "Doe" in run.name
    args = ["--images", str(case.images), "-o", str(out)]
    assert main(["export-dicom", str(run.parent), *args]) == 0
    names = [str(path.relative_to(out)) for path in out.rglob("*")]
    assert len(names) == 9
    assert not any(text in name for text in identifying for name in names)
    page = tmp_path / "report.html"
    assert main(["report", str(run.parent), "--images", str(case.images), "-o", str(page)]) == 0
    # A picture's base64 may spell any three letters.
    said = re.sub(r"data:[^\"']+", "", page.read_text(encoding="utf-8"))
    assert "anonymous-" in said
    assert not any(text in said for text in identifying)


def test_anonymous_objects_belong_together(anonymous):
    assert len({dataset.PatientID for dataset in everything(anonymous)}) == 1
    inputs = {image.SOPInstanceUID: image for image in (
        pydicom.dcmread(path) for path in anonymous.glob("input-*.dcm"))}  # fmt: skip
    assert len({image.StudyInstanceUID for image in inputs.values()}) == 2
    for dataset in [*read(anonymous, "_upper"), *read(anonymous, "_masks")]:
        source = dataset.SourceImageSequence[0].ReferencedSOPInstanceUID
        assert inputs[source].StudyInstanceUID == dataset.StudyInstanceUID
    uids = [dataset.SOPInstanceUID for dataset in everything(anonymous)]
    assert len(set(uids)) == len(uids)


def test_the_salt_decides_whether_exports_meet(case, anonymous, tmp_path):
    assert export(case, tmp_path / "same", "--salt", "pepper") == 0
    assert export(case, tmp_path / "new") == 0
    for path in anonymous.glob("input-*.dcm"):
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
    ours, new = ({dataset.StudyInstanceUID for dataset in everything(folder)}
                 for folder in (anonymous, tmp_path / "new"))  # fmt: skip
    assert not ours & new
    layers = [{image.SOPInstanceUID for image in read(folder, "_upper")}
              for folder in (anonymous, tmp_path / "same")]  # fmt: skip
    assert not layers[0] & layers[1]


def test_kept_identity_is_the_sources(kept):
    for dataset in everything(kept):
        assert str(dataset.PatientName) == "Doe^Jane"
        assert dataset.PatientID == "MRN-4711"
        assert dataset.StudyInstanceUID in ("1.2.3.4.1", "1.2.3.4.2")
        assert dataset.AccessionNumber == "ACC-99"
        assert "PatientIdentityRemoved" not in dataset
    (document,) = reports(kept)
    assert document.StudyInstanceUID == "1.2.3.4.2"
    for image in read(kept, "_lower"):
        number = image.StudyInstanceUID[-1]
        assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == f"1.2.3.4.{number}.3"
        assert image.SourceImageSequence[0].ReferencedSOPClassUID.name.startswith("Digital X-Ray")
    assert not any(element.tag.is_private for dataset in everything(kept) for element in dataset)


def test_identity_that_is_not_there_cannot_be_kept(separated_raster, tmp_path, capsys):
    folder = separated_raster
    args = [str(folder / "out"), "--images", str(folder / "in"), "-o", str(tmp_path)]
    assert main(["export-dicom", *args, "--keep-identity"]) == 1
    assert "is no DICOM file, so it has no identity to keep" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    assert main(["export-dicom", *args, "--patient-id", "study-7"]) == 0
    assert {dataset.PatientID for dataset in everything(tmp_path)} == {"study-7"}


@pytest.fixture
def separated_raster(tmp_path_factory, network, write_joint):
    folder = tmp_path_factory.mktemp("raster")
    write_joint(folder / "in/hand", "joint", source=joint_phantom(3, 128, gap_px=-8.0))
    weights = ["--weights", str(network)]
    assert main(["separate", str(folder / "in"), "-o", str(folder / "out"), *weights]) == 0
    return folder


def test_visits_that_a_measurement_connects_are_one_patients(tmp_path, write_joint):
    for name, gap in (("a", 5.0), ("b", 4.0), ("c", 3.0)):
        write_joint(tmp_path / "in", name, source=joint_phantom(5, 128, gap_px=gap), bits=8)
    for one, other in ("ab", "bc"):
        pair = [str(tmp_path / "in" / f"{name}.png") for name in (one, other)]
        assert main(["jsn", *pair, "--no-separation", "-o", str(tmp_path / "runs" / one)]) == 0
    args = ["--images", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert main(["export-dicom", str(tmp_path / "runs"), *args]) == 0
    assert len(everything(tmp_path / "out")) == 5
    assert len({dataset.PatientID for dataset in everything(tmp_path / "out")}) == 1


def test_visits_of_which_one_header_knows_the_patient_are_one_patients(
    case, tmp_path, write_radiograph
):
    named = write_radiograph(tmp_path / "in/a.dcm", case.phantoms[0], 1)
    nameless = write_radiograph(tmp_path / "in/b.dcm", case.phantoms[1], 2, PatientID=None)
    same = write_radiograph(tmp_path / "in/c.dcm", joint_phantom(5, 128, gap_px=-3.0), 3)
    other = write_radiograph(
        tmp_path / "in/d.dcm", joint_phantom(5, 128, gap_px=-2.0), 4, PatientID="MRN-1"
    )
    for run, pair in (("ab", (named, nameless)), ("cc", (same, same)), ("dd", (other, other))):
        output = str(tmp_path / "runs" / run)
        assert main(["jsn", *map(str, pair), "--no-separation", "-o", output]) == 0
    out = tmp_path / "out"
    args = ["--images", str(tmp_path / "in"), "-o", str(out), "--salt", "pepper"]
    assert main(["export-dicom", str(tmp_path / "runs"), *args]) == 0
    ids = {image.StudyInstanceUID: image.PatientID for image in read(out, "") if "Rows" in image}
    studies = [Policy(salt="pepper").uid("study", f"1.2.3.4.{visit}") for visit in (1, 2, 3, 4)]
    a, b, c, d = (ids[study] for study in studies)
    assert a == b == c != d


def test_a_measured_radiograph_is_read_as_it_was_measured(case, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    expected = set()
    for name, phantom in zip("ab", case.phantoms, strict=True):
        stored = np.rint((1 - phantom.image) * 1023).astype(np.uint16)  # darker than 12 bits can be
        Image.fromarray(stored).save(folder / f"{name}.png")
        expected.add(np.rint((1 - stored / np.float32(4095)) * 65535).astype(np.uint16).tobytes())
        for bone, mask in zip(BONES, phantom.masks, strict=True):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}_mask_{bone}.png")
    pair = [str(folder / f"{name}.png") for name in "ab"]
    reading = ["--invert", "--bit-depth", "12", "--no-separation"]
    assert main(["jsn", *pair, *reading, "-o", str(tmp_path / "jsn")]) == 0
    record = json.loads((tmp_path / "jsn/jsn.json").read_text())
    for side in ("baseline", "followup"):
        assert record[side]["options"] == {
            "bit_depth": 12, "invert": True, "pixel_spacing_mm": None,
        }  # fmt: skip
    out = tmp_path / "out"
    args = ["--images", str(folder), "-o", str(out)]
    assert main(["export-dicom", str(tmp_path / "jsn"), *args]) == 0
    written = [pydicom.dcmread(path).pixel_array for path in out.glob("input-*.dcm")]
    for pixels in map(np.frombuffer, expected, ["<u2"] * 2):
        assert any(
            np.abs(pixels.reshape(found.shape).astype(int) - found).max() <= 1 for found in written
        )


def test_a_record_without_read_options_is_still_exported(case, tmp_path):
    jsn = tmp_path / "jsn"
    shutil.copytree(case.jsn, jsn)
    record = json.loads((jsn / "jsn.json").read_text())
    for side in ("baseline", "followup"):
        del record[side]["options"]
    (jsn / "jsn.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    assert main(["export-dicom", str(jsn), "--images", str(case.images), "-o", str(out)]) == 0
    assert len(everything(out)) == 3


def test_predicted_masks_are_said_to_be_automatic(separated_raster, tmp_path):
    path = separated_raster / "out/hand/joint.json"
    record = json.loads(path.read_text())
    record["masks"] = {"source": "predicted", "confidence": {"score": 0.9}}
    path.write_text(json.dumps(record))
    args = [str(separated_raster / "out"), "--images", str(separated_raster / "in")]
    assert main(["export-dicom", *args, "-o", str(tmp_path)]) == 0
    (segmentation,) = read(tmp_path, "_masks")
    segment = segmentation.SegmentSequence[0]
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert "confidence=0.900" in algorithm.AlgorithmParameters


def test_results_of_one_name_do_not_replace_each_other(separated_raster, tmp_path, capsys):
    shutil.copytree(separated_raster / "out", tmp_path / "other")
    runs = [str(separated_raster / "out"), str(tmp_path / "other")]
    args = ["--images", str(separated_raster / "in"), "-o", str(tmp_path / "d")]
    assert main(["export-dicom", *runs, *args]) == 1
    assert "was written for another result of that name" in capsys.readouterr().err
    assert len(everything(tmp_path / "d")) == 4


def test_inputs_that_are_not_found_are_said(case, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    args = [str(case.results), "--images", str(tmp_path / "empty"), "-o", str(tmp_path / "out")]
    assert main(["export-dicom", *args]) == 1
    assert "give its folder with --images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_burnt_in_annotations_are_not_passed_on(tmp_path, network, write_radiograph, capsys):
    phantom = joint_phantom(2, 128, gap_px=-8.0)
    write_radiograph(tmp_path / "in/a.dcm", phantom, 1, BurnedInAnnotation="YES")
    weights = ["--weights", str(network)]
    assert main(["separate", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *weights]) == 0
    args = [str(tmp_path / "out"), "--images", str(tmp_path / "in"), "-o", str(tmp_path / "d")]
    assert main(["export-dicom", *args]) == 1
    assert "burnt into its pixels" in capsys.readouterr().err
    assert main(["export-dicom", *args, "--keep-identity"]) == 0


def test_warnings_that_quote_a_name_stay_inside(tmp_path, network, write_radiograph, recwarn):
    phantom = joint_phantom(2, 128, gap_px=-8.0)
    write_radiograph(tmp_path / "in/a.dcm", phantom, 1, PatientName="DoeWithoutCaret")
    weights = ["--weights", str(network)]
    assert main(["separate", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *weights]) == 0
    args = [str(tmp_path / "out"), "--images", str(tmp_path / "in"), "-o", str(tmp_path / "d")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["export-dicom", *args, "--keep-identity"]) == 0


def test_refusals(case, tmp_path, capsys):
    assert export(case, tmp_path, "--keep-identity", "--salt", "x") == 2
    assert export(case, tmp_path, "--patient-id", " ") == 2
    (tmp_path / "none").mkdir()
    args = [str(tmp_path / "none"), "--images", str(case.images), "-o", str(tmp_path / "o")]
    assert main(["export-dicom", *args]) == 1
    assert "holds no result" in capsys.readouterr().err


def test_the_missing_library_is_named(case, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert export(case, tmp_path) == 1
    assert "pip install 'blsgan[clinical]'" in capsys.readouterr().err


def test_uids_are_valid_and_depend_on_every_part():
    policy = Policy(salt="s")
    uid = pydicom.uid.UID(policy.uid("study", "1.2.3"))
    assert uid.is_valid
    others = {policy.uid("study", "1.2.4"), policy.uid("series", "1.2.3")}
    others.add(Policy(salt="t").uid("study", "1.2.3"))
    assert uid not in others
    assert len(others) == 3
    assert Policy().salt != Policy().salt


def with_bytes(path, keyword, data):
    """Put bytes into a text or date that no library would write: the element's value, patched."""
    import struct

    from pydicom.tag import Tag

    tag = Tag(keyword)
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", tag.group, tag.element), 132)
    (length,) = struct.unpack_from("<H", content, at + 6)
    data = data + b" " * (len(data) % 2)
    head = content[: at + 6] + struct.pack("<H", len(data))
    path.write_bytes(head + data + content[at + 8 + length :])


@pytest.fixture
def separated(tmp_path, network, write_radiograph, capsys):
    """Export a radiograph with its identity after a change: status, objects, output."""

    def run(change=lambda path: None, **elements):
        joint = joint_phantom(5, 128, gap_px=-4.0)
        path = write_radiograph(tmp_path / "in/a.dcm", joint, 1, **elements)
        change(path)
        args = ["--weights", str(network)]
        assert main(["separate", str(path), "-o", str(tmp_path / "out"), *args]) == 0
        capsys.readouterr()
        args = [str(tmp_path / "out"), "--images", str(tmp_path / "in"), "-o", str(tmp_path / "d")]
        status = main(["export-dicom", *args, "--keep-identity"])
        return status, everything(tmp_path / "d"), "".join(capsys.readouterr())

    return run


@pytest.fixture
def normalised_of(tmp_path, write_radiograph):
    """What is taken over from a header, and the keywords of what is not."""
    from blsgan.clinical.header import normalised

    def run(keyword, data, **elements):
        joint = joint_phantom(5, 64)
        path = write_radiograph(tmp_path / "a.dcm", joint, 1, **elements)
        with_bytes(path, keyword, data)
        header = pydicom.dcmread(path, stop_before_pixels=True)
        return normalised(header, "a.dcm")

    return run


@pytest.mark.parametrize(
    ("charset", "data", "name"),
    [
        (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "山田^太郎"),
        (
            ["", "ISO 2022 IR 149"],
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
            "洪^吉洞",
        ),
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("ISO-IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("LATIN1", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("UTF-8", "Müller^Jörg".encode(), "Müller^Jörg"),
        ("ISO_IR 192", "Müller^Jörg".encode(), "Müller^Jörg"),
        ("ISO_IR 144", "Люк^Иван".encode("iso8859_5"), "Люк^Иван"),
    ],
)
def test_a_kept_name_is_the_sources_in_any_character_set(normalised_of, charset, data, name):
    header, emptied = normalised_of("PatientName", data, SpecificCharacterSet=charset)
    assert name in str(header.PatientName)
    assert header.SpecificCharacterSet == "ISO_IR 192"
    assert emptied == []


@pytest.mark.parametrize(
    ("charset", "data"),
    [
        (None, "Müller^Jörg".encode("latin-1")),  # none declared: ASCII
        ("ISO_IR 192", "Müller^Jörg".encode("latin-1")),
        ("KLINGON", "Müller^Jörg".encode("latin-1")),
        (["", "ISO 2022 IR 87"], b"Yamada=\x1b$Z;3ED\x1b(B"),
    ],
)
def test_a_name_that_its_character_set_cannot_hold_is_refused(normalised_of, charset, data):
    declared = {} if charset is None else {"SpecificCharacterSet": charset}
    with pytest.raises(InputError, match="its PatientName does not fit the character") as error:
        normalised_of("PatientName", data, **declared)
    assert "ller" not in str(error.value)


@pytest.mark.parametrize(
    ("keyword", "data", "value"),
    [
        ("PatientBirthDate", b"1961.02.03", "19610203"),
        ("StudyDate", b"2024-05-06", "20240506"),
        ("StudyTime", b"10:11:12", "101112"),
        ("StudyTime", b"10:11:12.5", "101112.5"),
        ("StudyTime", b"1011", "1011"),
        ("PatientSex", b"FEMALE", "F"),
        ("PatientSex", b"male", "M"),
    ],
)
def test_what_can_only_be_meant_one_way_is_written_that_way(normalised_of, keyword, data, value):
    header, emptied = normalised_of(keyword, data)
    assert (str(header[keyword].value), emptied) == (value, [])


@pytest.mark.parametrize(
    ("keyword", "data"),
    [
        ("PatientBirthDate", b"unknown"),
        ("StudyDate", b"20240231"),
        ("StudyTime", b"25:61"),
        ("PatientSex", b"secret"),
        ("StudyID", b"far longer than sixteen characters"),
        ("AccessionNumber", b"far longer than sixteen characters"),
    ],
)
def test_what_means_nothing_is_left_empty_and_named(normalised_of, keyword, data):
    header, emptied = normalised_of(keyword, data)
    assert emptied == [keyword]
    assert not header[keyword].value


@pytest.mark.slow
def test_an_odd_header_is_exported_with_a_note_that_quotes_nothing(separated):
    def change(path):
        with_bytes(path, "StudyDate", b"1.4.2024 or so")
        with_bytes(path, "PatientName", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B")

    status, objects, output = separated(change, SpecificCharacterSet=["", "ISO 2022 IR 87"])
    assert (status, len(objects)) == (0, 3), output
    assert {str(dataset.PatientName) for dataset in objects} == {"Yamada^Tarou=山田^太郎"}
    assert "StudyDate left empty" in output
    assert "or so" not in output


@pytest.mark.slow
def test_a_name_that_would_be_damaged_is_not_exported(separated):
    status, objects, output = separated(
        lambda path: with_bytes(path, "PatientName", "Müller".encode("latin-1"))
    )
    assert (status, objects) == (1, [])
    assert "its PatientName does not fit the character set" in output


@pytest.mark.slow
@pytest.mark.parametrize("uid", ["1.2.840.999999.1.2.3", "1.2.840.10008.5.1.1.29"])
def test_a_class_of_its_own_is_referred_to_as_it_is(separated, uid):
    status, objects, output = separated(SOPClassUID=uid)
    assert (status, len(objects)) == (0, 3), output
    found = {
        item.ReferencedSOPClassUID
        for dataset in objects
        for item in dataset.get("SourceImageSequence", [])
    }
    assert found == {uid}


def test_one_bad_record_does_not_end_the_export(case, tmp_path, capsys, monkeypatch):
    from blsgan.clinical import export as module

    real, calls = module.segmentation, []

    def fails_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("Doe^Jane")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "segmentation", fails_once)
    assert export(case, tmp_path) == 1
    output = "".join(capsys.readouterr())
    assert output.count("failed:") == 1
    assert "Doe^Jane" not in output
    assert len(read(tmp_path, "_masks")) == 1
    assert reports(tmp_path)
