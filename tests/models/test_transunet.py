"""TransUNet: the published size, and that every part does what its name says."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blsgan.errors import WeightsError
from blsgan.models.registry import build_generator
from blsgan.models.transunet import TransformerBlock, TransUNetGenerator


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return TransUNetGenerator(width=8, blocks=2, mlp_width=32, decoder=(16, 8, 8, 8)).eval()


def joint(height, width, bones=2, batch=1):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(batch, 1, height, width, generator=generator)
    return image, (torch.rand(batch, bones, height, width, generator=generator) > 0.4).float()


def test_published_size_and_cost():
    with torch.device("meta"):
        generator = build_generator("transunet").eval()
        assert sum(p.numel() for p in generator.parameters()) == 67_209_187
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            logits, soft_tissue = generator(
                torch.empty(1, 1, 256, 256), torch.empty(1, 2, 256, 256)
            )
    assert logits.shape == (1, 2, 256, 256)
    assert soft_tissue.shape == (1,)
    assert counter.get_total_flops() == pytest.approx(67e9, rel=0.05)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96)])
def test_sizes_divisible_by_32(small, height, width):
    with torch.no_grad():
        logits, soft_tissue = small(*joint(height, width, batch=2))
    assert logits.shape == (2, 2, height, width)
    assert torch.isfinite(logits).all()
    assert ((soft_tissue >= 0) & (soft_tissue <= 0.95)).all()


def test_three_bones():
    generator = TransUNetGenerator(layers=3, width=8, blocks=1, mlp_width=8, decoder=(8, 8, 8, 8))
    with torch.no_grad():
        logits, _ = generator.eval()(*joint(64, 64, bones=3))
    assert logits.shape == (1, 3, 64, 64)


def test_what_lies_outside_the_bones_is_ignored(small):
    image, masks = joint(64, 64)
    outside = masks.amax(dim=1, keepdim=True) == 0
    assert outside.any()
    with torch.no_grad():
        a, b = small(image, masks), small(torch.where(outside, 1 - image, image), masks)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_attention_by_hand():
    torch.manual_seed(2)
    block = TransformerBlock(width=12, heads=3, mlp_width=8)
    x = torch.randn(2, 5, 12)
    normal = block.attention_norm(x)
    query, key, value = block.query_key_value(normal).split(12, dim=-1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = (query[..., part] @ key[..., part].transpose(1, 2) / 2).softmax(dim=-1)
        heads.append(weights @ value[..., part])
    attended = x + block.project(torch.cat(heads, dim=-1))
    expected = attended + block.mlp(block.mlp_norm(attended))
    torch.testing.assert_close(block(x), expected)


def test_position_embedding_is_used_and_resampled(small):
    image, masks = joint(64, 96)  # 4 x 6 tokens from the embedding of 16 x 16
    with torch.no_grad():
        before = small(image, masks)[1]
        kept = small.position.clone()
        small.position.add_(torch.randn_like(small.position))
        after = small(image, masks)[1]
        small.position.copy_(kept)
    assert (before - after).abs().max() > 1e-3


def test_every_parameter_learns():
    generator = TransUNetGenerator(width=8, blocks=1, mlp_width=8, decoder=(8, 8, 8, 8))
    logits, soft_tissue = generator(*joint(64, 64, batch=2))
    (logits.square().mean() + soft_tissue.sum()).backward()
    silent = [n for n, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_configuration_rebuilds_it(small):
    again = build_generator("transunet", small.configuration())
    again.load_state_dict(small.state_dict())
    image, masks = joint(64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(image, masks)[0], small(image, masks)[0])


@pytest.mark.parametrize("wrong", [{"layers": 1}, {"heads": 3}, {"decoder": [8, 8]}])
def test_widths_that_do_not_fit(wrong):
    with pytest.raises(WeightsError, match="transunet"):
        build_generator("transunet", wrong)
