"""Weights' files: the same network from safetensors and ONNX, and clear words for anything else."""

import json
import shutil

import numpy as np
import pytest
import torch

from blsgan.errors import WeightsError
from blsgan.models import build_generator, load_generator, save_weights
from blsgan.models.lite import LiteGenerator
from blsgan.models.weights import safetensors_bytes
from blsgan.tasks.backend import create
from blsgan.tasks.task import WEIGHTS_FOLDER, find_weights

SMALL = {"widths": [4, 6, 6, 8], "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = build_generator("lite", SMALL)
    torch.nn.init.normal_(generator.head_convolution.weight, std=0.3)
    return generator


@pytest.fixture(scope="module")
def card(generator, tmp_path_factory):
    return save_weights(generator, tmp_path_factory.mktemp("weights"), "small", {"note": "a test"})


def test_both_files_compute_the_same_at_any_size(card):
    rng = np.random.default_rng(0)
    backends = [create(name, card) for name in ("onnx", "torch")]
    for batch, rows, columns in ((1, 16, 16), (3, 48, 112), (2, 96, 64)):
        image = rng.random((batch, 1, rows, columns), np.float32)
        masks = (rng.random((batch, 2, rows, columns)) > 0.4).astype(np.float32)
        first, second = (backend.run(image, masks) for backend in backends)
        # A share is the exponential of its logit: of next to nothing the logarithm is rough.
        np.testing.assert_allclose(np.exp(first[0]), np.exp(second[0]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(first[1], second[1], atol=1e-5)


def test_writing_again_gives_the_same_bytes(generator, card, tmp_path):
    again = save_weights(generator, tmp_path, "small", {"note": "a test"})
    for suffix in (".json", ".safetensors", ".onnx"):
        assert again.with_suffix(suffix).read_bytes() == card.with_suffix(suffix).read_bytes()


def test_onnx_holds_no_path_of_the_machine_that_wrote_it(card):
    data = card.with_suffix(".onnx").read_bytes()
    assert b".py" not in data
    assert b"/site-packages" not in data


def test_the_card_names_what_it_binds(card):
    fields = json.loads(card.read_text())
    assert fields["architecture"] == "lite"
    assert fields["configuration"] == {**SMALL, "law": 0.0, "reach_px": 4}
    assert set(fields["sha256"]) == {"small.safetensors", "small.onnx"}
    assert fields["note"] == "a test"


def test_files_that_are_no_weights(tmp_path, card, generator):
    from safetensors.torch import save_file

    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_generator(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(card.with_suffix(".safetensors").read_bytes()[:50])
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_generator(broken)
    save_file({"x": torch.zeros(2)}, broken)
    with pytest.raises(WeightsError, match="name no blsgan architecture"):
        load_generator(broken)
    save_file({"x": torch.zeros(2)}, broken, {"architecture": "elsewhere", "configuration": "{}"})
    with pytest.raises(WeightsError, match="'elsewhere' is unknown"):
        load_generator(broken)
    metadata = {"architecture": "lite", "configuration": json.dumps(SMALL)}
    save_file({"x": torch.zeros(2)}, broken, metadata)
    with pytest.raises(WeightsError, match="tensors are not those"):
        load_generator(broken)
    metadata["configuration"] = '{"nonsense": 1}'
    save_file({"x": torch.zeros(2)}, broken, metadata)
    with pytest.raises(WeightsError, match="no option 'nonsense'; it takes widths"):
        load_generator(broken)
    metadata["configuration"] = "[" * 200_000
    save_file({"x": torch.zeros(2)}, broken, metadata)
    with pytest.raises(WeightsError, match="name no blsgan architecture"):
        load_generator(broken)


@pytest.mark.parametrize(
    ("architecture", "configuration"),
    [
        ("lite", "[]"),
        ("lite", '"widths"'),
        ("lite", '{"widths": 3}'),
        ("lite", '{"widths": [1e400, 8, 8, 8]}'),
        ("lite", '{"widths": [-1, 8, 8, 8]}'),
        ("lite", '{"widths": [1000000000, 8, 8, 8]}'),
        ("lite", '{"widths": [4096, 4096, 4096, 4096], "blocks": [9, 9, 9, 9]}'),
        ("lite", '{"blocks": [1000000000000, 1, 1, 1]}'),
        ("lite", json.dumps({"widths": [8] * 100_000})),
        ("lite", '{"widths": [[8], 8, 8, 8]}'),
        ("lite", '{"widths": [], "blocks": []}'),
        ("transunet", '{"token_grid": 100000000}'),
        ("transunet", '{"width": true}'),
        ("transunet", '{"layers": {}}'),
    ],
)
def test_wild_configurations(tmp_path, architecture, configuration):
    from safetensors.torch import save_file

    path = tmp_path / "wild.safetensors"
    metadata = {"architecture": architecture, "configuration": configuration}
    save_file({"x": torch.zeros(2)}, path, metadata)
    with pytest.raises(WeightsError, match=r"wild\.safetensors: .*(configuration|cannot be built)"):
        load_generator(path)


def test_content_that_was_read_is_not_read_again(card, tmp_path):
    data = card.with_suffix(".safetensors").read_bytes()
    generator = load_generator(tmp_path / "gone.safetensors", data)
    assert safetensors_bytes(generator) == data


def test_the_same_bytes_every_time(generator):
    """The library alone would write the metadata in a random order."""
    written = {safetensors_bytes(generator) for _ in range(20)}
    assert len(written) == 1
    assert int.from_bytes(written.pop()[:8], "little") % 8 == 0


def test_checking_the_size_draws_no_random_number():
    torch.manual_seed(5)
    expected = LiteGenerator(**SMALL).state_dict()
    torch.manual_seed(5)
    for key, value in build_generator("lite", SMALL).state_dict().items():
        assert torch.equal(value, expected[key])


def test_a_switch_survives_a_round_trip(tmp_path):
    from blsgan.models import build_generator

    small = {"widths": [4, 4, 4, 4], "blocks": [1, 1, 1, 1], "continued": False}
    path = tmp_path / "small.safetensors"
    path.write_bytes(safetensors_bytes(build_generator("lite", small)))
    assert load_generator(path).configuration() == {**small, "law": 0.0, "reach_px": 4}
    with pytest.raises(WeightsError, match="'widths' is True and no switch"):
        build_generator("lite", {"widths": True})


def test_weights_survive_a_round_trip(generator, card):
    loaded = load_generator(card.with_suffix(".safetensors"))
    assert safetensors_bytes(loaded) == safetensors_bytes(generator)
    assert not loaded.training


def test_a_graph_alone_stands_for_both_files(tmp_path, card):
    for suffix in (".json", ".onnx"):
        shutil.copy(card.with_suffix(suffix), tmp_path)
    weights = find_weights(tmp_path)
    assert not weights.safetensors.exists()
    made = weights.load(weights.safetensors)
    assert made.data == card.with_suffix(".safetensors").read_bytes()
    assert made.sha256 == weights.hashes["small.safetensors"]
    # By its own name too, as a pickled backend asks for it.
    assert find_weights(tmp_path / "small.safetensors") == weights


@pytest.mark.parametrize("name", ["lite", "segmenter", "locator"])
def test_the_graph_that_a_wheel_holds_stands_for_both_files(tmp_path, name):
    for suffix in (".json", ".onnx"):
        shutil.copy(WEIGHTS_FOLDER / f"{name}{suffix}", tmp_path)
    weights = find_weights(tmp_path)
    expected = (WEIGHTS_FOLDER / f"{name}.safetensors").read_bytes()
    assert weights.load(weights.safetensors).data == expected


@pytest.mark.parametrize("change", ["renamed", "reshaped", "other"])
def test_a_graph_that_is_not_of_its_card_is_no_file_for_torch(tmp_path, card, change):
    import onnx

    shutil.copy(card, tmp_path)
    model = onnx.load(card.with_suffix(".onnx"))
    weight = next(t for t in model.graph.initializer if t.name.endswith("stem.weight"))
    values = onnx.numpy_helper.to_array(weight)
    changed = {"renamed": values, "reshaped": values[:1], "other": values + 1}[change]
    weight.CopyFrom(
        onnx.numpy_helper.from_array(changed, "x" if change == "renamed" else weight.name)
    )
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    fields = json.loads((tmp_path / "small.json").read_text())
    del fields["sha256"]["small.onnx"]
    (tmp_path / "small.json").write_text(json.dumps(fields))
    weights = find_weights(tmp_path)
    with pytest.raises(WeightsError, match="damaged" if change == "other" else "are not those of"):
        weights.load(weights.safetensors)


def test_without_onnx_the_way_out_is_named(tmp_path, card, monkeypatch):
    for suffix in (".json", ".onnx"):
        shutil.copy(card.with_suffix(suffix), tmp_path)
    monkeypatch.setattr("blsgan.models.weights.find_spec", lambda name: None)
    weights = find_weights(tmp_path)
    with pytest.raises(WeightsError, match=r"needs onnx; pip install 'blsgan\[train\]'"):
        weights.load(weights.safetensors)
