"""Opening and reading a packed dataset against decoding the folder it was packed from.

    python benchmarks/bench_dataset.py --data Data -o benchmarks/results/dataset.csv

Without ``--data`` the dataset is 64 phantoms. Both are read whole, images, masks and backgrounds,
in turns and with warm file caches, so a slow disk does not flatter the packed file; the images are
compared bit for bit.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image

from blsgan import __version__
from blsgan.data.dataset import load_root
from blsgan.data.layout import JointArrays, read_joint
from blsgan.data.packed import pack
from blsgan.io.atomic import atomic_path
from blsgan.synthesis.phantoms import joint_phantom


def phantoms(folder: Path, count: int) -> Path:
    """Writes ``count`` phantoms in the public dataset's layout; returns its root."""
    root = folder / "Data"
    entries = []
    for seed in range(count):
        phantom = joint_phantom(seed, overlap=bool(seed % 2))
        name = f"Dataset_cases_anonymization/{seed:05d}_L_2/image"
        entry = {
            "image": f"{name}.jpg",
            "upper": f"{name}_mask_upper.bmp",
            "lower": f"{name}_mask_lower.bmp",
            "background": f"Dataset_cases_anonymization/background/{seed:05d}_L_2_image.jpg",
        }
        for path, picture in zip(
            entry.values(), (phantom.image, *phantom.masks, phantom.background), strict=True
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(root / path)
        entries.append(entry)
    (root / "LS_K1_all_train").write_text(json.dumps(entries))
    return root


def read(root: Path) -> list[JointArrays]:
    """Everything, as a caller reads it."""
    return [read_joint(image) for image in load_root(root)]


def timed(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def differing(one: list[JointArrays], other: list[JointArrays]) -> int:
    """How many images are not the same bit for bit."""
    return sum(
        not all(
            np.array_equal(a, b)
            for a, b in zip(vars(x).values(), vars(y).values(), strict=True)
            if a is not None or b is not None
        )
        for x, y in zip(one, other, strict=True)
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Dataset; default: phantoms.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write a CSV file.")
def main(data: Path | None, rounds: int, output: Path | None) -> None:
    """Time both and print the medians."""
    with tempfile.TemporaryDirectory() as temporary:
        root = data or phantoms(Path(temporary), 64)
        packed = Path(temporary) / "packed"
        images = load_root(root)
        pack_s = timed(lambda: pack(images, packed))
        if wrong := differing(read(root), read(packed)):
            raise SystemExit(f"{wrong} images differ")
        actions = {
            "decode the folder": lambda: read(root),
            "packed: open": lambda: load_root(packed),
            "packed: open and read everything": lambda: read(packed),
        }
        times: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(rounds):
            for name, action in actions.items():
                times[name].append(timed(action))
        size_mb = packed.stat().st_size / 1e6
    folder = float(np.median(times["decode the folder"]))
    rows = [
        {
            "measurement": name,
            "images": len(images),
            **{
                f"p{share}_ms": round(1000 * float(np.percentile(values, share)), 2)
                for share in (20, 50, 80)
            },
            "folder_over_this": round(folder / float(np.median(values)), 1),
            "rounds": rounds,
            "packed_mb": round(size_mb, 1),
            "pack_s": round(pack_s, 1),
            "load_average": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
            "blsgan": __version__,
        }
        for name, values in times.items()
    ]
    for row in rows:
        click.echo(
            f"{row['measurement']}: {row['p50_ms']:.1f} ms, "
            f"{row['folder_over_this']:.1f} times faster than the folder"
        )
    if output is not None:
        with atomic_path(output) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
