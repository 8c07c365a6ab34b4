"""What `Separator` promises, whatever the network says: exactness, zeros, shapes, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

import blsgan
from blsgan.errors import InputError, WeightsError
from blsgan.joint.geometry import bone_width_px, bounding_box
from blsgan.joint.window import MAX_AREA_PX, TYPICAL_BONE_WIDTH_PX, around_overlap, working_scale
from blsgan.synthesis.phantoms import joint_phantom
from blsgan.tasks.separation import Separator
from blsgan.tasks.task import SIZE_MULTIPLE


@pytest.fixture(scope="module")
def separator(network):
    return Separator.from_pretrained(network, "onnx", threads=1)


class Spy:
    """A backend that remembers the shapes it was given and can answer with anything."""

    name, version = "spy", "0"

    def __init__(self, inner, answer=None):
        self.inner, self.answer, self.shapes = inner, answer, []
        self.weights = inner.weights

    def run(self, image, masks):
        assert image.dtype == masks.dtype == np.float32
        assert set(np.unique(masks)) <= {0.0, 1.0}
        assert (masks[:, 0] * masks[:, 1]).any(axis=(1, 2)).all()
        self.shapes.append(masks.shape)
        logits, soft_tissue = self.inner.run(image, masks)
        return self.answer(logits, soft_tissue) if self.answer else (logits, soft_tissue)


def check_promises(result, image, masks):
    """Everything that holds for any image (float32) and any masks."""
    overlap = masks[0] & masks[1]
    zone = result.zone
    union = masks[0] | masks[1] | zone
    assert (zone | ~overlap).all()
    for layer, mask in zip((result.upper, result.lower), masks, strict=True):
        assert layer.dtype == np.float32
        assert layer.shape == image.shape
        assert (layer[~mask & ~zone] == 0).all()
        free = mask & ~zone
        np.testing.assert_array_equal(layer[free], image[free])  # bit for bit
        assert np.isfinite(layer).all()
        assert layer.min() >= 0
        assert layer.max() <= 1
    assert (result.reconstruction[~union] == 0).all()
    np.testing.assert_array_equal(result.reconstruction[union & ~zone], image[union & ~zone])
    # Where a pixel is darker than soft tissue the law's exponentials cost some of the last bits.
    np.testing.assert_allclose(result.reconstruction[union], image[union], atol=1e-5)
    np.testing.assert_array_equal(
        result.residual, np.where(union, image, 0) - result.reconstruction
    )
    np.testing.assert_array_equal(result.overlap, overlap)
    assert zone.any() == overlap.any()
    assert result.soft_tissue.dtype == np.float32
    assert ((result.soft_tissue[zone] >= 0) & (result.soft_tissue[zone] <= 0.95)).all()
    assert np.isnan(result.soft_tissue[~zone]).all()
    np.testing.assert_array_equal(result.soft_tissue[zone], result.tissue)


def phantom_of_size(size):
    """The 256 px phantom of seed 3 at another size: image float32 and masks, no known layers."""
    import cv2

    phantom = joint_phantom(3)
    image = cv2.resize(phantom.image, (size, size), interpolation=cv2.INTER_AREA)
    masks = [cv2.resize(mask.astype(np.float32), (size, size)) >= 0.5 for mask in phantom.masks]
    return np.clip(image, 0, 1), np.stack(masks)


def test_a_joint(separator, phantom):
    result = separator(phantom.image, phantom.masks)
    check_promises(result, phantom.image, phantom.masks)
    assert result.scale == 1
    assert result.notes == ()
    assert np.mean(result.residual**2) < 1e-12
    np.testing.assert_array_equal(result.layers, np.stack([result.upper, result.lower]))
    # The layers differ where the bones overlap: the network's answer arrives there.
    assert np.abs(result.upper - result.lower)[result.overlap].max() > 0.01


def test_the_package_offers_it(network, phantom):
    separator = blsgan.Separator.from_pretrained(network)
    assert isinstance(separator(phantom.image, phantom.masks), blsgan.Separation)


def test_integer_images_are_their_whole_range(separator, phantom):
    for dtype in (np.uint8, np.uint16):
        full = np.iinfo(dtype).max
        pixels = np.rint(phantom.image * full).astype(dtype)
        result = separator(pixels, phantom.masks)
        check_promises(result, (pixels / full).astype(np.float32), phantom.masks)
    dark = separator((phantom.image * 4095).astype(np.uint16), phantom.masks)
    assert "uint16" in dark.notes[0]


def test_same_input_same_bits(separator, phantom):
    first = separator(phantom.image, phantom.masks)
    second = separator(phantom.image, phantom.masks)
    np.testing.assert_array_equal(first.layers, second.layers)
    np.testing.assert_array_equal(first.soft_tissue, second.soft_tissue)


def test_inputs_are_left_alone_and_may_be_views(separator, phantom):
    image, masks = phantom.image.copy(), phantom.masks.copy()
    expected = separator(image, masks)
    image.setflags(write=False)
    masks.setflags(write=False)
    fortran = separator(np.asfortranarray(image), np.asfortranarray(masks))
    np.testing.assert_array_equal(fortran.layers, expected.layers)
    np.testing.assert_array_equal(
        separator(image.astype(np.float64), masks.astype(np.uint8)).layers, expected.layers
    )


def test_what_lies_outside_bones_and_zone_has_no_effect(separator, phantom):
    union = phantom.masks.any(axis=0)
    zone = separator(phantom.image, phantom.masks).zone
    other = np.where(union | zone, phantom.image, np.float32(0.9))
    spied = Spy(separator.backend)
    # The shipped network restricts its input to the bones itself; this random one does not.
    spied.run = lambda image, masks: separator.backend.run(
        image * masks.max(axis=1)[:, None], masks
    )
    first, second = (Separator(spied)(image, phantom.masks) for image in (phantom.image, other))
    np.testing.assert_array_equal(first.layers, second.layers)


def test_without_overlap_the_layers_are_the_masked_image(separator, phantom):
    apart = joint_phantom(3, overlap=False)
    spy = Spy(separator.backend)
    result = Separator(spy)(apart.image, apart.masks)
    check_promises(result, apart.image, apart.masks)
    np.testing.assert_array_equal(result.layers, apart.image * apart.masks)
    assert not result.residual.any()
    assert "do not overlap" in result.notes[0]
    assert spy.shapes == []


def test_a_bone_may_fade_beyond_its_mask(separator, phantom):
    result = separator(phantom.image, phantom.masks)
    for layer, mask in zip(result.layers, phantom.masks, strict=True):
        beyond = result.zone & ~mask
        assert beyond.sum() > 50
        assert (layer[beyond] > 0).any()


def test_with_a_margin_bones_reach_beyond_their_masks_near_the_overlap(separator, phantom):
    """What predicted masks miss is not black, and far from the overlap nothing changes."""
    image = phantom.image.astype(np.float32)
    bones = phantom.masks
    missed = np.stack([np.asarray(binary_erosion(mask, iterations=2)) for mask in bones])
    assert (missed[0] & missed[1]).any()
    plain, reaching = separator(image, missed), separator(image, missed, margin_px=2)
    np.testing.assert_array_equal(reaching.overlap, plain.overlap)
    assert (reaching.zone | ~plain.zone).all()
    near = bones[0] & bones[1] & ~(missed[0] | missed[1])
    assert near.sum() > 10
    assert (reaching.zone[near]).mean() > 0.9
    for layer, before, mask in zip(
        (reaching.upper, reaching.lower), (plain.upper, plain.lower), missed, strict=True
    ):
        assert (before[near & ~plain.zone] == 0).all()
        assert (layer[near & reaching.zone] > 0.1).all()
        outside = ~reaching.zone
        np.testing.assert_array_equal(layer[outside], (image * mask)[outside])
    np.testing.assert_allclose(
        reaching.reconstruction[reaching.zone], image[reaching.zone], atol=1e-5
    )
    assert np.abs(reaching.residual).max() < 1e-5


@pytest.mark.parametrize("margin_px", [-1, 17, 10**9])
def test_a_margin_that_no_mask_needs_is_refused(separator, phantom, margin_px):
    with pytest.raises(InputError, match=f"margin_px is {margin_px}; give 0 to 16"):
        separator(phantom.image, phantom.masks, margin_px=margin_px)


def test_a_picture_without_soft_tissue_is_said(separator, phantom):
    bare = np.where(phantom.masks.any(axis=0), phantom.image, np.float32(0))
    result = separator(bare, phantom.masks)
    check_promises(result, bare, phantom.masks)
    assert "no soft tissue is seen" in result.notes[0]


def test_masks_beside_the_bones_are_said(separator, phantom):
    result = separator(1 - phantom.image, phantom.masks)
    assert any("do the masks miss the bones?" in note for note in result.notes)


def test_swapped_masks_are_said(separator, phantom):
    assert "swapped" in separator(phantom.image, phantom.masks[::-1]).notes[0]


def test_one_bone_twice_is_said(separator, phantom):
    twice = np.stack([phantom.masks[0], np.roll(phantom.masks[0], 5, axis=1)])
    result = separator(phantom.image, twice)
    check_promises(result, phantom.image, twice)
    assert "one bone" in result.notes[0]


def test_batch_equals_one_by_one(separator):
    phantoms = [joint_phantom(seed) for seed in range(4)] + [joint_phantom(0, overlap=False)]
    images = np.stack([phantom.image for phantom in phantoms])
    masks = np.stack([phantom.masks for phantom in phantoms])
    batch = separator.batch(images, masks)
    assert len(batch) == 5
    assert batch.upper.shape == batch.residual.shape == batch.overlap.shape == images.shape
    assert batch.soft_tissue.shape == batch.zone.shape == images.shape
    for index, result in enumerate(batch):
        alone = separator(images[index], masks[index])
        np.testing.assert_allclose(result.layers, alone.layers, atol=1e-5)
        np.testing.assert_array_equal(batch.lower[index], result.lower)
        np.testing.assert_array_equal(batch.reconstruction[index], batch[index].reconstruction)
    assert len(batch[1:3]) == 2


def test_mirrored_averages_the_answers_for_a_joint_and_its_mirror_image(separator, phantom):
    class Asked(Spy):
        """Answers with shares that rise from left to right, and with another k each time."""

        def run(self, image, masks):
            self.seen.append((image, masks))
            ramp = np.linspace(-3, 5, masks.shape[-1], dtype=np.float32)
            logits = np.zeros_like(masks)
            logits[:, 0] = ramp
            return logits, np.full_like(image, 0.2 * len(self.seen))

    asked = Asked(separator.backend)
    asked.seen = []
    mirrored = Separator(asked, mirrored=True)(phantom.image, phantom.masks)
    check_promises(mirrored, phantom.image, phantom.masks)
    assert len(asked.seen) == 2
    for first, second in zip(*asked.seen, strict=True):  # image, masks
        np.testing.assert_array_equal(second, first[..., ::-1])
    assert mirrored.soft_tissue[mirrored.zone] == pytest.approx(0.3)  # of 0.2 and 0.4

    def mean(logits, soft_tissue):  # of the ramp and its mirror image: 1 everywhere
        return np.stack((0 * logits[:, 0] + 1, 0 * logits[:, 1]), axis=1), 0 * soft_tissue + 0.3

    plain = Separator(Spy(separator.backend, mean))(phantom.image, phantom.masks)
    np.testing.assert_allclose(mirrored.layers, plain.layers, atol=1e-5)


def test_crops_of_one_size_go_together(separator, phantom):
    spy = Spy(separator.backend)
    images, masks = [phantom.image] * 3, [phantom.masks] * 3
    Separator(spy).batch(images, masks)
    assert [shape[0] for shape in spy.shapes] == [3]
    assert Separator(spy).batch([], []).__len__() == 0


def test_what_cannot_be_stacked(separator, phantom):
    batch = separator.batch([], [])
    assert len(batch) == 0
    with pytest.raises(InputError, match="0 separations of 0 sizes cannot be stacked"):
        _ = batch.upper
    small = (phantom.image[:200], phantom.masks[:, :200])
    batch = separator.batch([phantom.image, small[0]], [phantom.masks, small[1]])
    for name in ("upper", "lower", "reconstruction", "residual", "overlap"):
        with pytest.raises(InputError, match="2 separations of 2 sizes"):
            getattr(batch, name)


def test_batch_of_different_sizes(separator, phantom):
    small, small_masks = phantom_of_size(128)
    batch = separator.batch([phantom.image, small], [phantom.masks, small_masks])
    check_promises(batch[1], small, small_masks)
    with pytest.raises(InputError, match="2 images came with 1"):
        separator.batch([phantom.image, small], [phantom.masks])


class TestScale:
    def test_dataset_sized_bones_are_not_resampled(self, phantom):
        assert working_scale(phantom.masks) == 1

    @pytest.mark.parametrize("size", [96, 700, 1500])
    def test_others_come_to_the_same_width(self, size):
        _, masks = phantom_of_size(size)
        scale = working_scale(masks)
        assert scale == pytest.approx(256 / size, rel=0.15)
        assert bone_width_px(masks) * scale == pytest.approx(TYPICAL_BONE_WIDTH_PX, rel=0.01)

    def test_an_oblique_joint_measures_as_an_upright_one(self):
        import cv2

        phantom = joint_phantom(3)
        turn = cv2.getRotationMatrix2D((128, 128), 35, 1)
        turned = np.stack(
            [cv2.warpAffine(mask.astype(np.uint8), turn, (256, 256)) > 0 for mask in phantom.masks]
        )
        assert bone_width_px(turned) == pytest.approx(bone_width_px(phantom.masks), rel=0.1)

    def test_a_whole_bone_measures_as_its_end(self):
        # A shaft three times as long as in the dataset's pictures, as in a whole hand.
        masks = joint_phantom(3).masks
        taller = np.concatenate(
            [np.repeat(masks[:, :1], 300, axis=1), masks, np.repeat(masks[:, -1:], 300, axis=1)],
            axis=1,
        )
        assert 0.7 < bone_width_px(taller) / bone_width_px(masks) < 1.1
        assert working_scale(taller) == 1

    @pytest.mark.parametrize("size", [100, 640, 1200])
    def test_layers_are_right_at_full_resolution(self, separator, size):
        image, masks = phantom_of_size(size)
        result = separator(image, masks)
        assert result.scale != 1
        check_promises(result, image, masks)

    @pytest.mark.parametrize("size", [128, 512, 900])
    def test_share_logits_land_where_they_were_predicted(self, separator, size):
        """A share that follows the pixel's position must come back at that position."""
        image, masks = phantom_of_size(size)
        top, left, _, _ = bounding_box(masks[0] & masks[1])
        crop = around_overlap(masks, SIZE_MULTIPLE)

        def gradient(logits, soft_tissue):
            height, width = logits.shape[2:]
            rows = crop.top + (np.arange(height) + 0.5) / crop.scale
            columns = crop.left + (np.arange(width) + 0.5) / crop.scale
            share = 0.05 * (rows - top)[:, None] + 0.02 * (columns - left)[None]
            answer = np.stack([share, np.zeros_like(share)])[None].astype(np.float32)
            return answer * 256 / size, 0 * soft_tissue

        result = Separator(Spy(separator.backend, gradient))(image, masks)
        rows, columns = np.nonzero(result.overlap)
        expected = (0.05 * (rows + 0.5 - top) + 0.02 * (columns + 0.5 - left)) * 256 / size
        law = separator.weights.law
        share_upper = np.expm1(law * result.upper[result.overlap].astype(float))
        share_lower = np.expm1(law * result.lower[result.overlap].astype(float))
        inner = (
            np.ones(len(rows), bool) if crop.scale == 1 else _inner(result.overlap, 4 * size // 256)
        )
        measured = np.log(share_upper / share_lower)
        assert np.abs(measured - expected)[inner].max() < 0.03

    def test_memory_is_bounded_whatever_the_masks(self):
        masks = np.zeros((2, 1500, 3000), bool)
        masks[0, 10:1490, 5:2990] = True
        masks[1, 20:1500, :2980] = True
        crop = around_overlap(masks, SIZE_MULTIPLE)
        assert crop.height * crop.width <= MAX_AREA_PX
        assert crop.height % SIZE_MULTIPLE == crop.width % SIZE_MULTIPLE == 0

    def test_several_disjoint_overlaps_share_one_crop(self, separator):
        masks = np.zeros((2, 256, 256), bool)
        masks[0, 20:130, 50:210] = True
        masks[1, 140:240, 50:210] = True
        masks[1, 120:141, 60:80] = masks[1, 115:141, 180:200] = True
        image = np.random.default_rng(0).random((256, 256), np.float32)
        spy = Spy(separator.backend)
        check_promises(Separator(spy)(image, masks), image, masks)
        assert len(spy.shapes) == 1


def _inner(mask, px):
    """Which of the mask's pixels are at least ``px`` from its outline, in order of np.nonzero."""
    import cv2

    core = cv2.erode(mask.astype(np.uint8), np.ones((2 * px + 1,) * 2, np.uint8), borderValue=0)
    return core[mask] > 0


@st.composite
def joints(draw):
    """Any size, dtype and mask shape: bars, discs, noise, touching the edges or each other."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((2, height, width), bool)
    for mask in masks:
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["bar", "disc", "noise", "pixel"]))
            row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
            if kind == "bar":
                mask[
                    row : row + draw(st.integers(1, 60)), column : column + draw(st.integers(1, 60))
                ] = 1
            elif kind == "disc":
                mask |= (y - row) ** 2 + (x - column) ** 2 <= draw(st.integers(1, 40)) ** 2
            elif kind == "noise":
                mask |= rng.random((height, width)) < 0.3
            else:
                mask[row, column] = True
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.float16, np.float32, np.float64]))
    image = rng.random((height, width))
    if draw(st.booleans()):
        image = np.round(image)  # saturated: 0 and 1 only
    if np.issubdtype(dtype, np.integer):
        image = image * np.iinfo(dtype).max
    return image.astype(dtype), masks


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(joints())
def test_any_size_dtype_and_mask_shape(separator, joint):
    image, masks = joint
    full = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    unit = (image / np.float32(full)).astype(np.float32)
    try:
        result = separator(image, masks)
    except InputError:
        # Only for what the promise names: a mask is empty (noise may leave none of its pixels),
        # both cover everything, or nothing varies.
        union = masks.any(axis=0)
        empty = not masks.any(axis=(1, 2)).all()
        assert empty or union.all() or unit[union].min() == unit[union].max()
        return
    check_promises(result, unit, masks)


class TestRefusals:
    def refused(self, separator, message, image, masks):
        with pytest.raises(InputError, match=message):
            separator(image, masks)

    def test_shapes(self, separator, phantom):
        self.refused(separator, r"shape \[2, 256, 256\]", phantom.masks, phantom.masks)
        self.refused(separator, r"give \[2,256,256\]", phantom.image, phantom.masks[0])
        self.refused(separator, r"give \[2,256,256\]", phantom.image, phantom.masks[:, :200])
        self.refused(separator, r"give \[2,256,256\]", phantom.image, np.ones((3, 256, 256), bool))

    def test_values(self, separator, phantom):
        for bad in (np.nan, np.inf, -np.inf):
            image = phantom.image.copy()
            image[0, 0] = bad
            self.refused(separator, "NaN or infinite", image, phantom.masks)
        self.refused(separator, r"outside \[0,1\]", phantom.image * 255, phantom.masks)
        self.refused(separator, r"outside \[0,1\]", phantom.image - 0.5, phantom.masks)

    def test_dtypes(self, separator, phantom):
        self.refused(separator, "dtype int64", phantom.image.astype(int), phantom.masks)
        self.refused(separator, "dtype complex128", phantom.image.astype(complex), phantom.masks)
        self.refused(separator, "masks have dtype", phantom.image, phantom.masks.astype("U1"))

    def test_masks(self, separator, phantom):
        image, masks = phantom.image, phantom.masks
        empty, full = masks.copy(), masks.copy()
        empty[1], full[0] = False, True
        self.refused(separator, "lower mask is empty", image, empty)
        self.refused(separator, "upper mask covers every pixel", image, full)
        complement = np.stack([masks[0], ~masks[0]])
        self.refused(separator, "cover every pixel; no background", image, complement)
        self.refused(separator, "other than 0 and 1", image, masks * np.uint8(127))
        self.refused(separator, "other than 0 and 1", image, np.full(masks.shape, np.nan))

    def test_constant(self, separator, phantom):
        constant = np.where(phantom.masks.any(axis=0), np.float32(0.5), phantom.image)
        self.refused(separator, r"constant \(0.5\) under the bones", constant, phantom.masks)

    def test_1x1(self, separator):
        self.refused(separator, "covers every pixel", np.ones((1, 1)), np.ones((2, 1, 1), bool))

    def test_empty_array(self, separator):
        self.refused(
            separator, r"image has shape \[0, 0\]", np.ones((0, 0)), np.ones((2, 0, 0), bool)
        )

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda logits, k: (logits * np.nan, k), "NaN"),
            (lambda logits, k: (logits, k + np.inf), "NaN or infinite"),
            (lambda logits, k: (logits[:, :1], k), "another architecture: it gave shapes"),
            (lambda logits, k: (logits, k[:, None]), "another architecture"),
            (lambda logits, k: 1 / 0, r"fails on a crop of \[1, 2, .*division by zero"),
        ],
    )
    def test_a_network_that_misbehaves(self, separator, phantom, answer, message):
        with pytest.raises(WeightsError, match=message):
            Separator(Spy(separator.backend, answer))(phantom.image, phantom.masks)
