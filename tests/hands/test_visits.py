"""Verdicts on narrowing: never a bare number."""

from dataclasses import replace

import pytest

from blsgan.hands.visits import Pair, judge, order

PAIR = Pair(0.1, 0.05, 0.2, 1.0, (6.0, 5.9), 100.0)


def test_narrowing_within_the_error_is_not_detectable():
    found = judge(PAIR)
    assert found.verdict == "not detectable"
    assert 0.1 < found.standard_error_px < found.detectable_px
    assert found.flags == ()


def test_narrowing_beyond_the_detectable_difference_is_narrowed():
    found = judge(replace(PAIR, narrowing_px=1.2, widths_px=(6.0, 4.9)))
    assert found.verdict == "narrowed"


def test_the_error_grows_with_the_bones_and_with_disagreement():
    wide = judge(replace(PAIR, bone_width_px=200.0))
    unsure = judge(replace(PAIR, disagreement_px=2.0))
    assert wide.detectable_px > 1.9 * judge(PAIR).detectable_px
    assert unsure.standard_error_px > 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problems": ("upper bone: correlation 0.6",)}, "correlation"),
        ({"tilt_deg": -12.0}, "turned 12 degrees"),
        ({"sideways_px": 9.0}, "across the joint"),
        ({"widths_px": (3.0, 9.0)}, "width of the masks"),
    ],
)
def test_what_speaks_against_a_measurement_makes_it_none(change, words):
    found = judge(replace(PAIR, narrowing_px=1.2, **change))
    assert found.verdict == "not measurable"
    assert any(words in flag for flag in found.flags)


def test_the_same_file_twice_is_zero_and_said():
    found = judge(replace(PAIR, narrowing_px=0.0, identical=True))
    assert found.verdict == "not detectable"
    assert "same file" in found.flags[0]


def test_doubtful_masks_and_widening_are_flagged():
    found = judge(replace(PAIR, narrowing_px=-1.5, widths_px=(5.0, 6.5), doubtful=True))
    assert found.verdict == "not detectable"
    assert len(found.flags) == 2


def test_dates_order_visits_only_where_all_are_known():
    assert order(["20210101", "20190101", "20200101"])[0] == [1, 2, 0]
    indices, note = order(["20210101", None])
    assert indices == [0, 1]
    assert note is not None
    assert order([None, None]) == ([0, 1], None)
    assert order(["20190101", "20200101"]) == ([0, 1], None)
