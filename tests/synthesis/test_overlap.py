"""The compositor against the recipe written out by hand, and its promises on phantoms."""

import numpy as np
import pytest

from blsgan.data.layout import MIN_OVERLAP_PX
from blsgan.errors import InputError
from blsgan.synthesis.overlap import (
    compose_image,
    dilate_by_one,
    image_rng,
    protocol_overlap,
    rim_of,
    synthesize_overlap,
)
from blsgan.synthesis.phantoms import joint_phantom


@pytest.fixture(scope="module")
def joint():
    return joint_phantom(3, overlap=False)


def as_uint8(image):
    return np.round(image * 255).astype(np.uint8)


def test_compose_image_by_hand():
    masks = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]], bool)
    layers = np.array([[[0.5, 0.5, 0.9, 0.9]], [[0.9, 0.4, 0.3, 0.9]]], np.float32)
    composed = compose_image(layers, masks, 0.25)
    np.testing.assert_allclose(composed, [[0.5, 1 - 0.5 * 0.6 / 0.75, 0.3, 0.0]], atol=1e-6)


def test_dilation_grows_by_one_pixel_in_all_directions():
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    expected = np.zeros((7, 7), bool)
    expected[2:5, 2:5] = True
    np.testing.assert_array_equal(dilate_by_one(mask), expected)


def test_rim_straddles_the_edge_and_leaves_the_middle():
    overlap = np.zeros((40, 40), bool)
    overlap[10:30, 10:30] = True
    rim = rim_of(overlap)
    assert rim[10, 20]
    assert rim[29, 20]
    assert rim[20, 10]
    assert not rim[20, 20]
    assert not rim[2, 2]


def test_flat_bones_compose_to_the_formula_away_from_the_rim():
    image = np.full((64, 64), 0.4, np.float32)
    background = np.full((64, 64), 0.2, np.float32)
    masks = np.zeros((2, 64, 64), bool)
    masks[0, :31, 12:52] = True  # grows to row 31, moves down 4: rows 4..35
    masks[1, 33:, 12:52] = True  # grows to row 32, moves up 6: rows 26..57
    pair = synthesize_overlap(image, masks, background, down_px=4, up_px=6)
    assert pair.soft_tissue == pytest.approx(0.2)
    # The crop of 8 and the resize by 64/48 put source row r at (r - 8 + 0.5) * 4/3 - 0.5.
    rows = np.flatnonzero(pair.overlap[:, 32])
    assert rows[0] == pytest.approx((26 - 7.5) * 4 / 3 - 0.5, abs=1)
    assert rows[-1] == pytest.approx((35 - 7.5) * 4 / 3 - 0.5, abs=1)
    assert pair.image[(rows[0] + rows[-1]) // 2, 32] == pytest.approx(1 - 0.6 * 0.6 / 0.8, abs=1e-6)
    assert pair.layers[0, rows[5], 32] == pytest.approx(0.4, abs=1e-6)


def test_truth_recomposes_to_the_image_inside_the_overlap(joint):
    pair = synthesize_overlap(joint.image, joint.masks, joint.background, down_px=8, up_px=8)
    inner = pair.overlap & ~rim_of(pair.overlap)
    assert inner.sum() > 200
    recomposed = compose_image(pair.layers, pair.masks, pair.soft_tissue)
    # Resampling a product is not the product of the resampled: close, never equal.
    assert np.abs(recomposed - pair.image)[inner].max() < 0.05
    assert np.sqrt(np.mean((recomposed - pair.image)[inner] ** 2)) < 0.008


def test_result_is_restricted_to_the_bones_and_in_range(joint):
    pair = synthesize_overlap(joint.image, joint.masks, joint.background, down_px=7, up_px=5)
    union = pair.masks.any(axis=0)
    assert pair.image.dtype == np.float32
    assert pair.masks.dtype == bool
    assert pair.image.shape == joint.image.shape
    assert not pair.image[~union].any()
    for layer, mask in zip(pair.layers, pair.masks, strict=True):
        assert not layer[~mask].any()
    assert pair.image.min() >= 0
    assert pair.image.max() <= 1


def test_uint8_and_unit_floats_are_the_same_image(joint):
    grey, soft = as_uint8(joint.image), as_uint8(joint.background)
    a = synthesize_overlap(grey, joint.masks, soft, down_px=6, up_px=6)
    b = synthesize_overlap(
        grey.astype(np.float32) / 255,
        joint.masks,
        soft.astype(np.float32) / 255,
        down_px=6,
        up_px=6,
    )
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.layers, b.layers)


def test_fractional_shift_lies_between_its_neighbours(joint):
    def extent(shift):
        pair = synthesize_overlap(
            joint.image, joint.masks, joint.background, down_px=shift, up_px=8
        )
        return pair.overlap.sum()

    assert extent(5) <= extent(5.5) <= extent(6)
    assert extent(5) < extent(6)


def test_protocol_depends_on_name_and_seed_alone(joint):
    def draw(name, seed=0):
        pair = protocol_overlap(name, joint.image, joint.masks, joint.background, seed=seed)
        return None if pair is None else (pair.down_px, pair.up_px, pair.image.tobytes())

    first = draw("00001_L_2/a")
    draw("00009_R_5/z")
    assert draw("00001_L_2/a") == first
    others = {draw(f"00001_L_2/{i}", seed) for i in range(6) for seed in (0, 1)}
    assert len(others) > 6


def test_protocol_shifts_cover_their_range():
    shifts = np.array([image_rng(f"joint/{i}").integers(2, 9, size=2) for i in range(400)])
    assert set(shifts[:, 0]) == set(shifts[:, 1]) == set(range(2, 9))


def test_protocol_refuses_bones_that_do_not_meet(joint):
    far = joint_phantom(3, gap_px=30)
    assert protocol_overlap("far/0", far.image, far.masks, far.background) is None
    near = protocol_overlap("near/0", joint.image, joint.masks, joint.background)
    assert near is None or near.overlap.sum() >= MIN_OVERLAP_PX


@pytest.mark.parametrize(
    ("image", "masks", "background"),
    [
        (np.zeros((16, 16)), np.zeros((2, 16, 16)), np.zeros((16, 16))),
        (np.zeros((32, 32)), np.zeros((3, 32, 32)), np.zeros((32, 32))),
        (np.zeros((32, 32)), np.zeros((2, 32, 32)), np.zeros((32, 30))),
        (np.zeros((1, 32, 32)), np.zeros((2, 32, 32)), np.zeros((32, 32))),
    ],
)
def test_shapes_that_do_not_fit_are_named(image, masks, background):
    with pytest.raises(InputError, match="shape"):
        synthesize_overlap(image, masks, background, down_px=2, up_px=2)
