"""Weights that the separator does not run, and supervisors, go through the protocol too."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from blsgan.errors import UsageError
from blsgan.evaluation.methods import Overlap
from blsgan.evaluation.networks import (
    from_generator,
    from_weights,
    load_supervisor,
    run_of,
    trained_on_images,
)
from blsgan.evaluation.protocol import evaluate_real
from blsgan.joint.geometry import bounding_box
from blsgan.tasks.separation import Separator
from blsgan.tasks.task import find_weights


class Even:
    """A stand-in for a generator: half the image for each bone, k = 0.3, and what it was shown."""

    size_multiple = 16
    reach_px = 0

    def __init__(self):
        self.shapes = []

    def separate(self, image, masks):
        self.shapes.append(tuple(image.shape))
        assert (image * (masks.amax(dim=1, keepdim=True) == 0)).any()  # what lies beside the bones
        return image / 2 * masks, torch.full((len(image),), 0.3)


@pytest.fixture
def sample(phantom):
    return Overlap(phantom.image, phantom.masks)


@pytest.fixture
def weights():
    return find_weights("lite")


def test_a_whole_image_is_padded_and_kept_outside_the_overlap(weights, phantom):
    generator = Even()
    cut = Overlap(phantom.image[:, :250], phantom.masks[:, :, :250])
    answer = from_generator(weights, generator, "ab", whole=True)(cut)
    assert generator.shapes == [(1, 1, 256, 256)]
    overlap = cut.masks.all(axis=0)
    for layer, mask in zip(answer.layers, cut.masks, strict=True):
        np.testing.assert_array_equal(layer[~overlap], (cut.image * mask)[~overlap])
        np.testing.assert_allclose(layer[overlap], cut.image[overlap] / 2)
    assert answer.soft_tissue == pytest.approx(0.3)


def test_a_network_trained_on_crops_sees_a_crop(weights, sample):
    small, large = Even(), Even()
    method = from_generator(weights, small, "ab")
    whole = from_generator(weights, large, "ab", whole=True)
    np.testing.assert_array_equal(method(sample).layers, whole(sample).layers)
    (shape,) = small.shapes
    assert shape[2] < 256
    assert shape[2] % 16 == shape[3] % 16 == 0
    assert method.description["backend"] == "torch, window around the overlap"


def test_nothing_overlaps_nothing_is_asked(weights, phantom):
    generator = Even()
    masks = phantom.masks.copy()
    masks[1] &= ~masks[0]
    answer = from_generator(weights, generator, "ab")(Overlap(phantom.image, masks))
    assert generator.shapes == []
    np.testing.assert_array_equal(answer.layers, phantom.image * masks)


def test_bones_that_touch_far_beside_their_overlap_stay_as_they_are(weights):
    """The zone ends with the window: beyond it nothing is asked, and nothing is answered."""
    image = np.random.default_rng(0).uniform(0.4, 0.6, (200, 400)).astype(np.float32)
    image[:, :40] = 0.1
    masks = np.zeros((2, 200, 400), bool)
    masks[0, 40:100, 40:390], masks[1, 100:160, 40:390] = True, True
    masks[1, 96:100, 60:70] = True
    generator = Even()
    generator.reach_px = 4
    answer = from_generator(weights, generator, "ab")(Overlap(image, masks))
    assert answer.zone[98, 65]
    assert not answer.zone[:, 200:].any()
    np.testing.assert_array_equal(answer.layers[:, :, 200:], (image * masks)[:, :, 200:])
    generator.size_multiple = 8
    answer = from_generator(weights, generator, "ab")(Overlap(image, masks))
    separated = Separator.from_pretrained()(image, masks)
    np.testing.assert_array_equal(answer.zone, separated.zone)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"trained": {"config": {"data": {"crop": [48, 112]}}}}, False),
        ({"trained": {"config": {"data": {"pairs": "images"}}}}, True),
        (
            {"trained": {"config": {"stages": [{"data": {}}, {"data": {"pairs": "images"}}]}}},
            True,
        ),
        ({"trained": {"config": {"data": 3}}}, False),
        ({"trained": "long ago"}, False),
        ({}, False),
    ],
)
def test_the_card_tells_what_was_trained_on(card, expected):
    assert trained_on_images(SimpleNamespace(card=card)) is expected


def test_runs_are_told_from_weights(tmp_path):
    assert run_of(None) is None
    assert run_of("lite") is None
    assert run_of(tmp_path) is None
    (tmp_path / "config.yaml").write_text("name: mine\n")
    assert run_of(tmp_path) == tmp_path
    with pytest.raises(UsageError, match="has no weights yet"):
        from_weights(tmp_path)


def test_the_supervisors_opinion_is_recorded(images):
    hidden = [image for image in images if image.image.stem == "a"]

    def supervise(layers, masks):
        probabilities = np.zeros((4, *masks.shape[1:]))
        probabilities[:2] = masks  # finds the bones exactly
        probabilities[2] = 1.0  # takes the upper layer for real, the lower one not
        return probabilities, masks

    part = evaluate_real(hidden, [], None, supervise=supervise)
    for method in part.summary["methods"].values():
        assert method["supervisor_dice"]["mean"] == 1
        assert method["supervisor_real"]["mean"] == 0.5


@pytest.mark.slow
def test_a_runs_supervisor_judges_what_it_was_trained_on(dataset, phantom, tmp_path):
    from blsgan.data.dataset import load_root
    from blsgan.training.config import load_config
    from blsgan.training.run import train

    run = tmp_path / "run"
    config = load_config(
        "lite-gan",
        (
            "stages.0.steps=1",
            "stages.1.steps=1",
            "validate_every=2",
            "precision=float32",
            "model.configuration.widths=[4, 6, 6, 8]",
            "model.configuration.blocks=[1, 1, 1, 1]",
            "supervisor.widths=[4, 8]",
            "data.synthetic=2",
            "data.visits=0",
            "data.crop=[32, 64]",
            "stages.1.data.real=1",
            "data.validation=2",
        ),
    )
    train(dataset, run, config)
    supervise = load_supervisor(run)
    layers = phantom.image * phantom.masks
    probabilities, masks = supervise(layers, phantom.masks)
    overlap = phantom.masks.all(axis=0)
    _, left, _, right = bounding_box(overlap)
    width = right - left
    assert width > 64, "the phantom's overlap shall be wider than the crop"
    # The crop it was trained on, enlarged to hold the whole overlap.
    assert probabilities.shape == (4, 32, width)
    assert masks.shape == (2, 32, width)
    assert masks.all(axis=0).sum() == overlap.sum()
    assert 0 <= probabilities.min() <= probabilities.max() <= 1
    images = [image for image in load_root(dataset) if image.image.stem == "a"]
    part = evaluate_real(images, [], from_weights(run), supervise=supervise)
    assert 0 <= part.summary["methods"]["blsgan lite-gan"]["supervisor_dice"]["mean"] <= 1


@pytest.mark.parametrize("head", ["exact", "free"])
def test_a_network_of_another_grid_sees_the_separators_window(tmp_path, sample, head):
    """A backbone wants multiples of 2, 16 or 32 where the default network wants 8."""
    from blsgan.models import build_generator
    from blsgan.models.weights import safetensors_bytes

    options = {"head": head, "soft_tissue": "zero", "widths": [4] * 6}
    generator = build_generator("unet", options).eval()
    assert generator.size_multiple == 32
    (tmp_path / "mine.safetensors").write_bytes(safetensors_bytes(generator))
    card = {"trained": {"config": {"data": {"crop": [64, 128]}}}}
    (tmp_path / "mine.json").write_text(
        json.dumps({"name": "mine", "architecture": "unet", **card})
    )
    method = from_weights(tmp_path / "mine.json")
    answer = method(sample)
    outside = ~sample.masks.all(axis=0)
    np.testing.assert_array_equal(
        answer.layers[:, outside], (sample.image * sample.masks)[:, outside]
    )
    if head == "exact":
        separator = Separator.from_pretrained(tmp_path / "mine.json")
        assert method.description["backend"] == "torch"
        assert separator.weights.size_multiple == 32
        joint = separator(sample.image, sample.masks)
        np.testing.assert_array_equal(answer.layers, joint.layers)
    else:
        assert method.description["backend"] == "torch, window around the overlap"
        with pytest.raises(UsageError, match="runs in PyTorch alone"):
            from_weights(tmp_path / "mine.json", "onnx")
        with pytest.raises(UsageError, match="leave out --mirrored"):
            from_weights(tmp_path / "mine.json", mirrored=True)
