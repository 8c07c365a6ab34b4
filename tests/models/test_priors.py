"""The closed forms a network starts from, where their answers are known."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from blsgan.joint import zone as arrays
from blsgan.models.priors import (
    SOFT_TISSUE_TYPICAL,
    Priors,
    attenuation,
    continued,
    display,
    grown,
    slope,
    zone,
)


def blobs(seed, size=(2, 2, 40, 56)):
    """Random masks with holes and islands."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.nn.functional.avg_pool2d(torch.rand(*size, generator=g), 7, 1, 3)
    return (noise > 0.5).float()


@pytest.mark.parametrize("reach_px", [0, 1, 4, 14])
def test_arrays_and_tensors_are_grown_alike(reach_px):
    masks = blobs(1)
    for mask, expected in zip(
        masks.flatten(0, 1), grown(masks, reach_px).flatten(0, 1), strict=True
    ):
        assert np.array_equal(arrays.grown(mask.numpy() > 0, reach_px), expected.numpy() > 0)


@pytest.mark.parametrize("reach_px", [0, 1, 4])
def test_the_zone_of_arrays_is_that_of_tensors(reach_px):
    masks = blobs(2)
    for pair, expected in zip(masks, zone(masks, reach_px)[:, 0], strict=True):
        assert np.array_equal(arrays.zone(pair.numpy() > 0, reach_px), expected.numpy() > 0)
    if reach_px == 0:
        assert torch.equal(zone(masks, 0)[:, 0], masks.prod(dim=1))


def test_the_zone_hangs_together_with_its_bones():
    y, x = np.mgrid[:120, :160]
    masks = np.stack([np.hypot(y - centre, (x - 80) * 0.5) < 50 for centre in (12, 108)])
    found = arrays.zone(masks, 4)
    gap = found & ~masks.any(axis=0)
    assert gap.any()
    for mask in masks:
        beyond, away = found & ~mask, distance_transform_edt(~mask)
        assert away[beyond].max() == pytest.approx(4, abs=0.8)
        assert beyond[:, 70:90].sum(axis=0).min() >= 4
        # Spurs, columns in which something lies beyond a gap: 24 where gaps are not closed.
        support = np.pad(mask | found, ((1, 1), (0, 0))).astype(int)
        assert (np.abs(np.diff(support, axis=0)).sum(axis=0) > 2).sum() <= 2


def test_bones_farther_apart_than_the_reach_have_no_zone():
    masks = np.zeros((2, 40, 60), np.bool_)
    masks[0, :16], masks[1, 21:] = True, True
    assert not arrays.zone(masks, 4).any()
    masks[1, 20] = True
    assert (arrays.zone(masks, 4).sum(axis=0) == 4).all()


def test_growing_is_nearly_round():
    mask = torch.zeros(1, 1, 41, 41)
    mask[..., 20, 20] = 1
    rows, columns = np.nonzero(grown(mask, 10)[0, 0].numpy())
    distance = np.hypot(rows - 20, columns - 20)
    assert distance.max() < 10 * 1.25
    assert len(rows) == pytest.approx(np.pi * 10.5**2, rel=0.15)


@pytest.mark.parametrize("law", [0.0, 6.0, 7.4])
def test_a_law_and_its_inverse_and_its_slope_agree(law):
    x = torch.linspace(0.01, 0.95, 50, dtype=torch.float64, requires_grad=True)
    a = attenuation(x, law)
    assert torch.allclose(display(a, law), x, atol=1e-9)
    (expected,) = torch.autograd.grad(a.sum(), x)
    assert torch.allclose(slope(a, law), expected)


