"""Narrowing and joint space width on phantoms, where both are known."""

import numpy as np
import pytest

from blsgan.errors import InputError
from blsgan.joint.window import working_scale
from blsgan.jsn import registration
from blsgan.jsn.quantification import (
    LAYER_TRUST,
    Visit,
    joint_space,
    measure,
    relative_movement,
    residual_maps,
    shared_frame,
)
from blsgan.jsn.registration import RigidTransform
from blsgan.synthesis.phantoms import joint_phantom


def visit(seed, gap_px, *, separated=True):
    phantom = joint_phantom(seed, gap_px=gap_px)
    layers = phantom.layers if separated else phantom.image * phantom.masks
    return Visit(layers, phantom.masks, None if separated else 1.0)


@pytest.mark.parametrize(("before", "after"), [(6.0, 5.4), (6.0, 6.0), (-9.0, -10.3)])
def test_narrowing_of_a_phantom(before, after):
    found = measure(visit(2, before), visit(2, after))
    assert not found.mismatch
    # The phantom's soft tissue does not move with its bones: a few hundredths are its own.
    assert found.narrowing_px == pytest.approx(before - after, abs=0.08)
    assert found.quality > 0.9
    assert found.axis @ found.axis == pytest.approx(1)
    assert found.axis[0] > 0.9


def test_the_overlap_counts_by_its_trust():
    """Garbage in the overlap harms where it is trusted, and not where it is not."""
    errors = {}
    for trust in (0.0, 1.0):
        visits = []
        for seed, gap in enumerate((-12.0, -12.8)):
            phantom = joint_phantom(2, gap_px=gap)
            noise = np.random.default_rng(seed).random(phantom.image.shape)
            layers = np.where(phantom.overlap, noise, phantom.layers)
            visits.append(Visit(layers, phantom.masks, trust))
        errors[trust] = abs(measure(*visits).narrowing_px - 0.8)
    assert errors[0.0] < 0.08
    assert errors[1.0] > 2 * errors[0.0]


def test_pixels_count_by_their_distance_from_the_overlap():
    """A rim of the upper bone hidden by the lower one, 10 px deep and far from any border."""
    masks = np.zeros((2, 300, 240), bool)
    masks[0, 20:150, 40:200] = True
    masks[1, 140:280, 20:220] = True
    visit = Visit(np.zeros(masks.shape), masks)
    upper, lower = visit.weights[:, :, 120]
    scale = 1.0  # bones of the usual size
    assert working_scale(masks) == scale
    for row, index in ((139, 4), (138, 5), (137, 6), (136, 7), (140, 3), (142, 1)):
        assert upper[row] == pytest.approx(LAYER_TRUST[0, index])
    assert (upper[149], upper[130], upper[60]) == (LAYER_TRUST[0, 0], 1, 1)
    assert lower[150] == pytest.approx(LAYER_TRUST[1, 4])
    assert lower[149] == pytest.approx(LAYER_TRUST[1, 3])
    assert (lower[140], lower[160]) == (LAYER_TRUST[1, 0], 1)
    given = Visit(np.zeros(masks.shape), masks, 0.3).weights
    np.testing.assert_array_equal(given[0], given[1])
    assert set(np.unique(given)) == {0.3, 1.0}


def test_without_overlap_every_pixel_counts():
    assert (Visit(np.zeros((2, 120, 120)), slabs(5)).weights == 1).all()


def test_swapping_the_visits_turns_the_sign():
    """Both directions are registered either way, and axis and reference are shared."""
    there, back = measure(visit(1, 4.0), visit(1, 3.0)), measure(visit(1, 3.0), visit(1, 4.0))
    assert there.narrowing_px == pytest.approx(-back.narrowing_px, abs=1e-6)
    assert there.disagreement_px < 0.05


def test_a_joint_that_bends_does_not_narrow():
    """The lower bone turns about a point in its head, 30 px below the border that is measured."""
    still = RigidTransform(np.eye(2), np.zeros(2))
    turn = RigidTransform.about(np.array([130.0, 100.0]), np.zeros(2), np.radians(10))
    border = np.array([100.0, 100.0])
    axes = [np.array([1.0, 0.0]), turn.matrix @ np.array([1.0, 0.0])]
    axis, reference = shared_frame(axes, [border, turn(border)], still, turn)
    assert reference == pytest.approx(border)
    assert relative_movement(still, turn, reference) @ axis == pytest.approx(0, abs=1e-9)
    # Along the baseline's own axis the same turn looks like 30 (1 - cos 10 degrees) px.
    assert relative_movement(still, turn, border) @ axes[0] == pytest.approx(0.456, abs=0.001)


