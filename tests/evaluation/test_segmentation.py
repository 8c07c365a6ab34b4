"""How predicted masks are judged."""

import csv
import json

import numpy as np
import pytest

from blsgan import Segmenter, Separator
from blsgan.data.visits import visit_truths
from blsgan.evaluation.segmentation import (
    SegmentationEvaluation,
    dice,
    evaluate_masks,
    evaluate_separation,
    one_row_apart,
)


def boxes(*rows):
    masks = np.zeros((2, 40, 30), bool)
    for mask, (top, bottom) in zip(masks, rows, strict=True):
        mask[top:bottom, 5:25] = True
    return masks


def test_dice():
    first, second = boxes((0, 10), (5, 15))
    assert dice(first, second) == pytest.approx(0.5)
    assert dice(first, first) == 1
    assert dice(first & False, second & False) == 1


def test_what_one_row_costs():
    # Five rows against four or six of them: 2*4/9 and 2*5/11.
    assert one_row_apart(boxes((0, 20), (15, 40))) == pytest.approx((8 / 9 + 10 / 11) / 2)


@pytest.fixture(scope="module")
def judged(images):
    pytest.importorskip("monai", reason="MONAI is in the extra 'evaluate'")
    segmenter = Segmenter.from_pretrained()
    evaluation = evaluate_masks(images, segmenter)
    evaluate_separation(
        evaluation, images, visit_truths(images), segmenter, Separator.from_pretrained()
    )
    return evaluation


@pytest.mark.slow
def test_phantoms_are_segmented_well_and_separated_as_well(judged):
    figures = judged.summary()
    assert (figures["images"], figures["joints"], figures["refused"]) == (6, 3, 0)
    for bone in ("upper", "lower"):
        assert figures[f"{bone}_dice"]["mean"] > 0.98
        assert figures[f"{bone}_hd95_px"]["mean"] < 4
    assert figures["overlap_dice"]["mean"] > 0.65
    assert figures["overlap_dice"]["n"] == 3
    synthetic = figures["separation"]["synthetic upper"]
    assert synthetic["samples"] > 0
    assert synthetic["drawn_psnr_db"]["mean"] > synthetic["predicted_psnr_db"]["mean"] - 1


@pytest.mark.slow
def test_files_name_no_joint(judged, images, tmp_path):
    table, text = judged.write(tmp_path, {"split": "val"})
    content = json.loads(text.read_text())
    assert content["split"] == "val"
    assert "MONAI" in content["metrics"]
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    written = table.read_text() + text.read_text()
    assert not any(image.joint in written for image in images)


def test_a_refusal_counts_and_has_no_figures():
    evaluation = SegmentationEvaluation(
        0,
        masks=[
            {"joint": "a", "image": "a/1", "refused": 1, "doubts": 0},
            {"joint": "a", "image": "a/2", "refused": 0, "doubts": 2, "upper_dice": 0.9},
        ],
    )
    figures = evaluation.summary()
    assert (figures["refused"], figures["doubtful"]) == (1, 1)
    assert figures["upper_dice"]["mean"] == pytest.approx(0.9)
    assert "lower_dice" not in figures


def test_hausdorff_distance_is_in_pixels_and_monais(images):
    pytest.importorskip("monai", reason="MONAI is in the extra 'evaluate'")
    from blsgan.evaluation.segmentation import _monai_scores

    first, second = boxes((0, 20), (0, 23))
    overlap, distance = _monai_scores()(first, second)
    assert overlap == pytest.approx(40 / 43)
    assert distance == pytest.approx(3)
