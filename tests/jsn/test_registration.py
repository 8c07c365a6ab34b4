"""A bone moved by a known amount is found again; what cannot be found says so."""

import numpy as np
import pytest
from scipy import ndimage

from blsgan.errors import InputError
from blsgan.jsn import registration
from blsgan.jsn.registration import Focus, RigidTransform, register_bone
from blsgan.synthesis.phantoms import joint_phantom


@pytest.fixture(scope="module")
def bone():
    phantom = joint_phantom(1, size=192, gap_px=6.0)
    return phantom.layers[0].astype(np.float64), phantom.masks[0]


def moved(bone, transform):
    layer, mask = bone
    back = transform.inverse()

    def read(picture, order):
        return ndimage.affine_transform(picture, back.matrix, back.shift, order=order)

    inside = read(mask.astype(np.float64), 1) >= 0.5
    # The uncut layer's neighbourhood: the cut edge must not bleed into the moved bone.
    nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return np.clip(read(layer[tuple(nearest)], 3), 0, 1) * inside, inside


CENTRE = np.array([50.0, 96.0])


def error_px(found, true, at=CENTRE):
    return float(np.abs(found.transform(at) - true(at)).max())


@pytest.mark.parametrize(
    ("shift", "angle_deg"), [((0.37, -0.61), 0.0), ((5.2, 3.4), 4.0), ((-7.7, 9.3), -6.0)]
)
def test_a_known_movement_is_found_to_a_hundredth_of_a_pixel(bone, shift, angle_deg):
    true = RigidTransform.about(CENTRE, np.array(shift), np.radians(angle_deg))
    layer, mask = moved(bone, true)
    found = register_bone(bone[0], layer, bone[1], mask)
    assert found.problems == ()
    assert found.converged
    assert error_px(found, true) < 0.01
    assert found.transform.angle_deg == pytest.approx(angle_deg, abs=0.01)
    assert found.quality > 0.8


def test_exposure_and_noise_move_the_result_by_less_than_a_twentieth(bone):
    true = RigidTransform.about(CENTRE, np.array([0.4, 0.3]))
    layer, mask = moved(bone, true)
    noise = np.random.default_rng(0).normal(0, 0.01, layer.shape)
    exposed = (0.7 * layer + 0.12 + noise) * mask
    found = register_bone(bone[0], exposed, bone[1], mask)
    assert error_px(found, true) < 0.05
    assert found.gain == pytest.approx(1 / 0.7, rel=0.05)
    assert found.offset == pytest.approx(-0.12 / 0.7, abs=0.02)


def test_scale_is_fitted_only_where_asked_for(bone):
    true = RigidTransform.about(CENTRE, np.array([1.5, -0.8]), 0.01, 1.02)
    layer, mask = moved(bone, true)
    fitted = register_bone(bone[0], layer, bone[1], mask, fit_scale=True)
    assert fitted.transform.scale == pytest.approx(1.02, abs=5e-4)
    assert error_px(fitted, true) < 0.02
    assert register_bone(bone[0], layer, bone[1], mask).transform.scale == pytest.approx(1.0)


def test_a_picture_that_stretches_gives_the_movement_of_its_middle(bone):
    """Whichever of its edges are strongest; what stretches the picture is no movement."""
    matrix = np.array([[1.03, 0.02], [-0.01, 0.98]])
    middle = np.argwhere(ndimage.distance_transform_edt(bone[1]) > 2).mean(axis=0)
    true = RigidTransform(matrix, middle + np.array([0.6, -0.4]) - matrix @ middle)
    layer, mask = moved(bone, true)
    found = register_bone(bone[0], layer, bone[1], mask)
    assert found.problems == ()
    assert error_px(found, true, middle) < 0.02
    assert found.transform.scale == pytest.approx(1.0)


def test_a_picture_that_stretches_beyond_reason_is_a_mismatch(bone):
    matrix = np.diag([1.2, 0.97])
    layer, mask = moved(bone, RigidTransform(matrix, CENTRE - matrix @ CENTRE))
    found = register_bone(bone[0], layer, bone[1], mask)
    assert any("stretched by factors of 0.97 to 1.20" in p for p in found.problems), found.problems


