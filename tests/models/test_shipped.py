"""The weights in the package are the ones their card describes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import blsgan
from blsgan.models import load_generator
from blsgan.models.weights import safetensors_bytes
from blsgan.synthesis.phantoms import joint_phantom
from blsgan.tasks.task import WEIGHTS_FOLDER

CARD = WEIGHTS_FOLDER / "lite.json"


@pytest.fixture(scope="module")
def card():
    return json.loads(CARD.read_text(encoding="utf-8"))


def test_hashes_and_size(card):
    for name, expected in card["sha256"].items():
        assert hashlib.sha256((WEIGHTS_FOLDER / name).read_bytes()).hexdigest() == expected
    assert card["parameters"] <= 2_000_000
    generator = load_generator(WEIGHTS_FOLDER / "lite.safetensors")
    assert sum(parameter.numel() for parameter in generator.parameters()) == card["parameters"]
    assert safetensors_bytes(generator) == (WEIGHTS_FOLDER / "lite.safetensors").read_bytes()


def test_the_model_card_speaks_of_these_files(card):
    text = Path(WEIGHTS_FOLDER / "lite.md").read_text(encoding="utf-8")
    for digest in card["sha256"].values():
        assert digest in text
    assert f"{card['parameters']:,}" in text
    assert "not a medical device" in text.lower()


def test_layers_compose_to_the_image_exactly():
    separator = blsgan.Separator.from_pretrained()
    for seed in range(4):
        phantom = joint_phantom(seed)
        result = separator(phantom.image, phantom.masks)
        union = phantom.masks.any(axis=0)
        assert np.mean(result.residual[union] ** 2) <= 1e-6
        alone = union & ~result.zone
        np.testing.assert_array_equal(
            (result.upper + result.lower)[alone], phantom.image.astype(np.float32)[alone]
        )
