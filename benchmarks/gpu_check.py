"""Everything that only a machine with a GPU can show, in one script without network needs.

    python benchmarks/gpu_check.py                 all stages, one after another
    python benchmarks/gpu_check.py STAGE [...]     some of them; `bench` stands for every bench-...

Needs torch >= 2.11 with CUDA, nvcc, a C++ compiler, and in the environment numpy, click, rich,
pybind11, setuptools and pytest. Each stage ends well within ten minutes (it is stopped at nine) and
leaves its output in benchmarks/results/gpu/: logs, CSV files and summary.md, the short table.

Stages: build (the kernels for this GPU), test (tests/gpu: values against the float64 reference,
gradients, streams, a second device, graph capture), sanitize-memcheck and sanitize-racecheck
(compute-sanitizer on a short run), launches (kernel launches of the generator's objective against
eager), bench-SIZE-DTYPE (all ops against eager, torch.compile and the device's copy bandwidth; two
sizes, three dtypes), summary (the table of them).
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
LIMIT_S = 540

SHORT_RUN = """
import torch
from blsgan.ops.cases import CASES, Joint
for case in CASES:
    for shape in ((2, 2, 33, 47), (1, 3, 64, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            args = case.inputs(Joint(shape, dtype=dtype, device="cuda"))
            args = [a.requires_grad_(i in case.gradients) for i, a in enumerate(args)]
            result = case.call(*args)
            parts = result if isinstance(result, tuple) else (result,)
            sum(part.float().sum() for part in parts if part.is_floating_point()).backward()
torch.cuda.synchronize()
print("short run done")
"""

LAUNCHES = """
import json, sys, torch
from blsgan import ops
from blsgan.ops import reference
from blsgan.ops.benchmark import count_launches
from blsgan.ops.cases import Joint
joint = Joint((12, 2, 256, 256), device="cuda")
layers = joint.layers.requires_grad_()
logits = joint.supervisor_logits.requires_grad_()
k = joint.soft_tissue.requires_grad_()
masks, image, truth = joint.masks, joint.image, joint.true_layers
def objective(o):
    def run():
        loss = 0.3 * o.supervisor_loss(logits, masks) + 0.3 * o.reconstruction_loss(
            layers, masks, k, image) + 0.4 * o.layer_loss(layers, truth, masks)
        loss.backward()
        layers.grad = logits.grad = k.grad = None
    return run
print(json.dumps({"blsgan": count_launches(objective(ops)),
                  "eager": count_launches(objective(reference))}))
"""


def run(stage: str, command: list[str], **environment: str) -> bool:
    """Run one command with the stage's time limit; its output goes to the log and the screen."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    log = RESULTS / f"{stage}.log"
    print(f"== {stage}: {' '.join(command[:6])} ...", flush=True)
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            check=False,
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output = error.stdout if isinstance(error.stdout, str) else (error.stdout or b"").decode()
        output, code = output + f"\nstopped after {LIMIT_S} s", 124
    seconds = time.monotonic() - begin
    log.write_text(output + f"\nexit status {code} after {seconds:.0f} s\n", encoding="utf-8")
    print("\n".join(output.splitlines()[-12:]))
    print(f"-- {stage}: {'passed' if code == 0 else f'FAILED ({code})'} in {seconds:.0f} s, {log}")
    return code == 0


def build() -> bool:
    """Compile for the GPU that is here, in place; nothing is downloaded."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return run("build", command, BLSGAN_CUDA="1", MAX_JOBS=str(os.cpu_count() or 2))


def test() -> bool:
    """tests/gpu, which must not be skipped here."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-ra", "-p", "no:cacheprovider"]
    return run("test", command, BLSGAN_REQUIRE_GPU="1")


def sanitize(kind: str) -> bool:
    """compute-sanitizer over a short run of every op; without the tool the stage says so."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        print(f"== sanitize-{kind}: NOT RUN, compute-sanitizer is not installed")
        return True
    command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, "-c", SHORT_RUN]
    return run(f"sanitize-{kind}", command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def launches() -> bool:
    """Launches of the whole generator objective, forward and backward."""
    return run("launches", [sys.executable, "-c", LAUNCHES])


def bench(size: str, dtype: str) -> bool:
    """All ops at one size in one dtype."""
    command = [
        sys.executable,
        "-m",
        "blsgan",
        "bench",
        "ops",
        "--device",
        "cuda",
        "--size",
        size,
        "--dtype",
        dtype,
        "--seconds",
        "1",
        "-o",
        str(RESULTS / f"{size}-{dtype}.csv"),
    ]
    return run(f"bench-{size}-{dtype}", command)


def summary() -> bool:
    """The short table of all CSV files: full passes against the issue's bars."""
    lines = [
        "| op | size | dtype | ms | of copy | eager | compile |",
        "|---|---|---|---|---|---|---|",
    ]
    facts = ""
    for path in sorted(RESULTS.glob("*-*.csv")):
        with path.open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["phase"] == "full"]
        ratios = {(r["op"], r["variant"]): r["slower_than_blsgan"] for r in rows}
        for row in rows:
            if row["variant"] != "blsgan":
                continue
            facts = f"{row.get('gpu', row['device'])}, torch {row['torch']}, {row['time']}"
            lines.append(
                f"| {row['op']} | {row['size']} | {row['dtype']} | {row['p50_ms']} | "
                f"{100 * float(row['roofline']):.0f} % | "
                f"{ratios.get((row['op'], 'eager'), '-')}x | "
                f"{ratios.get((row['op'], 'compile'), '-')}x |"
            )
    if len(lines) == 2:
        print("== summary: no benchmark has been run")
        return False
    text = f"{facts}\n\n" + "\n".join(lines) + "\n"
    (RESULTS / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return True


STAGES = {
    "build": build,
    "test": test,
    "sanitize-memcheck": partial(sanitize, "memcheck"),
    "sanitize-racecheck": partial(sanitize, "racecheck"),
    "launches": launches,
    **{
        f"bench-{size}-{dtype}": partial(bench, size, dtype)
        for size in ("training", "large")
        for dtype in ("float32", "bfloat16", "float16")
    },
    "summary": summary,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    asked = []
    for word in parser.parse_args().stages or STAGES:
        chosen = [name for name in STAGES if name == word or name.startswith(f"{word}-")]
        if not chosen:
            parser.error(f"there is no stage {word}; choose from {', '.join(STAGES)}")
        asked += chosen
    try:
        import torch
    except ImportError:
        print("gpu_check: torch is not installed in this environment")
        return 2
    if not torch.cuda.is_available():
        print("gpu_check: no CUDA device can be used here (torch.cuda.is_available() is False)")
        return 2
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"compute capability {torch.cuda.get_device_capability()}"
    )
    results = {stage: STAGES[stage]() for stage in asked}
    for stage, passed in results.items():
        print(f"{stage:24s} {'passed' if passed else 'FAILED'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
