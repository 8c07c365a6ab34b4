"""Where windows lie, what is cut out by them, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from blsgan.joint.window import Window, around, cut


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
