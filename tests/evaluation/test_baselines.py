"""Closed forms against the formulas and against the equations they solve."""

import numpy as np
import pytest

from blsgan.evaluation import baselines
from blsgan.evaluation.methods import Overlap, synthetic_limit
from blsgan.synthesis.overlap import compose_image
from blsgan.synthesis.phantoms import joint_phantom


@pytest.fixture(scope="module")
def phantom():
    return joint_phantom(3)


def flat_overlap(a=0.4, b=0.3, k=0.2):
    """Two flat bones that meet in rows 12..19."""
    masks = np.zeros((2, 32, 24), bool)
    masks[0, :20, 4:20] = True
    masks[1, 12:, 4:20] = True
    layers = np.stack((np.where(masks[0], a, 0), np.where(masks[1], b, 0))).astype(np.float32)
    return compose_image(layers, masks, k), masks, layers


def test_copy_is_the_masked_image():
    image, masks, _ = flat_overlap()
    np.testing.assert_array_equal(baselines.copy_layers(image, masks), image * masks)


def test_equal_split_by_hand():
    image, masks, _ = flat_overlap()
    layers = baselines.equal_split(image, masks, 0.2)
    # Both get half the attenuation: 1 - L = sqrt((1 - I)(1 - k)).
    expected = 1 - np.sqrt(0.6 * 0.7 / 0.8 * 0.8)
    np.testing.assert_allclose(layers[:, 15, 10], expected, atol=1e-6)
    np.testing.assert_array_equal(layers[0, 5], image[5])


def test_ring_reads_the_true_k_off_flat_bones():
    image, masks, _ = flat_overlap(k=0.3)
    assert baselines.ring_soft_tissue(image, masks) == pytest.approx(0.3, abs=1e-6)


def test_ring_looks_six_pixels_far():
    image, masks, _ = flat_overlap(k=0.3)
    far = image.copy()
    far[5] = 1.0  # seven rows above the overlap
    assert baselines.ring_soft_tissue(far, masks) == baselines.ring_soft_tissue(image, masks)
    near = image.copy()
    near[6] = 1.0
    assert baselines.ring_soft_tissue(near, masks) != baselines.ring_soft_tissue(image, masks)


def test_ring_without_surroundings_falls_back():
    image, masks, _ = flat_overlap()
    masks[0] = masks[1]
    assert baselines.ring_soft_tissue(image, masks) == baselines.K_RING_FALLBACK


def test_harmonic_continues_flat_bones_exactly():
    image, masks, layers = flat_overlap()
    np.testing.assert_allclose(baselines.harmonic(image, masks), layers, atol=1e-4)
    with_physics = baselines.harmonic_with_physics(image, masks, 0.2)
    np.testing.assert_allclose(with_physics, layers, atol=1e-4)


def test_harmonic_is_the_mean_of_its_neighbours(phantom):
    layers = baselines.harmonic(phantom.image, phantom.masks)
    for layer, mask in zip(layers, phantom.masks, strict=True):
        density = -np.log1p(-layer.astype(np.float64))
        inner = phantom.overlap.copy()
        neighbours = np.zeros_like(density)
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            inner &= np.roll(mask, step, axis)
            neighbours += np.roll(density, step, axis)
        assert inner.sum() > 100
        np.testing.assert_allclose(density[inner], neighbours[inner] / 4, atol=2e-5)


def test_a_bone_without_free_pixels_gets_the_equal_split():
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 2:14, 2:14] = True
    masks[1, 6:9, 6:9] = True
    image = np.where(masks[0], np.float32(0.5), np.float32(0))
    layers = baselines.harmonic(image, masks)
    k = baselines.K_RING_FALLBACK
    assert layers[1, 7, 7] == pytest.approx(1 - np.sqrt(0.5 * (1 - k)), abs=1e-4)


@pytest.mark.parametrize("bones", [2, 3])
@pytest.mark.parametrize("k", [0.0, 0.245, 0.55, 0.95])
def test_exact_forms_recompose(bones, k):
    phantom = joint_phantom(3, 128, bones=bones)
    for split in (baselines.equal_split, baselines.harmonic_with_physics):
        layers = split(phantom.image, phantom.masks, k)
        assert layers.dtype == np.float32
        assert not layers[~phantom.masks].any()
        union = phantom.masks.any(axis=0)
        composed = compose_image(layers, phantom.masks, k)
        np.testing.assert_allclose(composed[union], phantom.image[union], atol=2e-6)


def test_true_share_gives_the_true_layers(phantom):
    known = {"layers": phantom.layers, "soft_tissue": phantom.soft_tissue}
    layers = synthetic_limit()(Overlap(phantom.image, phantom.masks, **known)).layers
    np.testing.assert_allclose(layers, phantom.layers, atol=1e-5)


def test_saturated_and_empty_pixels_stay_finite():
    image, masks, _ = flat_overlap()
    image[14] = 1.0
    image[16] = 0.0
    for layers in (
        baselines.equal_split(image, masks, 0.5),
        baselines.harmonic(image, masks),
        baselines.harmonic_with_physics(image, masks, 0.5),
    ):
        assert np.isfinite(layers).all()
        assert layers.min() >= 0
        assert layers.max() <= 1


def test_no_overlap_is_the_masked_image():
    phantom = joint_phantom(1, 128, overlap=False)
    expected = phantom.image * phantom.masks
    for layers in (
        baselines.equal_split(phantom.image, phantom.masks, 0.3),
        baselines.harmonic(phantom.image, phantom.masks),
        baselines.harmonic_with_physics(phantom.image, phantom.masks, 0.3),
    ):
        np.testing.assert_array_equal(layers, expected)
