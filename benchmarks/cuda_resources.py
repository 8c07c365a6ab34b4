"""Registers, spills and shared memory of every CUDA kernel on every architecture. Needs no GPU.

    python benchmarks/cuda_resources.py            writes benchmarks/results/cuda_resources.csv

Compiles csrc/cuda with nvcc as the build does and reads ptxas's report. Exit status 1 when a kernel
spills or keeps anything in local memory.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_backend"))

from blsgan_build.cuda import DEFAULT_ARCHITECTURES, CudaPlan  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "cuda_resources.csv"
COLUMNS = (
    "op",
    "kernel",
    "architecture",
    "registers",
    "spill_bytes",
    "stack_bytes",
    "shared_bytes",
)


def readable(symbol: str) -> str:
    """`forward<float, 2>` from a mangled name."""
    done = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True)
    name = re.sub(r"\(anonymous namespace\)::|blsgan::(cuda::)?|^void ", "", done.stdout.strip())
    name = re.sub(r"_GLOBAL__N__\w+::", "", name)
    return re.sub(r"\((?!anonymous).*$", "", name)


def report(source: Path, nvcc: str) -> list[dict[str, object]]:
    """One row for each kernel and architecture of a source."""
    plan = CudaPlan(nvcc, None, tuple(DEFAULT_ARCHITECTURES.split(";")), "")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                nvcc,
                "-std=c++17",
                "-O3",
                "-DNDEBUG",
                f"-I{ROOT / 'csrc'}",
                "-Xptxas",
                "-v",
                *plan.gencode,
                "-c",
                str(source),
                "-o",
                str(Path(folder, "kernels.o")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"cuda_resources: nvcc failed on {source}:\n{done.stderr}")
    rows: list[dict[str, object]] = []
    row: dict[str, object] = {}
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
            row = {"op": source.stem, "kernel": readable(match[1]), "architecture": match[2]}
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            row |= {"stack_bytes": int(match[1]), "spill_bytes": int(match[2])}
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            row |= {"registers": int(match[1]), "shared_bytes": int(shared[1]) if shared else 0}
            rows.append(row)
    return rows


def main() -> int:
    nvcc = "nvcc"
    rows = [
        row
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
        for row in report(source, nvcc)
    ]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with RESULT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    bad = [row for row in rows if row["spill_bytes"] or row["stack_bytes"]]
    most = max(rows, key=lambda row: row["registers"])
    print(
        f"{len(rows)} kernels; most registers: {most['registers']} ({most['op']} "
        f"{most['kernel']}, sm_{most['architecture']}); with spills or stack: {len(bad)}"
    )
    for row in bad:
        print(
            f"  {row['op']} {row['kernel']} sm_{row['architecture']}: "
            f"{row['spill_bytes']} bytes spilled, {row['stack_bytes']} bytes of stack"
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
