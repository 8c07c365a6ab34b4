"""The Python API: its examples run, it writes the command's bytes, and it says what is wrong."""

from __future__ import annotations

import doctest
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blsgan
from blsgan.cli import main
from blsgan.errors import InputError, UsageError, WeightsError
from blsgan.records.separation import SeparationRecord
from blsgan.synthesis.phantoms import joint_phantom

PHANTOM = joint_phantom(2, 128, gap_px=-8.0)


def without_times(path):
    record = json.loads(path.read_text())
    return {**record, "times_ms": sorted(record["times_ms"])}


@pytest.fixture
def joints(write_joint, tmp_path, monkeypatch):
    """The working folder: joint.png, a.png and b.png with masks, folder/a.png and folder/b.png."""
    for name in ("joint", "a", "b"):
        write_joint(tmp_path, name, source=PHANTOM)
    for name in ("a", "b"):
        write_joint(tmp_path / "folder", name, source=PHANTOM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def hand_image(hand_of_joints):
    return hand_of_joints(1)[0]


@pytest.mark.parametrize("name", ["blsgan", *dir(blsgan)])
def test_every_example_runs(joints, hand_image, name):
    if name in ("nn", "ops"):
        pytest.importorskip("torch", reason=f"blsgan.{name} needs torch")
    shown = blsgan if name == "blsgan" else getattr(blsgan, name)
    names = {"blsgan": blsgan, "image": PHANTOM.image, "masks": PHANTOM.masks}
    names["hand_image"] = hand_image
    Image.fromarray(np.rint(255 * hand_image).astype(np.uint8)).save("hand.png")
    (test,) = doctest.DocTestFinder(recurse=False).find(shown, name, globs=names)
    assert test.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said = []
    assert runner.run(test, out=said.append).failed == 0, "".join(said)


def test_it_writes_what_the_command_writes(joints):
    assert main(["separate", "folder", "-o", "command"]) == 0
    blsgan.separate(["folder"], output="python")
    blsgan.separate("folder/a.png").save("saved")
    for path in (joints / "command").iterdir():
        for other in ("python", "saved") if path.name.startswith("a") else ("python",):
            if path.suffix == ".json":
                assert without_times(joints / other / path.name) == without_times(path)
            else:
                assert (joints / other / path.name).read_bytes() == path.read_bytes()


def test_what_is_returned_is_one_line(joints):
    pair = blsgan.measure("a.png", "b.png")
    (stored,) = blsgan.separate(["joint.png"], output="out")
    for made, starts in (
        (blsgan.Separator.from_pretrained()(PHANTOM.image, PHANTOM.masks), "<Separation: 128x128"),
        (blsgan.Separator.from_pretrained(), "<Separator: lite, onnx on cpu>"),
        (blsgan.Segmenter.from_pretrained(), "<Segmenter: segmenter, onnx on cpu>"),
        (blsgan.segment(PHANTOM.image), "<Segmentation: 128x128 px, score 0."),
        (blsgan.read("joint.png"), "<Radiograph: 128x128 px, PNG of 16 bits>"),
        (pair, "<PairResult: <Measurement: "),
        (replace(pair.measurement, narrowing_px=0.5), "<Measurement: narrowing 0.50 px, quality "),
        (stored, f"<StoredResult: {Path('out') / 'joint.json'}>"),
    ):
        assert repr(made).startswith(starts)
        assert "\n" not in repr(made)


@pytest.mark.parametrize("call", [blsgan.read, lambda a: blsgan.measure(a, "b.png")])
@pytest.mark.parametrize("given", [["a.png"], PHANTOM.image])
def test_what_takes_one_file_says_so(joints, call, given):
    with pytest.raises(UsageError, match=f"^{type(given).__name__} is no path; give the path of"):
        call(given)


def test_predicted_masks_are_saved_as_the_command_does(joints):
    shutil.copy("joint.png", "alone.png")
    assert main(["separate", "alone.png", "-o", "command"]) == 0
    joint = blsgan.separate("alone.png")
    assert joint.record.prediction is not None
    joint.save("python")
    assert {path.name for path in (joints / "command").iterdir()} == {
        path.name for path in (joints / "python").iterdir()
    }
    for path in (joints / "command").iterdir():
        if path.suffix != ".json":
            assert (joints / "python" / path.name).read_bytes() == path.read_bytes()
    assert main(["separate", "alone.png", "-o", "python"]) == 0, "and the command finds it done"


def test_arrays_of_any_usual_shape_give_the_same_layers():
    wanted = blsgan.separate(PHANTOM.image, PHANTOM.masks)
    assert wanted.notes == ()
    rgb = np.repeat(PHANTOM.image[..., None], 3, axis=-1)
    masks = PHANTOM.masks.astype(np.uint8) * np.uint8(255)
    for image, pair, words in (
        (PHANTOM.image[None], PHANTOM.masks, "[1, 128, 128]"),
        (rgb, PHANTOM.masks, "grey RGB"),
        (PHANTOM.image, masks, "0 and 255"),
    ):
        found = blsgan.separate(image, pair)
        np.testing.assert_array_equal(found.upper, wanted.upper)
        assert any(words in note for note in (*found.notes, *found.record.notes))
    with pytest.raises(InputError, match="colour"):
        blsgan.separate(rgb * np.array([1, 0.5, 0.2], np.float32), PHANTOM.masks)
    with pytest.raises(InputError, match="0 and 1"):
        blsgan.separate(PHANTOM.image, masks // 2)


def test_a_joint_shows_itself():
    joint = blsgan.separate(PHANTOM.image, PHANTOM.masks, pixel_spacing=0.2)
    assert repr(joint).startswith("<Joint joint: 128x128 px, overlap ")
    assert "\n" not in repr(joint)
    assert joint._repr_png_().startswith(b"\x89PNG")
    assert joint.panel().mode == "RGB"
    assert joint.record.pixel_spacing_mm.row == 0.2


def test_nothing_that_was_given_is_written_over(joints):
    upper, lower = (next(joints.glob(f"joint_mask_{bone}.*")) for bone in ("upper", "lower"))
    Image.open(upper).save("joint_upper.png")
    joint = blsgan.separate("joint.png", ("joint_upper.png", lower))
    with pytest.raises(UsageError, match="would be overwritten"):
        joint.save(".")
    Image.open(upper).save("joint_mask_upper.png")
    alone = blsgan.separate(blsgan.read("joint.png").pixels)
    with pytest.raises(UsageError, match="was not predicted"):
        alone.save(".")


def test_a_list_goes_on_and_counts_what_failed(joints):
    (joints / "folder" / "c.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"1 of 3 joints failed.*c\.png"):
        blsgan.separate(["folder"], output="out")
    (joints / "folder" / "c.png").unlink()
    seen = []
    found = blsgan.separate(["folder"], output="out", progress=lambda *n: seen.append(n))
    assert seen == [(1, 2), (2, 2)]
    assert [result.planes()["upper"].shape for result in found] == [(128, 128)] * 2
    assert SeparationRecord.read(found[0].path) == found[0].record


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: blsgan.separate("folder"), r"give it in a list"),
        (lambda: blsgan.separate("joint.png", device="tpu"), "choose one of cpu, gpu, cuda"),
        (lambda: blsgan.separate(["a.png", "b.png"], [None]), "2 sources came with masks for 1"),
        (lambda: blsgan.separate("a.png", ("x.png",)), "masks are those of two bones"),
        (lambda: blsgan.separate("joint.png", format="jpg"), "choose one of png, tiff, npz"),
        (lambda: blsgan.separate("joint.png", threads="2"), "give a whole number"),
        (lambda: blsgan.separate(Image.open("joint.png")), r"give numpy\.asarray of it"),
        (lambda: blsgan.separate(["joint.png", "folder/joint.png"], output="out"), "both be"),
        (lambda: blsgan.segment(["joint.png", "folder/joint.png"], output="out"), "both be"),
        (lambda: blsgan.segment("folder"), "give it in a list"),
        (lambda: blsgan.segment(PHANTOM.image, output="out"), "no name"),
    ],
)
def test_a_call_that_cannot_be_meant_is_said(joints, call, words):
    shutil.copy("joint.png", "folder/joint.png")
    with pytest.raises(UsageError, match=words):
        call()


