"""The benchmark of laws on overlaps whose law is known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "compare_laws.py"
EXPONENT = 7.0


@pytest.fixture(scope="module")
def laws():
    spec = importlib.util.spec_from_file_location("compare_laws", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def overlaps(laws):
    random = np.random.default_rng(5)
    made = []
    for number in range(12):
        upper, lower = random.uniform(0.4, 0.7, (2, 60))
        tissue = float(random.uniform(0.28, 0.4))
        total = np.exp(EXPONENT * upper) + np.exp(EXPONENT * lower) - np.exp(EXPONENT * tissue)
        made.append(
            laws.Overlap(f"joint{number // 2}", np.log(total) / EXPONENT, upper, lower, tissue)
        )
    return made


def test_the_law_that_made_the_overlaps_is_found(laws, overlaps):
    rows = {row["law"].split(":")[0]: row for row in laws.compare(overlaps, seed=0)}
    best = rows["exponential"]
    assert best["rmse"] < 1e-3
    assert best["parameter"] == pytest.approx(EXPONENT, abs=0.05)
    assert best["ratio_high"] < 0.2
    assert (best["images"], best["joints"]) == (12, 6)
    assert rows["sum"]["ratio"] > 1


def test_a_joints_parameter_is_chosen_without_it(laws):
    table = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    found, chosen = laws.left_out(table, np.array(["a", "b", "c"]))
    np.testing.assert_array_equal(chosen, [1, 0, 0])  # a tie takes the first
    np.testing.assert_array_equal(found, [1, 1, 1])
