"""Agreement statistics against figures worked out elsewhere."""

import numpy as np
import pytest

from blsgan.jsn.agreement import (
    agreement,
    bland_altman,
    icc_2_1,
    smallest_detectable_difference,
)

SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)


def test_icc_of_the_published_example():
    """Shrout & Fleiss 1979, table 2: ICC(2,1) = 0.29."""
    assert icc_2_1(SHROUT_FLEISS) == pytest.approx(0.2898, abs=1e-4)


def test_icc_where_it_is_not_defined():
    assert icc_2_1(np.ones((1, 2))) is None
    assert icc_2_1(np.ones((5, 2))) is None


def test_icc_counts_a_bias():
    truth = np.linspace(-1, 1, 20)
    assert icc_2_1(np.stack((truth, truth), axis=1)) == pytest.approx(1)
    assert icc_2_1(np.stack((truth + 1, truth), axis=1)) < 0.6


def test_agreement_leaves_mismatches_out_of_the_error_and_counts_them():
    true = [0.0, 0.0, 0.0, 1.0, 1.0]
    measured = [0.1, -0.1, 3.0, 1.2, 1.0]
    result = agreement(measured, true, [False, False, False, False, True])
    assert (result.count, result.mismatches, result.flagged) == (5, 2, 1)
    assert result.mismatch_rate == pytest.approx(0.4)
    assert result.mean_error_px == pytest.approx(0.2 / 3)
    sd = np.std([0.1, -0.1, 0.2], ddof=1)
    assert result.sd_px == pytest.approx(sd)
    assert result.sdd_px == pytest.approx(1.96 * np.sqrt(2) * sd)
    assert smallest_detectable_difference(1.0) == pytest.approx(2.7719, abs=1e-4)


def test_agreement_of_nothing_usable():
    result = agreement([5.0], [0.0], [False])
    assert (result.mismatch_rate, result.sd_px, result.icc) == (1.0, None, None)
    assert agreement([], [], []).as_dict()["mismatch_rate"] is None
    with pytest.raises(ValueError, match="flags"):
        agreement([1.0], [1.0], [])


def test_bland_altman():
    limits = bland_altman([1.0, 2.0, 3.0], [0.5, 2.5, 2.0])
    assert limits.bias == pytest.approx(1 / 3)
    assert limits.high - limits.low == pytest.approx(2 * 1.96 * limits.sd)
    assert bland_altman([1.0], [1.0]) is None
