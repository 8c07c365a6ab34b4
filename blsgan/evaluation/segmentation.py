"""How good predicted masks are: against drawn ones, and by what separation makes of them.

Dice coefficient and 95 % Hausdorff distance are MONAI's (``compute_dice``,
``compute_hausdorff_distance``), at the images' own resolution; the frame's edge belongs to a bone's
border there. The overlap is a few rows thick, so its Dice coefficient is shown beside that of the
drawn masks with one of them moved by a single row. Separation is measured twice, with drawn and
with predicted masks, on the protocol's synthetic overlaps and on real ones with another visit's
truth.
"""

from __future__ import annotations

import csv
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.data.layout import MIN_OVERLAP_PX, JointImage, overlap_px, read_joint
from blsgan.data.visits import VisitTruth
from blsgan.errors import BackendError, NoJointError
from blsgan.evaluation.metrics import bootstrap_mean, psnr_db, region_mse
from blsgan.io.atomic import ESCAPED, atomic_paths
from blsgan.io.masks import BONES
from blsgan.joint.zone import PREDICTED_MARGIN_PX
from blsgan.progress import Track, silent
from blsgan.records.evaluation import MasksEvaluationRecord
from blsgan.synthesis.overlap import as_unit, protocol_overlap
from blsgan.tasks.segmentation import Segmenter
from blsgan.tasks.separation import Separator

LARGE_OVERLAP_PX = 150
"""From here on the Dice coefficient of the overlap is reported."""

Bool = NDArray[np.bool_]


@dataclass
class SegmentationEvaluation:
    """Flat records: ``masks`` one for each image, ``separation`` one for each sample and bone."""

    seed: int
    masks: list[dict[str, Any]] = field(default_factory=list)
    separation: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Means with 95 % intervals bootstrapped over joints."""
        used = [row for row in self.masks if not row["refused"]]
        figures: dict[str, Any] = {
            "images": len(self.masks),
            "joints": len({row["joint"] for row in self.masks}),
            "refused": len(self.masks) - len(used),
            "doubtful": sum(bool(row["doubts"]) for row in used),
        }
        keys = [key for key in _KEYS if any(row.get(key) is not None for row in used)]
        figures |= {key: self._mean(used, key) for key in keys}
        for key in ("upper_hd95_px", "lower_hd95_px"):
            if key in figures:
                figures[f"share_{key}_above_4"] = float(np.mean([row[key] > 4 for row in used]))
        parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.separation:
            parts[f"{row['truth']} {row['bone']}"].append(row)
        figures["separation"] = {
            name: {
                "samples": len(rows),
                "joints": len({row["joint"] for row in rows}),
                **{
                    key: self._mean(rows, key)
                    for key in _SEPARATION_KEYS
                    if any(row[key] is not None for row in rows)
                },
            }
            for name, rows in sorted(parts.items())
        }
        return figures

    def _mean(self, rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
        having = [row for row in rows if row.get(key) is not None]
        interval = bootstrap_mean(
            [row[key] for row in having], [row["joint"] for row in having], seed=self.seed
        )
        values = [row[key] for row in having]
        return {
            **interval.as_dict(),
            "median": float(np.median(values)),
            "n": len(having),
            "worst_5_percent": float(np.percentile(values, 95 if "hd95" in key else 5)),
        }

    def write(self, folder: Path, about: Mapping[str, Any]) -> list[Path]:
        """Writes ``segmentation.json`` and ``segmentation.csv``, or neither.

        The CSV has one line for each image and no name of an image or a joint: it may be published.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        paths = [folder / "segmentation.csv", folder / "segmentation.json"]
        hidden = {"joint", "image", "doubts"}
        columns = list(dict.fromkeys(key for row in self.masks for key in row if key not in hidden))
        with atomic_paths(paths) as (table, text):
            with table.open("w", encoding="utf-8", errors=ESCAPED, newline="") as file:
                writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
                writer.writeheader()
                for row in self.masks:
                    writer.writerow(
                        {
                            key: round(value, 4) if isinstance(value, float) else value
                            for key, value in row.items()
                        }
                    )
            figures = {
                **about,
                "metrics": f"Dice and HD95: MONAI {version('monai')}",
                **self.summary(),
            }
            record = MasksEvaluationRecord(schema=1, blsgan=__version__, seed=self.seed, **figures)
            text.write_text(record.text(indent=1), encoding="utf-8")
        return paths


_KEYS = (
    "upper_dice",
    "lower_dice",
    "upper_hd95_px",
    "lower_hd95_px",
    "overlap_dice",
    "one_row_apart_dice",
    "score",
    "border_entropy",
    "flip_agreement",
)
_SEPARATION_KEYS = ("drawn_psnr_db", "predicted_psnr_db", "predicted_psnr_db_where_both_overlap")


