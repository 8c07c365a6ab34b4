"""The locator's weights in the package are the ones their card describes."""

import hashlib
import json

import numpy as np
import pytest

from blsgan.models import load_locator
from blsgan.models.weights import safetensors_bytes
from blsgan.synthesis.hand import marked_hand_phantom
from blsgan.tasks.joints import Locator
from blsgan.tasks.task import WEIGHTS_FOLDER

PATH = WEIGHTS_FOLDER / "locator.json"


def test_hashes_size_and_card():
    card = json.loads(PATH.read_text(encoding="utf-8"))
    text = PATH.with_suffix(".md").read_text(encoding="utf-8")
    for name, expected in card["sha256"].items():
        assert hashlib.sha256((WEIGHTS_FOLDER / name).read_bytes()).hexdigest() == expected
        assert expected in text
    path = PATH.with_suffix(".safetensors")
    network = load_locator(path)
    assert sum(parameter.numel() for parameter in network.parameters()) == card["parameters"]
    assert card["parameters"] <= 2_000_000
    assert f"{card['parameters']:,}" in text
    assert "not a medical device" in text.lower()
    assert safetensors_bytes(network) == path.read_bytes()


def test_the_measured_weights_are_these():
    results = WEIGHTS_FOLDER.parents[1] / "benchmarks/results/location.json"
    if not results.is_file():
        pytest.skip("an installed package has no benchmarks")
    measured = json.loads(results.read_text(encoding="utf-8"))
    card = json.loads(PATH.read_text(encoding="utf-8"))
    assert measured["locator"]["sha256"] == card["sha256"]["locator.onnx"]
    assert measured["figures"]["found_once"] == measured["figures"]["pictures"]
    text = PATH.with_suffix(".md").read_text(encoding="utf-8")
    for limit in ("0.1", "0.25"):
        assert f"{100 * measured['figures'][f'mcp_within_{limit}']:.1f} %" in text


def test_a_hand_is_found_in_any_of_four_turns_and_in_negative():
    image, truth = marked_hand_phantom(4, 384)
    locator = Locator.from_pretrained(threads=1)
    joints = slice(0, 5)
    width = 0.3 * np.hypot(*(truth[2] - truth[7]))
    for turns in range(4):
        (hand,) = locator(np.rot90(image, turns))
        points = hand.points[joints]
        for _ in range(turns):  # back: x, y of a picture turned anticlockwise
            points = np.column_stack((383 - points[:, 1], points[:, 0]))
        assert np.hypot(*(points - truth[joints]).T).max() < 0.35 * width
        assert hand.side == "right"
        assert abs((hand.turned_deg + 90 * turns + 180) % 360 - 180) < 20
    (hand,) = locator(1 - image)
    assert hand.negative
    assert np.hypot(*(hand.points[joints] - truth[joints]).T).max() < 0.35 * width
