"""Results read back: the same numbers in every format, and damage that is said."""

import json
import shutil

import numpy as np
import pytest

from blsgan.cli import main
from blsgan.errors import InputError
from blsgan.io.results import PLANES, hash_file
from blsgan.io.stored import as_result, find_by_hash, find_results
from blsgan.records.record import read_json
from blsgan.synthesis.phantoms import joint_phantom


@pytest.fixture(scope="module")
def results(tmp_path_factory, network, write_joint):
    """One joint, separated into each format: folders ``png``, ``tiff``, ``npz`` and ``in``."""
    folder = tmp_path_factory.mktemp("stored")
    write_joint(folder / "in/deep", "joint", source=joint_phantom(2, 128, gap_px=-8.0))
    for file_format in ("png", "tiff", "npz"):
        options = ["-o", str(folder / file_format), "--format", file_format]
        options += ["--weights", str(network)]
        assert main(["separate", str(folder / "in"), *options]) == 0
    return folder


def test_every_format_reads_alike(results):
    (exact,) = find_results(results / "npz")
    for file_format in ("png", "tiff"):
        (stored,) = find_results(results / file_format)
        assert (stored.name, str(stored.place)) == ("joint", "deep/joint")
        assert stored.problem() is None
        planes = stored.planes()
        for plane in PLANES:
            assert planes[plane].dtype == np.float32
            np.testing.assert_allclose(planes[plane], exact.planes()[plane], atol=1 / 65535)


def test_one_record_can_be_named(results):
    (stored,) = find_results(results / "png/deep/joint.json")
    assert str(stored.place) == "joint"
    assert stored.record.prediction is None


def test_inputs_are_found_by_content(results, tmp_path):
    (stored,) = find_results(results / "png")
    shutil.copytree(results / "in", tmp_path / "elsewhere")
    moved = (tmp_path / "elsewhere/deep/joint.png").rename(tmp_path / "elsewhere/x.PNG")
    found = find_by_hash([tmp_path / "elsewhere"], stored.inputs.values())
    assert found[stored.inputs["image"]] == moved
    assert len(found) == 3
    assert find_by_hash([tmp_path / "elsewhere"], ["0" * 64]) == {}
    with pytest.raises(InputError, match="does not exist"):
        find_by_hash([tmp_path / "none"], ["0" * 64])


@pytest.mark.parametrize("file_format", ["png", "tiff", "npz"])
def test_damage_is_said(results, tmp_path, file_format):
    copy = tmp_path / "copy"
    shutil.copytree(results / file_format, copy)
    victim = next(copy.glob(f"deep/joint*upper.{file_format}"), copy / "deep/joint.npz")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    (stored,) = find_results(copy)
    assert "was changed after it was written" in stored.problem()
    with pytest.raises(InputError, match=r"damaged|not a readable"):
        stored.planes()


def test_a_picture_of_another_size_is_said(results, tmp_path):
    shutil.copytree(results / "png", tmp_path / "png")
    record = json.loads((tmp_path / "png/deep/joint.json").read_text())
    record["image"]["width_px"] = 64
    (tmp_path / "png/deep/joint.json").write_text(json.dumps(record))
    (stored,) = find_results(tmp_path / "png")
    with pytest.raises(InputError, match="where the record says 64x128"):
        stored.planes()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"schema": 1}', '{"schema": 2, "outputs": {}}', "[" * 5000],
)
def test_other_files_are_passed_over(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    found = read_json(path)
    assert found is None or as_result(path, path, found) is None
    with pytest.raises(InputError, match="holds no result"):
        find_results(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("weights"),
        lambda r: r["overlap"].update(area_px="many"),
        lambda r: r["options"].update(format="exe"),
        lambda r: r["inputs"].update(image=None),
        lambda r: r.update(notes="note"),
    ],
)
def test_records_of_another_shape_are_passed_over(results, change):
    path = results / "png/deep/joint.json"
    record = json.loads(path.read_text())
    assert as_result(path, path, record) is not None
    change(record)
    assert as_result(path, path, record) is None


def test_the_hash_is_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a").startswith("ba7816bf")
