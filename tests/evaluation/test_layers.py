"""Layers judged by other visits, on a dataset of phantoms."""

import numpy as np
import pytest

from blsgan.data.layout import read_joint
from blsgan.data.visits import PROTOCOL, TRAINING, visit_truths
from blsgan.evaluation.baselines import prior, zone_of
from blsgan.evaluation.layers import (
    ANOTHER_VISIT,
    APART,
    CLOSER,
    DRAWN,
    ERROR_KEYS,
    OUTLINE_KEYS,
    PREDICTED,
    evaluate_layers,
    summarise_layers,
)
from blsgan.evaluation.methods import COPY, PRIOR, Answer, Method, Overlap
from blsgan.evaluation.networks import predict_masks
from blsgan.evaluation.sheet import draw_sheet
from blsgan.synthesis.overlap import as_unit


@pytest.fixture(scope="module")
def truths(images):
    return list(visit_truths(images, TRAINING))


@pytest.fixture(scope="module")
def part(images, truths):
    def bright(sample: Overlap) -> Answer:
        return Answer(np.clip(sample.image + 0.1, 0, 1) * sample.masks)

    methods = [COPY, Method("brighter", bright), PRIOR]
    return evaluate_layers(
        images, truths, methods, with_other_masks=[PRIOR], predict=predict_masks()
    )


def of(part, **wanted):
    return [r for r in part.records if all(r[key] == value for key, value in wanted.items())]


def test_each_truth_is_a_record_of_every_method(part, truths):
    assert truths
    for method in ("copy", "brighter", PRIOR.name):
        assert len(of(part, kind="truth", method=method, masks=DRAWN)) == len(truths)
    protocol = of(part, kind="truth", method="copy", protocol=1)
    assert len(protocol) == sum(truth.meets(PROTOCOL) for truth in truths)


def test_what_is_added_to_the_image_is_found_at_every_distance(part):
    plain, brighter = (of(part, kind="truth", method=m) for m in ("copy", "brighter"))
    for a, b in zip(plain, brighter, strict=True):
        for key in ("ring_bias", *OUTLINE_KEYS):
            if a[key] is not None:
                assert b[key] - a[key] == pytest.approx(0.1, abs=1e-5)


def test_weight_is_the_error_of_visits_over_that_of_the_layer():
    """Means are divided, not averaged ratios; a bin that no record has is left out."""
    near, far = ERROR_KEYS[0], ERROR_KEYS[-1]
    records = [
        {
            "kind": "truth",
            "method": "m",
            "masks": DRAWN,
            "bone": "upper",
            "protocol": 1,
            "joint": str(joint),
            "image": f"{joint}/a",
            "mse": 0.01,
            "floor_mse": floor,
            near: error,
            far: None,
        }
        for joint, (floor, error) in enumerate([(0.001, 0.002), (0.003, 0.008)])
    ]
    found = summarise_layers(records)["thresholds"]["protocol"][DRAWN]["m"]["upper"]["trust"]
    assert found.keys() == {near}
    assert found[near]["mean"] == pytest.approx(0.4)
    assert found[near]["low"] == pytest.approx(0.375)
    assert found[near]["high"] == pytest.approx(0.5)


def test_other_masks_are_given_only_where_asked(part):
    kinds = {r["masks"] for r in part.records if r["method"] == PRIOR.name}
    assert {DRAWN, CLOSER, APART} <= kinds <= {DRAWN, CLOSER, APART, PREDICTED}
    assert {r["masks"] for r in part.records if r["method"] == "copy"} == {DRAWN}
    plain, closer = (
        np.mean([r["mse"] for r in of(part, kind="truth", method=PRIOR.name, masks=masks)])
        for masks in (DRAWN, APART)
    )
    assert closer > plain  # a missed row is black


def test_summary_holds_what_the_records_say(part):
    drawn = part.summary["thresholds"]["looser"][DRAWN]
    bones = [bone for bone in ("upper", "lower") if bone in drawn["copy"]]
    for bone in bones:
        records = of(part, kind="truth", method="copy", bone=bone)
        figures = drawn["copy"][bone]
        assert figures["comparisons"] == len(records)
        expected = -10 * np.log10([r["mse"] for r in records])
        assert figures["plain_db"]["mean"] == pytest.approx(np.mean(expected))
        gain = drawn["brighter"][bone]["gains"]["copy"]["plain_db"]["mean"]
        assert gain == pytest.approx(
            drawn["brighter"][bone]["plain_db"]["mean"] - figures["plain_db"]["mean"]
        )
    assert ANOTHER_VISIT not in {r["method"] for r in of(part, kind="truth")}


def test_the_prior_is_the_image_outside_the_zone_and_moves_inside(images):
    for joint in images:
        arrays = read_joint(joint)
        image, zone = as_unit(arrays.image), zone_of(arrays.masks)
        layers = prior(image, arrays.masks)
        np.testing.assert_array_equal(
            np.where(zone, 0, layers), np.where(zone, 0, image * arrays.masks)
        )
        if zone.any():
            assert (layers[0] != image * arrays.masks[0])[zone & arrays.masks[0]].any()
            assert zone[arrays.masks.all(axis=0)].all()


def test_the_sheet_shows_three_pictures_in_a_row(images, tmp_path):
    from PIL import Image

    (page,) = draw_sheet(images, COPY, tmp_path, count=2)
    pixels = np.asarray(Image.open(page))
    assert pixels.ndim == 2
    assert pixels.shape[1] >= 3 * 4 * 144
    again = draw_sheet(images, COPY, tmp_path / "again", count=2)
    assert again[0].read_bytes() == page.read_bytes()
