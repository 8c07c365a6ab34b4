"""Every backbone is a generator: either head, any source of k, two bones or three."""

import pytest
import torch

from blsgan.errors import BackendError, WeightsError
from blsgan.models import backbones
from blsgan.models.reconstructor import Reconstructor
from blsgan.models.registry import BACKBONES, GENERATORS, architectures, build_generator
from blsgan.models.supervisor import Supervisor
from blsgan.models.unet import UNet
from blsgan.models.weights import load_generator, safetensors_bytes
from blsgan.ops import compose_layers
from blsgan.synthesis.phantoms import joint_phantom

SMALL = {
    "lite": {"widths": [8, 8, 8, 8]},
    "transunet": {"width": 8, "blocks": 1, "mlp_width": 16, "decoder": [8, 8, 8, 8]},
    "unet": {"widths": [8, 8, 8]},
    "unetpp": {"widths": [8, 8, 8, 8, 8, 8]},
    "resunet": {"width": 8},
    "denseunet": {"width": 8},
    "swin": {"width": 12},
}


def build(name, **configuration):
    if name in BACKBONES and name != "unet":
        pytest.importorskip("monai", reason="MONAI is the extra 'monai'")
    torch.manual_seed(0)
    if name not in GENERATORS:
        configuration = {"soft_tissue": "zero", **configuration}
    return build_generator(name, {**SMALL[name], **configuration}).eval()


@pytest.fixture(scope="module")
def three_bones():
    """A phantom of three overlapping bones, 64x64, as tensors."""
    phantom = joint_phantom(2, size=64, bones=3, gap_px=-6.0)
    masks = torch.from_numpy(phantom.masks)[None].float()
    assert masks.shape[1] == 3
    assert (masks.sum(dim=1) > 1).any()
    return torch.from_numpy(phantom.image)[None, None], masks


def test_this_table_is_the_registry():
    assert list(SMALL) == architectures()


@pytest.mark.parametrize("name", SMALL)
def test_three_bones_with_the_exact_head_recompose_to_the_image(name, three_bones):
    image, masks = three_bones
    generator = build(name, layers=3)
    with torch.no_grad():
        layers, k = generator.separate(image, masks)
    assert layers.shape == masks.shape
    union = masks.amax(dim=1, keepdim=True)
    supports = generator.supports(masks)
    recomposed = compose_layers(layers, supports, k, law=generator.law)
    assert float(((recomposed - image) * union).abs().max()) < 1e-5
    assert not layers[supports == 0].any()


@pytest.mark.parametrize("name", SMALL)
def test_weights_with_the_free_head_come_back_as_such(name, three_bones, tmp_path):
    image, masks = three_bones[0], three_bones[1][:, :2].contiguous()
    generator = build(name, head="free")
    assert not generator.exports
    with torch.no_grad():
        layers, _ = generator.separate(image, masks)
        logits, _ = generator(image, masks)
    assert torch.equal(layers, torch.sigmoid(logits) * generator.supports(masks))
    again = load_generator(tmp_path / "x.safetensors", safetensors_bytes(generator))
    assert again.head == "free"
    with torch.no_grad():
        assert torch.equal(again.separate(image, masks)[0], layers)


# lite reads the soft tissue there.
@pytest.mark.parametrize("name", [name for name in SMALL if name != "lite"])
def test_what_lies_outside_the_bones_is_ignored(name, three_bones):
    image, masks = three_bones[0], three_bones[1][:, :2].contiguous()
    outside = masks.amax(dim=1, keepdim=True) == 0
    generator = build(name)
    with torch.no_grad():
        before = generator(image, masks)[0]
        after = generator(torch.where(outside, 1 - image, image), masks)[0]
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["transunet", "unet"])
def test_the_reconstructor_learns_from_the_layers(name, three_bones):
    image, masks = three_bones
    generator = build(name, layers=3, soft_tissue="reconstructor").train()
    image, masks = image.expand(2, -1, -1, -1), masks.expand(2, -1, -1, -1)
    layers, _ = generator.separate(image, masks)
    layers.square().mean().backward()
    silent = [
        n
        for n, p in generator.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert not silent
    assert any(p.grad.any() for p in generator.reconstructor.encoder.parameters())


def test_without_correction_k_is_nought():
    generator = build("transunet", soft_tissue="zero")
    with torch.no_grad():
        _, k = generator(torch.rand(2, 1, 32, 32), torch.ones(2, 2, 32, 32))
    assert k.tolist() == [0, 0]


def test_the_reconstructor_is_a_vgg_11_with_the_published_head():
    network = Reconstructor()
    convolutions = [m for m in network.encoder if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    linear = [m for m in network.head if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(1024, 128), (128, 1)]
    with torch.no_grad():
        k = network(torch.rand(2, 1, 32, 96))
    assert k.shape == (2,)
    assert ((k > 0) & (k < 0.95)).all()


@pytest.mark.parametrize("layers", [2, 3])
def test_the_supervisor_answers_twice_for_each_bone(layers):
    supervisor = Supervisor(layers, widths=(4, 8))
    assert supervisor(torch.rand(2, layers, 32, 48)).shape == (2, 2 * layers, 32, 48)
    with pytest.raises(ValueError, match="layers=1"):
        Supervisor(1)


def test_a_sample_does_not_depend_on_its_batch():
    network = UNet(3, 2, (4, 8, 8))
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        among_others, alone = network(x)[1:2], network(x[1:2])
    torch.testing.assert_close(among_others, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "configuration", "message"),
    [
        ("unet", {"widths": [8]}, "2 to 6"),
        ("unet", {"soft_tissue": "own"}, "no soft tissue of its own"),
        ("unet", {"head": "loose"}, "exact, free"),
        ("lite", {"layers": 1}, "layers=1"),
        ("transunet", {"soft_tissue": "guessed"}, "own, reconstructor, zero"),
        ("swin", {"width": 13}, "multiple of 12"),
        ("swin", {"width": 4092}, "multiple of 12 up to"),
        ("nothing", {}, "is unknown"),
    ],
)
def test_what_does_not_fit_is_said(name, configuration, message):
    with pytest.raises(WeightsError, match=message):
        build_generator(name, configuration)


def test_monai_missing_is_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(BackendError, match=r"pip install 'blsgan\[monai\]'"):
        build_generator("resunet", {"width": 8})
    assert backbones.BackboneGenerator.size_multiple == 32


def test_an_unknown_head_is_never_taken_for_the_exact_one():
    logits, masks = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    image, k = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1)
    free, exact = (
        build("unet", head=head).layers_of(logits, image, masks, k) for head in ("free", "exact")
    )
    assert torch.allclose(free, torch.full_like(free, 0.5))
    assert torch.allclose(1 - (1 - exact).prod(dim=1), image[:, 0], atol=1e-6)
