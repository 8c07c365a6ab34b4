"""The protocol on a dataset of phantoms: what it counts, averages, and must not depend on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from blsgan.data.layout import read_joint
from blsgan.data.visits import visit_truths
from blsgan.errors import InputError
from blsgan.evaluation.methods import Answer, Method, Overlap, from_callable, synthetic_limit
from blsgan.evaluation.protocol import evaluate_real, evaluate_synthetic


@pytest.fixture(scope="module")
def truths(images):
    return list(visit_truths(images))


@pytest.fixture(scope="module")
def synthetic(images):
    return evaluate_synthetic(images, None)


@pytest.fixture(scope="module")
def real(images, truths):
    return evaluate_real(images, truths, None)


def without_times(records):
    return [{key: value for key, value in r.items() if key != "time_ms"} for r in records]


def test_synthetic_takes_the_free_joints_and_says_what_it_left_out(synthetic, images):
    summary = synthetic.summary
    assert summary["left_out"]["real overlap"] == 3
    assert summary["images"] + sum(summary["left_out"].values()) == len(images)
    assert summary["images"] >= 2


def test_summary_is_the_mean_of_the_records(synthetic):
    for name, summary in synthetic.summary["methods"].items():
        values = [r["overlap_psnr_db"] for r in synthetic.records if r["method"] == name]
        assert summary["overlap_psnr_db"]["mean"] == pytest.approx(np.mean(values))
        counted = sum(bucket["images"] for bucket in summary["buckets"].values())
        assert counted == synthetic.summary["images"]


def test_known_order_of_the_methods(synthetic):
    quality = {
        name: m["overlap_psnr_db"]["mean"] for name, m in synthetic.summary["methods"].items()
    }
    assert quality["copy"] < quality["equal split, true k"] < quality["limit: true share"]
    exact = synthetic.summary["methods"]["equal split, true k"]
    assert exact["reconstruction_mse"]["mean"] < 1e-10
    assert exact["soft_tissue_error"]["mean"] == 0
    assert "reconstruction_mse" not in synthetic.summary["methods"]["copy"]


def test_nothing_depends_on_order_or_subset(synthetic, images):
    backwards = evaluate_synthetic(images[::-1], None)
    key = lambda r: (r["image"], r["method"])  # noqa: E731
    assert sorted(without_times(backwards.records), key=key) == sorted(
        without_times(synthetic.records), key=key
    )
    one_joint = [i for i in images if i.joint == images[0].joint]
    alone = evaluate_synthetic(one_joint, None)
    assert without_times(alone.records) == [
        r for r in without_times(synthetic.records) if r["joint"] == images[0].joint
    ]


def test_seed_changes_the_composites(synthetic, images):
    other = evaluate_synthetic(images, None, seed=1)
    assert without_times(other.records) != without_times(synthetic.records)


def test_a_model_goes_through_the_same_path(images):
    def separate(image, masks):
        layers = image * masks
        both = masks.all(axis=0)
        return SimpleNamespace(
            upper=layers[0],
            lower=layers[1],
            tissue=np.full(np.count_nonzero(both), np.float32(0.3)),
            reconstruction=None,
            zone=both,
        )

    part = evaluate_synthetic(images, from_callable("mine", separate))
    methods = part.summary["methods"]
    assert methods["mine"]["overlap_psnr_db"] == methods["copy"]["overlap_psnr_db"]
    assert methods["mine"]["soft_tissue"]["mean"] == pytest.approx(0.3)
    assert methods["mine"]["reconstruction_mse"]["mean"] > 1e-4


@pytest.mark.parametrize(
    "layers", [np.zeros((1, 8, 8)), np.full((2, 8, 8), np.nan), np.full((2, 8, 8), np.inf)]
)
def test_answers_that_are_none_are_refused(layers):
    sample = Overlap(np.zeros((8, 8), np.float32), np.ones((2, 8, 8), bool))
    with pytest.raises(InputError, match="mine answered"):
        Method("mine", lambda _: Answer(layers))(sample)


def test_oracles_need_the_truth():
    sample = Overlap(np.zeros((8, 8), np.float32), np.ones((2, 8, 8), bool))
    with pytest.raises(ValueError, match="truth"):
        synthetic_limit()(sample)


def test_visits_show_what_the_overlap_hides(truths, images):
    assert {t.bone for t in truths} == {0, 1}
    assert {t.image.rsplit("/", 1)[1] for t in truths} == {"a"}


def test_real_floor_bounds_an_oracle_that_knows_the_other_visit(real, truths, images):
    """The bone itself, as the phantom without overlap shows it, is closer than any closed form."""
    by_bone = {(t.image, t.bone): t.truth for t in truths}
    names = {read_joint(i).image.tobytes(): i.name for i in images}

    def separate(image, masks):
        name = names[np.round(image * 255).astype(np.uint8).tobytes()]
        layers = image * masks
        for bone in (0, 1):
            if (name, bone) in by_bone:
                layers[bone] = by_bone[name, bone] * masks[bone]
        return layers

    part = evaluate_real(images, truths, from_callable("oracle", separate))
    methods = part.summary["methods"]
    best = max(m["mean_psnr_db"]["mean"] for name, m in methods.items() if name != "oracle")
    assert methods["oracle"]["mean_psnr_db"]["mean"] > best + 5


def test_real_counts_and_floor(real, truths):
    summary = real.summary
    assert summary["images"] == 3
    assert summary["left_out"] == {"no overlap": 3}
    assert sum(summary["comparisons"].values()) == len(truths)
    for bone in ("upper", "lower"):
        assert summary["floor"][bone]["mean"] > 25
        psnr = [
            r["psnr_db"]
            for r in real.records
            if r["kind"] == "layer" and r["bone"] == bone and r["method"] == "copy"
        ]
        assert summary["methods"]["copy"][bone]["psnr_db"]["mean"] == pytest.approx(np.mean(psnr))


def test_a_third_visit_is_scored_in_the_place_of_a_method(truths, images):
    """A copy of every truth, 0.1 brighter, under another name: 20 dB where 40 px are shared."""
    first = next(t for t in truths if t.bone == 0)
    brighter = replace(first, other=f"{first.other}-again", truth=first.truth + np.float32(0.1))
    part = evaluate_real(images, [*truths, brighter], None)
    found = part.summary["another_visit"]
    assert list(found) == ["upper"]
    assert found["upper"]["comparisons"] == 2
    assert found["upper"]["another_visit_psnr_db"]["mean"] == pytest.approx(20, abs=1e-3)
    there = [
        r["psnr_db"]
        for r in part.records
        if r["kind"] == "layer"
        and r["method"] == "copy"
        and r["image"] == first.image
        and r["bone"] == "upper"
    ]
    assert found["upper"]["methods"]["copy"]["mean"] == pytest.approx(np.mean(there))
    others = [r for r in part.records if r["kind"] == "layer" and r["image"] != first.image]
    assert others
    assert all(r["another_visit_psnr_db"] is None for r in others)
    apart = first.valid & (np.cumsum(first.valid).reshape(first.valid.shape) <= 39)
    part = evaluate_real(images, [*truths, replace(brighter, valid=apart)], None)
    assert part.summary["another_visit"] == {}


def test_real_recomposition_is_exact_for_exact_splits(real):
    ring = real.summary["methods"]["equal split, ring k"]
    assert ring["reconstruction_mse"]["mean"] < 1e-10
    assert 0.05 <= ring["soft_tissue"]["mean"] <= 0.9


def test_splits_without_a_usable_joint_say_so(images):
    free = [i for i in images if i.image.stem == "b"]
    hidden = [i for i in images if i.image.stem == "a"]
    with pytest.raises(InputError, match="real overlap: 3"):
        evaluate_synthetic(hidden, None)
    with pytest.raises(InputError, match="none of the 3 images has an overlap"):
        evaluate_real(free, [], None)


def test_real_part_without_any_truth_still_recomposes(images):
    hidden = [i for i in images if i.image.stem == "a"]
    part = evaluate_real(hidden, [], None)
    assert part.summary["comparisons"] == {"upper": 0, "lower": 0}
    assert part.summary["floor"] == {}
    assert part.summary["methods"]["equal split, ring k"]["reconstruction_mse"]["mean"] < 1e-10
