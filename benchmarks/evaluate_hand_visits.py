"""What narrowings of nothing come to: hands against moved and noisy copies of themselves.

    python benchmarks/evaluate_hand_visits.py --data hands/other -o benchmarks/results

Of the pictures in a folder the first ten are taken, by name, in which every MCP joint is accepted
without doubt. Of each, three copies are visits: turned by up to 7 degrees, moved by up to 20 px,
and with noise of one and of two grey levels of 255. No joint has narrowed, so every narrowing is an
error. Writes hand_visits.csv, a line for each joint and pair of copies.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

import blsgan
from blsgan.anatomy import PROMISED
from blsgan.errors import BlsganError
from blsgan.hands.chain import HandSeparator
from blsgan.io.tables import write_csv

COPIES = 3
NOISES = (1.0, 2.0)  # grey levels
MOST_TURN_DEG, MOST_SHIFT_PX = 7.0, 20.0


def moved(
    picture: NDArray[np.uint8], noise: float, random: np.random.Generator
) -> NDArray[np.uint8]:
    """A picture [H,W] of another visit at which nothing has changed but how the hand lay."""
    height, width = picture.shape
    middle = ((width - 1) / 2, (height - 1) / 2)
    turn = cv2.getRotationMatrix2D(middle, random.uniform(-MOST_TURN_DEG, MOST_TURN_DEG), 1.0)
    turn[:, 2] += random.uniform(-MOST_SHIFT_PX, MOST_SHIFT_PX, 2)
    seen = cv2.warpAffine(
        picture.astype(np.float32),
        turn,
        (width, height),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    seen = seen + random.normal(0, noise, seen.shape)
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)


def accepted(picture: NDArray[np.uint8], networks: HandSeparator) -> bool:
    """Whether it shows one hand, all of whose MCP joints are without doubt."""
    try:
        hands = networks(picture)
    except BlsganError:
        return False
    return len(hands) == 1 and all(hands[0][name].status == "ok" for name in PROMISED)


def intervals(
    picture: NDArray[np.uint8], noise: float, seed: int, networks: HandSeparator
) -> list[dict[str, Any]]:
    """What ``blsgan.hand_visits`` says of copies of one picture, a row for each joint and pair."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        sources = [Path(folder, f"{copy}.png") for copy in range(COPIES)]
        for source in sources:
            cv2.imwrite(str(source), moved(picture, noise, random))
        found = blsgan.hand_visits(sources, Path(folder, "out"), separator=networks)
    columns = ("joint", "experimental", "earlier", "later", "status", "verdict", "narrowing_px")
    return [{name: getattr(one, name) for name in columns} for one in found.record.intervals]


@click.command()
@click.option("--data", "root", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--hands", "most", type=click.IntRange(1), default=10, show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(root: Path, most: int, output: Path) -> None:
    """Measure narrowings between copies of hands in which nothing has narrowed."""
    networks = HandSeparator.from_pretrained()
    pictures: list[NDArray[np.uint8]] = []
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in (".jpg", ".png"))
    for path in track(files, "hands"):
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if picture is not None and len(pictures) < most and accepted(picture, networks):
            pictures.append(picture)
    if not pictures:
        raise click.UsageError(f"{root}: no picture shows a hand whose MCP joints are all accepted")
    rows = [
        {"hand": number, "noise": noise, **row}
        for number, picture in enumerate(track(pictures, "visits"))
        for noise in NOISES
        for row in intervals(picture, noise, number, networks)
    ]
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / "hand_visits.csv", rows)
    for noise in NOISES:
        usable = [r for r in rows if r["noise"] == noise and r["verdict"] != "not measurable"]
        for what, chosen in (
            ("MCP", [r for r in usable if not r["experimental"]]),
            ("all", usable),
        ):
            errors = np.abs([r["narrowing_px"] for r in chosen])
            print(
                f"noise {noise:g}, {what} joints: {len(errors)} narrowings of {len(pictures)} "
                f"hands, half within {np.median(errors):.3f} px, 95 % within "
                f"{np.percentile(errors, 95):.3f}, all within {errors.max():.3f}; 'narrowed': "
                f"{sum(r['verdict'] == 'narrowed' for r in chosen)}"
            )


if __name__ == "__main__":
    main()
