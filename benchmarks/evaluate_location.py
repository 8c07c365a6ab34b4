"""How well the joints of hands that nobody trained on are located, in eight turns.

    python benchmarks/evaluate_location.py --data hands -o benchmarks/results

``hands`` is a folder with landmarks.csv. Writes location.json. ``--check`` ends with status 1 when
a target is missed: every hand found, once; 80 and 97 % of the MCP joints within 0.1 and 0.25 bone
widths.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from blsgan import Locator
from blsgan.anatomy import JOINTS, LANDMARKS, PROMISED, WIDTH_SHARES
from blsgan.data.hands import hands_digest, read_hands
from blsgan.errors import NoHandError
from blsgan.training.location import split

TURNS = range(0, 360, 45)
LIMITS = (0.1, 0.25)


@click.command()
@click.option("--data", "root", required=True, type=click.Path(path_type=Path))
@click.option("--weights", help="Name or file of the weights.  [default: locator]")
@click.option("--threads", type=click.IntRange(1), help="Threads.  [default: usable cores]")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Status 1 when a target is missed.")
def main(root: Path, weights: str | None, threads: int | None, output: Path, check: bool) -> None:
    """Judge the locator on the hands that are held out of its training."""
    _, hands = split(read_hands(root))
    locator = Locator.from_pretrained(weights, threads=threads)
    errors: list[list[float]] = []
    found = once = 0
    jobs = [(hand, degrees) for hand in hands for degrees in TURNS]
    for hand, degrees in track(jobs, "locating"):
        picture, points = _turned(cv2.imread(str(hand.path), cv2.IMREAD_GRAYSCALE), hand.points,
                                  degrees)  # fmt: skip
        try:
            seen = locator(picture)
        except NoHandError:
            continue
        found += 1
        once += len(seen) == 1
        errors.append(min((_errors(one.points, points) for one in seen), key=np.nanmedian))
    table = np.array(errors)
    groups = {
        "mcp": PROMISED,
        "mcp2_to_5": PROMISED[1:],
        "mcp1": PROMISED[:1],
        "others": [joint for joint in JOINTS if joint not in PROMISED],
    }
    figures = {
        "hands": len(hands),
        "pictures": len(jobs),
        "found": found,
        "found_once": once,
        **{
            f"{name}_within_{limit:g}": _within(table, joints, limit)
            for name, joints in groups.items()
            for limit in LIMITS
        },
    }
    about = {
        "dataset": {"hands": len(hands), "sha256": hands_digest(hands)},
        "locator": {"file": locator.weights.path.name, "sha256": locator.weights.sha256},
        "backend": f"{locator.backend.name} {locator.backend.version}",
    }
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": 1, "kind": "location", **about, "figures": figures}, indent=2)
    (output / "location.json").write_text(text + "\n", encoding="utf-8")
    click.echo(json.dumps(figures, indent=1))
    met = once == len(jobs) and figures["mcp_within_0.1"] >= 0.8
    if check and not (met and figures["mcp_within_0.25"] >= 0.97):
        sys.exit(1)


def _turned(
    picture: NDArray[np.uint8], points: NDArray[np.float64], degrees: float
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Clockwise, on a picture that holds all of it."""
    height, width = picture.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = (int(height * sine + width * cosine), int(height * cosine + width * sine))
    matrix[:, 2] += ((size[0] - width) / 2, (size[1] - height) / 2)
    return cv2.warpAffine(picture, matrix, size), points @ matrix[:, :2].T + matrix[:, 2]


def _errors(found: NDArray[np.float64], truth: NDArray[np.float64]) -> list[float]:
    """Of each joint, in widths of its bones."""
    place = {name: index for index, name in enumerate(LANDMARKS)}
    unit = math.dist(truth[place["mcp3"]], truth[place["pip3"]])
    return [
        math.dist(found[place[joint]], truth[place[joint]]) / (WIDTH_SHARES[joint] * unit)
        for joint in JOINTS
    ]


def _within(errors: NDArray[np.float64], joints: Sequence[str], limit: float) -> float:
    columns = [JOINTS.index(joint) for joint in joints]
    return round(float((errors[:, columns] < limit).mean()), 4)


if __name__ == "__main__":
    main()