def test_stretch_that_the_texture_does_not_determine_does_not_run_away():
    """Stripes and one upright line: how far the picture stretches sideways, only noise says."""
    mask = np.zeros((160, 160), dtype=bool)
    mask[20:140, 20:140] = True

    def visit(down, right, seed):
        rows, columns = np.mgrid[:160, :160] - np.array([down, right])[:, None, None]
        stripes = 0.2 * np.sin(rows / 5) * np.cos(rows / 17)
        line = 0.2 * np.exp(-(((columns - 80) / 3) ** 2))
        noise = np.random.default_rng(seed).normal(0, 0.05, mask.shape)
        return np.clip(0.5 + stripes + line + noise, 0, 1) * mask

    found = register_bone(visit(0, 0, 2), visit(0.4, -0.3, 3), mask, mask)
    assert found.problems == ()
    middle = np.array([80.0, 80.0])
    assert np.abs(found.transform(middle) - middle - [0.4, -0.3]).max() < 0.1


@pytest.mark.parametrize("fit_scale", [False, True])
def test_the_prior_pulls_a_picture_back_to_where_it_is_rigid(fit_scale):
    turn = RigidTransform.about(np.zeros(2), np.zeros(2), 0.3).matrix
    matrix = turn @ np.array([[1.04, 0.03], [0.01, 0.95]])

    def energy(entries):
        _, values, right = np.linalg.svd(entries.reshape(2, 2))
        strain = right.T @ np.diag(values - 1) @ right
        if fit_scale:
            strain = strain - np.eye(2) * np.trace(strain) / 2
        return np.square(strain).sum() / 2

    entries, by = matrix.ravel(), 1e-6 * np.eye(4)
    slope = [(energy(entries + d) - energy(entries - d)) / 2e-6 for d in by]

    def affine(matrix):
        return registration._Affine(matrix, np.zeros(2), np.zeros(2))

    held, pull = affine(matrix).stiffness(fit_scale=fit_scale)
    np.testing.assert_allclose(pull, slope, atol=1e-8)
    # Neither a turn nor, where it is fitted, a scale is held.
    free = [turn @ np.array([[0.0, -1.0], [1.0, 0.0]])] + [turn] * fit_scale
    _, rigid_pull = affine((1.02 if fit_scale else 1.0) * turn).stiffness(fit_scale=fit_scale)
    np.testing.assert_allclose(rigid_pull, 0, atol=1e-12)
    rigid_held, _ = affine(turn).stiffness(fit_scale=fit_scale)
    for change in free:
        np.testing.assert_allclose(rigid_held @ change.ravel(), 0, atol=1e-12)
    assert np.linalg.matrix_rank(held, tol=1e-9) == (2 if fit_scale else 3)


def test_the_focus_decides_where_a_bone_that_is_not_rigid_fits(bone):
    """The far end of the bone is moved otherwise than the near one."""
    layer, mask = bone
    moving = layer.copy()
    moving[:40] = np.roll(layer, 2, axis=1)[:40]
    near = np.array([100.0, 96.0])
    still = RigidTransform(np.eye(2), np.zeros(2))
    everywhere = register_bone(layer, moving, mask, mask)
    focused = register_bone(layer, moving, mask, mask, focus=Focus(near, 25.0))
    assert error_px(focused, still, near) < 0.02
    assert error_px(everywhere, still, near) > 2 * error_px(focused, still, near)


def test_there_and_back_disagree_where_the_bone_is_not_rigid(bone):
    layer, mask = bone
    true = RigidTransform.about(CENTRE, np.array([0.4, 0.3]))
    rigid = register_bone(layer, moved(bone, true)[0], mask, moved(bone, true)[1])
    bent = layer.copy()
    bent[:50] = np.roll(layer, 2, axis=1)[:50]
    bent[50:] = np.roll(layer, -1, axis=0)[50:]
    assert rigid.disagreement_px < 0.02
    assert register_bone(layer, bent, mask, mask).disagreement_px > 2 * rigid.disagreement_px


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("_MAX_STEPS", 1, "did not converge in 1 steps"),
        ("MAX_DISAGREEMENT_PX", 0.0, "and back the bone ends 0.0"),
        ("MIN_CORRELATION", 1.01, "correlate by 1.00 (1.01 needed)"),
        ("MIN_COVERAGE", 1.01, "% of the other's bone"),
    ],
)
def test_each_limit_is_said_with_its_figure(bone, monkeypatch, name, value, said):
    monkeypatch.setattr(registration, name, value)
    layer, mask = moved(bone, RigidTransform.about(CENTRE, np.array([1.4, 0.3]), 0.02))
    noise = np.random.default_rng(0).normal(0, 0.01, layer.shape)
    found = register_bone(bone[0], (layer + noise) * mask, bone[1], mask)
    assert any(said in problem for problem in found.problems), found.problems


