"""Phantoms: deterministic, anatomically ordered, and exact under the forward model."""

import numpy as np
import pytest

from blsgan.errors import UsageError
from blsgan.synthesis.phantoms import LOWER, SESAMOID, UPPER, joint_phantom


@pytest.mark.parametrize("bones", [2, 3])
@pytest.mark.parametrize("size", [64, 160, 256])
def test_layers_recompose_to_the_image(bones, size):
    phantom = joint_phantom(5, size, bones=bones)
    coverage = phantom.masks.sum(axis=0)
    transmission = np.prod(1 - phantom.layers.astype(np.float64), axis=0)
    recon = 1 - transmission / (1 - phantom.soft_tissue) ** (np.maximum(coverage, 1) - 1)
    union = coverage > 0
    np.testing.assert_allclose(recon[union], phantom.image[union], atol=1e-6)


def test_three_bones_cover_a_pixel_three_times():
    phantom = joint_phantom(5, bones=3)
    assert phantom.masks.shape[0] == 3
    assert phantom.masks.sum(axis=0).max() == 3
    assert (phantom.masks[SESAMOID] & phantom.masks[LOWER]).sum() > 100


def test_the_sesamoid_leaves_the_other_bones_alone():
    two, three = joint_phantom(8), joint_phantom(8, bones=3)
    np.testing.assert_array_equal(two.masks, three.masks[:2])


def test_same_seed_same_bytes_other_seed_other_joint():
    a, b, c = joint_phantom(7), joint_phantom(7), joint_phantom(8)
    for name in ("image", "masks", "layers", "background"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
    assert a.image.tobytes() != c.image.tobytes()


def test_overlap_is_what_was_asked_for():
    for seed in range(12):
        assert joint_phantom(seed).overlap.sum() >= 60
        assert not joint_phantom(seed, overlap=False).overlap.any()


def test_the_gap_moves_the_bones_and_nothing_else():
    near, far = joint_phantom(4, gap_px=-10), joint_phantom(4, gap_px=10)
    assert near.soft_tissue == far.soft_tissue
    rows_near = np.flatnonzero(near.masks[LOWER].any(axis=1))
    rows_far = np.flatnonzero(far.masks[LOWER].any(axis=1))
    assert rows_far[0] - rows_near[0] == pytest.approx(10, abs=1)


def test_a_moved_bone_is_the_same_bone():
    near, far = joint_phantom(4, gap_px=-10), joint_phantom(4, gap_px=6)
    for bone, rows in ((UPPER, -8), (LOWER, 8)):
        moved = np.roll(near.layers[bone], rows, axis=0)
        both = np.roll(near.masks[bone], rows, axis=0) & far.masks[bone]
        both[:12] = both[-12:] = False
        assert both.sum() > 0.9 * far.masks[bone].sum()
        a, b = moved[both], far.layers[bone][both]
        assert np.corrcoef(a, b)[0, 1] > 0.98
        still = near.layers[bone][both]
        assert np.corrcoef(still, b)[0, 1] < 0.8


def test_bones_are_ordered_and_denser_than_the_soft_tissue():
    for seed in range(6):
        phantom = joint_phantom(seed)
        upper, lower = (np.nonzero(phantom.masks[i])[0].mean() for i in (UPPER, LOWER))
        assert upper < lower
        free = ~phantom.masks.any(axis=0)
        bone = phantom.image[phantom.masks.any(axis=0)].mean()
        assert bone > phantom.image[free].mean() + 0.15
        assert phantom.image[phantom.overlap].mean() > bone
        assert 0.2 <= phantom.soft_tissue <= 0.29


def test_types_ranges_and_spacing():
    phantom = joint_phantom(0, 128)
    assert phantom.image.dtype == phantom.layers.dtype == phantom.background.dtype == np.float32
    assert phantom.masks.dtype == bool
    assert phantom.image.min() >= 0
    assert phantom.image.max() <= 1
    assert not phantom.layers[~phantom.masks].any()
    assert phantom.pixel_spacing_mm == pytest.approx(0.2)
    assert joint_phantom(0, 128, spacing_mm=0.15).pixel_spacing_mm == 0.15


def test_sizes_show_the_same_joint():
    small, large = joint_phantom(2, 128), joint_phantom(2, 256)
    shrunk = large.masks[:, ::2, ::2]
    agreement = (shrunk & small.masks).sum() / (shrunk | small.masks).sum()
    assert agreement > 0.97


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"size": 32},
        {"size": 5000},
        {"bones": 4},
        {"gap_px": 41.0},
        {"spacing_mm": 0.0},
        {"spacing_mm": float("nan")},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(UsageError):
        joint_phantom(**{"seed": 0, **arguments})
