"""The benchmark of the other bone's edge on truths whose edges are known."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from blsgan.data.visits import VisitTruth, edge_light

PATH = Path(__file__).parents[2] / "benchmarks" / "measure_edges.py"
SHAPE = (20, 30)


@pytest.fixture(scope="module")
def edges():
    spec = importlib.util.spec_from_file_location("measure_edges", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def truth(image, other, bone, clear_px, brighter=0.0):
    """A visit that shows a bone of 0.5 everywhere, at a distance from the other bone."""
    seen = np.full(SHAPE, 0.5 + brighter, np.float32)
    clear = np.full(SHAPE, clear_px, np.int16)
    everywhere = np.ones(SHAPE, bool)
    return VisitTruth(image, other, bone, seen, everywhere, clear, everywhere, 0.95, 1e-3, 600)


def test_what_an_edge_leaves_in_truths_is_found(edges):
    truths = []
    for joint, left in (("J1", 0.02), ("J2", 0.04)):
        truths += [truth(f"{joint}/a", "b", 0, 2, left), truth(f"{joint}/a", "c", 0, 9)]
    rows = edges.rows_of(edges.differences(truths), seed=0)
    near = rows[0]
    assert (near["bone"], near["px"], near["joints"]) == ("upper", "1 to 2", 2)
    assert near["without"] == pytest.approx(0.03, abs=1e-4)
    assert near["without_low"] >= 0.02 - 1e-4
    assert near["without_high"] <= 0.04 + 1e-4
    added = near["with_edge"] - near["without"]
    assert added == pytest.approx(float(edge_light(0, np.float32(1.5))), abs=2e-4)


def test_joints_count_alike_and_bones_apart(edges):
    truths = [truth("J1/a", "far", 1, 9), truth("J2/a", "far", 1, 9)]
    truths += [truth("J1/a", f"b{number}", 1, 3, 0.03) for number in range(5)]
    truths.append(truth("J2/a", "b", 1, 3, 0.01))
    rows = edges.rows_of(edges.differences(truths), seed=0)
    assert {row["bone"] for row in rows} == {"lower"}
    assert rows[0]["px"] == "2 to 3"
    assert rows[0]["without"] == pytest.approx(0.02, abs=1e-4)


def test_two_visits_that_are_both_near_say_nothing(edges):
    truths = [truth("J1/a", "b", 0, 2), truth("J1/a", "c", 0, 3)]
    assert edges.rows_of(edges.differences(truths), seed=0) == []