def evaluate_masks(
    images: Sequence[JointImage],
    segmenter: Segmenter,
    *,
    seed: int = 0,
    progress: Track = silent,
) -> SegmentationEvaluation:
    """Scores predicted masks against the drawn ones.

    Args:
        images: entries of the dataset.
        segmenter: what predicts.
        seed: of the bootstrap.
        progress: wraps the loop over the images.

    Raises:
        InputError: a listed file is missing or damaged.
        BackendError: MONAI is not installed.
    """
    score = _monai_scores()
    evaluation = SegmentationEvaluation(seed)
    for joint in progress(images, "masks", len(images)):
        arrays = read_joint(joint)
        row: dict[str, Any] = {"joint": joint.joint, "image": joint.name, "refused": 0}
        evaluation.masks.append(row)
        try:
            found = segmenter(arrays.image)
        except NoJointError:
            row |= {"refused": 1, "doubts": 0}
            continue
        row["doubts"] = len(found.doubts)
        for bone, predicted, drawn in zip(BONES, found.masks, arrays.masks, strict=True):
            row[f"{bone}_dice"], row[f"{bone}_hd95_px"] = score(predicted, drawn)
        row["overlap_px"] = overlap_px(arrays.masks)
        if row["overlap_px"] >= LARGE_OVERLAP_PX:
            both = arrays.masks[0] & arrays.masks[1]
            row["overlap_dice"] = dice(found.overlap, both)
            row["one_row_apart_dice"] = one_row_apart(arrays.masks)
        row |= found.confidence.record()
    return evaluation


def dice(first: Bool, second: Bool) -> float:
    """2 |A and B| / (|A| + |B|) of two masks [H,W]; 1 where both are empty."""
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / total if total else 1.0


def one_row_apart(masks: Bool) -> float:
    """Dice of the overlap of masks [2,H,W] with that after the upper bone moved by one row.

    Mean of one row up and one down: what a border that is a pixel off costs.
    """
    both = masks[0] & masks[1]
    down, up = np.zeros_like(both), np.zeros_like(both)
    down[1:], up[:-1] = masks[0][:-1], masks[0][1:]
    return (dice(down & masks[1], both) + dice(up & masks[1], both)) / 2


def evaluate_separation(
    evaluation: SegmentationEvaluation,
    images: Sequence[JointImage],
    truths: Sequence[VisitTruth],
    segmenter: Segmenter,
    separator: Separator,
    *,
    progress: Track = silent,
) -> None:
    """Adds what separation loses by predicted masks: PSNR of each bone with both kinds of masks.

    Both are judged on the same pixels, those of the drawn overlap where the truth is known; where
    the predicted masks miss the overlap a layer is wrong, and that counts. The third figure leaves
    these pixels out.

    Args:
        evaluation: gains ``separation`` records, ``truth`` "synthetic" or "other visit".
        images: entries of the dataset.
        truths: what ``blsgan.data.visits.visit_truths`` finds among them; may be empty.
        segmenter: what predicts.
        separator: what separates.
        progress: wraps the loop over the images.

    Raises:
        InputError: a listed file is missing or damaged.
    """
    wanted: dict[str, list[VisitTruth]] = defaultdict(list)
    for truth in truths:
        wanted[truth.image].append(truth)
    for joint in progress(images, "separation", len(images)):
        arrays = read_joint(joint)
        if overlap_px(arrays.masks) >= MIN_OVERLAP_PX:
            known = [("other visit", t.bone, t.truth, t.valid) for t in wanted[joint.name]]
            image, masks = as_unit(arrays.image), arrays.masks
        else:
            if arrays.background is None:
                continue
            pair = protocol_overlap(
                joint.name, arrays.image, arrays.masks, arrays.background, seed=evaluation.seed
            )
            if pair is None:
                continue
            image, masks = pair.image, pair.masks
            known = [("synthetic", bone, pair.layers[bone], pair.overlap) for bone in range(2)]
        if not known:
            continue
        try:
            predicted = segmenter(image).masks
        except NoJointError:
            continue
        layers = [
            separator(image, masks).layers,
            separator(image, predicted, margin_px=PREDICTED_MARGIN_PX).layers,
        ]
        both = predicted[0] & predicted[1]
        for kind, bone, layer, region in known:
            errors = [region_mse(answer[bone], layer, region) for answer in layers]
            inside = region & both
            evaluation.separation.append(
                {
                    "joint": joint.joint,
                    "truth": kind,
                    "bone": BONES[bone],
                    "drawn_psnr_db": psnr_db(errors[0]),
                    "predicted_psnr_db": psnr_db(errors[1]),
                    "predicted_psnr_db_where_both_overlap": psnr_db(
                        region_mse(layers[1][bone], layer, inside)
                    )
                    if inside.any()
                    else None,
                }
            )


def _monai_scores() -> Callable[[Bool, Bool], tuple[float, float]]:
    """A function of two masks [H,W] that gives Dice and the 95 % Hausdorff distance in pixels."""
    try:
        import torch
        from monai.metrics import compute_dice, compute_hausdorff_distance
    except ImportError as error:
        raise BackendError(
            "judging masks needs MONAI, which is not installed; pip install 'blsgan[evaluate]'"
        ) from error

    def score(predicted: Bool, drawn: Bool) -> tuple[float, float]:
        first, second = (
            torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (predicted, drawn)
        )
        overlap = compute_dice(first, second, include_background=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about MONAI's own calls
            distance = compute_hausdorff_distance(
                first, second, include_background=True, percentile=95
            )
        return float(overlap), float(distance)

    return score