def test_axis_and_reference_are_half_way_between_the_visits():
    whole_hand = RigidTransform.about(np.zeros(2), np.array([4.0, -2.0]), 0.3)
    axes = [np.array([1.0, 0.0]), whole_hand.matrix @ [np.cos(0.2), np.sin(0.2)]]
    references = [np.array([50.0, 60.0]), whole_hand(np.array([50.0, 64.0]))]
    axis, reference = shared_frame(axes, references, whole_hand, whole_hand)
    assert axis == pytest.approx([np.cos(0.1), np.sin(0.1)])
    assert reference == pytest.approx([50.0, 62.0])


def test_residual_maps_show_what_is_new_and_nothing_else():
    one, other = joint_phantom(3, gap_px=5.0), joint_phantom(3, gap_px=4.0)
    lesion = other.layers.copy()
    lesion[0, 60:66, 120:126] *= 0.6
    visits = [Visit(one.layers, one.masks), Visit(lesion, other.masks)]
    maps = residual_maps(*visits, measure(*visits))
    assert maps.shape == one.masks.shape
    assert maps.dtype == np.float32
    assert np.isnan(maps[~one.masks]).all()
    assert np.isfinite(maps).sum() > 0.9 * one.masks.sum()
    hidden = maps.copy()
    hidden[0, 55:72, 115:132] = np.nan
    assert np.nanmax(maps[0]) > 4 * np.nanpercentile(np.abs(hidden), 99)


def test_a_bone_that_leaves_the_picture_is_a_mismatch_with_its_figure():
    one, other = visit(2, 6.0), visit(2, 5.0)
    gone = Visit(np.roll(other.layers, 80, axis=1), np.roll(other.masks, 80, axis=1))
    gone.layers[:, :80], gone.masks[:, :80] = 0, False
    found = measure(one, gone)
    assert found.mismatch
    assert found.quality == 0
    assert any("lower bone: " in problem and "%" in problem for problem in found.problems)


def test_a_registration_that_does_not_converge_is_a_mismatch(monkeypatch):
    monkeypatch.setattr(registration, "_MAX_STEPS", 1)
    found = measure(visit(2, 6.0), visit(2, 5.0))
    assert found.mismatch
    assert found.quality == 0
    assert any("did not converge in 1 steps" in problem for problem in found.problems)


def test_separated_layers_measure_an_overlap_better():
    errors = {}
    for separated in (True, False):
        visits = [visit(0, gap, separated=separated) for gap in (-10.0, -11.2)]
        errors[separated] = abs(measure(*visits).narrowing_px - 1.2)
    assert errors[True] < errors[False] / 2


def test_the_whole_hand_may_lie_elsewhere():
    """A shift of the picture is no narrowing."""
    one, other = joint_phantom(3, gap_px=5.0), joint_phantom(3, gap_px=4.0)
    rolled = Visit(np.roll(other.layers, 6, axis=2), np.roll(other.masks, 6, axis=2))
    found = measure(Visit(one.layers, one.masks), rolled)
    assert found.narrowing_px == pytest.approx(1.0, abs=0.08)
    assert found.sideways_px == pytest.approx(0.0, abs=0.15)
    assert found.displacement_px[:, 1] == pytest.approx(6.0, abs=0.1)


def test_visits_of_different_joints_are_a_mismatch_with_figures():
    found = measure(visit(1, 5.0), visit(9, 5.0))
    assert found.mismatch
    assert found.quality == 0
    assert all(any(c.isdigit() for c in problem) for problem in found.problems)


def slabs(gap, tilt=0.0, size=120):
    """Two half planes whose borders are ``gap`` apart at the middle column."""
    rows, columns = np.mgrid[:size, :size]
    slope = tilt * (columns - (size - 1) / 2)
    return np.stack((rows < 50, rows >= 50 + gap + slope))


@pytest.mark.parametrize("gap", [0, 7, -6])
def test_width_between_straight_borders(gap):
    space = joint_space(slabs(gap), np.array([1.0, 0.0]))
    assert space.mean_px == pytest.approx(gap, abs=0.02)
    assert space.minimum_px == pytest.approx(gap, abs=0.02)
    assert space.upper_border[:, 0] == pytest.approx(49.5, abs=0.02)


