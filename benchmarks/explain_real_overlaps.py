"""Why layers of real overlaps differ from what another visit shows: k, shares, or the truth.

    python benchmarks/explain_real_overlaps.py --data Data -o benchmarks/results

Every figure is the PSNR in dB of the validation joints' comparisons
(docs/explanation/evaluation.md), the mean over those of a bone. The shares are always the
network's; what changes is k:

- its own, as it is and pulled towards its mean over the comparisons; the best one for each
  comparison, which nobody knows;
- one regressed from 24 statistics of the radiograph (intensities of both bones at four distances
  from the overlap and of the overlap, sizes) by a small network, trained on the comparisons of all
  training joints or of a part of them: would more joints tell more, or another kind of network?
- the mean of its own and the regressed one.

Then layers moved towards the harmonic continuation of the free bones, which no longer compose to
the radiograph with one k. And of the truth: the SD of a layer's mean error over all comparisons,
and over the visits that show the same hidden bone of one image, which is the truth's own.

Writes real_overlaps.json. Registering the visits takes ten minutes, unless --cache has them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from blsgan import Separator
from blsgan.data.dataset import load_root
from blsgan.data.layout import JointImage, read_joint
from blsgan.data.splits import select
from blsgan.data.truths import cached_visit_truths
from blsgan.data.visits import PROTOCOL, TRAINING, VisitTruth
from blsgan.evaluation.baselines import harmonic
from blsgan.evaluation.metrics import psnr_db
from blsgan.evaluation.protocol import BONES
from blsgan.io.atomic import atomic_path

DISTANCES_PX = ((0, 4), (4, 10), (10, 25), (25, 60))
PARTS = (0.125, 0.25, 0.5, 1.0)  # of the training joints
DRAWS, MEMBERS = 4, 4  # of a part; networks whose mean is the regression
STEPS = 660  # of a network, however few comparisons there are
TOWARDS_MEAN = (0.25, 0.5)
TOWARDS_HARMONIC = (0.2, 0.3, 0.4, 0.5)
K_GRID = np.linspace(-np.log1p(-0.02), -np.log1p(-0.85), 60).astype(np.float32)
_PIXELS = 256  # of a comparison that the regression looks at
_MSE_FLOOR = 1e-3  # below it an error is the truth's noise
_LEAST_TRANSMISSION = 1e-4


@dataclass
class Comparison:
    """One layer and its truth, pixel by pixel; attenuations are -log(1 - intensity)."""

    joint: str
    image: str
    bone: int
    attenuation: np.ndarray  # of the radiograph, float32 [P]
    share: np.ndarray  # of this bone by the network, float32 [P]
    truth: np.ndarray  # intensity, float32 [P]
    continued: np.ndarray  # harmonic continuation, intensity, float32 [P]
    tissue: float  # -log(1 - k) by the network
    statistics: np.ndarray  # float32 [24]

    def layer(self, tissue: float) -> np.ndarray:
        return -np.expm1(-self.share * np.maximum(self.attenuation + np.float32(tissue), 0))

    def psnr_db(self, layer: np.ndarray) -> float:
        return psnr_db(float(np.mean((layer - self.truth) ** 2)))


def attenuation_of(intensity: np.ndarray) -> np.ndarray:
    return -np.log(np.clip(1 - intensity, _LEAST_TRANSMISSION, 1)).astype(np.float32)


def statistics_of(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """24 numbers, float32; NaN where a region is empty. ``image`` in [0,1], ``masks`` bool."""
    overlap = masks[0] & masks[1]
    away = cv2.distanceTransform((~overlap).astype(np.uint8), cv2.DIST_L2, 5)
    rows, columns = np.nonzero(overlap)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    inside = image[overlap]
    middle = attenuation_of(inside.mean())
    found = [middle, inside.std(), *np.log([len(rows), height, width, len(rows) / width])]
    alone = [bone & ~other for bone, other in zip(masks, masks[::-1], strict=True)]
    for near, far in DISTANCES_PX:
        ring = [image[bone & (away > near) & (away <= far)] for bone in alone]
        of_bones = [attenuation_of(part.mean()) if part.size else np.nan for part in ring]
        found += [*of_bones, sum(of_bones) - middle]
    for bone, free in zip(masks, alone, strict=True):
        across = bone.sum(axis=1)
        across = across[across > 0]
        found += [
            image[free].std() if free.any() else np.nan,
            np.log(across.max()),
            np.log(np.percentile(across, 10)),
        ]
    return np.array(found, np.float32)


def compare(
    images: Sequence[JointImage],
    truths: Sequence[VisitTruth],
    separator: Separator,
    console: Console,
) -> list[Comparison]:
    listed = {image.name: image for image in images}
    wanted: dict[str, list[VisitTruth]] = defaultdict(list)
    for truth in truths:
        wanted[truth.image].append(truth)
    found = []
    quiet = not console.is_terminal
    for name in track(sorted(wanted), "separating", console=console, disable=quiet):
        arrays = read_joint(listed[name])
        image = arrays.image.astype(np.float32) / 255
        separation = separator(image, arrays.masks)
        whole = attenuation_of(image)
        tissue = float(-np.log1p(-separation.soft_tissue))
        layers, continued = separation.layers, harmonic(image, arrays.masks)
        statistics = statistics_of(image, arrays.masks)
        for truth in wanted[name]:
            at = truth.valid
            share = attenuation_of(layers[truth.bone][at]) / np.maximum(whole[at] + tissue, 1e-6)
            found.append(
                Comparison(
                    listed[name].joint,
                    name,
                    truth.bone,
                    whole[at],
                    share,
                    truth.truth[at],
                    continued[truth.bone][at],
                    tissue,
                    statistics,
                )
            )
    return found


def by_bone(comparisons: Sequence[Comparison], scores: Sequence[float]) -> dict[str, float]:
    of_bone: dict[str, list[float]] = {name: [] for name in BONES}
    for comparison, score in zip(comparisons, scores, strict=True):
        of_bone[BONES[comparison.bone]].append(score)
    means = {name: float(np.mean(values)) for name, values in of_bone.items()}
    means["mean"] = float(np.mean(list(means.values())))
    return {name: round(value, 2) for name, value in means.items()}


def with_tissue(comparisons: Sequence[Comparison], tissue: Sequence[float]) -> dict[str, float]:
    return by_bone(
        comparisons, [c.psnr_db(c.layer(t)) for c, t in zip(comparisons, tissue, strict=True)]
    )


def regress(
    training: Sequence[Comparison], asked: Sequence[Comparison], seed: int, members: int
) -> np.ndarray:
    """-log(1 - k) of ``asked``, float64 [n], by the mean of networks trained on ``training``."""
    random = np.random.default_rng(seed)
    known = np.stack([c.statistics for c in training])
    typical = np.nanmedian(known, axis=0)
    known = np.where(np.isnan(known), typical, known)
    centre, spread = known.mean(axis=0), known.std(axis=0) + 1e-6

    def scaled(comparisons: Sequence[Comparison]) -> Tensor:
        values = np.stack([c.statistics for c in comparisons])
        values = (np.where(np.isnan(values), typical, values) - centre) / spread
        return torch.from_numpy(values.astype(np.float32)).clamp(-3, 3)

    planes = np.zeros((4, len(training), _PIXELS), np.float32)
    for row, c in enumerate(training):
        taken = random.permutation(len(c.truth))[:_PIXELS]
        for plane, values in zip(planes, (c.attenuation, c.share, c.truth), strict=False):
            plane[row, : len(taken)] = values[taken]
        planes[3, row, : len(taken)] = 1
    attenuation, share, truth, weight = torch.from_numpy(planes)
    inputs, questions = scaled(training), scaled(asked)
    answers = []
    for member in range(members):
        torch.manual_seed(1000 * seed + member)
        network = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(inputs.shape[1], 16),
            nn.Tanh(),
            nn.Dropout(0.1),
            nn.Linear(16, 1),
        )
        with torch.no_grad():
            network[-1].weight.zero_()
            network[-1].bias.fill_(float(np.median([c.tissue for c in training])))
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, STEPS)
        for _ in range(STEPS):
            rows = torch.randint(len(training), (64,))
            tissue = network(inputs[rows] + 0.1 * torch.randn(64, inputs.shape[1]))
            layer = -torch.expm1(-share[rows] * (attenuation[rows] + tissue).clamp(min=0))
            error = ((layer - truth[rows]) ** 2 * weight[rows]).sum(dim=1) / weight[rows].sum(dim=1)
            optimiser.zero_grad()
            torch.log(error + _MSE_FLOOR).mean().backward()
            optimiser.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            answers.append(network(questions)[:, 0].numpy())
    return np.mean(answers, axis=0)


def spreads(comparisons: Sequence[Comparison]) -> dict[str, dict[str, float | None]]:
    """SD of a layer's mean error over comparisons, and over the visits of one hidden bone (None
    where no image has several)."""
    found = {}
    for bone, name in enumerate(BONES):
        errors: dict[str, list[float]] = defaultdict(list)
        for c in comparisons:
            if c.bone == bone:
                errors[c.image].append(float(np.mean(c.layer(c.tissue) - c.truth)))
        every = [e for of_image in errors.values() for e in of_image]
        repeated = [np.var(e, ddof=1) for e in errors.values() if len(e) > 1]
        found[name] = {
            "of_all_comparisons": round(float(np.std(every, ddof=1)), 4),
            "of_visits_of_the_same_bone": round(float(np.sqrt(np.mean(repeated))), 4)
            if repeated
            else None,
            "images_with_several": len(repeated),
        }
    return found


def explain(validation: Sequence[Comparison], training: Sequence[Comparison]) -> dict[str, Any]:
    own = [c.tissue for c in validation]
    best = [float(K_GRID[np.argmax([c.psnr_db(c.layer(t)) for t in K_GRID])]) for c in validation]
    joints = np.unique([c.joint for c in training])
    parts: dict[str, Any] = {}
    regressed = np.zeros(len(validation))
    for part in PARTS:
        scores = []
        for draw in range(DRAWS if part < 1 else 1):
            chosen = np.random.default_rng(draw).permutation(joints)[: round(part * len(joints))]
            some = [c for c in training if c.joint in set(chosen)]
            regressed = regress(some, validation, draw, MEMBERS)
            scores.append(with_tissue(validation, regressed))
        parts[f"{part:g} of the training joints"] = {
            key: round(float(np.mean([s[key] for s in scores])), 2) for key in scores[0]
        }
    return {
        "psnr_db": {
            "own k": with_tissue(validation, own),
            "own k, training joints": with_tissue(training, [c.tissue for c in training]),
            "best k of each comparison": with_tissue(validation, best),
            "own k pulled towards its mean": {
                f"{share:g} of the way": with_tissue(
                    validation, [(1 - share) * t + share * float(np.mean(own)) for t in own]
                )
                for share in TOWARDS_MEAN
            },
            "k regressed from statistics": parts,
            "mean of own and regressed k": with_tissue(
                validation, list((np.array(own) + regressed) / 2)
            ),
            "moved towards the harmonic continuation": {
                f"{share:g} of the way": by_bone(
                    validation,
                    [
                        c.psnr_db((1 - share) * c.layer(c.tissue) + share * c.continued)
                        for c in validation
                    ],
                )
                for share in TOWARDS_HARMONIC
            },
        },
        "sd_of_mean_error": spreads(validation),
        "comparisons": {
            split: {name: sum(c.bone == bone for c in some) for bone, name in enumerate(BONES)}
            for split, some in (("val", validation), ("train", training))
        },
    }


@click.command()
@click.option(
    "--data",
    "root",
    required=True,
    type=click.Path(path_type=Path),
    help="The dataset's folder Data.",
)
@click.option("--weights", help="Name or file of the separator's weights.  [default: lite]")
@click.option("--mirrored", is_flag=True, help="The mean of two answers, as blsgan separate.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder that keeps the registered visits."
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the results."
)
def main(root: Path, weights: str | None, mirrored: bool, cache: Path | None, output: Path) -> None:
    """Take the error of real overlaps apart."""
    console = Console(stderr=True)
    separator = Separator.from_pretrained(weights, mirrored=mirrored)
    everything = load_root(root)
    splits = {}
    for split, thresholds in (("val", PROTOCOL), ("train", TRAINING)):
        images = select(everything, split)
        with console.status(f"registering visits of {split}"):
            truths = cached_visit_truths(images, cache, thresholds)
        splits[split] = compare(images, truths, separator, console)
    figures = {
        "weights": {
            "file": separator.weights.path.name,
            "sha256": separator.weights.sha256,
            "mirrored": mirrored,
        },
        **explain(splits["val"], splits["train"]),
    }
    output.mkdir(parents=True, exist_ok=True)
    with atomic_path(output / "real_overlaps.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
    click.echo(json.dumps(figures["psnr_db"], indent=1))
    click.echo(f"wrote {output / 'real_overlaps.json'}")


if __name__ == "__main__":
    main()
