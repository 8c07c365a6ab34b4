"""Training pairs obey the physics and the evaluation protocol."""

import numpy as np
import pytest
import torch

from blsgan.data.layout import load_root, read_joint
from blsgan.data.visits import TRAINING, visit_truths
from blsgan.errors import InputError
from blsgan.training.pairs import SyntheticPairs, VisitPairs, rim


@pytest.fixture(scope="module")
def everything(dataset):
    return load_root(dataset)


@pytest.fixture(scope="module")
def synthetic(everything):
    return SyntheticPairs(everything)


@pytest.fixture(scope="module")
def visits(everything):
    return VisitPairs(list(visit_truths(everything, TRAINING)), everything)


def draw(pairs, count=8, seed=0, **options):
    return pairs.draw(count, torch.Generator().manual_seed(seed), **options)


def test_synthetic_pairs_recompose_to_their_image_inside_the_overlap(synthetic):
    batch = draw(synthetic, 16, protocol=True, size=(96, 160))
    masks, layers, k = batch.masks, batch.layers, batch.soft_tissue[:, None, None, None]
    overlap = masks[:, :1] * masks[:, 1:]
    recomposed = 1 - (1 - layers[:, :1]) * (1 - layers[:, 1:]) / (1 - k * overlap)
    # The rim is smoothed and resampled; away from it the law holds but for the resampling.
    inside = 1 - torch.nn.functional.max_pool2d(1 - overlap, 7, stride=1, padding=3)
    assert inside.sum() > 500
    error = ((recomposed - batch.image) * inside).abs().sum() / inside.sum()
    assert error < 0.01
    alone = (masks[:, :1] + masks[:, 1:] == 1).expand(-1, 2, -1, -1) & (masks > 0)
    # Beside the other bone's border, resampling mixes a little of it in.
    near_other = torch.nn.functional.max_pool2d(masks, 7, stride=1, padding=3).flip(1) > 0
    where = alone & ~near_other
    assert where.sum() > 5000
    assert torch.allclose(
        layers[where], batch.image.expand(-1, 2, -1, -1)[where], atol=1e-6
    )


def test_synthetic_pairs_stay_in_range_and_out_of_the_background(synthetic):
    batch = draw(synthetic, 24)
    assert batch.image.shape == (24, 1, 64, 128)
    for values in (batch.image, batch.layers, batch.masks):
        assert values.min() >= 0
        assert values.max() <= 1
        assert torch.isfinite(values).all()
    assert set(batch.masks.unique().tolist()) <= {0.0, 1.0}
    assert (batch.image[batch.masks.amax(dim=1, keepdim=True) == 0] == 0).all()
    assert (batch.layers[batch.masks == 0] == 0).all()
    assert not (batch.valid & ~(batch.masks.amin(dim=1, keepdim=True) > 0)).any()
    assert ((batch.soft_tissue > 0) & (batch.soft_tissue < 0.95)).all()


def test_protocol_k_is_the_background_over_the_overlap(synthetic, everything):
    batch = draw(synthetic, 8, protocol=True)
    backgrounds = np.concatenate([
        read_joint(joint).background.ravel() for joint in everything
    ]) / 255
    assert (batch.soft_tissue >= backgrounds.min() - 1e-6).all()
    assert (batch.soft_tissue <= backgrounds.max() + 1e-6).all()


def test_the_same_generator_gives_the_same_pairs(synthetic, visits):
    for pairs in (synthetic, visits):
        first, again, other = draw(pairs), draw(pairs), draw(pairs, seed=1)
        assert torch.equal(first.image, again.image)
        assert torch.equal(first.layers, again.layers)
        assert not torch.equal(first.image, other.image)


def test_visit_pairs_as_they_are_hold_the_radiograph_s_own_pixels(visits, everything):
    batch = visits.all(size=(256, 256))
    listed = {joint.name: joint for joint in everything}
    names = sorted({t.image for t in visit_truths(everything, TRAINING)})
    arrays = read_joint(listed[names[int(visits.index[0])]])
    row, column = (int(value) for value in visits.centres[0])
    shown = batch.image[0, 0, 128, 128]
    assert arrays.masks[:, row, column].any()
    assert shown == pytest.approx(arrays.image[row, column] / 255, abs=1e-6)
    assert torch.isnan(batch.soft_tissue).all()
    # Each pair knows one bone, and only where both bones lie.
    assert (batch.valid.flatten(2).any(dim=2).sum(dim=1) == 1).all()
    assert not (batch.valid & (batch.masks.amin(dim=1, keepdim=True) == 0)).any()


def test_rim_lies_around_the_border_of_the_overlap():
    overlap = torch.zeros(1, 1, 20, 20)
    overlap[..., 6:14, 5:15] = 1
    band = rim(overlap)[0, 0]
    assert band[6, 10] == 1
    assert band[13, 5] == 1
    assert band[10, 10] == 0
    assert band[2, 10] == 0
    assert rim(torch.zeros(1, 1, 8, 8)).sum() == 0


def test_a_split_without_what_is_needed_is_refused(everything):
    overlapping = [joint for joint in everything if joint.image.stem == "a"]
    with pytest.raises(InputError, match="no joint without overlap"):
        SyntheticPairs(overlapping)
    with pytest.raises(InputError, match="no overlap that another visit"):
        VisitPairs([], everything)
