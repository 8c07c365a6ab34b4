"""Composed overlaps obey the law they are composed by, and look like radiographs."""

import pytest
import torch

from blsgan.data.dataset import load_root
from blsgan.joint.zone import REACH_PX
from blsgan.models.priors import attenuation, display, zone
from blsgan.training.composites import Composites
from blsgan.training.config import DataConfig
from blsgan.training.pairs import SyntheticPairs


@pytest.fixture(scope="module")
def joints(dataset):
    return SyntheticPairs(load_root(dataset))


def draw(joints, count=12, seed=0, **data):
    random = torch.Generator().manual_seed(seed)
    return Composites(joints).draw(count, random, DataConfig(**{"redrawn_share": 0, **data}))


def test_layers_are_known_in_the_whole_zone_and_explain_the_image(joints):
    batch = draw(joints, tone_curves=False)
    known = batch.weight[:, :1] > 0
    assert torch.equal(known, zone(batch.masks, REACH_PX) > 0)
    assert known.flatten(1).any(dim=1).float().mean() > 0.8
    bones = attenuation(batch.layers, 0.0)
    needed = bones.sum(dim=1, keepdim=True) - attenuation(batch.image, 0.0)
    # What is left is the soft tissue that they share: smooth, and as dark as soft tissue is.
    tissue = display(needed, 0.0)
    assert 0.02 < tissue[known].median() < 0.75
    assert torch.isnan(batch.soft_tissue).all()


def test_a_bone_fades_beyond_its_mask_and_is_no_polygon(joints):
    batch = draw(joints, tone_curves=False)
    for bone in (0, 1):
        mask, layer = batch.masks[:, bone : bone + 1], batch.layers[:, bone : bone + 1]
        beyond = (zone(batch.masks, REACH_PX) > 0) & (mask == 0)
        inside = (zone(batch.masks, REACH_PX) > 0) & (mask > 0)
        assert layer[beyond].mean() < layer[inside].mean()
        assert (layer[beyond] > 0).all()


def test_masks_are_redrawn_by_a_few_pixels_and_the_truth_stays(joints):
    drawn, redrawn = draw(joints), draw(joints, redrawn_share=1)
    assert torch.equal(drawn.image, redrawn.image)
    assert torch.equal(drawn.layers, redrawn.layers)
    changed = (drawn.masks != redrawn.masks).float()
    assert 0.002 < changed.mean() < 0.1
    near = torch.nn.functional.max_pool2d(drawn.masks, 13, 1, 6)
    assert (redrawn.masks <= near).float().mean() > 0.999


def test_the_same_generator_gives_the_same_composites(joints):
    first, again, other = draw(joints), draw(joints), draw(joints, seed=1)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


def test_composites_are_made_on_the_device(dataset):
    meta = torch.device("meta")
    for value in vars(draw(SyntheticPairs(load_root(dataset), meta), 3)).values():
        assert value.device == meta
