"""Which law between the display and attenuation makes overlaps out of bones.

    python benchmarks/compare_laws.py --data Data --cache RESULTS -o benchmarks/results

Where other visits show both bones of an image on the same (>= 10) pixels of its overlap, the image
I, the upper bone U and the lower bone L are all known there. Each law predicts I from U, L and,
but for the paper's, the soft tissue S beside the overlap. A law's one parameter is chosen on a
grid to minimise the mean squared error over images, without the joint that is then predicted. The
RMSE is that of an image's pixels, pooled over images alike; intervals resample joints. By default
on training joints. Writes laws.csv.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from blsgan.data.dataset import load_root
from blsgan.data.layout import JointImage, read_joint
from blsgan.data.splits import SPLITS, select
from blsgan.data.truths import cached_visit_truths
from blsgan.data.visits import TRAINING, VisitTruth
from blsgan.evaluation.baselines import soft_tissue_beside
from blsgan.io.atomic import atomic_path
from blsgan.synthesis.overlap import as_unit

LEAST_PX = 10
RESAMPLES = 2000
_LEAST_TRANSMISSION = 1e-4


@dataclass(frozen=True)
class Overlap:
    """The pixels of one image where both bones are known, float64 [P], and its soft tissue."""

    joint: str
    image: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    soft_tissue: float


Predict = Callable[[Overlap, float], np.ndarray]


def tone_law(
    attenuation: Callable[[np.ndarray | float, float], np.ndarray],
    display: Callable[[np.ndarray, float], np.ndarray],
    soft_tissue: float | None = None,
) -> Predict:
    """Attenuations of both bones add up, less the soft tissue that both hold."""

    def predict(o: Overlap, parameter: float) -> np.ndarray:
        behind = o.soft_tissue if soft_tissue is None else soft_tissue
        total = attenuation(o.upper, parameter) + attenuation(o.lower, parameter)
        return display(np.maximum(total - attenuation(behind, parameter), 0), parameter)

    return predict


def transmission(x: np.ndarray | float, _: float = 0) -> np.ndarray:
    return -np.log(np.maximum(1 - np.asarray(x), _LEAST_TRANSMISSION))


def paper(o: Overlap, k: float) -> np.ndarray:
    return 1 - (1 - o.upper) * (1 - o.lower) / (1 - k)


def paper_with_tissue(o: Overlap, c: float) -> np.ndarray:
    return 1 - (1 - o.upper) * (1 - o.lower) * np.exp(c * transmission(o.soft_tissue))


def exponential(x: np.ndarray | float, b: float) -> np.ndarray:
    return np.exp(b * np.asarray(x))


def logarithm(x: np.ndarray, b: float) -> np.ndarray:
    return np.log(np.maximum(x, 1e-9)) / b


LAWS: dict[str, tuple[Predict, np.ndarray]] = {
    "paper: (1-I)(1-k) = (1-U)(1-L), one k for all": (paper, np.arange(0.02, 0.9, 0.01)),
    "the same, -log(1-k) = c times that of S": (paper_with_tissue, np.arange(0.1, 4, 0.05)),
    "exponential: e^(bI) + e^(bS) = e^(bU) + e^(bL)": (
        tone_law(exponential, logarithm),
        np.arange(1, 15, 0.1),
    ),
    "the same, S = 0.35 for all": (
        tone_law(exponential, logarithm, 0.35),
        np.arange(1, 15, 0.1),
    ),
    "power: I^p + S^p = U^p + L^p": (
        tone_law(lambda x, p: np.asarray(x) ** p, lambda x, p: x ** (1 / p)),
        np.arange(1, 12, 0.1),
    ),
    "sum: I + S = U + L": (
        tone_law(lambda x, _: np.asarray(x), lambda x, _: x),
        np.array([0.0]),
    ),
}


def known_overlaps(images: Sequence[JointImage], truths: Sequence[VisitTruth]) -> list[Overlap]:
    """One for each image both of whose bones are known somewhere: the pair of truths that shares
    the most pixels."""
    wanted: dict[str, list[VisitTruth]] = defaultdict(list)
    for truth in truths:
        wanted[truth.image].append(truth)
    found = []
    for joint in images:
        pairs = [
            (upper, lower)
            for upper in wanted[joint.name]
            for lower in wanted[joint.name]
            if (upper.bone, lower.bone) == (0, 1)
        ]
        if not pairs:
            continue
        upper, lower = max(pairs, key=lambda pair: int((pair[0].valid & pair[1].valid).sum()))
        both = upper.valid & lower.valid
        if both.sum() < LEAST_PX:
            continue
        arrays = read_joint(joint)
        image = as_unit(arrays.image)
        planes = (plane[both].astype(np.float64) for plane in (image, upper.truth, lower.truth))
        found.append(Overlap(joint.joint, *planes, soft_tissue_beside(image, arrays.masks)))
    return found


def errors(law: Predict, grid: np.ndarray, overlaps: Sequence[Overlap]) -> np.ndarray:
    """Mean squared error of each image at each parameter, [images, parameters]."""
    return np.array(
        [
            [np.mean((np.clip(law(o, float(p)), 0, 1) - o.image) ** 2) for p in grid]
            for o in overlaps
        ]
    )


def left_out(table: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image's error and parameter index, chosen without its joint."""
    chosen = np.array([np.argmin(table[joints != joint].mean(axis=0)) for joint in joints])
    return table[np.arange(len(table)), chosen], chosen