def laplace(values, known, domain):
    """The exact solution, pixel by pixel."""
    unknown = [tuple(p) for p in np.argwhere(domain & ~known)]
    number = {pixel: index for index, pixel in enumerate(unknown)}
    matrix, right = lil_matrix((len(unknown),) * 2), np.zeros(len(unknown))
    for (row, column), index in number.items():
        for beside in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if not (0 <= beside[0] < domain.shape[0] and 0 <= beside[1] < domain.shape[1]):
                continue
            if domain[beside]:
                matrix[index, index] += 1
                if known[beside]:
                    right[index] += values[beside]
                else:
                    matrix[index, number[beside]] -= 1
    solution = values * known
    for pixel, value in zip(unknown, spsolve(matrix.tocsr(), right), strict=True):
        solution[pixel] = value
    return solution


def test_a_continuation_is_nearly_laplace_s():
    rows, columns = np.mgrid[:48, :64]
    domain = (rows < 30) & (columns > 8) & (columns < 56)
    known = domain & (rows < 16)
    values = (0.5 + 0.2 * np.sin(columns / 9) + 0.004 * rows) * known
    expected = laplace(values, known, domain)
    tensors = [
        torch.from_numpy(np.asarray(x, np.float32))[None, None] for x in (values, known, domain)
    ]
    found = continued(*tensors)[0, 0].numpy()
    assert np.array_equal(found[known], tensors[0][0, 0].numpy()[known])
    assert np.abs(found - expected)[domain].max() < 0.08
    assert np.sqrt(np.square(found - expected)[domain & ~known].mean()) < 0.03


def test_what_is_constant_is_continued_as_it_is():
    masks = blobs(3)
    known = masks * (blobs(4) > 0)
    found = continued(0.4 * known, known, masks)
    assert (found - 0.4).abs().max() < 1e-5


def test_soft_tissue_is_read_beside_the_bones_in_the_exposed_field():
    image = torch.full((1, 1, 64, 96), 0.3)
    masks = torch.zeros(1, 2, 64, 96)
    masks[:, 0, :36, 30:66] = 1
    masks[:, 1, 28:, 30:66] = 1
    image = torch.where(masks.amax(1, keepdim=True) > 0, 0.6, image)
    image[..., :20] = 0  # collimated
    priors = Priors(image, masks, 4, 7.4)
    assert (priors.soft_tissue - 0.3).abs().max() < 1e-4
    cropped = Priors(image[..., 30:66], masks[..., 30:66], 4, 7.4)
    assert (cropped.soft_tissue - SOFT_TISSUE_TYPICAL).abs().max() < 1e-6


def test_priors_of_equal_bones_are_those_bones():
    """Two bones of one intensity over constant soft tissue: every closed form is the truth."""
    bone, tissue, law = 0.55, 0.3, 6.0
    masks = torch.zeros(1, 2, 64, 96)
    masks[:, 0, :38, 24:72] = 1
    masks[:, 1, 26:, 24:72] = 1
    one, soft = (attenuation(torch.tensor(x), law) for x in (bone, tissue))
    count = masks.sum(dim=1, keepdim=True)
    image = display(soft + count * (one - soft), law)
    priors = Priors(image, masks, 0, law)
    inside = priors.overlap.expand(-1, 2, -1, -1) > 0
    for layers in (priors.layers, priors.continued, priors.equal.expand(-1, 2, -1, -1)):
        assert (layers[inside] - bone).abs().max() < 1e-3


def test_no_border_of_a_mask_is_a_step_of_the_prior():
    """Masks are drawn a pixel or two off."""
    masks = torch.zeros(1, 2, 60, 64)
    masks[:, 0, :34, 8:56] = 1
    masks[:, 1, 26:, 8:56] = 1
    soft, bone = torch.tensor(0.3), torch.tensor(0.6)
    image = torch.where(masks.amax(dim=1, keepdim=True) > 0, bone, soft)
    priors = Priors(image, masks, 4, 8.0)
    column = priors.layers[0, 0, :, 32]  # of the upper bone, from itself into soft tissue
    inside = priors.zone[0, 0, :, 32] > 0
    steps = column.diff().abs()[inside[1:] & inside[:-1]]
    assert column[inside].max() - column[inside].min() > 0.1
    assert steps.max() < 0.05
