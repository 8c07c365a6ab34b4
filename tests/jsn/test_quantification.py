"""Narrowing and joint space width on phantoms, where both are known."""

import numpy as np
import pytest

from blsgan.errors import InputError
from blsgan.jsn.quantification import SEPARATED_TRUST, Visit, joint_space, measure
from blsgan.synthesis.phantoms import joint_phantom


def visit(seed, gap_px, *, separated=True):
    phantom = joint_phantom(seed, gap_px=gap_px)
    layers = phantom.layers if separated else phantom.image * phantom.masks
    return Visit(layers, phantom.masks, SEPARATED_TRUST if separated else 1.0)


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


def test_swapping_the_visits_turns_the_sign():
    """Exactly: both directions are registered either way, and axis and reference are shared."""
    there, back = measure(visit(1, 4.0), visit(1, 3.0)), measure(visit(1, 3.0), visit(1, 4.0))
    assert there.narrowing_px == pytest.approx(-back.narrowing_px, abs=1e-9)
    assert there.disagreement_px < 0.05


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


def test_width_follows_the_gap():
    """To half a pixel: a mask is cut at whole ones, wherever the bone lies."""
    widths = [joint_space(joint_phantom(4, gap_px=gap).masks).mean_px for gap in (8.0, 5.0)]
    assert widths[0] - widths[1] == pytest.approx(3.0, abs=0.5)


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