def test_slow_steps_are_lengthened_and_swinging_ones_shortened():
    for rate in (0.95, -0.9):  # of the way that is left after each plain step
        x, previous = np.array([1.0, -0.5, 0.25, 0.0]), None
        for _ in range(12):
            update = (rate - 1) * x
            step = registration._accelerated(update, previous)
            previous = (update, step)
            x = x + step
        assert np.abs(x).max() < abs(rate) ** 12 / 3


def test_same_input_same_result(bone):
    true = RigidTransform.about(CENTRE, np.array([2.4, 0.3]))
    layer, mask = moved(bone, true)
    first, second = (register_bone(bone[0], layer, bone[1], mask) for _ in range(2))
    assert np.array_equal(first.transform.matrix, second.transform.matrix)
    assert np.array_equal(first.transform.shift, second.transform.shift)


def test_another_bone_is_a_mismatch(bone):
    other = joint_phantom(7, size=192, gap_px=6.0)
    found = register_bone(bone[0], other.layers[1], bone[1], other.masks[1])
    assert any("correlate by" in problem or "shows only" in problem for problem in found.problems)


def test_a_bone_that_leaves_the_picture_is_a_mismatch(bone):
    layer, mask = bone
    last = int(np.flatnonzero(mask.any(axis=1))[-1])
    gone, gone_mask = np.zeros_like(layer), np.zeros_like(mask)
    gone[:25], gone_mask[:25] = layer[last - 24 : last + 1], mask[last - 24 : last + 1]
    found = register_bone(layer, gone, mask, gone_mask)
    assert any("%" in problem or "pixels" in problem for problem in found.problems)
    assert found.coverage < 0.5


@pytest.mark.parametrize("side", [1, 4, 12])
def test_a_bone_of_a_few_pixels_is_a_mismatch_with_its_figure(side):
    rng = np.random.default_rng(0)
    layer = rng.random((40, 40))
    mask = np.zeros((40, 40), bool)
    mask[10 : 10 + side, 10 : 10 + side] = True
    found = register_bone(layer * mask, layer * mask, mask, mask)
    assert any("pixels of the bone" in problem for problem in found.problems)


def test_a_bone_without_texture_is_a_mismatch(bone):
    flat = np.full_like(bone[0], 0.5) * bone[1]
    found = register_bone(flat, flat, bone[1], bone[1])
    assert found.problems
    assert found.quality == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer, mask: (layer[:-1], mask), "shape"),
        (lambda layer, mask: (layer, np.zeros_like(mask)), "empty"),
        (lambda layer, mask: (np.where(mask, np.nan, 0), mask), "NaN"),
    ],
)
def test_unusable_arrays_are_refused(bone, change, message):
    layer, mask = change(*bone)
    with pytest.raises(InputError, match=message):
        register_bone(bone[0], layer, bone[1], mask)


def test_transforms_compose_and_invert():
    a = RigidTransform.about(np.array([3.0, 4.0]), np.array([1.0, -2.0]), 0.3, 1.1)
    b = RigidTransform.about(np.array([-3.0, 9.0]), np.array([0.5, 2.0]), -0.2, 0.95)
    points = np.array([[0.0, 0.0], [10.0, 3.0]])
    assert np.allclose(b.after(a)(points), b(a(points)))
    assert np.allclose(a.inverse()(a(points)), points)
    assert a.scale == pytest.approx(1.1)
    assert a.angle_deg == pytest.approx(np.degrees(0.3))
