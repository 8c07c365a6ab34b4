"""The default generator keeps what ``Separator`` relies on."""

import pytest
import torch

from blsgan.models import build_generator
from blsgan.models.lite import LiteGenerator, dilate, ring_statistics

SMALL = {"widths": [4, 6, 6, 8], "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = build_generator("lite").eval()
    torch.nn.init.normal_(generator.share_head.weight, std=0.1)
    return generator


def joint(batch=2, rows=48, columns=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    image = 0.2 + 0.5 * torch.rand(batch, 1, rows, columns, generator=g)
    masks = torch.zeros(batch, 2, rows, columns)
    masks[:, 0, : rows // 2 + 6] = 1
    masks[:, 1, rows // 2 - 6 :] = 1
    return image, masks


def test_stays_small():
    assert sum(p.numel() for p in LiteGenerator().parameters()) <= 2_000_000


def test_shapes_and_ranges(generator):
    image, masks = joint()
    with torch.no_grad():
        logits, k = generator(image, masks)
    assert logits.shape == masks.shape
    assert k.shape == (2,)
    assert ((k > 0) & (k < 0.95)).all()


def test_a_fresh_network_splits_evenly_with_the_ring_s_k():
    torch.manual_seed(1)
    image, masks = joint()
    with torch.no_grad():
        logits, k = build_generator("lite")(image, masks)
    assert logits.abs().max() < 0.1
    assert torch.allclose(k, ring_statistics(image, masks)[:, 3], atol=1e-5)


def test_an_image_s_answer_does_not_depend_on_its_neighbours(generator):
    image, masks = joint(3)
    with torch.no_grad():
        together = generator(image, masks)
        alone = generator(image[1:2], masks[1:2])
    assert torch.allclose(together[0][1:2], alone[0], atol=1e-5)
    assert torch.allclose(together[1][1:2], alone[1], atol=1e-6)


def test_a_grown_network_says_what_the_smaller_one_said(generator):
    torch.manual_seed(2)
    grown = LiteGenerator(blocks=(2, 2, 2, 3)).eval()
    grown.begin_with(generator)
    image, masks = joint()
    with torch.no_grad():
        for given, expected in zip(grown(image, masks), generator(image, masks), strict=True):
            assert torch.equal(given, expected)
    grown(image, masks)[0].sum().backward()
    added = grown.encoder[0][1].second.weight
    assert added.grad.abs().max() > 0  # and it can learn to say something else
    for other in (LiteGenerator(**SMALL), build_generator("lite", {"blocks": [1, 1, 1, 2]})):
        with pytest.raises(RuntimeError):
            other.begin_with(generator)


def test_what_lies_outside_the_bones_is_ignored(generator):
    image, masks = joint()
    masks[..., :8] = 0
    other = image.clone()
    other[..., :8] = 0.9
    with torch.no_grad():
        assert torch.equal(generator(image, masks)[0], generator(other, masks)[0])


@pytest.mark.parametrize("case", ["no overlap", "all overlap", "empty", "black", "white"])
def test_degenerate_inputs_stay_finite(generator, case):
    image, masks = joint()
    if case == "no overlap":
        masks[:, 1] = 0
    elif case == "all overlap":
        masks[:] = 1
    elif case == "empty":
        masks[:] = 0
    elif case == "black":
        image[:] = 0
    else:
        image[:] = 1
    with torch.no_grad():
        logits, k = generator(image, masks)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(k).all()


def test_ring_k_is_the_one_an_overlap_was_composed_with():
    image, masks = joint(1)
    upper, lower, k = 0.4, 0.5, 0.3
    overlap = masks[:, :1] * masks[:, 1:]
    image = upper * masks[:, :1] + lower * masks[:, 1:] * (1 - masks[:, :1])
    image = torch.where(overlap > 0, 1 - (1 - upper) * (1 - lower) / (1 - k), image)
    a, b, o, ring_k = ring_statistics(image, masks)[0].tolist()
    assert (a, b) == pytest.approx((upper, lower), abs=1e-5)
    assert o == pytest.approx(1 - 0.3 / 0.7, abs=1e-5)
    assert ring_k == pytest.approx(k, abs=1e-4)


def test_without_the_ring_k_does_not_start_at_what_the_ring_shows():
    torch.manual_seed(0)
    told = LiteGenerator(SMALL["widths"], SMALL["blocks"])
    torch.manual_seed(0)
    untold = LiteGenerator(SMALL["widths"], SMALL["blocks"], ring=False)
    assert told.configuration() == SMALL
    assert untold.configuration() == {**SMALL, "ring": False}
    for one, other in zip(told.parameters(), untold.parameters(), strict=True):
        assert torch.equal(one, other)
    image, masks = joint()
    with torch.no_grad():  # a fresh network's k is its start
        assert float(told(image, masks)[1][0]) == pytest.approx(
            float(ring_statistics(image, masks)[0, -1]), abs=1e-5
        )
        assert untold(image, masks)[1].tolist() == pytest.approx([0.35] * len(image), abs=1e-5)


def test_dilation_is_square():
    mask = torch.zeros(1, 1, 9, 9)
    mask[0, 0, 4, 4] = 1
    assert dilate(mask, 2).sum() == 25