def test_arrays_of_a_list_have_names_of_their_own(joints):
    images = [PHANTOM.image, PHANTOM.image[:, ::-1]]
    masks = [PHANTOM.masks.astype(np.float32), PHANTOM.masks[..., ::-1]]
    found = blsgan.separate(iter(images), masks, output="out")
    assert [result.name for result in found] == ["joint", "joint_2"]
    one, other = (result.record for result in found)
    assert one.overlap.area_px == other.overlap.area_px > 0
    assert one.inputs["image"] != other.inputs["image"]


def _upper(separator):
    return separator(PHANTOM.image, PHANTOM.masks).upper


def test_a_separator_works_in_another_process():
    separator = blsgan.Separator.from_pretrained(threads=1)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = pool.submit(_pickled_upper, pickle.dumps(separator)).result(120)
    np.testing.assert_array_equal(there, _upper(separator))


def _pickled_upper(data):
    return _upper(pickle.loads(data))


def test_a_pickle_is_not_of_another_file(tmp_path, network):
    copied = shutil.copy(network, tmp_path / "mine.onnx")
    data = pickle.dumps(blsgan.Separator.from_pretrained(copied))
    assert pickle.loads(data).weights.sha256
    shutil.copy(blsgan.Separator.from_pretrained().weights.path, copied)
    with pytest.raises(WeightsError, match="is not the file that was loaded"):
        pickle.loads(data)