def test_width_is_minimal_where_the_borders_come_closest():
    space = joint_space(slabs(10, tilt=0.1), np.array([1.0, 0.0]))
    assert space.mean_px == pytest.approx(10.5, abs=0.3)
    assert space.minimum_px == pytest.approx(10 - 0.1 * 0.3 * 120, abs=1.0)


def ball_and_cup(gap, tilt_rad, centre, radius, parts):
    """A cup over a ball, ``gap`` px apart on an axis tilted by ``tilt_rad``; and that axis.

    Coverage float [2,200,200], from ``parts`` samples a pixel each way.
    """
    axis = np.array([np.cos(tilt_rad), np.sin(tilt_rad)])
    place = (np.arange(200 * parts) + 0.5) / parts - 0.5
    rows, columns = np.meshgrid(place - centre[0], place - centre[1], indexing="ij")
    along, across = rows * axis[0] + columns * axis[1], columns * axis[0] - rows * axis[1]
    top, cup = gap / 2 + radius, -gap / 2 + 1.3 * radius
    ball = (np.hypot(along - top, across) <= radius) | ((along > top) & (abs(across) <= radius))
    shell = (abs(across) <= 0.9 * radius) & (along < cup)
    shell &= np.hypot(along - cup, across) >= 1.3 * radius
    fine = np.stack((shell, ball)).reshape(2, 200, parts, 200, parts)
    return fine.mean(axis=(2, 4)), axis


def true_widths(gap, radius, across):
    ball = radius - np.sqrt(radius**2 - across**2)
    return gap + ball - (1.3 * radius - np.sqrt((1.3 * radius) ** 2 - across**2))


@pytest.mark.parametrize(
    ("gap", "tilt_rad", "centre", "radius"),
    [
        (6.37, 0.0, (100.3, 99.6), 55.0),
        (0.3, 0.17, (99.5, 100.0), 50.0),
        (2.81, -0.1, (100.0, 101.2), 60.0),
        (-4.71, 0.05, (100.8, 100.1), 52.0),
    ],
)
def test_a_known_gap_to_a_tenth_of_a_pixel(gap, tilt_rad, centre, radius):
    coverage, axis = ball_and_cup(gap, tilt_rad, centre, radius, 5)
    across = np.array([-axis[1], axis[0]])
    for masks, of_mean, of_minimum in ((coverage, 0.05, 0.1), (coverage >= 0.5, 0.1, 0.5)):
        space = joint_space(masks, axis)
        true = true_widths(gap, radius, (space.lower_border - centre) @ across)
        assert space.mean_px == pytest.approx(true.mean(), abs=of_mean)
        assert space.minimum_px == pytest.approx(gap, abs=of_minimum)


def test_width_follows_the_gap():
    """In pixels as small as the bones' borders need it; a bool mask is cut at whole ones."""
    widths = []
    for gap in (8.0, 4.7):
        fine = joint_phantom(4, 1024, gap_px=gap).masks.reshape(2, 256, 4, 256, 4)
        widths.append(joint_space(fine.mean(axis=(2, 4)), np.array([1.0, 0.0])))
    assert widths[0].mean_px - widths[1].mean_px == pytest.approx(3.3, abs=0.1)
    assert widths[0].minimum_px - widths[1].minimum_px == pytest.approx(3.3, abs=0.1)


def test_an_overlap_has_a_negative_width():
    assert joint_space(joint_phantom(0, gap_px=-12.0).masks).minimum_px < 0


def test_bones_that_do_not_face_each_other_have_no_width():
    masks = np.zeros((2, 80, 80), bool)
    masks[0, :40, :20] = True
    masks[1, 40:, 60:] = True
    assert joint_space(masks, np.array([1.0, 0.0])) is None


def test_masks_at_the_border_are_noted_with_a_figure():
    one = visit(1, 5.0)
    notes = measure(one, one).notes
    assert any("baseline: the upper mask touches" in n and "px" in n for n in notes)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="layers of shape"):
        Visit(np.zeros((2, 4, 4)), np.ones((2, 4, 5), bool))
    with pytest.raises(InputError, match="lower mask is empty"):
        Visit(np.zeros((2, 4, 4)), np.stack((np.ones((4, 4), bool), np.zeros((4, 4), bool))))
