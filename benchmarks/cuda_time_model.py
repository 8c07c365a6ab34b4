"""A lower bound of the kernels' time on GPUs that they have not run on. Needs no GPU and no nvcc.

    python benchmarks/cuda_time_model.py            writes the tables into docs/how-to/gpu.md
    python benchmarks/cuda_time_model.py --check    status 1 where they are not what it would write

The bound: the bytes that an op must move (blsgan.ops.cases: each input read once, each output
written once, masks of one byte) over the memory bandwidth of the GPU's data sheet. Launches are
counted in csrc/cuda; registers are ptxas's (benchmarks/results/cuda_resources.csv), and resident
threads follow from them and from NVIDIA's table of compute capabilities.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import torch

from blsgan.ops.benchmark import SIZES
from blsgan.ops.cases import CASES, Joint, OpCase

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "how-to" / "gpu.md"
RESOURCES = ROOT / "benchmarks" / "results" / "cuda_resources.csv"
BEGIN, END = "<!-- benchmarks/cuda_time_model.py -->\n", "<!-- end -->\n"

# Bandwidth in GB/s, from NVIDIA's data sheets, and compute capability.
GPUS = {
    "T4": (320, "75"),
    "AGX Orin": (204.8, "87"),
    "L4": (300, "89"),
    "A100 80GB SXM": (2039, "80"),
    "H100 SXM": (3350, "90"),
    "RTX 4090": (1008, "89"),
}
# CUDA C++ Programming Guide, technical specifications by compute capability: resident threads of a
# multiprocessor. All have 65,536 registers, given to warps in units of 256.
RESIDENT_THREADS = {"75": 1024, "80": 2048, "86": 1536, "87": 1536, "89": 1536, "90": 2048}
REGISTERS, REGISTER_UNIT, WARP, BLOCK = 65536, 256, 32, 256


def launches(op: str) -> tuple[int, int]:
    """Kernels that the launchers of an op's forward and backward pass start."""
    text = (ROOT / "csrc" / "cuda" / f"{op}.cu").read_text(encoding="utf-8")
    bodies = re.findall(r"^void run_cuda\(const (\w+)&.*?^}", text, re.MULTILINE | re.DOTALL)
    found = re.finditer(r"^void run_cuda\(const (\w+)&.*?^}", text, re.MULTILINE | re.DOTALL)
    counts = {
        m[1].endswith("Backward"): len(re.findall(r"\blaunch(?:_finish\w*)?\(", m[0]))
        for m in found
    }
    assert len(bodies) == len(counts)
    return counts.get(False, 0), counts.get(True, 0)


def resident(registers: int, architecture: str) -> float:
    """The share of a multiprocessor's threads that blocks of this kernel can fill."""
    for_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    blocks = REGISTERS // for_warp // (BLOCK // WARP)
    most = RESIDENT_THREADS[architecture]
    return min(blocks * BLOCK, most) / most


def plain_cases() -> list[OpCase]:
    return [case for case in CASES if case.name == case.op]


def bounds() -> list[str]:
    lines = []
    for size, shape in SIZES.items():
        name = "x".join(map(str, shape))
        lines += [
            f"Microseconds for forward and backward at {name} ({size}), float32, at the least:",
            "",
            "| op | MB | launches | " + " | ".join(GPUS) + " |",
            "|---|---:|---:|" + "---:|" * len(GPUS),
        ]
        for case in plain_cases():
            moved = sum(case.bytes_moved(Joint(shape)))
            count = "+".join(str(n) for n in launches(case.op) if n)
            cells = [f"{moved / bandwidth / 1e3:.0f}" for bandwidth, _ in GPUS.values()]
            lines.append(
                f"| `{case.op}` | {moved / 1e6:.1f} | {count} | " + " | ".join(cells) + " |"
            )
        lines.append("")
    return lines


def occupancy() -> list[str]:
    with RESOURCES.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    architectures = list(RESIDENT_THREADS)
    lines = [
        "Registers of a thread, and the share of a multiprocessor's threads that fit:",
        "",
        "| kernel, float32 | " + " | ".join(f"{a[:-1]}.{a[-1]}" for a in architectures) + " |",
        "|---|" + "---:|" * len(architectures),
    ]
    for case in plain_cases():
        for kernel in ("forward", "backward", "compose"):
            cells = []
            for architecture in architectures:
                found = [
                    int(row["registers"])
                    for row in rows
                    if row["op"] == case.op
                    and row["architecture"] == architecture
                    and re.match(rf"{kernel}<float(, 2\b.*)?>$", row["kernel"])
                ]
                if found:
                    share = resident(max(found), architecture)
                    cells.append(f"{max(found)}, {100 * share:.0f} %")
            if cells:
                lines.append(f"| `{case.op}` {kernel} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> int:
    torch.set_num_threads(1)
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    tables = "\n".join([*bounds(), *occupancy()])
    new = f"{before}{BEGIN}\n{tables}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if new != text:
            print(f"{PAGE} is not what {Path(__file__).name} writes: run it")
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
