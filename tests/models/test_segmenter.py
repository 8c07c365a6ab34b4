"""The segmenter's network and its files."""

import json

import numpy as np
import pytest
import torch

from blsgan.errors import WeightsError
from blsgan.joint.geometry import GRID_PX
from blsgan.models.segmenter import SegmenterNetwork
from blsgan.models.weights import load_segmenter, safetensors_bytes, save_weights
from blsgan.runtimes import session
from blsgan.tasks.backend import create
from blsgan.tasks.task import SEGMENTATION, WEIGHTS_FOLDER, find_weights

SMALL = {"widths": (4, 6, 8), "blocks": (1, 1, 1)}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SegmenterNetwork(**SMALL).eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 1, GRID_PX, GRID_PX, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    return save_weights(network, tmp_path_factory.mktemp("weights"), "small", {"seed": 3})


def test_it_has_a_logit_for_each_bone_and_pixel_and_few_parameters(network, pictures):
    with torch.no_grad():
        assert network(pictures).shape == (3, 2, GRID_PX, GRID_PX)
    default = SegmenterNetwork()
    assert sum(parameter.numel() for parameter in default.parameters()) <= 2_000_000


def test_brightness_and_contrast_hardly_matter(network, pictures):
    with torch.no_grad():
        plain, changed = network(pictures), network(0.6 * pictures + 0.2)
        other = network(pictures.flip(0))
    assert (plain - changed).abs().mean() < 0.1 * (plain - other).abs().mean()


def test_a_picture_does_not_depend_on_its_neighbours(network, pictures):
    with torch.no_grad():
        torch.testing.assert_close(network(pictures)[1:2], network(pictures[1:2]))


def test_a_flat_field_is_no_division_by_zero(network):
    with torch.no_grad():
        assert torch.isfinite(network(torch.full((1, 1, GRID_PX, GRID_PX), 0.3))).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": (4, 6), "blocks": (1,)},
        {"widths": (4,), "blocks": (1,)},
        {"widths": (4, 100_000), "blocks": (1, 1)},
        {"widths": (4, 4), "blocks": (1, 100_000)},
    ],
)
def test_sizes_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"widths|resolutions|more than"):
        SegmenterNetwork(**wrong)


def test_files_rebuild_the_same_network(network, saved, pictures):
    loaded = load_segmenter(saved.with_suffix(".safetensors"))
    assert loaded.configuration() == {key: list(value) for key, value in SMALL.items()}
    assert safetensors_bytes(loaded) == saved.with_suffix(".safetensors").read_bytes()
    card = json.loads(saved.read_text())
    assert (card["task"], card["seed"]) == ("segmentation", 3)
    for kept, own in zip(loaded.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(kept, own, rtol=2**-12, atol=0)
        assert not (kept.detach().view(torch.int32) & 0xFFF).any()  # 12 of the 24 binary digits
    with torch.no_grad():
        expected = loaded(pictures).numpy()
    for name, reason in session.available().items():
        if reason is None:
            (logits,) = create(name, saved, task=SEGMENTATION).run(pictures.numpy())
            np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_separator_is_not_taken_for_a_segmenter_nor_the_other_way_round(saved):
    for name in ("onnx", "torch"):
        with pytest.raises(WeightsError, match="architecture"):
            create(name, saved)
        with pytest.raises(WeightsError, match="architecture"):
            create(name, "lite", task=SEGMENTATION)


def test_a_folder_with_weights_of_both_tasks_gives_each_its_own():
    folder = WEIGHTS_FOLDER
    assert find_weights(folder).name == "lite"
    assert find_weights(folder, SEGMENTATION).name == "segmenter"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:100],
        lambda data: data.replace(b'"architecture":"segmenter"', b'"architecture":"segmentor"'),
        lambda data: data.replace(b"[4, 6, 8]", b"[4, 8, 8]"),
        lambda data: data.replace(b"[4, 6, 8]", b'"4, 6,8"'),
    ],
)
def test_damaged_files_are_refused(saved, tmp_path, change):
    good = saved.with_suffix(".safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(change(good))
    assert path.read_bytes() != good
    with pytest.raises(WeightsError, match=r"bad\.safetensors"):
        load_segmenter(path)
