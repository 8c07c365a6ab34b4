"""`blsgan segment`, and `blsgan separate` without masks, as a user meets them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import blsgan
from blsgan.cli import main
from blsgan.errors import UsageError
from blsgan.evaluation.segmentation import dice
from blsgan.joint.zone import PREDICTED_MARGIN_PX, REACH_PX, grown, zone
from blsgan.synthesis.hand import hand_phantom
from blsgan.synthesis.phantoms import joint_phantom

NAMES = [
    "joint_mask.json",
    "joint_mask_lower.png",
    "joint_mask_overlay.png",
    "joint_mask_upper.png",
]


@pytest.fixture
def run(capfd):
    """Run a command in this process: (status, stdout, stderr)."""

    def command(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return command


@pytest.fixture
def joint(write_joint, tmp_path):
    """A phantom without masks beside it."""
    files = write_joint(tmp_path / "in")
    files.upper.unlink()
    files.lower.unlink()
    return files


def read(path):
    return np.asarray(Image.open(path))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_file(run, joint, tmp_path):
    out = tmp_path / "out"
    status, stdout, stderr = run("segment", joint.image, "-o", out)
    assert (status, stderr) == (0, "")
    assert names(out) == NAMES
    assert str(out / "joint_mask_overlay.png") in stdout
    record = json.loads((out / "joint_mask.json").read_text())
    for bone, drawn in zip(("upper", "lower"), joint.masks, strict=True):
        mask = read(out / f"joint_mask_{bone}.png")
        assert set(np.unique(mask)) == {0, 255}
        assert dice(mask > 0, drawn) > 0.98
        assert record["area_px"][bone] == np.count_nonzero(mask)
    assert record["kind"] == "masks"
    assert record["doubtful"] is False
    assert 0.5 < record["confidence"]["score"] <= 1
    assert record["weights"]["name"] == "segmenter"
    assert len(record["outputs"]) == 3


def test_a_folder_a_rerun_and_a_picture_without_a_joint(run, joint, tmp_path):
    folder, out = joint.image.parent, tmp_path / "out"
    (folder / "sub").mkdir()
    shutil.copy(joint.image, folder / "sub" / "joint.png")
    hand = np.rint(255 * hand_phantom(1, 300)).astype(np.uint8)
    Image.fromarray(hand).save(folder / "hand.png")
    status, stdout, stderr = run("segment", folder, "-o", out)
    assert status == 1
    assert "2 segmented, 0 already finished, 1 failed" in stdout
    assert f"failed: {folder / 'hand.png'}: " in stderr
    assert names(out) == sorted([*NAMES, *(f"sub/{name}" for name in NAMES)])
    (folder / "hand.png").unlink()
    assert "0 segmented, 2 already finished, 0 failed" in run("segment", folder, "-o", out)[1]
    several = run("segment", joint.image, folder / "sub", "-o", tmp_path / "other")
    assert several[0] == 2
    assert "results of one name" in several[2]


def test_a_list_of_the_public_dataset(run, dataset, tmp_path):
    status, stdout, _ = run("segment", dataset / "LS_K1_all_train", "-o", tmp_path)
    assert status == 0
    assert "8 segmented" in stdout


def test_masks_that_were_drawn_are_never_written_over(run, joint, tmp_path):
    target = joint.image.with_name("joint_mask_upper.png")
    Image.fromarray(joint.masks[0].astype(np.uint8) * 255).save(target)
    before = target.read_bytes()
    for options in ([], ["--overwrite"]):
        status, _, stderr = run("segment", joint.image, "-o", joint.image.parent, *options)
        assert status == 2
        assert "was not predicted" in stderr
        assert target.read_bytes() == before
        assert names(joint.image.parent) == ["joint.png", "joint_mask_upper.png"]


def test_predicted_masks_may_be_predicted_again_until_someone_changes_them(run, joint, tmp_path):
    out = tmp_path / "out"
    assert run("segment", joint.image, "-o", out)[0] == 0
    assert run("segment", joint.image, "-o", out, "--overwrite")[0] == 0
    Image.fromarray(joint.masks[0].astype(np.uint8) * 255).save(out / "joint_mask_upper.png")
    assert run("segment", joint.image, "-o", out)[0] == 2


class TestSeparateWithoutMasks:
    def test_masks_are_predicted_written_and_said_to_be(self, run, joint, tmp_path):
        out = tmp_path / "out"
        status, stdout, stderr = run("separate", joint.image, "-o", out)
        assert (status, stderr) == (0, "")
        assert "note: the masks were predicted, nobody drew them" in stdout
        assert set(NAMES) < set(names(out))
        record = json.loads((out / "joint.json").read_text())
        assert record["masks"]["source"] == "predicted"
        assert record["masks"]["weights"]["name"] == "segmenter"
        assert record["masks"]["confidence"]["score"] > 0.5
        assert record["masks"]["doubtful"] is False
        masks = np.stack([read(out / f"joint_mask_{bone}.png") > 0 for bone in ("upper", "lower")])
        reaching = np.stack([grown(mask, PREDICTED_MARGIN_PX) for mask in masks])
        reached = masks | zone(reaching, REACH_PX)
        assert not read(out / "joint_upper.png")[~reached[0]].any()
        before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
        assert "up to date" in run("separate", joint.image, "-o", out)[1]
        assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before

    def test_masks_that_segment_wrote_are_found_and_known(self, run, joint, tmp_path):
        assert run("segment", joint.image.parent, "-o", joint.image.parent)[0] == 0
        status, stdout, _ = run("separate", joint.image.parent, "-o", tmp_path / "out")
        assert status == 0
        assert "1 separated, 0 already finished, 0 failed" in stdout
        assert "note (1 of 1): the masks were predicted" in stdout
        record = json.loads((tmp_path / "out/joint.json").read_text())
        assert record["masks"]["source"] == "predicted"
        assert not list((tmp_path / "out").glob("*_mask*"))

    def test_masks_that_were_given_are_said_to_be(self, run, write_joint, tmp_path):
        files = write_joint(tmp_path / "in")
        assert run("separate", files.image, "-o", tmp_path / "out")[0] == 0
        assert json.loads((tmp_path / "out/joint.json").read_text())["masks"] == {"source": "given"}

    def test_what_drawn_masks_made_is_not_replaced_by_predicted_ones(
        self, run, write_joint, tmp_path
    ):
        files, out = write_joint(tmp_path / "in"), tmp_path / "out"
        assert run("separate", files.image, "-o", out)[0] == 0
        before = {name: (out / name).read_bytes() for name in names(out)}
        files.upper.unlink()
        files.lower.unlink()
        for source in (files.image, files.image.parent):
            status, _, stderr = run("separate", source, "-o", out)
            assert status != 0
            assert "was made with drawn masks" in stderr
        with pytest.raises(UsageError, match="drawn masks"):
            blsgan.separate(files.image, output=out)
        assert {name: (out / name).read_bytes() for name in names(out)} == before
        assert run("separate", files.image, "-o", out, "--overwrite")[0] == 0
        assert (out / "joint_mask.json").is_file()

    def test_the_panel_says_that_masks_were_predicted(self, joint):
        predicted = blsgan.separate(joint.image)
        drawn = blsgan.separate(joint.image, joint.masks)
        assert "PREDICTED MASKS" in predicted._caption()
        assert "PREDICTED" not in drawn._caption()

    def test_a_predicted_mask_that_was_changed_counts_as_given(self, run, joint, tmp_path):
        run("segment", joint.image, "-o", joint.image.parent)
        path = joint.image.with_name("joint_mask_upper.png")
        Image.fromarray(joint.masks[0].astype(np.uint8) * 255).save(path)
        assert run("separate", joint.image, "-o", tmp_path / "out")[0] == 0
        record = json.loads((tmp_path / "out/joint.json").read_text())
        assert record["masks"] == {"source": "given"}

    def test_results_beside_the_input(self, run, joint):
        folder = joint.image.parent
        assert run("separate", folder, "-o", folder)[0] == 0
        first = names(folder)
        status, stdout, _ = run("separate", folder, "-o", folder)
        assert status == 0
        assert "0 separated, 1 already finished, 0 failed" in stdout
        assert names(folder) == first

    def test_a_picture_without_a_joint_is_refused(self, run, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "noise.png")
        status, _, stderr = run("separate", tmp_path / "noise.png", "-o", tmp_path / "out")
        assert status == 1
        assert "noise.png: no bones were found" in stderr
        assert not (tmp_path / "out").exists()

    def test_masks_can_be_required(self, run, joint, tmp_path):
        status, _, stderr = run("separate", joint.image, "-o", tmp_path, "--require-masks")
        assert status == 2
        assert "no upper and lower mask was found" in stderr
        status, _, stderr = run(
            "separate", joint.image.parent, "-o", tmp_path / "out", "--require-masks"
        )
        assert status == 1
        assert "has no upper and lower mask beside it" in stderr

    def test_a_dicom_file_tells_nobody(self, run, tmp_path):
        from pydicom import Dataset, dcmwrite
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian

        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.PatientName, data.Modality = "Lovelace^Ada", "CR"
        pixels = np.rint(4095 * joint_phantom(3).image).astype(np.uint16)
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = pixels.tobytes()
        path = tmp_path / "lovelace" / "ada.dcm"
        path.parent.mkdir()
        dcmwrite(path, data, enforce_file_format=True)
        out = tmp_path / "out"
        assert run("separate", tmp_path / "lovelace", "-o", out)[0] == 0
        found = names(out)
        assert all(name.startswith("anonymous-") for name in found)
        assert len([name for name in found if "_mask" in name]) == 4
        for name in found:
            content = (out / name).read_bytes().lower()
            assert b"lovelace" not in content
            assert b"ada.dcm" not in content