def test_more_threads_than_cores_are_not_started(caplog):
    joint = blsgan.Separator.from_pretrained(threads=1000)
    assert joint.backend.threads < 1000
    assert "usable cores" in caplog.text


def test_modules_compose_what_they_split():
    torch = pytest.importorskip("torch", reason="blsgan.nn needs torch")
    image = torch.from_numpy(PHANTOM.image)[None, None]
    masks = torch.from_numpy(PHANTOM.masks)[None].float()
    k = torch.full((1,), 0.3)
    layers = blsgan.nn.SplitHead()(torch.zeros(1, 2, 128, 128), masks, k, image)
    loss = blsgan.nn.ReconstructionLoss()(layers, masks, k, image)
    assert loss.item() < 1e-5
    assert blsgan.nn.LayerLoss()(layers, layers, masks).item() == 0
    assert blsgan.nn.SupervisorLoss(terms="bce")(layers.repeat(1, 2, 1, 1), masks).item() > 0
    assert repr(blsgan.nn.SupervisorLoss(terms="bce")) == "SupervisorLoss(terms='bce')"


def test_without_torch_nn_says_what_to_do():
    code = (
        "import sys; sys.modules['torch'] = None\nimport blsgan\n"
        "try:\n    blsgan.nn\nexcept blsgan.errors.BackendError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'blsgan[train]'" in done.stdout


def test_it_prints_nothing(joints, capfd):
    blsgan.separate("joint.png", output="out")
    blsgan.segment("joint.png", output="masks")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_script_with_strict_types_passes(tmp_path):
    pytest.importorskip("mypy", reason="mypy is in the extra 'lint'")
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\nimport blsgan\n\n"
        "joint = blsgan.separate('a.dcm', output='out', progress=True)\n"
        "k: float | None = joint.record.soft_tissue\n"
        "most = float(joint.soft_tissue[joint.zone].max())\n"
        "paths = joint.save('out')\n"
        "names: list[str] = [path.name for path in paths]\n"
        "many = blsgan.separate([np.zeros((4, 4)), 'b.png'])\n"
        "areas: list[int] = [each.record.overlap.area_px for each in many]\n"
        "stored = blsgan.separate(['folder'], output='out')\n"
        "upper = stored[0].planes()['upper']\n"
        "mm: float | None = blsgan.measure('a.png', 'b.png').record.narrowing_mm\n"
        "masks = blsgan.segment('a.png').masks\n"
        "spacing = blsgan.read('a.png').pixel_spacing\n"
        "separator = blsgan.Separator.from_pretrained()\n"
        "layers = separator(np.zeros((4, 4)), masks).layers\n"
        "try:\n    pass\nexcept blsgan.errors.BlsganError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(blsgan.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_picture_as_16_bit_array_is_the_file(joints):
    values = np.asarray(Image.open("joint.png"))
    found = blsgan.separate(values.astype(np.uint16), PHANTOM.masks)
    np.testing.assert_array_equal(found.upper, blsgan.separate("joint.png").upper)
