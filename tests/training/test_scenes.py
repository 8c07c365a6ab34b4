"""What the segmenter sees: joints with their masks, and pictures that have none."""

import numpy as np
import pytest

from blsgan.data.dataset import load_root
from blsgan.joint.geometry import GRID_PX
from blsgan.training import scenes
from blsgan.training.scenes import BORDER_PX, Scenes


@pytest.fixture(scope="module")
def joints(dataset):
    images = load_root(dataset)
    return Scenes(images, phantom_share=0.1, negative_share=0.3)


def test_the_same_seed_gives_the_same_batch_and_another_one_another(joints):
    first, again, other = (joints.draw(4, (0, step)) for step in (5, 5, 6))
    for value, same, changed in zip(
        *(vars(b).values() for b in (first, again, other)), strict=True
    ):
        assert value.equal(same)
        assert not value.equal(changed)


def test_values_shapes_and_shares(joints):
    batch = joints.draw(40, (1, 0))
    assert batch.image.shape == (40, 1, GRID_PX, GRID_PX)
    assert batch.masks.shape == (40, 2, GRID_PX, GRID_PX)
    assert batch.border.shape == batch.image.shape
    for values in vars(batch).values():
        assert 0 <= values.min() <= values.max() <= 1
    negative = (batch.masks.amax(dim=(1, 2, 3)) == 0).float().mean()
    assert 0.15 < negative < 0.45


def test_masks_move_with_the_picture(joints):
    """Paint the bones white on black: whatever is done to the picture is done to the masks."""
    drawn = scenes._Joint(
        255 * joints._joints[0].masks[0].astype(np.uint8), joints._joints[0].masks
    )
    for seed in range(12):
        image, masks = scenes._move(drawn, np.random.default_rng(seed))
        inside = masks[0] > 0.5
        assert np.mean((image > 0.5) != inside) < 0.01


def test_an_upside_down_joint_keeps_its_channels(joints, monkeypatch):
    monkeypatch.setattr(scenes, "_UPSIDE_DOWN", 1.0)
    _, masks = scenes._move(joints._joints[0], np.random.default_rng(0))
    rows = [np.flatnonzero((mask > 0.5).any(axis=1)).mean() for mask in masks]
    assert rows[0] > rows[1]


def test_the_border_is_where_a_bone_begins_and_not_where_the_picture_ends(joints):
    masks = np.zeros((2, GRID_PX, GRID_PX), np.float32)
    masks[0, :100, 50:90] = 1
    border = scenes._border(masks)[0]
    assert border[100 + BORDER_PX - 1, 70] == 1
    assert border[100 + BORDER_PX, 70] == 0
    assert border[0, 70] == 0
    assert border[50, 50 - BORDER_PX] == 1


def test_negatives_are_pictures(joints):
    for seed in range(40):
        picture = joints._negative(np.random.default_rng(seed))
        assert picture.shape == (GRID_PX, GRID_PX)
        assert np.isfinite(picture).all()
        assert -0.1 <= picture.min() <= picture.max() <= 1.1


def test_validation_takes_every_joint_as_it_is(joints, dataset):
    batch = joints.all()
    assert len(batch.image) == len(load_root(dataset))
    assert batch.masks.unique().tolist() == [0, 1]


def test_a_share_of_the_joints_is_drawn_from_those_that_overlap(dataset):
    images = load_root(dataset)
    usual, often = (
        Scenes(images, phantom_share=0, negative_share=0, overlap_share=share) for share in (0, 1)
    )
    bare = Scenes(images, phantom_share=0, negative_share=0)

    def overlapped(drawn: Scenes) -> float:
        joints = [drawn._joint(np.random.default_rng(seed)) for seed in range(60)]
        sizes = [np.count_nonzero(joint.masks.all(axis=0)) for joint in joints]
        return np.mean([size >= scenes.LEAST_OVERLAP_PX for size in sizes])

    assert 0 < overlapped(usual) < 1 == overlapped(often)
    # Without a share every draw is what it was before there was one.
    assert usual.draw(2, (3, 1)).image.equal(bare.draw(2, (3, 1)).image)
