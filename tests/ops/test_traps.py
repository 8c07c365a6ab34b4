"""The numbers where these formulas usually break, and what only one op promises."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from blsgan import ops  # noqa: E402
from blsgan.ops import reference  # noqa: E402
from blsgan.ops.cases import Joint  # noqa: E402

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("layers", [2, 3, 6])
@pytest.mark.parametrize("k", [0.0, 0.245, 0.55, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_composing_a_split_gives_the_image_back(layers, k, dtype):
    joint = Joint((2, layers, 64, 48), dtype=dtype, masks_kind="random", soft_tissue_value=k)
    image, masks = joint.image, joint.masks
    layered = ops.split_attenuation(joint.share_logits, image, masks, joint.soft_tissue)
    composed = ops.compose_layers(layered, masks, joint.soft_tissue)
    union, overlap = masks.any(1, keepdim=True), masks.sum(1, keepdim=True) > 1
    # White counts as 1 - 2^-24; a rounding step of the transmission grows by 1 / (1 - k)^(n - 1).
    step = 4 * torch.finfo(dtype).eps
    limit = 2.0**-24 + step / (1 - k) ** (layers - 1)
    assert (composed - image)[overlap].abs().max() < limit
    single = union & ~overlap
    assert torch.equal(composed[single], image[single])
    assert torch.equal(layered[~masks], torch.zeros_like(layered[~masks]))


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("law", [1.0, 7.4, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("where", ["soft_tissue", "soft_tissue_map"])
def test_composing_a_split_gives_the_image_back_under_the_exponential_law(
    layers, law, dtype, where
):
    joint = Joint((2, layers, 64, 48), dtype=dtype, masks_kind="random")
    masks = joint.masks
    k = getattr(joint, where)
    # Bone is brighter than soft tissue, up to white.
    least = k if k.dim() == 4 else k.view(-1, 1, 1, 1)
    image = least + (1 - least) * joint.image
    layered = ops.split_attenuation(joint.share_logits, image, masks, k, law=law)
    composed = ops.compose_layers(layered, masks, k, law=law)
    overlap = masks.sum(1, keepdim=True) > 1
    assert image[overlap].max() > 0.999
    error = (composed - image)[overlap].abs().max().item()
    assert error < (2e-6 if dtype == torch.float32 else 1e-12)
    single = masks.any(1, keepdim=True) & ~overlap
    assert torch.equal(composed[single], image[single])


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("law", [0.0, 7.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_image_darker_than_soft_tissue_is_split_as_exactly(layers, law, dtype):
    joint = Joint((2, layers, 64, 48), dtype=dtype, masks_kind="all")
    k = joint.soft_tissue_map
    image = k * joint.image
    layered = ops.split_attenuation(joint.share_logits, image, joint.masks, k, law=law)
    # Each layer shows something between the image and soft tissue.
    step = 8 * torch.finfo(dtype).eps
    assert (layered >= image - step).all()
    assert (layered <= k + step).all()
    composed = ops.compose_layers(layered, joint.masks, k, law=law)
    # What float rounds of the soft tissue counts in a display as much darker as the image is.
    ratio = torch.exp(law * (k - image)) if law else (1 - image) / (1 - k) ** (layers - 1)
    assert ((composed - image).abs() / (layers * ratio)).max() < step


@pytest.mark.parametrize("law", [0.0, 7.4])
def test_a_map_of_one_value_is_that_value(law):
    joint = Joint((2, 2, 40, 30))
    k = joint.soft_tissue
    for expanded in (
        k.view(2, 1, 1, 1).expand(2, 1, 40, 30),
        k.view(2, 1, 1, 1).repeat(1, 1, 40, 30),
    ):
        args = joint.share_logits, joint.image, joint.masks
        layers = ops.split_attenuation(*args, k, law=law)
        assert torch.equal(ops.split_attenuation(*args, expanded, law=law), layers)
        composed = ops.compose_layers(joint.layers, joint.masks, k, law=law)
        same = ops.compose_layers(joint.layers, joint.masks, expanded, law=law)
        assert torch.equal(same, composed)
        leaf, number = expanded.clone().requires_grad_(), k.clone().requires_grad_()
        ops.reconstruction_loss(joint.layers, joint.masks, leaf, joint.image, law=law).backward()
        ops.reconstruction_loss(joint.layers, joint.masks, number, joint.image, law=law).backward()
        torch.testing.assert_close(leaf.grad.sum((1, 2, 3)), number.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("law", [0.0, 7.4])
def test_a_map_has_no_gradient_where_it_is_clamped_or_no_bones_overlap(law):
    joint = Joint((1, 2, 20, 20), masks_kind="all")
    masks = joint.masks.clone()
    masks[:, 1, :, :5] = False
    k = joint.soft_tissue_map
    k[..., 5:8], k[..., 8:11] = -0.1, 0.96
    k.requires_grad_()
    layers = ops.split_attenuation(joint.share_logits, joint.image, masks, k, law=law)
    (0.01 * joint.true_layers * layers).sum().backward()
    on_split, k.grad = k.grad, None
    ops.compose_layers(joint.layers, masks, k, law=law).sum().backward()
    for grad in (on_split, k.grad):
        assert torch.equal(grad[..., :11], torch.zeros_like(grad[..., :11]))
        assert (grad[..., 11:] != 0).all()


def test_layers_darker_than_soft_tissue_compose_to_something_finite():
    masks = torch.ones(1, 2, 1, 4, dtype=torch.bool)
    layers = torch.tensor([0.0, 0.1, 0.35, 0.6]).expand(1, 2, 1, 4).clone().requires_grad_()
    k = torch.tensor([0.35], requires_grad=True)
    composed = ops.compose_layers(layers, masks, k, law=7.4)
    sums = 2 * torch.exp(7.4 * layers[0, 0, 0].detach()) - np.exp(7.4 * 0.35)
    expected = torch.where(sums > 1, sums.clamp(min=1).log(), sums - 1) / 7.4
    torch.testing.assert_close(composed[0, 0, 0].detach(), expected, rtol=1e-5, atol=1e-6)
    assert (composed[0, 0, 0].diff() > 0).all()
    composed.sum().backward()
    # The way back is never lost.
    assert (layers.grad > 0).all()
    assert (k.grad < 0).all()
    far = ops.compose_layers(layers.detach() * 1e4 - 1e3, masks, k.detach(), law=7.4)
    assert torch.isfinite(far).all()


@pytest.mark.parametrize("law", [-1.0, 0.5, 20.1, float("nan"), float("inf")])
def test_a_law_that_is_none_is_refused(law):
    joint = Joint((1, 2, 4, 4))
    message = "law must be 0 or between 1 and 20, got"
    with pytest.raises(ValueError, match=message):
        ops.compose_layers(joint.layers, joint.masks, joint.soft_tissue, law=law)
    with pytest.raises(ValueError, match=message):
        ops.split_attenuation(
            joint.share_logits, joint.image, joint.masks, joint.soft_tissue, law=law
        )
    with pytest.raises(ValueError, match=message):
        ops.reconstruction_loss(joint.layers, joint.masks, joint.soft_tissue, joint.image, law=law)
    with pytest.raises(RuntimeError, match="law must be 0 or between 1 and 20"):
        torch.ops.blsgan.compose_layers(joint.layers, joint.masks, joint.soft_tissue, law)


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("law", [0.0, 7.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_gradients_of_saturated_shares_element_by_element(layers, law, dtype):
    """Each gradient by its own size, not by the largest: logits up to 30 apart."""
    joint = Joint((1, layers, 24, 31), dtype=dtype, masks_kind="all")
    difference = torch.linspace(0, 30, 31, dtype=torch.float64).to(dtype)
    logits = (0.1 * joint.share_logits).clone()
    logits[:, layers - 1] += difference
    image = 0.65 + 0.3 * joint.image  # brighter than soft tissue: A - a does not cancel
    weights = 0.5 + joint.true_layers.double()

    def gradients(function, *args):
        leaves = [arg.clone().requires_grad_() for arg in args]
        value = function(*leaves[:2], joint.masks, leaves[2], law=law)
        value.backward(weights.to(value.dtype))
        return [leaf.grad.double() for leaf in leaves]

    args = logits, image, joint.soft_tissue_map
    weights = weights.to(dtype).double()
    got = gradients(ops.split_attenuation, *args)
    exact = [arg.double() for arg in args]
    want = gradients(reference.split_attenuation, *exact)
    # A softmax's own derivative loses its digits there in float64 too: over all pairs of bones.
    layered = reference.split_attenuation(*exact[:2], joint.masks, exact[2], law=law)
    attenuation = reference._attenuation(layered, law)
    slope = weights * (1 / (law * (1 + attenuation)) if law else 1 - layered)
    share = torch.softmax(exact[0], 1)
    pairs = share.unsqueeze(1) * share.unsqueeze(2) * (slope.unsqueeze(2) - slope.unsqueeze(1))
    soft = reference._attenuation(exact[2], law)
    bone = attenuation.sum(1, keepdim=True) - layers * soft
    want[0] = bone * pairs.sum(2)
    # Bones that pull alike cancel, and what is left has the rounding error of what cancelled.
    sizes = [(bone * pairs).abs().sum(2), want[1].abs(), want[2].abs()]

    rounding = {torch.float64: 1e-14, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    for g, w, size in zip(got, want, sizes, strict=True):
        assert (w != 0).all()
        error = (g - w).abs()
        assert (error / (w.abs() + subnormal / rounding)).quantile(0.95) < rounding
        assert (error / (size + subnormal / rounding)).max() < 100 * rounding


def test_outside_the_overlap_layers_are_the_image_bit_for_bit_even_off_range():
    joint = Joint((1, 2, 40, 40))
    image = 3 * joint.image - 1  # below 0 and above 1
    layered = ops.split_attenuation(joint.share_logits, image, joint.masks, joint.soft_tissue)
    single = joint.masks & (joint.masks.sum(1, keepdim=True) == 1)
    assert torch.equal(layered[single], image.expand_as(layered)[single])
    assert torch.isfinite(layered).all()


def test_at_extreme_logits_one_bone_is_the_image_and_the_other_soft_tissue():
    joint = Joint((1, 2, 16, 16), masks_kind="all", soft_tissue_value=0.3)
    logits = torch.stack([torch.full((1, 16, 16), 100.0), torch.full((1, 16, 16), -100.0)], 1)
    for dtype in (torch.float32, *HALVES):
        layered = ops.split_attenuation(
            logits.to(dtype), joint.image, joint.masks, joint.soft_tissue
        )
        torch.testing.assert_close(layered[:, :1], joint.image, rtol=0, atol=3e-7)
        soft = torch.full_like(joint.image, 0.3)
        torch.testing.assert_close(layered[:, 1:], soft, rtol=0, atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_layers_and_images_at_exactly_0_and_1(dtype):
    masks = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    layers = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])[None].to(dtype)
    k = torch.tensor([0.5]).to(dtype)
    layers.requires_grad_()
    composed = ops.compose_layers(layers, masks, k)
    torch.testing.assert_close(
        composed.detach().float(), torch.tensor([[[[-1.0, 1.0], [1.0, 1.0]]]])
    )
    composed.sum().backward()
    # 1 - L = 0 in one layer: the other's gradient is 0, its own is the other's transmission.
    expected = torch.tensor([[[[2.0, 0.0], [2.0, 0.0]], [[2.0, 2.0], [0.0, 0.0]]]])
    torch.testing.assert_close(layers.grad.float(), expected)
    image = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]).to(dtype).requires_grad_()
    logits = torch.zeros(1, 2, 2, 2).to(dtype).requires_grad_()
    split = ops.split_attenuation(logits, image, masks, torch.zeros(1))
    split.sum().backward()
    assert torch.isfinite(split).all()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_a_perfect_reconstruction_has_loss_0_and_gradient_0(dtype):
    joint = Joint((2, 2, 20, 20), dtype=dtype)
    layers = joint.layers.requires_grad_()
    loss = ops.layer_loss(layers, layers.detach(), joint.masks)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(layers.grad, torch.zeros_like(layers))
    zero = torch.zeros_like(joint.layers).requires_grad_()
    loss = ops.reconstruction_loss(zero, joint.masks, torch.zeros(2), torch.zeros_like(joint.image))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(zero.grad, torch.zeros_like(zero))


def test_a_tiny_error_has_a_gradient_of_the_right_size():
    true = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    layers = true.clone()
    layers[0, 0, 0, 0] = 1e-12
    layers.requires_grad_()
    ops.layer_loss(layers, true, torch.ones(1, 2, 8, 8)).backward()
    assert layers.grad[0, 0, 0, 0].item() == pytest.approx(1 / np.sqrt(128))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_cross_entropy_at_logits_of_100(dtype, sign):
    masks = torch.ones(1, 2, 6, 6, dtype=torch.bool)
    logits = torch.full((1, 4, 6, 6), sign * 100.0, dtype=dtype, requires_grad=True)
    loss = ops.supervisor_loss(logits, masks, terms="bce")
    loss.backward()
    assert loss.item() == pytest.approx(0.0 if sign > 0 else 100.0)
    expected = 0.0 if sign > 0 else -1.0 / logits.numel()
    torch.testing.assert_close(
        logits.grad.float(),
        torch.full_like(logits, expected, dtype=torch.float32),
        rtol=1e-2,
        atol=1e-7,
    )
    hybrid = ops.supervisor_loss(logits, masks)
    assert torch.isfinite(hybrid)


def test_dice_of_empty_masks_is_a_perfect_agreement():
    masks = torch.zeros(2, 2, 16, 16, dtype=torch.bool)
    nothing = torch.full((2, 4, 16, 16), -50.0, requires_grad=True)
    loss = ops.supervisor_loss(nothing, masks)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(nothing.grad).all()
    something = ops.supervisor_loss(torch.full((2, 4, 16, 16), 50.0), masks)
    assert something.item() > 25  # BCE of 50, halved, and the whole Dice term


def test_supervisor_loss_is_the_published_sum():
    joint = Joint((2, 2, 24, 24))
    z, masks = joint.supervisor_logits, joint.masks
    p = torch.sigmoid(z.double())
    target = torch.cat([masks, masks], 1).double()
    overlap = (masks.sum(1, keepdim=True) > 1).double().expand_as(p)
    bce = torch.nn.functional.binary_cross_entropy

    def dice(a, b):
        return 1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1)

    expected = 0.5 * bce(p, target) + 0.5 * dice(p, target)
    expected = expected + 0.5 * bce(p * overlap, overlap) + 0.5 * dice(p * overlap, overlap)
    assert ops.supervisor_loss(z, masks).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_layers": "mask"}, "target_layers must be one of masks, zeros, exclusive"),
        ({"terms": "dice"}, "terms must be hybrid or bce"),
        ({"target_layers": "zeros"}, "contradicts"),
    ],
)
def test_supervisor_options_are_checked(options, message):
    joint = Joint((1, 2, 4, 4))
    with pytest.raises(ValueError, match=message):
        ops.supervisor_loss(joint.supervisor_logits, joint.masks, **options)


def test_one_layer_is_not_enough():
    with pytest.raises(ValueError, match="N >= 2"):
        ops.compose_layers(torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.zeros(1))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements():
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory < 6 * 2**30:
        pytest.skip(f"needs 6 GB of free memory, {memory / 2**30:.1f} GB are free")
    batch, height, width = 130, 4096, 2048  # 2.18e9 mask elements
    masks = torch.zeros(batch, 2, height, width, dtype=torch.bool)
    assert masks.numel() > 2**31
    masks[-1, -1, -1, -7:] = True
    layers = torch.zeros(1, 2, height, width).expand(batch, -1, -1, -1)
    truth = torch.full((1, 2, height, width), 0.25).expand(batch, -1, -1, -1)
    assert ops.layer_loss(layers, truth, masks).item() == 0.25
    # Composed from the last pixels of a layer tensor whose own offsets pass 2^31.
    image = torch.full((1, 1, height, width), 0.5).expand(batch, -1, -1, -1)
    loss = ops.reconstruction_loss(layers, masks, torch.zeros(batch), image)
    assert loss.item() == 0.5


def rim_by_opencv(overlap):
    cv2 = pytest.importorskip("cv2")
    edge = cv2.Canny(overlap.astype(np.uint8) * 255, 100, 200)
    return cv2.dilate(edge, np.ones((4, 4), np.uint8)) > 0


@pytest.mark.parametrize("seed", range(40))
def test_the_rim_is_opencvs_to_the_pixel(seed):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 90, 2)
    noise = rng.random((height, width))
    ragged = noise < rng.uniform(0.05, 0.95)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3) > 0.5
    for overlap in (ragged, smooth):
        got = reference._rim(torch.from_numpy(overlap)[None, None])[0, 0].numpy()
        np.testing.assert_array_equal(got, rim_by_opencv(overlap))


@pytest.mark.parametrize("seed", range(6))
def test_a_synthetic_pair_is_the_protocols(seed):
    """Against the evaluation protocol's own steps, which use OpenCV."""
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    size = 96
    yy, xx = np.mgrid[:size, :size]
    centre = size / 2 + rng.uniform(-6, 6)
    upper = ((yy - 26) / 20) ** 2 + ((xx - centre) / 30) ** 2 < 1
    lower = ((yy - 72) / 20) ** 2 + ((xx - size / 2) / 34) ** 2 < 1
    image = rng.random((size, size)).astype(np.float32)
    background = (0.2 + 0.1 * rng.random((size, size))).astype(np.float32)
    shifts = np.array([rng.integers(4, 12), rng.integers(4, 12)], np.float32)

    kernel = np.ones((3, 3), np.uint8)
    moved, layers = [], []
    for mask, shift in zip((upper, lower), (int(shifts[0]), -int(shifts[1])), strict=True):
        grown = cv2.dilate(mask.astype(np.uint8), kernel)
        matrix = np.array([[1, 0, 0], [0, 1, shift]], np.float64)
        moved.append(cv2.warpAffine(grown, matrix, (size, size)) > 0)
        layers.append(cv2.warpAffine(image, matrix, (size, size)) * moved[-1])
    overlap, union = moved[0] & moved[1], moved[0] | moved[1]
    assert overlap.sum() > 20
    k = background[overlap].mean(dtype=np.float64)
    composed = 1 - (1 - layers[0]) * (1 - layers[1]) / (1 - k * overlap)
    composed = np.clip(composed, 0, 1).astype(np.float32)
    smooth = cv2.GaussianBlur(composed, (3, 3), 0)
    composed = np.where(rim_by_opencv(overlap), smooth, composed) * union

    pair = ops.synthesize_overlap(
        torch.from_numpy(image)[None, None],
        torch.from_numpy(np.stack([upper, lower]))[None],
        torch.from_numpy(background)[None, None],
        torch.from_numpy(shifts[:1]),
        torch.from_numpy(shifts[1:]),
    )
    np.testing.assert_array_equal(pair.masks[0].numpy(), np.stack(moved))
    np.testing.assert_array_equal(pair.layers[0].numpy(), np.stack(layers))
    assert pair.soft_tissue.item() == pytest.approx(k, abs=1e-6)
    np.testing.assert_allclose(pair.image[0, 0].numpy(), composed, rtol=0, atol=2e-6)


