"""The default generator keeps what ``Separator`` relies on."""

import pytest
import torch

from blsgan.models import build_generator
from blsgan.models.lite import LiteGenerator
from blsgan.models.priors import Priors
from blsgan.ops import compose_layers

SMALL = {"widths": [4, 6, 6, 8], "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = build_generator("lite").eval()
    torch.nn.init.normal_(generator.head_convolution.weight, std=0.1)
    return generator


def joint(batch=2, rows=48, columns=64, seed=0):
    """Two bones brighter than the soft tissue beside them, which overlap in 12 rows."""
    g = torch.Generator().manual_seed(seed)
    image = 0.3 + 0.05 * torch.rand(batch, 1, rows, columns, generator=g)
    masks = torch.zeros(batch, 2, rows, columns)
    masks[:, 0, : rows // 2 + 6, 18:-18] = 1
    masks[:, 1, rows // 2 - 6 :, 18:-18] = 1
    image = image + 0.25 * masks.amax(dim=1, keepdim=True)
    return image + 0.1 * masks.amin(dim=1, keepdim=True), masks


def test_stays_small():
    assert sum(p.numel() for p in LiteGenerator().parameters()) <= 2_000_000


def test_shapes_and_ranges(generator):
    image, masks = joint()
    with torch.no_grad():
        logits, soft_tissue = generator(image, masks)
    assert logits.shape == masks.shape
    assert soft_tissue.shape == image.shape
    assert ((soft_tissue >= 0) & (soft_tissue <= 0.95)).all()


def test_layers_compose_to_the_radiograph_in_the_zone_and_are_it_elsewhere(generator):
    image, masks = joint()
    with torch.no_grad():
        layers, soft_tissue = generator.separate(image, masks)
    supports = generator.supports(masks)
    composed = compose_layers(layers, supports, soft_tissue, law=generator.law)
    inside = masks.amax(dim=1, keepdim=True) > 0
    assert (composed - image)[inside].abs().max() < 2e-5
    alone = (supports.sum(dim=1, keepdim=True) == 1) & (masks > 0)
    assert torch.equal(layers[alone], image.expand_as(layers)[alone])


def test_between_the_bones_layers_share_what_is_brighter_than_soft_tissue(generator):
    image, masks = joint()
    masks[:, 1, :30, 40:] = 0  # beside the overlap a gap of 2 rows
    masks[:, 0, 28:, 40:] = 0
    with torch.no_grad():
        layers, soft_tissue = generator.separate(image, masks)
    gap = (
        generator.supports(masks).amin(dim=1, keepdim=True) > masks.amax(dim=1, keepdim=True)
    ) > 0
    assert gap.any()
    upper, lower = (layers[:, bone : bone + 1][gap] for bone in range(2))
    assert torch.allclose(upper, lower)
    assert (soft_tissue[gap] < upper).all()
    assert (upper < image[gap]).all()
    composed = compose_layers(layers, generator.supports(masks), soft_tissue, law=generator.law)
    assert (composed - image)[gap].abs().max() < 2e-5


def test_a_fresh_network_says_nearly_what_the_prior_says():
    torch.manual_seed(1)
    image, masks = joint()
    fresh = build_generator("lite").train()
    with torch.no_grad():
        fresh.dropout = 0.0
        layers, _ = fresh.separate(image, masks)
    priors = Priors(image, masks, fresh.reach_px, fresh.law)
    inside = (priors.zone > 0).expand_as(layers)
    assert (layers - priors.layers)[inside].abs().mean() < 0.02


def answering(*, first=0.0, **options):
    """A network that leaves the prior's layers, and says whose the radiograph's detail is."""
    generator = LiteGenerator(**SMALL, **options).eval()
    with torch.no_grad():
        generator.head_convolution.weight.zero_()
        generator.head_convolution.bias.copy_(torch.tensor([0.0, 0.0, first, 0.0]))
    return generator


def roughness(plane, zone):
    """Mean absolute difference between neighbours in a row, both in the zone."""
    both = (zone[..., 1:] * zone[..., :-1]) > 0
    return float((plane[..., 1:] - plane[..., :-1]).abs()[both].mean())


@pytest.mark.parametrize(
    ("first", "smoother", "rougher"), [(-9, "upper", "lower"), (9, "lower", "upper")]
)
def test_detail_goes_where_the_network_says_and_the_layers_compose(first, smoother, rougher):
    image, masks = joint()
    generator = answering(first=first)
    with torch.no_grad():
        layers, soft_tissue = generator.separate(image, masks)
    planes = {"upper": layers[:, :1], "lower": layers[:, 1:]}
    zone = Priors(image, masks, generator.reach_px, generator.law).zone
    found = {name: roughness(plane, zone) for name, plane in planes.items()}
    assert found[rougher] > 1.5 * found[smoother]
    assert roughness(soft_tissue, zone) < 0.3 * found[smoother]
    composed = compose_layers(layers, generator.supports(masks), soft_tissue, law=generator.law)
    assert (composed - image)[zone > 0].abs().max() < 2e-5


@pytest.mark.parametrize("first", [-9, 9])
def test_no_detail_is_one_bone_s_alone(first):
    """Where one bone had all of it, single pixels stood out of its layer."""
    image, masks = joint()
    generator = answering(first=first)
    with torch.no_grad():
        free, exact, _ = generator.learnt(image, masks)
    overlap = Priors(image, masks, generator.reach_px, generator.law).overlap
    upper, lower = (roughness((exact - free)[:, i : i + 1], overlap) for i in range(2))
    more, less = (upper, lower) if first > 0 else (lower, upper)
    assert 0.2 * more < less < 0.5 * more


def test_layers_that_are_too_dark_become_brighter_together():
    """There is no soft tissue that would make up for it."""
    image, masks = joint()
    generator = answering(first=9)
    with torch.no_grad():
        generator.head_convolution.bias[:2] = -1.0
        layers, soft_tissue = generator.separate(image, masks)
        free, _, _ = generator.learnt(image, masks)
    both = Priors(image, masks, generator.reach_px, generator.law).overlap > 0
    assert soft_tissue[both].max() < 0.05
    upper, lower = ((layers - free)[:, bone : bone + 1][both] for bone in range(2))
    assert min(upper.min(), lower.min()) > 0
    assert (upper - lower).abs().median() < 0.1 * upper.median()
    composed = compose_layers(layers, generator.supports(masks), soft_tissue, law=generator.law)
    assert (composed - image)[both].abs().max() < 2e-5


def test_a_share_fades_where_the_bone_s_picture_ends():
    """A layer that is the radiograph beside the zone would step there otherwise."""
    image, masks = joint()
    generator = answering()
    priors = Priors(image, masks, generator.reach_px, generator.law)
    below = masks[0, 1, :, 32].nonzero().min()  # the lower bone's first row
    fading = priors.fading[0, 1, below - 5 : below + 1, 32]
    assert fading.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    with torch.no_grad():
        generator.head_convolution.bias[:2] = torch.tensor([-0.2, 0.2])
        upper = generator.separate(image, masks)[0][0, 0, :, 32]
    missing = (image[0, 0, :, 32] - upper)[below - 5 : below - 1]
    assert missing[0] == 0
    assert 0 < missing[1] < 0.6 * missing[3]


def test_a_free_head_gives_the_layers_before_they_are_made_exact():
    image, masks = joint()
    with torch.no_grad():
        free, _ = answering(head="free").separate(image, masks)
        learnt, exact, _ = answering().learnt(image, masks)
    inside = free > 0
    assert torch.allclose(free[inside], learnt[inside].clamp(1e-3, 1 - 1e-3), atol=1e-4)
    assert (free - exact).abs().max() > 0.01


def test_soft_tissue_varies_or_does_not():
    image, masks = joint()
    with torch.no_grad():
        one = LiteGenerator(**SMALL, soft_tissue_map=False).eval()(image, masks)[1]
    assert one.shape == image.shape
    assert (one.flatten(1).amax(dim=1) - one.flatten(1).amin(dim=1)).max() < 1e-6


def test_an_image_s_answer_does_not_depend_on_its_neighbours(generator):
    image, masks = joint(3)
    with torch.no_grad():
        together = generator.separate(image, masks)
        alone = generator.separate(image[1:2], masks[1:2])
    assert torch.allclose(together[0][1:2], alone[0], atol=1e-5)
    assert torch.allclose(together[1][1:2], alone[1], atol=1e-6)


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
        logits, soft_tissue = generator(image, masks)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(soft_tissue).all()


@pytest.mark.parametrize(
    "switch", [{"law": 7.0}, {"reach_px": 0}, {"continued": False}, {"soft_tissue_seen": False}]
)
def test_what_can_be_switched_off_changes_the_answer_and_is_remembered(switch):
    image, masks = joint()
    torch.manual_seed(0)
    usual = LiteGenerator(**SMALL).eval()
    torch.manual_seed(0)
    other = LiteGenerator(**SMALL, **switch).eval()
    with torch.no_grad():
        assert not torch.equal(usual.separate(image, masks)[0], other.separate(image, masks)[0])
    again = build_generator("lite", other.configuration())
    assert again.configuration() == other.configuration()
    assert {key: other.configuration()[key] for key in switch} == switch


def test_three_bones_are_taken_apart_as_well():
    image, masks = joint()
    masks = torch.cat((masks, masks[:, :1].roll(4, dims=3)), dim=1)
    generator = LiteGenerator(**SMALL, layers=3).eval()
    with torch.no_grad():
        layers, soft_tissue = generator.separate(image, masks)
        composed = compose_layers(layers, generator.supports(masks), soft_tissue, law=generator.law)
    inside = masks.amax(dim=1, keepdim=True) > 0
    assert (composed - image)[inside].abs().max() < 5e-5
