"""Where windows lie, what is cut out by them, and the way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from blsgan.joint.geometry import around, bone_width_px, cut
from blsgan.joint.window import Window, around_overlap
from blsgan.joint.zone import extend, grown, zone


@pytest.mark.parametrize(
    ("centre", "expected"), [((50, 50), (40, 35, 60, 65)), ((2, 99), (0, 70, 20, 100))]
)
def test_windows_stay_inside(centre, expected):
    assert around(centre, (20, 30), (100, 100)) == expected


def test_windows_larger_than_the_picture_are_all_of_it():
    assert around((5, 5), (20, 30), (10, 40)) == (0, 0, 10, 30)


@pytest.mark.parametrize("box", [(1, 2, 3, 5), (-2, -1, 9, 4), (3, 3, 8, 9), (20, 20, 22, 23)])
def test_what_is_cut_is_the_picture_inside_and_the_fill_beyond(box):
    planes = np.random.default_rng(0).random((2, 5, 6))
    top, left, bottom, right = box
    window = cut(planes, box, -1)
    for row in range(top, bottom):
        for column in range(left, right):
            inside = 0 <= row < 5 and 0 <= column < 6
            expected = planes[:, row, column] if inside else [-1, -1]
            np.testing.assert_array_equal(window[:, row - top, column - left], expected)


@pytest.mark.parametrize("scale", [1.0, 0.5, 256 / 300, 2.0])
def test_what_goes_through_a_window_comes_back_where_it_was(scale):
    rows, columns = np.mgrid[:60, :80].astype(np.float32)
    window = Window(4.0, 6.0, round(40 * scale), round(50 * scale), scale)
    for plane in (rows, columns):
        back = window.restore(window.resample(plane)[None], (10, 12, 38, 50))[0]
        assert np.abs(back - plane[10:38, 12:50]).max() < 0.2


@pytest.mark.parametrize("scale", [0.3, 0.77, 1.9])
def test_resampling_is_pillows(scale):
    plane = np.random.default_rng(1).random((90, 70), np.float32)
    window = Window(3.5, -4.25, 40, 48, scale)
    rows, columns = 40 / scale, 48 / scale
    top, left = 3, -5
    bottom, right = math.ceil(3.5 + rows), math.ceil(-4.25 + columns)
    padded = Image.fromarray(cut(plane, (top, left, bottom, right)))
    x, y = 0.75, 0.5
    across = (x, 0, min(x + columns, right - left), padded.height)
    down = (0, y, 48, min(y + rows, bottom - top))
    expected = padded.resize((48, padded.height), Image.Resampling.BILINEAR, box=across)
    expected = expected.resize((48, 40), Image.Resampling.BILINEAR, box=down)
    np.testing.assert_array_equal(window.resample(plane), np.asarray(expected))


def test_a_mask_is_resampled_as_zeros_and_ones():
    mask = np.random.default_rng(2).random((40, 30)) < 0.5
    window = Window(2.0, 3.0, 24, 16, 0.8)
    np.testing.assert_array_equal(window.resample(mask), window.resample(np.float32(mask)))


def test_restoring_is_pillows_and_goes_where_it_is_asked_for():
    planes = np.random.default_rng(3).random((2, 16, 24), np.float32)
    window, box = Window(5.0, 7.0, 16, 24, 0.5), (6, 9, 30, 40)
    whole = np.full((2, 50, 60), -1, np.float32)
    window.restore(planes, box, out=whole[:, 6:30, 9:40])
    for plane, restored in zip(planes, whole[:, 6:30, 9:40], strict=True):
        expected = Image.fromarray(plane)
        expected = expected.resize((31, 16), Image.Resampling.BILINEAR, box=(1, 0, 16.5, 16))
        expected = expected.resize((31, 24), Image.Resampling.BILINEAR, box=(0, 0.5, 31, 12.5))
        np.testing.assert_array_equal(restored, np.asarray(expected))
    whole[:, 6:30, 9:40] = -1
    assert (whole == -1).all()


@pytest.mark.parametrize("side", [93, 99, 210, 246, 600])
def test_a_window_around_a_picture_holds_all_of_it(side):
    window = Window(0.0, 0.0, 256, 256, 256 / side)
    assert window.box((side, side)) == (0, 0, side, side)
    assert window.restore(np.zeros((1, 256, 256), np.float32), (0, 0, side, side)).shape[1] == side


def test_a_window_far_from_the_picture_sees_nothing_of_it():
    window, masks = Window(500.0, 0.0, 8, 8), np.ones((2, 20, 20), np.bool_)
    assert not window.zone(masks, 4).any()
    np.testing.assert_array_equal(window.grown(masks, 4), masks)
    assert not window.resample(np.ones((20, 20), np.float32)).any()


def test_values_are_carried_outwards_from_where_they_are_known():
    planes = np.arange(2 * 11 * 11, dtype=np.float32).reshape(2, 11, 11)
    known = np.zeros((11, 11), np.bool_)
    known[5, 5] = True
    carried = extend(planes, known)
    for plane, given in zip(carried, planes, strict=True):
        np.testing.assert_array_equal(plane[1:10, 1:10], given[5, 5])
        assert plane[0].max() == plane[:, 0].max() == 0


def test_masks_of_any_byte_but_0_are_covered():
    masks = np.zeros((2, 90, 80), np.uint8)
    masks[0, :50, 10:70], masks[1, 45:, 10:70] = 255, 2
    odd, plain = masks.view(np.bool_), masks > 0
    assert bone_width_px(odd) == bone_width_px(plain)
    window = around_overlap(odd, 8)
    assert repr(window) == repr(around_overlap(plain, 8))
    for found, expected in (
        (zone(odd, 4), zone(plain, 4)),
        (grown(odd[0], 3), grown(plain[0], 3)),
        (window.zone(odd, 4), window.zone(plain, 4)),
        (window.resample(odd[0]), window.resample(plain[0])),
    ):
        np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


def test_masks_grow_by_squares_and_crosses_in_turn():
    mask = np.random.default_rng(4).random((60, 50)) < 0.005
    mask[0, 0] = mask[-1, 20] = True
    expected = mask
    for structure in (np.ones((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.ones((3, 3))):
        expected = binary_dilation(expected, structure)
    np.testing.assert_array_equal(grown(mask, 3), expected)
    np.testing.assert_array_equal(grown(mask, 0), mask)


def test_a_zone_is_where_two_masks_reach_and_no_farther_than_a_gap_of_its_reach():
    masks = np.zeros((2, 40, 30), np.bool_)
    masks[0, :20, 5:25], masks[1, 18:, 5:25] = True, True
    overlap = masks[0] & masks[1]
    np.testing.assert_array_equal(zone(masks, 0), overlap)
    reached = grown(masks[0], 4) & grown(masks[1], 4)
    np.testing.assert_array_equal(zone(masks, 4), reached & masks.any(axis=0))
    masks[1, 18:23] = False  # three rows lie between them
    assert zone(masks, 4)[20:23, 8:22].all()
    masks[1, 23:26] = False  # six: both reach there, but the gap is wider than the reach
    assert (grown(masks[0], 4) & grown(masks[1], 4))[20:26].any()
    assert not zone(masks, 4)[20:26].any()


def test_bones_on_a_slope_are_as_wide_as_upright_ones():
    rows, columns = np.mgrid[:300, :300] - 150.0
    for degrees in (0, 30, 80):
        turn = np.radians(degrees)
        along, across = rows * np.cos(turn) + columns * np.sin(turn), columns * np.cos(turn)
        across = across - rows * np.sin(turn)
        bone = np.abs(across) < 40
        masks = np.stack((bone & (along > -120) & (along < 5), bone & (along > -5) & (along < 120)))
        assert bone_width_px(masks) == pytest.approx(80, rel=0.06)  # chords fall between pixels


def restored(planes=(1, 8, 8), box=(0, 0, 8, 8), out=None):
    given = None if out is None else np.zeros(out, np.float32)
    return Window(0, 0, 8, 8).restore(np.zeros(planes, np.float32), box, out=given)


NO_MASKS = np.zeros((2, 8, 8), np.bool_)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Window(0, 0, 8, 8, 0.0), "scale above 0"),
        (lambda: Window(0, 0, 0, 8), "a pixel at least"),
        (lambda: Window(0, 0, 8, 8).resample(NO_MASKS), r"shape \[H, W\]"),
        (lambda: Window(np.nan, 0, 8, 8), "2\\^20 px at most"),
        (lambda: Window(0, 0, 8, 8, 2.0**-30), "2\\^20 px at most"),
        (lambda: bone_width_px(NO_MASKS[:1]), r"shape \[2, H, W\]"),
        (lambda: zone(NO_MASKS[:, :0], 4), "one pixel at least"),
        (lambda: zone(NO_MASKS, -1), "from 0 to 1024 px, got -1"),
        (lambda: grown(NO_MASKS[0], 10**9), "from 0 to 1024 px"),
        (lambda: bone_width_px(NO_MASKS), "a mask is empty"),
        (lambda: around_overlap(NO_MASKS, 0), "from 1 to 256"),
        (lambda: around_overlap(NO_MASKS, 257), "from 1 to 256"),
        (lambda: around_overlap(NO_MASKS[:, 0], 8), r"shape \[2, H, W\]"),
        (lambda: restored(planes=(1, 8, 9)), "of the window"),
        (lambda: restored(box=(0, 0, 9, 8)), "inside the window"),
        (lambda: restored(box=(0, 4, 8, 4)), "inside the window"),
        (lambda: restored(out=(1, 8, 7)), "box's size"),
    ],
)
def test_the_compiled_half_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_would_not_be_written_into_is_refused():
    with pytest.raises(TypeError):
        Window(0, 0, 8, 8).restore(
            np.zeros((1, 8, 8), np.float32), (0, 0, 8, 8), out=np.zeros((1, 8, 8))
        )


def test_masks_that_do_not_meet_have_no_window():
    assert around_overlap(NO_MASKS, 8) is None