@pytest.mark.parametrize("bone", [0, 1])
def test_a_hair_upwards_is_no_shift_and_takes_no_other_row_in(bone):
    masks = torch.zeros(1, 2, 6, 4, dtype=torch.bool)
    masks[:, bone] = True
    image = torch.rand(1, 1, 6, 4)
    image[:, :, 3] = float("nan")
    shifts = [torch.zeros(1), torch.zeros(1)]
    shifts[bone] = torch.tensor([-1e-9 if bone == 0 else 1e-9])
    for module in (ops, reference):
        layers = module.synthesize_overlap(image, masks, torch.zeros_like(image), *shifts)[2]
        torch.testing.assert_close(layers[:, bone], image[:, 0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("position", [0, 2, 3, 4])
def test_a_synthetic_pair_that_asks_for_a_gradient_is_refused(position):
    joint = Joint((1, 2, 32, 32))
    args = [joint.image, joint.apart, joint.background, *joint.shifts]
    args[position].requires_grad_()
    with pytest.raises(ValueError, match=r"synthesize_overlap: \w+ has no gradient"):
        ops.synthesize_overlap(*args)
    with torch.no_grad():
        ops.synthesize_overlap(*args)


def test_importing_the_package_imports_no_torch():
    code = "import sys, blsgan.ops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_are_complete():
    assert set(ops.OPS) <= set(dir(ops))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ops.nonsense
