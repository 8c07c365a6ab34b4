"""What inspect says of each kind of file."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from blsgan.cli import main
from blsgan.cli.inspect import command
from blsgan.deploy.build import Request, build_engine
from blsgan.deploy.inspection import inspect_file
from blsgan.deploy.model import load_exported
from blsgan.errors import InputError, WeightsError
from blsgan.tasks.task import WEIGHTS_FOLDER


def test_weights_and_their_card():
    card = inspect_file(WEIGHTS_FOLDER / "lite.json")
    assert (card["kind"], card["name"], card["architecture"]) == ("weights card", "lite", "lite")
    assert set(card["files"]) == {"lite.safetensors", "lite.onnx"}
    weights = inspect_file(WEIGHTS_FOLDER / "lite.safetensors")
    assert weights["parameters"] == card["parameters"]
    assert weights["types"] == {"F32": card["parameters"]}
    assert weights["layers"]["stem.weight"] == {"shape": [16, 15, 3, 3], "type": "F32"}


def test_a_model(exported):
    facts = inspect_file(exported.model)
    assert facts["sha256"] == exported.report.onnx["sha256"]
    assert facts["inputs"]["masks"]["shape"][1] == 2
    assert facts["outputs"]["soft_tissue"]["shape"][:2] == ["batch", 1]
    assert set(facts["layers"].values()) == {"fp32"}
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


def another_network() -> bytes:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "another",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
    )
    return onnx.helper.make_model(graph, ir_version=9).SerializeToString()


def other_tensors(**metadata) -> bytes:
    from safetensors.numpy import save

    return save({"a": np.zeros(3, np.float32)}, metadata or None)


NOISE = np.random.default_rng(0).bytes(4096)
FOREIGN = {
    "noise.onnx": NOISE,
    "truncated.onnx": (WEIGHTS_FOLDER / "segmenter.onnx").read_bytes()[:-1000],
    "text.onnx": b"Dear reader,\n",
    "empty.onnx": b"",
    "other.onnx": another_network(),
    "noise.safetensors": NOISE,
    "truncated.safetensors": (WEIGHTS_FOLDER / "segmenter.safetensors").read_bytes()[:-1000],
    "text.safetensors": b"Dear reader,\n",
    "empty.safetensors": b"",
    "other.safetensors": other_tensors(),
    "named.safetensors": other_tensors(architecture="another", configuration="not JSON"),
    "noise.json": NOISE,
    "text.json": b"Dear reader,\n",
    "empty.json": b"",
    "other.json": b'{"version": 1}',
    "list.json": b"[1, 2]",
    "noise.engine": NOISE,
    "empty.engine": b"",
    "noise.bin": NOISE,
    "README": b"Dear reader,\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_one_sentence_and_status_1(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(FOREIGN[name])
    assert main(["inspect", str(tmp_path / name)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert str(tmp_path / name) in said.err
    assert "unexpected" not in said.err


def test_a_folder_is_one_sentence_and_status_1(tmp_path, capsys):
    for name in ("a.onnx", "a.json", "a"):
        (tmp_path / name).mkdir()
        assert main(["inspect", str(tmp_path / name)]) == 1
        said = capsys.readouterr().err
        assert (said.count("\n"), "unexpected" in said) == (1, False), said


def test_a_network_of_this_package_is_described():
    assert set(inspect_file(WEIGHTS_FOLDER / "segmenter.onnx")["outputs"]) == {"mask_logits"}


@pytest.mark.parametrize("broken", ["metadata", "input"])
def test_a_model_that_only_calls_itself_a_separation_is_refused(exported, tmp_path, broken):
    model = onnx.load(exported.model)
    if broken == "metadata":
        kept = [entry for entry in model.metadata_props if entry.key != "blsgan.size_multiple"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
    else:
        other = onnx.load_model_from_string(another_network())
        other.metadata_props.extend(model.metadata_props)
        model = other
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="calls itself a model of the whole separation"):
        load_exported(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["w.bin", "/etc/hostname"])
def test_a_model_with_tensors_elsewhere_is_called_that(exported, tmp_path, location):
    model = onnx.load(exported.model)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match="keeps tensors in other files"):
        inspect_file(tmp_path / "m.onnx")


def test_files_that_tell_nothing(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(InputError, match="neither weights"):
        inspect_file(tmp_path / "a.pth")
    for name, error in (
        ("a.onnx", WeightsError),
        ("a.safetensors", WeightsError),
        ("a.json", WeightsError),
    ):
        (tmp_path / name).write_bytes(b"\xff\xfe nothing")
        with pytest.raises(error, match=name.replace(".", r"\.")):
            inspect_file(tmp_path / name)
    (tmp_path / "a.engine").write_bytes(b"plan")
    with pytest.raises(WeightsError, match=r"a\.engine\.json does not exist"):
        inspect_file(tmp_path / "a.engine")
    with pytest.raises(InputError, match="does not exist"):
        inspect_file(tmp_path / "b.onnx")
