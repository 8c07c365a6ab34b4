"""The logarithmic terms, computed by hand."""

import math

import numpy as np
import pytest
import torch

from blsgan.evaluation.metrics import score_regions
from blsgan.training.config import LossConfig
from blsgan.training.objective import dissimilarity, objective
from blsgan.training.pairs import PairBatch


@pytest.fixture
def batch():
    """A synthetic pair and a real overlap, 8x8, every pixel known."""
    ones = torch.ones(2, 2, 8, 8)
    return PairBatch(ones[:, :1], ones, 0.5 * ones, ones.bool(), torch.tensor([0.2, math.nan]))


def terms_of(batch, error, **options):
    layers = (batch.layers + torch.tensor(error)[:, None, None, None]).requires_grad_()
    config = LossConfig(mse_floor=1e-5, **options)
    return layers, objective(layers, torch.tensor([0.2, 0.2]), batch, config)


@pytest.mark.parametrize(("floor", "expected"), [(None, 1e-5), (1e-3, 1e-3)])
def test_real_overlaps_have_a_floor_of_their_own(batch, floor, expected):
    _, terms = terms_of(batch, [0.1, 0.02], visits_mse_floor=floor)
    assert terms.parts["synthetic_db"].item() == pytest.approx(10 * math.log10(0.01 + 1e-5))
    assert terms.parts["visits_db"].item() == pytest.approx(10 * math.log10(0.0004 + expected))


def test_a_floor_above_the_noise_stops_real_overlaps_from_being_learnt_by_heart(batch):
    """Below it the pull on a layer falls with the error instead of growing."""
    pulls = {}
    for floor in (None, 1e-3):
        for error in (0.1, 0.01):
            layers, terms = terms_of(batch, [0.1, error], visits_mse_floor=floor)
            terms.total.backward()
            pulls[floor, error] = layers.grad[1].abs().max().item()
    assert pulls[None, 0.01] > 5 * pulls[None, 0.1]
    assert pulls[1e-3, 0.01] < pulls[1e-3, 0.1]


def test_dissimilarity_is_what_the_evaluation_measures():
    rng = np.random.default_rng(0)
    truth = rng.random((2, 2, 40, 48)).astype(np.float32)
    valid = np.zeros((2, 1, 40, 48), bool)
    valid[:, :, 14:24, 15:30] = True
    wrong = np.where(valid, truth + 0.2 * rng.standard_normal(truth.shape), truth)
    batch = PairBatch(
        torch.zeros(2, 1, 40, 48),
        torch.ones(2, 2, 40, 48),
        torch.from_numpy(truth),
        torch.from_numpy(valid).expand(-1, 2, -1, -1),
        torch.full((2,), 0.2),
    )
    # What is said of pixels with no truth does not count.
    said = torch.from_numpy(np.where(valid, wrong, 0).astype(np.float32)).requires_grad_()
    found = dissimilarity(said, batch)
    for row in range(2):
        score = score_regions(wrong[row], truth[row], {"overlap": valid[row, 0]})["overlap"]
        assert 1 - found[row].item() == pytest.approx(score.ssim, abs=1e-4)
    found.sum().backward()
    assert (said.grad != 0).any()
    assert (said.grad[~batch.valid] == 0).all()


def test_dissimilarity_takes_part_with_its_weight_and_is_0_for_the_truth(batch):
    plain, weighed = (terms_of(batch, [0.1, 0.1], ssim=weight)[1] for weight in (0, 2.0))
    assert "ssim" not in plain.parts
    expected = plain.total + 2 * weighed.parts["ssim"]
    assert weighed.total.item() == pytest.approx(expected.item())
    assert weighed.parts["ssim"].item() > 0
    assert terms_of(batch, [0.0, 0.3], ssim=2.0)[1].parts["ssim"].item() == pytest.approx(0)
