"""One joint through the Separator against one forward pass of the published generator.

    python benchmarks/bench_separation.py -o benchmarks/results/separation.csv

Both run warm, on the same number of threads, in one process and in turns, so that whatever else the
machine does hits both. Then ``blsgan separate`` on one file is timed from the cold, with its peak
memory. ``--check`` ends with status 1 when a target is missed: 40 times, 1.2 s, 400 MB.
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
from PIL import Image

from blsgan import Separator, __version__
from blsgan.errors import WeightsError
from blsgan.io.atomic import atomic_path
from blsgan.machine import commit_of, processor
from blsgan.runtimes.session import available
from blsgan.synthesis.phantoms import joint_phantom

ROOT = Path(__file__).resolve().parents[1]
TARGET_RATIO, TARGET_COLD_S, TARGET_PEAK_MB = 40.0, 1.2, 400.0
PUBLISHED = "TransUNet forward, eager torch"
# A child's peak memory counts its parent's at the fork, so a bare Python starts it, not this one.
_WATCH = """
import resource, subprocess, sys, time
started = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
seconds = time.perf_counter() - started
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


@dataclass(frozen=True)
class Row:
    """Times of one measurement in ms, and its peak memory where it ran as a process."""

    measurement: str
    times_ms: list[float]
    peak_mb: float | None = None

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.times_ms, share))


def in_turns(measurements: dict[str, tuple[Callable[[], object], int]], rounds: int) -> list[Row]:
    """Times each function ``rounds`` times its weight, round by round.

    Args:
        measurements: name -> (function, calls in each round).
        rounds: after one untimed round.
    """
    times: dict[str, list[float]] = {name: [] for name in measurements}
    for index in range(rounds + 1):
        for name, (function, calls) in measurements.items():
            for _ in range(calls):
                started = time.perf_counter()
                function()
                if index:
                    times[name].append(1000 * (time.perf_counter() - started))
    return [Row(name, measured) for name, measured in times.items()]


def published_generator(threads: int, image: np.ndarray, masks: np.ndarray) -> Callable[[], object]:
    """The published TransUNet with random weights (the time does not depend on them)."""
    import torch

    from blsgan.models.registry import build_generator

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    generator = build_generator("transunet").eval()
    inputs = torch.from_numpy(image)[None, None], torch.from_numpy(masks).float()[None]

    def forward() -> object:
        with torch.inference_mode():
            return generator(*inputs)

    return forward


def cold_start(image: Path, masks: list[Path], runs: int, weights: str | None) -> Row:
    """``blsgan separate`` on one file, from starting Python to its exit."""
    times, peaks = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as output:
            command = [
                sys.executable,
                "-m",
                "blsgan",
                "separate",
                str(image),
                "--upper-mask",
                str(masks[0]),
                "--lower-mask",
                str(masks[1]),
                "-o",
                output,
            ]
            if weights is not None:
                command += ["--weights", weights]
            watched = subprocess.run(
                [sys.executable, "-I", "-c", _WATCH, *command],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if watched.returncode:
                raise SystemExit(f"blsgan separate failed: {watched.stderr.strip()}")
            seconds, peak = map(float, watched.stdout.split())
            times.append(1000 * seconds)
            # ru_maxrss: kilobytes on Linux, bytes on macOS.
            peaks.append(peak / (1e6 if sys.platform == "darwin" else 1e3))
    return Row("blsgan separate, cold start", times, max(peaks))


@click.command()
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Each times the published generator once and every backend 10 times.",
)
@click.option("--cold-runs", type=click.IntRange(min=0), default=10, show_default=True)
@click.option("--weights", help="Name or file; the shipped ones by default.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Of the joint phantom; 5 overlaps by 500 px, more than 4 of 5 real overlaps.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="CSV file.")
@click.option("--check", is_flag=True, help="Fail when a target is missed.")
def main(
    threads: int,
    rounds: int,
    cold_runs: int,
    weights: str | None,
    seed: int,
    output: Path | None,
    check: bool,
) -> None:
    """Measure the Separator beside the published generator, and the command's cold start."""
    load = os.getloadavg()[0]
    if load > 0.5:
        click.echo(
            f"note: the load average is {load:.1f}; only the ratio means something", err=True
        )
    phantom = joint_phantom(seed)
    measurements: dict[str, tuple[Callable[[], object], int]] = {}
    default = ""
    for name, reason in {"auto": None, **available()}.items():
        if reason is not None:
            click.echo(f"skipped backend {name}: {reason}", err=True)
            continue
        try:
            separator = Separator.from_pretrained(weights, backend=name, threads=threads)
        except WeightsError as error:  # no file for this backend beside the weights
            if name == "auto":
                raise
            click.echo(f"skipped backend {name}: {error}", err=True)
            continue
        label = (
            f"Separator, {name} ({separator.backend.name})"
            if name == "auto"
            else f"Separator, {name}"
        )
        default = default or label

        def separate(separator: Separator = separator) -> object:
            return separator(phantom.image, phantom.masks)

        measurements[label] = (separate, 10)
    measurements[PUBLISHED] = (
        published_generator(threads, phantom.image * phantom.masks.any(axis=0), phantom.masks),
        1,
    )
    rows = in_turns(measurements, rounds)

    if cold_runs:
        with tempfile.TemporaryDirectory() as folder:
            pictures = {
                "joint.png": phantom.image,
                "joint_mask_upper.bmp": phantom.masks[0],
                "joint_mask_lower.bmp": phantom.masks[1],
            }
            for name, picture in pictures.items():
                Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(Path(folder) / name)
            paths = [Path(folder) / name for name in pictures]
            rows.append(cold_start(paths[0], paths[1:], cold_runs, weights))

    by_name = {row.measurement: row for row in rows}
    published = by_name[PUBLISHED].percentile(50)
    ratio = published / by_name[default].percentile(50)
    common = {
        "threads": threads,
        "size_px": "256x256",
        "overlap_px": int(phantom.overlap.sum()),
        "cpu": processor(),
        "load_average": f"{load:.1f}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
        "blsgan": __version__,
        "commit": commit_of(),
    }
    table = [
        {
            "measurement": row.measurement,
            "p20_ms": f"{row.percentile(20):.2f}",
            "p50_ms": f"{row.percentile(50):.2f}",
            "p80_ms": f"{row.percentile(80):.2f}",
            "runs": len(row.times_ms),
            "published_over_this": f"{published / row.percentile(50):.1f}"
            if row.peak_mb is None
            else "",
            "peak_mb": "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
            **common,
        }
        for row in rows
    ]
    for line in table:
        click.echo(
            f"{line['measurement']:34} p20 {line['p20_ms']:>9} p50 {line['p50_ms']:>9} "
            f"p80 {line['p80_ms']:>9} ms  {line['published_over_this'] or '-':>6}x  "
            f"{line['peak_mb'] and line['peak_mb'] + ' MB'}"
        )
    click.echo(
        f"{default} is {ratio:.0f} times as fast as the published generator "
        f"(target {TARGET_RATIO:.0f})."
    )
    if output is not None:
        with atomic_path(output) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    missed = [f"{ratio:.0f} times"] if ratio < TARGET_RATIO else []
    if cold_runs:
        cold = rows[-1]
        seconds = statistics.median(cold.times_ms) / 1000
        missed += [f"{seconds:.2f} s"] if seconds > TARGET_COLD_S else []
        missed += [f"{cold.peak_mb:.0f} MB"] if (cold.peak_mb or 0) > TARGET_PEAK_MB else []
    if check and missed:
        raise SystemExit(f"targets missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