def compare(overlaps: Sequence[Overlap], seed: int) -> list[dict[str, str | float]]:
    joints = np.array([o.joint for o in overlaps])
    names, index = np.unique(joints, return_inverse=True)
    draws = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    times = np.stack([np.bincount(draw, minlength=len(names))[index] for draw in draws])
    rows: list[dict[str, str | float]] = []
    first: np.ndarray | None = None
    for name, (law, grid) in LAWS.items():
        table = errors(law, grid, overlaps)
        mse, _ = left_out(table, joints)
        first = mse if first is None else first
        rmse = np.sqrt((times @ mse) / times.sum(axis=1))
        ratio = np.sqrt((times @ mse) / (times @ first))
        best = grid[np.argmin(times @ table, axis=1)]
        row: dict[str, str | float] = {"law": name, "images": len(overlaps), "joints": len(names)}
        for key, value, drawn in (
            ("rmse", float(np.sqrt(mse.mean())), rmse),
            ("ratio", float(np.sqrt(mse.mean() / first.mean())), ratio),
            ("parameter", float(grid[np.argmin(table.mean(axis=0))]), best),
        ):
            low, high = np.percentile(drawn, [2.5, 97.5])
            row |= {key: round(value, 4), f"{key}_low": round(float(low), 4)}
            row[f"{key}_high"] = round(float(high), 4)
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, str | float]]) -> str:
    lines = ["| law | RMSE | ratio to the paper's | parameter |", "|---|---|---|---|"]
    lines += [
        f"| {r['law']} | {r['rmse']:.3f} [{r['rmse_low']:.3f}, {r['rmse_high']:.3f}] "
        f"| {r['ratio']:.2f} [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}] "
        f"| {r['parameter']:.2f} [{r['parameter_low']:.2f}, {r['parameter_high']:.2f}] |"
        for r in rows
    ]
    return "\n".join(lines)


@click.command()
@click.option("--data", "root", required=True, type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(SPLITS), default="train", show_default=True)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder that keeps the registered visits."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of laws.csv."
)
def main(root: Path, split: str, cache: Path | None, seed: int, output: Path) -> None:
    """Compare laws between the display and attenuation."""
    images = select(load_root(root), split)
    overlaps = known_overlaps(images, cached_visit_truths(images, cache, TRAINING))
    if not overlaps:
        raise click.ClickException(f"{root}: no image whose both bones other visits show")
    rows = compare(overlaps, seed)
    output.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(output / "laws.csv") as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    click.echo(f"{len(overlaps)} images of {rows[0]['joints']} joints, split {split}")
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
