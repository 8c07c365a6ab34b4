"""``blsgan jsn`` from the outside: two radiographs, a list of pairs, the study, bad input."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from blsgan.cli import main
from blsgan.errors import InputError
from blsgan.jsn.visits import check_same_joint, load_pairs
from blsgan.synthesis.phantoms import joint_phantom


@pytest.fixture(scope="module")
def phantoms():
    return joint_phantom(5, gap_px=5.0), joint_phantom(5, gap_px=4.0)


@pytest.fixture
def visits(tmp_path, phantoms, write_joint):
    return [
        write_joint(tmp_path / "in", name, source=phantom, bits=8)
        for name, phantom in zip(("before", "after"), phantoms, strict=True)
    ]


def record_of(folder):
    return json.loads((folder / "jsn.json").read_text())


def test_two_radiographs(visits, tmp_path, network, capsys):
    out = tmp_path / "out"
    args = ["jsn", str(visits[0].image), str(visits[1].image), "-o", str(out)]
    assert main([*args, "--weights", str(network), "--pixel-spacing", "0.1"]) == 0
    record = record_of(out)
    assert record["narrowing_px"] == pytest.approx(1.0, abs=0.1)
    assert record["narrowing_mm"] == pytest.approx(record["narrowing_px"] * 0.1)
    assert not record["mismatch"]
    assert record["weights"]["sha256"]
    assert record["joint_space_width"]["baseline"]["mean_mm"] > 0
    with Image.open(out / "jsn.png") as picture:
        assert picture.width > 1000
        assert np.asarray(picture).std() > 10
    assert "narrowing +" in capsys.readouterr().out
    assert record["disagreement_px"] < 0.1
    with Image.open(visits[0].image) as image:
        size = image.size
    for bone in ("upper", "lower"):
        with Image.open(out / f"jsn_residual_{bone}.png") as residual:
            values = np.asarray(residual)
            assert residual.size == size
        inside = values[values > 0] / 32767.0 - 32768 / 32767
        assert 500 < inside.size < values.size
        assert np.abs(inside).mean() < 0.05


def test_without_spacing_pixels_only_and_said(visits, tmp_path, capsys):
    out = tmp_path / "out"
    images = [str(visit.image) for visit in visits]
    assert main(["jsn", *images, "--no-separation", "-o", str(out)]) == 0
    record = record_of(out)
    assert record["narrowing_mm"] is None
    assert record["weights"] is None
    assert "in px only" in capsys.readouterr().out


def test_masks_by_option(visits, tmp_path):
    one, other = visits
    args = ["jsn", str(one.image), str(other.image), "--no-separation", "-o", str(tmp_path / "o")]
    upper = other.upper.rename(tmp_path / "m0.bmp")
    assert main(args) == 2  # one mask is a mistake; without both they are predicted
    lower = other.lower.rename(tmp_path / "m1.bmp")
    assert main([*args, "--followup-masks", str(upper), str(lower)]) == 0


def test_masks_that_are_not_there_are_predicted_and_said(visits, tmp_path, capsys):
    for visit in visits:
        visit.upper.unlink()
        visit.lower.unlink()
    out = tmp_path / "out"
    images = [str(visit.image) for visit in visits]
    assert main(["jsn", *images, "--no-separation", "-o", str(out)]) == 0
    record = record_of(out)
    assert record["narrowing_px"] == pytest.approx(1.0, abs=0.2)
    for visit in ("baseline", "follow-up"):
        assert f"{visit}: the masks were predicted, nobody drew them" in record["notes"]
    assert len(list((out / "masks").glob("*_mask_upper.png"))) == 2

    listed = tmp_path / "list"
    listed.write_text(json.dumps([{"fixed": images[0], "moving": images[1]}]))
    assert main(["jsn", "--pairs", str(listed), "--no-separation", "-o", str(tmp_path / "p")]) == 0
    with (tmp_path / "p" / "jsn.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["narrowing_px"]) == pytest.approx(record["narrowing_px"])
    assert float(row["disagreement_px"]) >= 0
    with Image.open(tmp_path / "p" / row["picture"]) as picture:
        assert picture.width > 1000


def write_dicom(path, phantom, spacing_mm):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    pixels = np.rint(phantom.image * 65535).astype(np.uint16)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelSpacing = [spacing_mm, spacing_mm]
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    for bone, mask in zip(("upper", "lower"), phantom.masks, strict=True):
        name = f"{path.stem}_mask_{bone}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(path.with_name(name))
    return path


def test_differing_spacing_is_resampled_and_said(tmp_path):
    """A visit at 0.1 mm and one at 0.08 mm per pixel: the same millimetres."""
    before = write_dicom(tmp_path / "a.dcm", joint_phantom(5, 256, gap_px=5.0), 0.1)
    after = write_dicom(tmp_path / "b.dcm", joint_phantom(5, 320, gap_px=4.0), 0.08)
    args = ["jsn", str(before), str(after), "--no-separation", "-o", str(tmp_path / "out")]
    assert main(args) == 0
    record = record_of(tmp_path / "out")
    assert record["narrowing_mm"] == pytest.approx(0.1, abs=0.01)
    assert any("resampled from 0.08 x 0.08 to 0.1 mm" in note for note in record["notes"])


def test_a_spacing_that_one_visit_lacks_is_said(tmp_path, visits):
    before = write_dicom(tmp_path / "a.dcm", joint_phantom(5, 256, gap_px=5.0), 0.1)
    args = ["jsn", str(before), str(visits[1].image), "--no-separation"]
    assert main([*args, "-o", str(tmp_path / "out")]) == 0
    record = record_of(tmp_path / "out")
    assert record["narrowing_mm"] is None
    assert record["joint_space_width"]["baseline"]["mean_mm"] is None
    assert any("no pixel spacing of the follow-up" in note for note in record["notes"])


def test_spacing_of_another_order_is_refused(tmp_path, capsys):
    before = write_dicom(tmp_path / "a.dcm", joint_phantom(5, gap_px=5.0), 0.1)
    after = write_dicom(tmp_path / "b.dcm", joint_phantom(5, gap_px=4.0), 1.0)
    args = ["jsn", str(before), str(after), "--no-separation", "-o", str(tmp_path / "out")]
    assert main(args) == 1
    assert "check the pixel spacing" in capsys.readouterr().err


def test_a_mismatch_is_marked(tmp_path, write_joint, capsys):
    one = write_joint(tmp_path, "one", source=joint_phantom(1, gap_px=5.0))
    other = write_joint(tmp_path, "other", source=joint_phantom(9, gap_px=5.0))
    out = tmp_path / "out"
    args = ["jsn", str(one.image), str(other.image), "--no-separation", "-o", str(out)]
    assert main(args) == 1
    record = record_of(out)
    assert record["mismatch"]
    assert record["problems"]
    assert record["quality"] == 0
    assert "is no measurement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("one", "other", "differing"),
    [
        ("00054_L_13/a.jpg", "00054_R_13/b.jpg", "side"),
        ("00054_L_13/a.jpg", "00054_L_2/b.jpg", "joint"),
        ("x/00054_L_13.png", "x/00060_L_13.png", "patient"),
    ],
)
def test_different_joints_are_refused(tmp_path, one, other, differing):
    with pytest.raises(InputError, match=f"the {differing} of"):
        check_same_joint(tmp_path / one, tmp_path / other)


def test_names_that_say_nothing_are_accepted(tmp_path):
    check_same_joint(tmp_path / "00054_L_13/a.jpg", tmp_path / "b.jpg")
    check_same_joint(tmp_path / "00054_L_13/a.jpg", tmp_path / "00054_L_13/b.jpg")


def entry(folder, one, other):
    names = {"joint_name": folder}
    for role, stem in (("fixed", one), ("moving", other)):
        names[role] = f"{folder}/{stem}.jpg"
        for bone in ("upper", "lower"):
            names[f"{role}_{bone}"] = f"{folder}/{stem}_mask_{bone}.bmp"
    return names


def test_a_list_of_pairs_goes_on_after_a_bad_one(dataset, images, tmp_path, capsys):
    joint = images[0].joint
    pairs = [entry(joint, "b", "b"), entry(joint, "b", "missing"), entry(joint, "b", "b")]
    listed = tmp_path / "DR_list"
    for pair in pairs:
        for key, value in pair.items():
            if key != "joint_name":
                pair[key] = str(dataset / "Dataset_cases_anonymization" / value)
    listed.write_text(json.dumps(pairs))
    out = tmp_path / "out"
    assert main(["jsn", "--pairs", str(listed), "--no-separation", "-o", str(out)]) == 1
    with (out / "jsn.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2
    assert float(rows[0]["narrowing_px"]) == pytest.approx(0, abs=1e-3)
    assert rows[1]["mismatch"] == "True"
    assert "does not exist" in rows[1]["problems"]
    printed = capsys.readouterr()
    assert (
        "2 pairs (1 repeated entries left out): 1 measured, 0 mismatches, 1 failed" in printed.out
    )
    assert "missing" in printed.err


def test_a_pair_of_two_joints_in_a_list_is_a_line_with_its_reason(dataset, images, tmp_path):
    one, other = entry(images[0].joint, "b", "b"), entry(images[-1].joint, "b", "b")
    assert images[0].joint != images[-1].joint
    pair = {**one, **{key: value for key, value in other.items() if key.startswith("moving")}}
    for key, value in pair.items():
        if key != "joint_name":
            pair[key] = str(dataset / "Dataset_cases_anonymization" / value)
    listed = tmp_path / "DR_list"
    listed.write_text(json.dumps([pair]))
    out = tmp_path / "out"
    assert main(["jsn", "--pairs", str(listed), "--no-separation", "-o", str(out)]) == 1
    with (out / "jsn.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["mismatch"] == "True"
    assert "different joints" in row["problems"]
    assert "narrowing_px" not in row


def test_paths_of_a_list_are_found_below_the_dataset(dataset, images, tmp_path):
    folder = "Dataset_cases_anonymization"
    (tmp_path / folder).symlink_to(dataset / folder)
    listed = tmp_path / "DR_K1_train"
    listed.write_text(json.dumps([entry(images[0].joint, "a", "b")]))
    (pair,), repeated = load_pairs(listed)
    assert repeated == 0
    assert pair.baseline.image.exists()
    assert pair.followup.lower.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", '[{"fixed": "a"}]', '{"a": 1}'])
def test_what_is_no_list_of_pairs_is_one_sentence(tmp_path, text, capsys):
    listed = tmp_path / "list"
    listed.write_text(text)
    assert main(["jsn", "--pairs", str(listed), "--no-separation", "-o", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("blsgan: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ["a.png", "-o", "out"],
        ["-o", "out"],
        ["a.png", "b.png", "--pairs", "list", "-o", "out"],
        ["a.png", "b.png", "--no-separation", "--weights", "lite", "-o", "out"],
        ["a.png", "b.png"],
    ],
)
def test_wrong_use_ends_with_two(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["jsn", *args]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_missing_image_is_one_sentence(tmp_path, capsys):
    args = ["jsn", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--no-separation"]
    assert main([*args, "-o", str(tmp_path / "out")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_study_command(dataset, network, tmp_path, capsys):
    args = ["jsn", "study", "--data", str(dataset), "--limit", "1", "--weights", str(network)]
    assert main([*args, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "split val: 1 images" in printed
    assert "| overlap, without separation |" in printed
    assert (tmp_path / "out" / "study.json").is_file()
    with Image.open(tmp_path / "out" / "bland_altman.png") as plot:
        assert plot.width > 1000
        assert np.asarray(plot.convert("L")).std() > 5


def test_study_of_consistency_alone(images, network, tmp_path, capsys):
    """A joint of three visits, one of them twice."""
    root = tmp_path / "Data"
    listed = [image for image in images if image.joint == images[0].joint]
    entries = []
    for index, image in enumerate([listed[1], *listed]):
        folder = root / "Dataset_cases_anonymization" / image.joint
        folder.mkdir(parents=True, exist_ok=True)
        names = {}
        for key in ("image", "upper", "lower"):
            source = getattr(image, key)
            target = folder / f"{index}_{source.name}"
            target.write_bytes(source.read_bytes())
            names[key] = str(target.relative_to(root))
        entries.append(names)
    (root / "LS_K1_all_train").write_text(json.dumps(entries))
    args = ["jsn", "study", "--data", str(root), "--weights", str(network), "-o"]
    assert main([*args, str(tmp_path / "out"), "--part", "consistency"]) == 0
    printed = capsys.readouterr().out
    assert "split val: 3 images of 1 joints" in printed
    assert "Known displacements" not in printed
    with (tmp_path / "out" / "consistency.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["overlapped_visits"] for row in rows} == {"1"}
    for row in rows:
        total = float(row["ab_px"]) + float(row["bc_px"]) - float(row["ac_px"])
        assert float(row["difference_px"]) == pytest.approx(total)
    assert not (tmp_path / "out" / "bland_altman.png").exists()
    assert main([*args, str(tmp_path / "out"), "--part", "consistence"]) == 2
    assert main([*args[:-1], "--figures"]) == 2
