"""The study: its known displacements are known, and its figures come from its records."""

import json

import numpy as np
import pytest

from blsgan.data.layout import MIN_OVERLAP_PX, JointArrays, overlap_px
from blsgan.errors import InputError
from blsgan.evaluation.methods import COPY, Answer, Method
from blsgan.jsn.quantification import Visit, measure
from blsgan.jsn.study import (
    ALL,
    LEFT_OUT,
    NO_OVERLAP,
    NOTHING_TO_SEPARATE,
    OVERLAP,
    WITHOUT,
    Study,
    known_pair,
    run_study,
)
from blsgan.synthesis.phantoms import joint_phantom

MODEL = Method(
    "model",
    lambda sample: Answer(sample.image * sample.masks, 0.3),
    {"weights": "none", "sha256": "0" * 64, "backend": "none", "backend_version": "0"},
)


@pytest.fixture(scope="module")
def joint():
    phantom = joint_phantom(1, gap_px=3.0)
    grey = [np.rint(a * 255).astype(np.uint8) for a in (phantom.image, phantom.background)]
    return JointArrays(grey[0], phantom.masks, grey[1])


def test_a_known_pair_is_what_it_says(joint):
    free = known_pair("a", joint, overlap=False)
    assert overlap_px(free.baseline.masks) < MIN_OVERLAP_PX
    found = measure(*(Visit(COPY(s).layers, s.masks) for s in (free.baseline, free.followup)))
    assert found.narrowing_px == pytest.approx(free.narrowing_px, abs=0.05)


def test_true_layers_measure_a_known_pair_with_overlap(joint):
    for seed in range(3):
        pair = known_pair("a", joint, overlap=True, seed=seed)
        assert pair.overlap_px >= MIN_OVERLAP_PX
        found = measure(*(Visit(s.layers, s.masks) for s in (pair.baseline, pair.followup)))
        assert found.narrowing_px == pytest.approx(pair.narrowing_px, abs=0.02)


def test_a_magnified_pair_needs_the_scale_fitted(joint):
    pair = known_pair("a", joint, overlap=False, seed=2, magnify=True)
    visits = [Visit(s.layers, s.masks) for s in (pair.baseline, pair.followup)]
    error = [abs(measure(*visits, fit_scale=f).narrowing_px - pair.narrowing_px) for f in (0, 1)]
    assert error[1] < 0.05 < error[0]


def test_a_pair_depends_on_name_and_seed_alone(joint):
    one, again = (known_pair("a", joint, overlap=True, seed=4) for _ in range(2))
    assert np.array_equal(one.followup.image, again.followup.image)
    assert one.narrowing_px == again.narrowing_px
    assert known_pair("b", joint, overlap=True, seed=4).narrowing_px != one.narrowing_px


def test_a_joint_without_background_gives_no_pair(joint):
    assert known_pair("a", JointArrays(joint.image, joint.masks, None), overlap=True) is None


def test_study_of_the_phantom_dataset(images, tmp_path):
    study = run_study(images, MODEL, split="val")
    assert study.images == 3
    assert study.left_out["real overlap"] == 3
    found = study.agreements()
    assert set(found) == {
        (NO_OVERLAP, NOTHING_TO_SEPARATE),
        (OVERLAP, "model"),
        (OVERLAP, "model, overlap in full"),
        (OVERLAP, WITHOUT),
        (OVERLAP, LEFT_OUT),
    }
    assert all(a.count == 3 for a in found.values())
    assert found[NO_OVERLAP, NOTHING_TO_SEPARATE].mismatches == 0
    assert found[OVERLAP, "model, overlap in full"] == found[OVERLAP, WITHOUT]  # the same layers
    assert "seed 0" in study.heading()
    assert "000000000000" in study.heading()

    # Phantoms have too few visits to be consistent: of what was not measured there is no table.
    assert not study.consistency
    written = study.write(tmp_path / "out")
    names = ["accuracy.csv", "study.md", "study.json"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    record = json.loads(written[-1].read_text())
    assert record["images"] == 3
    assert len((tmp_path / "out" / "accuracy.csv").read_text().splitlines()) == 1 + 3 * 5


def test_real_visits_add_up(images, dataset):
    """Three visits of one joint (one of them twice): A to B and B to C make A to C."""
    a, b = (image for image in images if image.joint == images[0].joint)
    study = run_study([b, b, b, *images], MODEL, split="val", limit=1)
    assert [r["overlapped_visits"] for r in study.consistency if r["method"] == WITHOUT] in (
        [],
        [1],
    )
    assert all(abs(r["difference_px"]) < 0.5 for r in study.consistency)
    assert study.consistency
    figures = study.consistencies().values()
    assert all(f["flagged"] or f["median_px"] <= f["p90_px"] <= f["p95_px"] for f in figures)
    assert a.name != b.name


def test_all_joints_are_those_with_and_without_overlap():
    def record(joint, condition, method, off, flagged=False):
        return {
            "joint": joint,
            "condition": condition,
            "method": method,
            "difference_px": off,
            "ab_px": off - 0.2,
            "bc_px": 0.5,
            "ac_px": 0.3,
            "flagged": flagged,
        }

    study = Study(
        "val",
        0,
        9,
        3,
        MODEL.description,
        fit_scale=False,
        consistency=[
            record("a", OVERLAP, "model", -0.1),
            record("a", OVERLAP, WITHOUT, 0.4),
            record("b", OVERLAP, "model", 9.0, flagged=True),
            record("b", OVERLAP, WITHOUT, 0.6),
            record("c", NO_OVERLAP, NOTHING_TO_SEPARATE, 0.3),
            record("d", NO_OVERLAP, NOTHING_TO_SEPARATE, 0.5),
        ],
    )
    found = study.consistencies()
    assert found[ALL, "model"]["joints"] == 4
    assert found[ALL, "model"]["flagged"] == 1
    assert found[ALL, "model"]["median_px"] == pytest.approx(0.3)
    assert found[ALL, WITHOUT]["median_px"] == pytest.approx(0.45)
    assert found[OVERLAP, "model"]["median_low_px"] is None  # one value has no interval
    # The mean size of 0.3, 0.5 and 0.3; the flagged joint does not count.
    assert found[OVERLAP, "model"]["narrowing_px"] == pytest.approx(1.1 / 3)
    # Paired with the joints that neither flags, by how far off each is.
    assert found[OVERLAP, "model"]["compared"] == 1
    assert found[OVERLAP, "model"]["difference_px"] == pytest.approx(-0.3)
    assert found[ALL, "model"]["compared"] == 3
    assert found[ALL, "model"]["difference_px"] == pytest.approx(-0.1)
    low, high = (found[ALL, "model"][f"difference_{end}_px"] for end in ("low", "high"))
    assert -0.31 < low < -0.1 < high <= 0
    assert "difference_px" not in found[OVERLAP, WITHOUT]
    low, high = (found[ALL, WITHOUT][f"median_{end}_px"] for end in ("low", "high"))
    assert 0.3 <= low < 0.45 < high <= 0.6
    assert study.consistencies() == found


def test_no_usable_image_is_an_error(images):
    overlapped = [image for image in images if image.image.stem == "a"]
    with pytest.raises(InputError, match="known displacement"):
        run_study(overlapped, MODEL, split="val")
