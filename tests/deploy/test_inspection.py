"""What inspect says of each kind of file."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from blsgan.backends import WEIGHTS_FOLDER
from blsgan.cli.inspect import command
from blsgan.deploy.build import Request, build_engine
from blsgan.deploy.inspection import inspect_file
from blsgan.errors import InputError, WeightsError


def test_weights_and_their_card():
    card = inspect_file(WEIGHTS_FOLDER / "lite.json")
    assert (card["kind"], card["name"], card["architecture"]) == ("weights card", "lite", "lite")
    assert set(card["files"]) == {"lite.safetensors", "lite.onnx"}
    weights = inspect_file(WEIGHTS_FOLDER / "lite.safetensors")
    assert weights["parameters"] == card["parameters"]
    assert weights["types"] == {"F32": card["parameters"]}
    assert weights["layers"]["stem.weight"] == {"shape": [32, 9, 3, 3], "type": "F32"}


def test_a_model(exported):
    facts = inspect_file(exported.model)
    assert facts["sha256"] == exported.report["onnx"]["sha256"]
    assert facts["inputs"]["masks"]["shape"][1] == 2
    assert facts["outputs"]["soft_tissue"] == {"type": "float", "shape": ["batch"]}
    assert set(facts["layers"].values()) == {"fp32"}
    assert facts["nodes"]["ConvTranspose"] == 3
    assert facts["bytes"] > facts["weight_bytes"]["float"] > 10_000


def test_an_engine_by_its_manifest(exported, tmp_path, fake_machine):
    fake_machine("10", name="Orin")
    engine = build_engine(exported.model, tmp_path / "m.engine", Request()).engine
    facts = inspect_file(engine)
    assert (facts["kind"], facts["gpu"], facts["fits_manifest"]) == ("engine", "Orin", True)
    assert facts["profile"]["image"]["max"] == [8, 1, 512, 512]
    done = CliRunner().invoke(command, [str(engine), "--layers"])
    assert done.exit_code == 0, done.output
    assert "profile masks: min [1, 2, 32, 32]" in done.output
    assert "node_conv2d: fp32" in done.output
    engine.write_bytes(b"another")
    assert not inspect_file(engine)["fits_manifest"]


def test_the_command(exported):
    done = CliRunner().invoke(command, [str(exported.model)])
    assert done.exit_code == 0, done.output
    assert "input image: float [batch, 1, 8*rows_8, 8*columns_8]" in done.output
    assert "blsgan.weights small" in done.output
    done = CliRunner().invoke(command, [str(exported.model), "--json"])
    assert json.loads(done.output)["kind"] == "model"


def test_files_that_tell_nothing(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(InputError, match="neither weights"):
        inspect_file(tmp_path / "a.pth")
    for name, error in (("a.onnx", InputError), ("a.safetensors", WeightsError),
                        ("a.json", WeightsError)):
        (tmp_path / name).write_bytes(b"\xff\xfe nothing")
        with pytest.raises(error, match=name.replace(".", r"\.")):
            inspect_file(tmp_path / name)
    (tmp_path / "a.engine").write_bytes(b"plan")
    with pytest.raises(WeightsError, match=r"a\.engine\.json does not exist"):
        inspect_file(tmp_path / "a.engine")
    with pytest.raises(InputError, match="does not exist"):
        inspect_file(tmp_path / "b.onnx")
