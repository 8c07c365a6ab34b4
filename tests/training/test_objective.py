"""The logarithmic terms, computed by hand."""

import math

import pytest
import torch

from blsgan.training.config import LossConfig
from blsgan.training.objective import objective
from blsgan.training.pairs import PairBatch


@pytest.fixture
def batch():
    """A synthetic pair and a real overlap, 8x8, every pixel known."""
    ones = torch.ones(2, 2, 8, 8)
    return PairBatch(ones[:, :1], ones, 0.5 * ones, ones.bool(), torch.tensor([0.2, math.nan]))


def terms_of(batch, error, **options):
    layers = (batch.layers + torch.tensor(error)[:, None, None, None]).requires_grad_()
    config = LossConfig(mse_floor=1e-5, **options)
    return layers, objective(layers, layers, torch.tensor([0.2, 0.2]), batch, config)


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
