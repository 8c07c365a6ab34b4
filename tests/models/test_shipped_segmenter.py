"""The segmenter's weights in the package are the ones their card describes."""

import hashlib
import json

import pytest

from blsgan.models import load_segmenter
from blsgan.models.weights import safetensors_bytes
from blsgan.tasks.task import WEIGHTS_FOLDER, find_weights

PATH = WEIGHTS_FOLDER / "segmenter.json"


@pytest.fixture(scope="module")
def card():
    return json.loads(PATH.read_text(encoding="utf-8"))


def test_hashes_and_size(card):
    weights = find_weights("segmenter")
    assert not weights.safetensors.exists()  # it ships once, as a graph
    files = {path.name: weights.load(path) for path in (weights.onnx, weights.safetensors)}
    for name, expected in card["sha256"].items():
        assert hashlib.sha256(files[name].data).hexdigest() == expected
    network = load_segmenter("segmenter", files["segmenter.safetensors"].data)
    assert sum(parameter.numel() for parameter in network.parameters()) == card["parameters"]
    assert card["parameters"] <= 2_000_000
    assert safetensors_bytes(network) == files["segmenter.safetensors"].data


def test_the_model_card_speaks_of_these_files(card):
    text = PATH.with_suffix(".md").read_text(encoding="utf-8")
    for digest in card["sha256"].values():
        assert digest in text
    assert f"{card['parameters']:,}" in text
    assert "not a medical device" in text.lower()


def test_the_measured_weights_are_these(card):
    """The committed figures name the file that they belong to."""
    results = WEIGHTS_FOLDER.parents[1] / "benchmarks/results/segmentation.json"
    if not results.is_file():
        pytest.skip("an installed package has no benchmarks")
    measured = json.loads(results.read_text(encoding="utf-8"))
    assert measured["segmenter"]["sha256"] == card["sha256"]["segmenter.onnx"]
