"""How bright the other bone's blurred edge makes a bone beside it, and what truths keep of that.

    python benchmarks/measure_edges.py --data Data --cache RESULTS -o benchmarks/results

A bone that is hidden at one visit is taken from others, where it often lies only some px beside the
other bone's mask, in that bone's blurred edge. Where one such visit shows a pixel near the other
bone and another visit shows it more than 4 px away, the difference is the edge's light. Of every
distance: the mean of that difference with the edge in it and as ``visit_truths`` gives it, without;
intervals resample joints. By default on training joints. Writes edges.csv.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import click
import numpy as np

from blsgan.data.dataset import load_root
from blsgan.data.splits import SPLITS, select
from blsgan.data.truths import cached_visit_truths
from blsgan.data.visits import NEAREST_PX, TRAINING, VisitTruth, edge_light
from blsgan.evaluation.metrics import bootstrap_mean
from blsgan.io.atomic import atomic_path
from blsgan.io.masks import BONES
from blsgan.io.tables import write_csv

FAR_PX = 4
MOST_PX = 8
LEAST_PX = 8  # pixels that two visits share


def differences(truths: Sequence[VisitTruth]) -> list[tuple[int, int, str, float]]:
    """Bone, distance of the first visit's pixels, joint and mean difference to the second's, of
    every two visits."""
    seen: dict[tuple[str, int], list[VisitTruth]] = defaultdict(list)
    for truth in truths:
        seen[truth.image, truth.bone].append(truth)
    found = []
    for (image, bone), several in seen.items():
        for near, far in permutations(several, 2):
            for px in range(NEAREST_PX + 1, MOST_PX + 1):
                shared = (near.clear_px == px) & (far.clear_px > FAR_PX)
                if np.count_nonzero(shared) >= LEAST_PX:
                    mean = float((near.truth[shared] - far.truth[shared]).mean())
                    found.append((bone, px, image.rsplit("/", 1)[0], mean))
    return found


def rows_of(found: Sequence[tuple[int, int, str, float]], seed: int) -> list[dict[str, Any]]:
    """A row for each bone and distance; joints count alike."""
    by_place: dict[tuple[int, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for bone, px, joint, value in found:
        by_place[bone, px][joint].append(value)
    rows = []
    for (bone, px), by_joint in sorted(by_place.items()):
        joints = list(by_joint)
        mean = bootstrap_mean([float(np.mean(by_joint[j])) for j in joints], joints, seed=seed)
        light = float(edge_light(bone, np.float32(px - 0.5)))
        row: dict[str, Any] = {
            "bone": BONES[bone],
            "px": f"{px - 1} to {px}",
            "joints": len(joints),
        }
        for name, shift in (("with_edge", light), ("without", 0.0)):
            row[name] = round(mean.mean + shift, 4)
            row[f"{name}_low"] = round(mean.low + shift, 4)
            row[f"{name}_high"] = round(mean.high + shift, 4)
        rows.append(row)
    return rows


@click.command()
@click.option("--data", "root", required=True, type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(SPLITS), default="train", show_default=True)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder that keeps the registered visits."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of edges.csv."
)
def main(root: Path, split: str, cache: Path | None, seed: int, output: Path) -> None:
    """Measure what the other bone's edge adds to a bone beside it."""
    images = select(load_root(root), split)
    rows = rows_of(differences(cached_visit_truths(images, cache, TRAINING)), seed)
    if not rows:
        raise click.ClickException(f"{root}: no bone that two visits show, near and far")
    output.mkdir(parents=True, exist_ok=True)
    with atomic_path(output / "edges.csv") as path:
        write_csv(path, rows)
    for row in rows:
        click.echo(
            f"{row['bone']} {row['px']} px ({row['joints']} joints): "
            f"{row['with_edge']:+.3f} with the edge, {row['without']:+.3f} "
            f"[{row['without_low']:+.3f}, {row['without_high']:+.3f}] without"
        )


if __name__ == "__main__":
    main()
