"""``blsgan separate`` of an archive: joints a second by processes and outputs, and peak memory.

    python benchmarks/bench_archive.py 400

The joints are phantoms of 256x256 px. The large pictures have 8192x8192 px: one joint of 256 px in
the middle, and one that fills them. Every line is the command itself, from its start to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

from blsgan import __version__
from blsgan.io.tables import write_csv
from blsgan.runtimes.session import cores
from blsgan.synthesis.phantoms import joint_phantom

TABLE = Path(__file__).parent / "results" / "archive.csv"
LARGE_PX = 8192
# A child's peak memory counts its parent's at the fork, so a bare Python starts it, not this one.
_WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


def write_joint(
    folder: Path, name: str, seed: int, side_px: int = 256, *, filled: bool = False
) -> None:
    """A phantom and its masks, in the middle of a picture of ``side_px`` or enlarged to fill it."""
    phantom = joint_phantom(seed, 256)
    planes = {
        name: np.rint(65535 * phantom.image).astype(np.uint16),
        f"{name}_mask_upper": phantom.masks[0].astype(np.uint8) * np.uint8(255),
        f"{name}_mask_lower": phantom.masks[1].astype(np.uint8) * np.uint8(255),
    }
    corner = (side_px - 256) // 2
    for stem, plane in planes.items():
        if filled:
            picture = plane.repeat(side_px // 256, axis=0).repeat(side_px // 256, axis=1)
        else:
            picture = np.zeros((side_px, side_px), plane.dtype)
            picture[corner : corner + 256, corner : corner + 256] = plane
        Image.fromarray(picture).save(folder / f"{stem}.png", compress_level=1)


def timed(source: Path, *options: str) -> dict[str, float]:
    """The command on a new output folder: seconds, CPU seconds, largest resident size."""
    with tempfile.TemporaryDirectory(dir=source.parent) as output:
        started = time.perf_counter()
        command = [sys.executable, "-m", "blsgan", "separate", str(source), "-o", output, "-q"]
        watched = [sys.executable, "-c", _WATCH, *command, *options]
        said = subprocess.run(watched, check=True, stdout=subprocess.PIPE, text=True).stdout
    cpu_seconds, peak_kib = map(float, said.split())
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds,
        "peak_mib": peak_kib / 1024,
    }


@click.command()
@click.argument("count", metavar="[JOINTS]", type=click.IntRange(1), default=400)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=TABLE)
def main(count: int, output: Path) -> None:
    """Time `blsgan separate` on JOINTS phantoms (400) and on two large pictures."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        joints, large = Path(folder, "joints"), Path(folder, "large")
        for new in (joints, large):
            new.mkdir()
        for seed in range(count):
            write_joint(joints, f"{seed:05d}", seed)
        write_joint(large, "middle", 1, LARGE_PX)
        write_joint(large, "filled", 1, LARGE_PX, filled=True)
        plans = [
            (what, count, 256, joints, ["--jobs", str(jobs), *options])
            for jobs in sorted({1, cores()})
            for what, options in (("every output", []), ("no panels", ["--no-panels"]))
        ]
        plans += [
            (f"{name} of a large picture{what}", 1, LARGE_PX, large / f"{name}.png", options)
            for name in ("middle", "filled")
            for what, options in (
                ("", ["--jobs", "1"]),
                (", npz", ["--jobs", "1", "--format", "npz"]),
            )
        ]
        for what, number, side_px, source, options in plans:
            load = os.getloadavg()[0]
            figures = timed(source, *options)
            rows.append(
                {
                    "what": what,
                    "joints": number,
                    "side_px": side_px,
                    "jobs": int(options[1]),
                    **figures,
                    "joints_per_s": number / figures["seconds"],
                    "load_before": load,
                }
            )
    for row in rows:
        row |= {key: round(value, 2) for key, value in row.items() if isinstance(value, float)}
        row |= {"cores": cores(), "blsgan": __version__}
        print(row)
    write_csv(output, rows)


if __name__ == "__main__":
    main()
