"""`blsgan separate` as a user meets it: files in, files out, and every way it can go wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from blsgan.cli import main
from blsgan.joint.zone import REACH_PX, zone
from blsgan.synthesis.phantoms import joint_phantom
from blsgan.tasks.separation import Separator

PLANES = ("upper", "lower", "reconstruction", "residual")


@pytest.fixture
def separate(network, capfd):
    """Run the command in this process: (status, stdout, stderr)."""

    def run(*arguments, weights=network):
        status = main(["separate", *map(str, arguments), "--weights", str(weights)])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return run


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def expected_names(name, file_format="png"):
    planes = [f"{name}_{plane}.{file_format}" for plane in PLANES]
    return sorted([*planes, f"{name}_panel.png", f"{name}.json"])


def test_one_file(separate, write_joint, network, tmp_path):
    joint = write_joint(tmp_path / "in")
    out = tmp_path / "out"
    status, stdout, stderr = separate(
        joint.image, "--upper-mask", joint.upper, "--lower-mask", joint.lower, "-o", out
    )
    assert (status, stderr) == (0, "")
    assert names(out) == expected_names("joint")
    assert str(out / "joint_panel.png") in stdout

    pixels = {}
    for plane in PLANES:
        with Image.open(out / f"joint_{plane}.png") as picture:
            pixels[plane] = np.asarray(picture)
        assert pixels[plane].dtype == np.uint16
    for bone, mask in zip(("upper", "lower"), joint.masks, strict=True):
        free = mask & ~zone(joint.masks, REACH_PX)
        np.testing.assert_array_equal(pixels[bone][free], joint.pixels[free])
        assert not pixels[bone][~(mask | zone(joint.masks, REACH_PX))].any()
    known = joint.masks.any(axis=0) | zone(joint.masks, REACH_PX)
    np.testing.assert_array_equal(pixels["reconstruction"], np.where(known, joint.pixels, 0))
    assert (pixels["residual"] == 32768).all()

    image = (joint.pixels / 65535).astype(np.float32)
    direct = Separator.from_pretrained(network)(image, joint.masks)
    np.testing.assert_array_equal(pixels["upper"], np.rint(direct.upper * np.float32(65535)))

    record = json.loads((out / "joint.json").read_text())
    overlap = int(joint.masks.all(axis=0).sum())
    assert record["overlap"]["area_px"] == overlap
    assert record["overlap"]["area_mm2"] is None
    tissue = direct.soft_tissue[direct.zone]
    assert record["soft_tissue"] == pytest.approx(tissue.mean(dtype=np.float64))
    assert record["zone"]["area_px"] == int(direct.zone.sum())
    assert record["zone"]["soft_tissue_least"] == pytest.approx(tissue.min())
    assert record["zone"]["soft_tissue_greatest"] == pytest.approx(tissue.max())
    assert record["reconstruction_error"]["mse"] < 1e-12
    assert record["image"] == {
        "file": "joint.png", "format": "PNG", "bit_depth": 16, "height_px": 256, "width_px": 256,
    }  # fmt: skip
    assert record["backend"]["name"] == "onnx"
    assert record["weights"]["name"] == "random"
    assert set(record["times_ms"]) == {"read", "separate", "draw"}
    assert {len(entry["sha256"]) for entry in record["inputs"].values()} == {64}
    assert len(record["outputs"]) == 5


def test_masks_are_found_beside_the_image(separate, write_joint, tmp_path):
    joint = write_joint(tmp_path)
    assert separate(joint.image, "-o", tmp_path / "out")[0] == 0
    assert names(tmp_path / "out") == expected_names("joint")


def test_pixel_spacing(separate, write_joint, tmp_path):
    joint = write_joint(tmp_path)
    status, stdout, _ = separate(joint.image, "-o", tmp_path / "out", "--pixel-spacing", "0.1")
    record = json.loads((tmp_path / "out/joint.json").read_text())
    assert status == 0
    assert record["overlap"]["area_mm2"] == pytest.approx(record["overlap"]["area_px"] * 0.01)
    assert record["pixel_spacing_mm"] == {"row": 0.1, "column": 0.1, "source": "user"}
    assert "mm²" in stdout


@pytest.mark.parametrize("file_format", ["tiff", "npz"])
def test_formats(separate, write_joint, tmp_path, file_format):
    joint = write_joint(tmp_path)
    out = tmp_path / "out"
    assert separate(joint.image, "-o", out, "--format", file_format)[0] == 0
    if file_format == "tiff":
        assert names(out) == expected_names("joint", "tiff")
        return
    assert names(out) == ["joint.json", "joint.npz", "joint_panel.png"]
    with np.load(out / "joint.npz") as arrays:
        image = (joint.pixels / 65535).astype(np.float32)
        np.testing.assert_array_equal(
            arrays["reconstruction"] + arrays["residual"],
            image * (joint.masks.any(axis=0) | arrays["zone"]),
        )
        np.testing.assert_array_equal(arrays["overlap"], joint.masks.all(axis=0))


def test_masks_without_overlap_are_no_error(separate, write_joint, tmp_path):
    joint = write_joint(tmp_path, source=joint_phantom(3, overlap=False))
    status, stdout, _ = separate(joint.image, "-o", tmp_path / "out")
    assert status == 0
    assert "no overlap" in stdout
    record = json.loads((tmp_path / "out/joint.json").read_text())
    assert record["soft_tissue"] is None
    assert record["overlap"] == {"area_px": 0, "area_mm2": None, "bounding_box_px": None}
    upper = np.asarray(Image.open(tmp_path / "out/joint_upper.png"))
    np.testing.assert_array_equal(upper, joint.pixels * joint.masks[0])


class TestRerun:
    def test_what_is_finished_is_skipped(self, separate, write_joint, tmp_path):
        joint = write_joint(tmp_path)
        out = tmp_path / "out"
        separate(joint.image, "-o", out)
        before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
        status, stdout, _ = separate(joint.image, "-o", out)
        assert status == 0
        assert "up to date" in stdout
        assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
        separate(joint.image, "-o", out, "--overwrite")
        assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} != before

    def test_another_format_replaces_the_first(self, separate, write_joint, tmp_path):
        joint = write_joint(tmp_path)
        out = tmp_path / "out"
        for file_format in ("png", "npz", "tiff"):
            assert separate(joint.image, "-o", out, "--format", file_format)[0] == 0
            files = expected_names("joint", file_format)
            if file_format == "npz":
                files = ["joint.json", "joint.npz", "joint_panel.png"]
            assert names(out) == files

    @pytest.mark.parametrize(
        "change", ["image", "mask", "weights", "option", "mirrored", "output", "record"]
    )
    def test_what_changed_is_done_again(
        self, separate, write_joint, make_network, network, tmp_path, change
    ):
        joint = write_joint(tmp_path)
        out = tmp_path / "out"
        separate(joint.image, "-o", out)
        options, weights = [], network
        if change == "image":
            Image.fromarray(joint.pixels // 2).save(joint.image)
        elif change == "mask":
            Image.fromarray(np.roll(joint.masks[0], 1, axis=0)).save(joint.upper)
        elif change == "weights":
            weights = tmp_path / "other.onnx"
            make_network(weights, seed=1)
        elif change == "option":
            options = ["--invert"]
        elif change == "mirrored":
            options = ["--mirrored"]
        elif change == "output":
            (out / "joint_lower.png").write_bytes(b"cut off")
        else:
            (out / "joint.json").write_text("{")
        status, stdout, _ = separate(joint.image, "-o", out, *options, weights=weights)
        assert status == 0
        assert "wrote" in stdout
        assert Image.open(out / "joint_lower.png").size == (256, 256)
        record = json.loads((out / "joint.json").read_text())
        assert record["options"]["mirrored"] == (change == "mirrored")


class TestFolder:
    @pytest.fixture
    def folder(self, write_joint, tmp_path):
        """Two joints of one file name in two folders, and one with another name."""
        for name in ("00054_L_13/a", "00055_R_2/a", "00055_R_2/b"):
            parent, stem = name.split("/")
            write_joint(tmp_path / "in" / parent, stem, bits=8, suffix=".png")
        return tmp_path / "in"

    def test_each_result_has_a_place_of_its_own(self, separate, folder, tmp_path):
        out = tmp_path / "out"
        status, stdout, stderr = separate(folder, "-o", out)
        assert status == 0
        assert "3 separated, 0 already finished, 0 failed" in stdout
        assert stderr == "", "a line every 30 s, which this never takes"
        expected = [
            f"{parent}/{file}"
            for parent, stem in (("00054_L_13", "a"), ("00055_R_2", "a"), ("00055_R_2", "b"))
            for file in expected_names(stem)
        ]
        assert names(out) == sorted(expected)

    def test_one_bad_file_stops_nothing_and_is_named(self, separate, folder, tmp_path):
        bad = folder / "00055_R_2/a.png"
        bad.write_bytes(bad.read_bytes()[:200])
        (folder / "00054_L_13/nomask.png").write_bytes(b"x")
        status, stdout, stderr = separate(folder, "-o", tmp_path / "out", "--require-masks")
        assert status == 1
        assert "2 separated, 0 already finished, 2 failed" in stdout
        assert f"failed: {bad} is damaged" in stderr
        assert "nomask.png has no upper and lower mask" in stderr
        assert not [name for name in names(tmp_path / "out") if "R_2/a" in name]

        shutil.copy(folder / "00055_R_2/b.png", bad)
        (folder / "00054_L_13/nomask.png").unlink()
        status, stdout, _ = separate(folder, "-o", tmp_path / "out")
        assert status == 0
        assert "1 separated, 2 already finished, 0 failed" in stdout

    def test_a_bug_stops_nothing_and_is_named(self, separate, folder, tmp_path, monkeypatch):
        from blsgan.pipeline import separate as module

        real, calls = module.decode_masks, []

        def broken(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise ZeroDivisionError("a bug")
            return real(*arguments)

        monkeypatch.setattr(module, "decode_masks", broken)
        status, stdout, stderr = separate(folder, "-o", tmp_path / "out")
        assert status == 1
        assert "2 separated, 0 already finished, 1 failed" in stdout
        assert f"failed: {folder}/00055_R_2/a.png: unexpected ZeroDivisionError (a bug)" in stderr
        assert "please report" in stderr

    def test_notes_are_counted(self, separate, folder, write_joint, phantom, tmp_path):
        for name in ("c", "d"):  # 12 bit in 16, masks swapped
            joint = write_joint(folder, name)
            Image.fromarray(joint.pixels // 16).save(joint.image)
            upper = joint.upper.read_bytes()
            joint.upper.write_bytes(joint.lower.read_bytes())
            joint.lower.write_bytes(upper)
        write_joint(folder, "e", source=joint_phantom(3, overlap=False))
        status, stdout, _ = separate(folder, "-o", tmp_path / "out")
        assert status == 0
        assert "note (2 of 6): 16-bit file taken as 12 bit" in stdout
        noted = next(line for line in stdout.splitlines() if "do not overlap" in line)
        assert noted.count(str(tmp_path)) == 1, "it names its file"
        assert "note (2 of 6): the upper mask lies below the lower one" in stdout
        assert "note (1 of 6): the bones do not overlap" in stdout

    def test_any_number_of_processes_writes_the_same_bytes(
        self, separate, write_joint, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("blsgan.pipeline.processes.JOINTS_WORTH_A_PROCESS", 1)
        source = tmp_path / "many"
        for seed in range(4):
            write_joint(source, f"{seed}", source=joint_phantom(seed, 96))
        (source / "broken.png").write_bytes(b"x")
        said = []
        for jobs in (1, 2):
            status, stdout, stderr = separate(source, "-o", tmp_path / f"{jobs}", "--jobs", jobs)
            assert status == 1
            said.append((stdout.replace(f"/{jobs}", ""), stderr))
        assert said[0] == said[1]
        assert "4 separated, 0 already finished, 1 failed" in said[0][0]
        assert names(tmp_path / "1") == names(tmp_path / "2")
        for path in (tmp_path / "1").glob("*.png"):
            assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()

    def test_panels_may_be_left_out(self, separate, folder, tmp_path):
        out = tmp_path / "out"
        assert separate(folder, "-o", out)[0] == 0
        with_panels = names(out)
        assert separate(folder, "-o", out, "--no-panels")[0] == 0
        assert names(out) == [name for name in with_panels if "_panel" not in name]
        assert "3 already finished" in separate(folder, "-o", out, "--no-panels")[1]
        assert separate(folder, "-o", out)[0] == 0
        assert names(out) == with_panels

    @pytest.mark.parametrize("options", [[], ["--format", "tiff"], ["--format", "npz"]])
    def test_results_without_panels_beside_the_inputs_are_no_inputs(
        self, separate, folder, options
    ):
        assert separate(folder, "-o", folder, "--no-panels", *options)[0] == 0
        written = names(folder)
        assert "3 already finished" in separate(folder, "-o", folder, "--no-panels", *options)[1]
        assert names(folder) == written

    def test_results_below_the_inputs_are_not_inputs(self, separate, folder):
        for out in (folder / "results", folder):
            assert separate(folder, "-o", out)[0] == 0
            status, stdout, _ = separate(folder, "-o", out)
            assert status == 0
            assert "0 separated, 3 already finished" in stdout
            if out != folder:
                shutil.rmtree(out)

    def test_list_file(self, separate, folder, tmp_path):
        entries = [
            {
                "image": f"{stem}.png",
                "upper": f"{stem}_mask_upper.bmp",
                "lower": f"{stem}_mask_lower.bmp",
                "background": "background/none.jpg",
            }
            for stem in ("00054_L_13/a", "00055_R_2/a", "00055_R_2/missing")
        ]
        (folder / "LS_K1_overlap_train").write_text(json.dumps(entries))
        status, stdout, stderr = separate(folder / "LS_K1_overlap_train", "-o", tmp_path / "out")
        assert status == 1
        assert "2 separated, 0 already finished, 1 failed" in stdout
        assert "missing_mask_upper.bmp does not exist" in stderr or "missing.png does not" in stderr
        assert (tmp_path / "out/00055_R_2/a.json").is_file()

    def test_a_list_of_files_elsewhere(self, separate, folder, tmp_path):
        entries = [
            {key: str(folder / f"{stem}{ending}") for key, ending in endings.items()}
            for endings in [
                {"image": ".png", "upper": "_mask_upper.bmp", "lower": "_mask_lower.bmp"}
            ]
            for stem in ("00054_L_13/a", "00055_R_2/a")
        ]
        (tmp_path / "lists").mkdir()
        (tmp_path / "lists/mine.json").write_text(json.dumps(entries))
        assert separate(tmp_path / "lists/mine.json", "-o", tmp_path / "out")[0] == 0
        assert (tmp_path / "out/00054_L_13/a.json").is_file()
        assert (tmp_path / "out/00055_R_2/a.json").is_file()

    @pytest.mark.parametrize(
        "text",
        ["[]", "[1]", "{", '[{"image": "a"}]', '{"a": 1}', "[" * 200_000],
        ids=range(6),
    )
    def test_bad_list_files(self, separate, tmp_path, text):
        (tmp_path / "list").write_text(text)
        status, _, stderr = separate(tmp_path / "list", "-o", tmp_path / "out")
        assert status == 1
        assert "list" in stderr
        assert not (tmp_path / "out").exists()

    def test_mask_pattern(self, separate, write_joint, tmp_path):
        joint = write_joint(tmp_path / "in")
        (tmp_path / "in/masks").mkdir()
        joint.upper.rename(tmp_path / "in/masks/upper-joint.bmp")
        joint.lower.rename(tmp_path / "in/masks/lower-joint.bmp")
        for image in (joint.image, tmp_path / "in"):
            out = tmp_path / f"out-{image.name}"
            options = ["--mask-pattern", "masks/{bone}-{stem}.bmp"]
            assert separate(image, "-o", out, *options)[0] == 0

    def test_folder_without_images(self, separate, tmp_path):
        (tmp_path / "in").mkdir()
        status, _, stderr = separate(tmp_path / "in", "-o", tmp_path / "out")
        assert status == 1
        assert "holds no image" in stderr


class TestBadInput:
    """One sentence, the right status, nothing written."""

    @pytest.fixture
    def refused(self, separate, write_joint, tmp_path):
        joint = write_joint(tmp_path / "in")

        def check(status, message, *options, image=joint.image, upper=joint.upper, out=None):
            out = tmp_path / "out" if out is None else out
            got, stdout, stderr = separate(
                image, "--upper-mask", upper, "--lower-mask", joint.lower, "-o", out, *options
            )
            assert got == status
            assert stdout == ""
            assert message in stderr
            assert stderr.count("\n") == 1
            assert not (tmp_path / "out").exists()

        check.joint = joint
        return check

    def test_images(self, refused, tmp_path):
        path = tmp_path / "a.png"
        refused(1, "does not exist", image=path)
        path.write_bytes(b"")
        refused(1, "is empty", image=path)
        path.write_bytes(b"no image")
        refused(1, "not a readable image", image=path)
        path.write_bytes(refused.joint.image.read_bytes()[:1000])
        refused(1, "damaged or truncated", image=path)
        Image.fromarray(np.full((256, 256), 7, np.uint8)).save(path)
        refused(1, "constant", image=path)
        Image.fromarray(np.array([[7]], np.uint8)).save(path)
        refused(1, "constant", image=path)
        colour = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(colour).save(path)
        refused(1, "colour picture", image=path)

    def test_masks(self, refused, tmp_path):
        path = tmp_path / "mask.png"
        refused(1, "does not exist", upper=path)
        Image.fromarray(np.zeros((256, 256), np.uint8)).save(path)
        refused(1, "mask.png is empty", upper=path)
        Image.fromarray(np.full((256, 256), 255, np.uint8)).save(path)
        refused(1, "covers everything", upper=path)
        Image.fromarray(np.eye(100, dtype=np.uint8)).save(path)
        refused(1, "mask.png is 100x100 but the image is 256x256", upper=path)
        refused(1, "not a black and white mask", upper=refused.joint.image)
        refused(1, "the same mask", upper=refused.joint.lower)

    def test_an_image_that_is_constant_under_the_bones(self, refused, tmp_path):
        pixels = np.where(refused.joint.masks.any(axis=0), 100, refused.joint.pixels)
        Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "a.png")
        refused(1, "a.png: the image is constant", "--bit-depth", 16, image=tmp_path / "a.png")

    def test_options(self, refused, separate, tmp_path):
        refused(2, "does not say which mask is which", "--mask-pattern", "{stem}")
        joint = refused.joint
        assert separate(joint.image, "--upper-mask", joint.upper, "-o", tmp_path / "out")[0] == 2
        assert separate(joint.image.parent, "--upper-mask", joint.upper, "-o", tmp_path)[0] == 2
        assert separate(joint.image, "-o", tmp_path / "out", "--format", "gif")[0] == 2
        for spacing in ("0", "1e-9", "nan", "25.4"):
            refused(2, "is not between 0.001 and 10 mm", "--pixel-spacing", spacing)
        joint.lower.unlink()
        status, _, stderr = separate(joint.image, "-o", tmp_path / "out")
        assert status == 2
        assert "no lower mask was found" in stderr

    def test_weights(self, refused, separate, tmp_path):
        joint = refused.joint
        (tmp_path / "w.onnx").write_bytes(b"nothing")
        for weights, message in (
            (tmp_path / "w.onnx", "not a network"),
            ("none", "no weights for separation called"),
        ):
            status, _, stderr = separate(joint.image, "-o", tmp_path / "out", weights=weights)
            assert status == 1
            assert message in stderr
        assert not (tmp_path / "out").exists()

    def test_output_below_a_file(self, refused, tmp_path):
        (tmp_path / "file").write_text("x")
        refused(1, "part of the path is a file", out=tmp_path / "file" / "out")

    def test_an_input_is_never_overwritten(self, separate, write_joint, tmp_path):
        joint = write_joint(tmp_path)
        upper = joint.upper.rename(tmp_path / "joint_upper.png")
        before = upper.read_bytes()
        status, _, stderr = separate(
            joint.image, "--upper-mask", upper, "--lower-mask", joint.lower, "-o", tmp_path
        )
        assert status == 2
        assert "would be overwritten" in stderr
        assert upper.read_bytes() == before


@pytest.fixture
def dicom(write_joint, tmp_path):
    """A joint as DICOM, MONOCHROME1, with a patient; its files are named by ``stem``."""
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    def write(folder, stem, patient="Lovelace^Ada", source=None):
        joint = write_joint(tmp_path / folder, stem, source=source)
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        made.SOPInstanceUID = f"1.2.3.{len(stem)}"  # no two files are the same
        made.SpecificCharacterSet = "ISO_IR 192"
        made.PatientName, made.PatientID = patient, "PAT00815"
        made.Rows, made.Columns = joint.pixels.shape
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME1"
        made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
        made.PixelRepresentation = 0
        made.WindowCenter, made.WindowWidth = 32768, 65536
        made.PixelSpacing = [0.1, 0.1]
        made.PixelData = (65535 - joint.pixels).astype(np.uint16).tobytes()
        joint.image.unlink()
        path = joint.image.with_suffix(".dcm")
        dcmwrite(path, made, enforce_file_format=True)
        return joint, path

    return write


class TestDicom:
    def check_no_patient(self, folder, *words):
        assert names(folder)
        for path in folder.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            for word in ("lovelace", "pat00815", *words):
                if len(word) > 3:  # two letters occur in any compressed picture
                    assert word.encode() not in content.lower()
                assert word not in str(path.relative_to(folder)).lower()
        for record in folder.rglob("*.json"):
            assert not any(word in record.read_text().lower() for word in words)
            assert json.loads(record.read_text())["image"]["file"] is None

    def test_spacing_kept_sense_right_patient_left_out(self, separate, dicom, tmp_path):
        joint, path = dicom("in", "joint")
        out = tmp_path / "out"
        status, stdout, _ = separate(path, "-o", out)
        assert status == 0
        (record_path,) = out.glob("*.json")
        assert names(out) == expected_names(record_path.stem)
        record = json.loads(record_path.read_text())
        assert record["name"] == record_path.stem
        assert record["name"].startswith(f"anonymous-{record['inputs']['image']['sha256'][:12]}-")
        assert f"{path} became {out / record['name']}_panel.png" in stdout
        assert record["pixel_spacing_mm"] == {"row": 0.1, "column": 0.1, "source": "PixelSpacing"}
        upper = np.asarray(Image.open(out / f"{record['name']}_upper.png")).astype(int)
        free = joint.masks[0] & ~zone(joint.masks, REACH_PX)
        assert np.abs(upper - joint.pixels)[free].max() <= 1
        self.check_no_patient(out)

    def test_a_patients_name_in_the_path(self, separate, dicom, tmp_path):
        _, one = dicom("in/lovelace_ada", "one")
        _, path = dicom("in/x", "AdaLovelace")
        out = tmp_path / "out"
        for counts in ("2 separated", "2 already finished"):
            status, stdout, _ = separate(tmp_path / "in", "-o", out)
            assert status == 0
            assert counts in stdout
            assert len(names(out)) == 12
            for image in (one, path):
                assert f"{image} became {out}/anonymous-" in stdout
        self.check_no_patient(out)
        assert separate(path, "-o", tmp_path / "out2")[0] == 0
        self.check_no_patient(tmp_path / "out2")

    @pytest.mark.parametrize(
        ("folder", "stem", "words"),
        [
            ("in/Wu", "Li_Wu_hand", ("li_", "wu")),
            ("in/山田", "山田太郎", ("山田", "太郎", "5c71")),
            ("in/Jürgen", "ß", ("jürgen", "j\\u00fc")),
            ("in/19151210", "ACC-77", ("19151210", "acc")),
            ("in/z", "grandmother", ("grandmother",)),  # what no header tells
        ],
    )
    def test_whatever_the_path_says(self, separate, dicom, tmp_path, folder, stem, words):
        dicom(folder, stem, patient="Wu^Li=山田^太郎")
        for image, out in ((tmp_path / "in", "out"), (tmp_path / f"{folder}/{stem}.dcm", "out2")):
            status, stdout, stderr = separate(image, "-o", tmp_path / out)
            assert (status, stdout.count(" became ")) == (0, 1), stderr
            assert len(names(tmp_path / out)) == 6
            self.check_no_patient(tmp_path / out, *words)

    def test_many_joints_of_one_radiograph(self, separate, dicom, tmp_path):
        joint, path = dicom("in", "hand")
        masks = {"upper": str(joint.upper), "lower": str(joint.lower)}
        other = tmp_path / "other.png"
        Image.fromarray(np.roll(joint.masks[0], 2, axis=0)).save(other)
        first = {"image": str(path), **masks}
        entries = [first, {**first, "upper": str(other)}]
        (tmp_path / "list.json").write_text(json.dumps(entries))
        for counts in ("2 separated", "2 already finished"):
            status, stdout, _ = separate(tmp_path / "list.json", "-o", tmp_path / "out")
            assert status == 0
            assert counts in stdout
        assert len(names(tmp_path / "out")) == 12

    def test_an_unbelievable_spacing_costs_nothing_else(self, separate, dicom, tmp_path):
        from pydicom import dcmread

        _, path = dicom("in", "one")
        made = dcmread(path)
        made.PixelSpacing = [1e-12, 1e-12]
        made.save_as(path)
        status, stdout, _ = separate(tmp_path / "in", "-o", tmp_path / "out")
        assert status == 0
        assert "note (1 of 1): PixelSpacing was ignored" in stdout
        assert "note (1 of 1): MONOCHROME1" in stdout


class TestInterrupted:
    """In a process of its own, as a user stops it."""

    def start(self, network, image, out, *options, **popen):
        command = [
            sys.executable,
            "-m",
            "blsgan",
            "separate",
            image,
            "-o",
            out,
            "--weights",
            network,
        ]
        return subprocess.Popen(
            [*map(str, command), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_nothing_partial_is_left(self, network, write_joint, tmp_path, number):
        for index in range(40):
            write_joint(tmp_path / "in", f"j{index:02}", bits=8)
        out = tmp_path / "out"

        def as_in_a_terminal():
            # A test run in the background has SIGINT ignored, and children inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)

        process = self.start(network, tmp_path / "in", out, preexec_fn=as_in_a_terminal)
        deadline = time.monotonic() + 50
        while not (out / "j00.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=50)
        assert process.returncode == (130 if number == signal.SIGINT else 143)
        assert "Traceback" not in stderr
        finished = [path.stem for path in out.glob("*.json")]
        assert 0 < len(finished) < 40
        assert names(out) == sorted(name for stem in finished for name in expected_names(stem))

    def test_a_file_size_limit_stops_the_write_cleanly(self, network, write_joint, tmp_path):
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

        joint = write_joint(tmp_path / "in")
        process = self.start(network, joint.image, tmp_path / "out", preexec_fn=limit)
        stdout, stderr = process.communicate(timeout=50)
        assert process.returncode == 1
        assert stdout == ""
        assert "cannot be written" in stderr
        assert stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_disk_full(separate, write_joint, tmp_path, monkeypatch):
    import errno

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    joint = write_joint(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    status, _, stderr = separate(joint.image, "-o", tmp_path / "out")
    assert status == 1
    assert "the disk is full" in stderr
    assert not (tmp_path / "out").exists()


def test_cold_start_stays_light(network, write_joint, tmp_path):
    """No heavy import on the path of one file, and far less memory than 400 MB."""
    joint = write_joint(tmp_path)
    arguments = [
        "separate",
        str(joint.image),
        "-o",
        str(tmp_path / "out"),
        "--weights",
        str(network),
    ]
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom blsgan.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "heavy = {'torch', 'scipy', 'cv2', 'skimage', 'pydicom', 'rich', 'openvino'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        # Not getrusage: its peak includes the process this one was forked from.
        r"print(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 300_000  # KiB


@pytest.mark.parametrize("kind", ["png", "dcm", "npz"])
def test_memory_of_a_large_picture(network, write_joint, dicom, tmp_path, kind):
    """Of bones that fill it, by the pixel; blocks of a megapixel weigh more here than at 8192x8192
    px, where it is less than 1.5 GB (benchmarks/bench_archive.py)."""
    phantom, times, joints = joint_phantom(1, 256), 12, []
    for folder, factor in (("small", 1), ("large", times)):
        source = SimpleNamespace(
            image=phantom.image.repeat(factor, axis=0).repeat(factor, axis=1),
            masks=phantom.masks.repeat(factor, axis=1).repeat(factor, axis=2),
        )
        joints.append(
            write_joint(tmp_path / folder, source=source).image
            if kind != "dcm"
            else dicom(folder, "joint", source=source)[1]
        )
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom blsgan.cli import main\n"
        "def kib(name):\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(re.search(name + r':\\s+(\\d+)', status)[1])\n"
        "*images, output, weights, kind = sys.argv[1:]\n"
        "for image in images:\n"
        "    before = kib('VmRSS')\n"
        "    main(['separate', image, '-o', output + image, '--weights', weights, '-q',\n"
        "          *(['--format', 'npz'] if kind == 'npz' else [])])\n"
        "print(1024 * (kib('VmHWM') - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *joints, tmp_path / "out", network, kind],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) / (256 * times) ** 2 < 26.7, done.stderr


@pytest.mark.parametrize("file_format", ["png", "tiff", "npz"])
def test_a_disk_that_takes_no_more_is_said_in_our_words(write_joint, tmp_path, file_format):
    """A limit of file sizes stands for a full disk: the system refuses in the middle of a write."""
    joint = write_joint(tmp_path / "in")
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "blsgan", "separate", joint.image, "-o", output, "--format",
         file_format],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"blsgan: {output}")
    assert done.stderr.endswith(
        "cannot be written: it is larger than files may be here; raise the limit or choose another "
        "folder.\n"
    )
    assert not output.exists()
