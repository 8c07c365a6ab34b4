"""Everything that only a machine with a GPU can show, in one script without network needs.

    python benchmarks/gpu_check.py                 all stages, one after another
    python benchmarks/gpu_check.py STAGE [...]     some of them; `bench` stands for every bench-...
    python benchmarks/gpu_check.py --report FILE   the table of docs/results.md from a result.json
    python benchmarks/gpu_check.py --emulated      the same plan, tiny, on the CPU (`make emulate`)

Needs torch >= 2.11 with CUDA, nvcc, a C++ compiler, and in the environment the packages of the
extra `test` (for the training stage `opencv-python-headless` is among them). Each stage ends well
within ten minutes (it is stopped at nine) and leaves its log and CSV files in
benchmarks/results/gpu/; result.json there holds what became of every stage and every figure.

Stages: build (the kernels for this GPU), test (tests/gpu: values against the float64 reference,
gradients, streams, a second device, graph capture), sanitize-TOOL (compute-sanitizer on a short
run, where it is installed), launches (kernel launches of the generator's objective against eager),
bench-SIZE-DTYPE (all ops against eager, torch.compile and the device's copy bandwidth; two sizes,
three dtypes), training (a step of `lite` against a naive loop), inference (the default network on
the GPU against the CPU).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EMULATED_LIBRARY = ROOT / "build" / "emulated" / "lib"
LIMIT_S = 540
SIZES = ("training", "large")
DTYPES = ("float32", "bfloat16", "float16")

SHORT_RUN = """
import sys, torch
from blsgan.ops.cases import CASES, Joint
for case in CASES:
    for shape in ((2, 2, 33, 47), (1, 3, 64, 64)):
        for dtype in (torch.float32, torch.bfloat16):
            args = case.inputs(Joint(shape, dtype=dtype, device=sys.argv[1]))
            args = [a.requires_grad_(i in case.gradients) for i, a in enumerate(args)]
            result = case.call(*args)
            parts = result if isinstance(result, tuple) else (result,)
            if case.gradients:
                sum(part.float().sum() for part in parts if part.is_floating_point()).backward()
if sys.argv[1] == "cuda":
    torch.cuda.synchronize()
print("short run done")
"""

LAUNCHES = """
import json, sys, torch
from blsgan import ops
from blsgan.ops import benchmark, reference
from blsgan.ops.cases import Joint
shape = (12, 2, 256, 256) if sys.argv[1] == "cuda" else (2, 2, 16, 16)
joint = Joint(shape, device=sys.argv[1])
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
# Without a GPU nothing is launched: operators are counted.
count = benchmark.count_launches if sys.argv[1] == "cuda" else benchmark.count_dispatches
print(json.dumps({"blsgan": count(objective(ops)), "eager": count(objective(reference))}))
"""

# The same command with tensors that the emulator has time for.
TINY_BENCH = """
import sys
from blsgan.cli import bench, main
from blsgan.ops import benchmark
bench._QUICK = {"training": (1, 2, 16, 16), "large": (1, 2, 32, 32)}
benchmark._CACHED = benchmark._TINY
sys.exit(main(sys.argv[1:]))
"""

INFERENCE = """
import json, sys, torch
from blsgan.models.weights import load_generator
from blsgan.ops.benchmark import in_turns, quantile
from blsgan.ops.cases import Joint
from blsgan.tasks.task import find_weights
device, edge, batches = sys.argv[1], int(sys.argv[2]), [int(b) for b in sys.argv[3].split(",")]
weights = find_weights("lite")
network = load_generator(weights.safetensors, weights.load(weights.safetensors).data)
found = {}
for batch in batches:
    joint = Joint((batch, 2, edge, edge), mask_dtype=torch.float32)
    image, masks = joint.image, joint.masks
    with torch.inference_mode():
        want = network.cpu()(image, masks)[0]
        there = network.to(device)
        args = image.to(device), masks.to(device)
        got = there(*args)[0].cpu()
        call = lambda: there(*args)
        times = in_turns({"lite": call}, torch.device(device), 1.0, least=3)["lite"]
    error = (got - want).double().square().mean().item()
    psnr = 99.0 if error == 0 else -10 * torch.tensor(error).log10().item()
    found[batch] = {"p50_ms": quantile(times, 0.5), "psnr_to_cpu_db": psnr}
print(json.dumps(found))
assert all(row["psnr_to_cpu_db"] > 60 for row in found.values()), "the GPU separates otherwise"
"""


class Plan:
    """The stages on one device, and what has become of them."""

    def __init__(self, emulated: bool, folder: Path | None) -> None:
        self.emulated = emulated
        self.device = "cpu" if emulated else "cuda"
        default = ROOT / "build" / "gpu_check" if emulated else ROOT / "benchmarks/results/gpu"
        self.folder = (folder or default).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "result.json"
        self.result: dict[str, Any] = {"stages": {}, "ops": [], "training": []}
        if self.file.exists():
            self.result |= json.loads(self.file.read_text(encoding="utf-8"))
        self.stages: dict[str, Callable[[], bool | None]] = {
            "build": self.build,
            "test": self.test,
            **{
                f"sanitize-{tool}": partial(self.sanitize, tool)
                for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
            },
            "launches": partial(self.measure, "launches", LAUNCHES),
            **{
                f"bench-{size}-{dtype}": partial(self.bench, size, dtype)
                for size in SIZES
                for dtype in DTYPES
            },
            "training": self.training,
            "inference": partial(
                self.measure,
                "inference",
                INFERENCE,
                *(("64", "1") if emulated else ("256", "1,32")),
            ),
        }

    def run(self, stage: str, *command: str, **environment: str) -> str | None:
        """Run Python with the stage's time limit; what it printed, None where it failed."""
        log = self.folder / f"{stage}.log"
        print(f"== {stage}: {' '.join(command[:6])[:120]} ...", flush=True)
        # The emulated library is another build of the package: the tree's own must not come first.
        home = self.folder if self.emulated else ROOT
        path = EMULATED_LIBRARY if self.emulated else ROOT
        try:
            done = subprocess.run(
                command,
                cwd=home,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
                env={**os.environ, "PYTHONPATH": str(path), **environment},
                check=False,
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            text = error.stdout or b""
            output = text if isinstance(text, str) else text.decode(errors="replace")
            output, code = output + f"\nstopped after {LIMIT_S} s", 124
        log.write_text(f"{output}\nexit status {code}\n", encoding="utf-8")
        print("\n".join(output.splitlines()[-12:]))
        return output if code == 0 else None

    def measure(self, stage: str, script: str, *arguments: str) -> bool:
        """A script that prints figures as JSON in its last line."""
        output = self.run(stage, sys.executable, "-c", script, self.device, *arguments)
        if output is not None:
            self.result[stage] = json.loads(output.strip().splitlines()[-1])
        return output is not None

    def build(self) -> bool:
        """Compile for the GPU that is here, in place; nothing is downloaded."""
        if self.emulated:
            code = "from blsgan.ops.fused._library import build_info; print(build_info()['cuda'])"
            output = self.run("build", sys.executable, "-c", code)
            return output is not None and output.strip() == "emulated"
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        jobs = str(os.cpu_count() or 2)
        return self.run("build", *command, BLSGAN_CUDA="1", MAX_JOBS=jobs) is not None

    def test(self) -> bool:
        """tests/gpu, which must not be skipped here."""
        command = [sys.executable, "-m", "pytest", str(ROOT / "tests/gpu"), "-q", "-ra"]
        command += ["-p", "no:cacheprovider"]
        wanted = "emulated" if self.emulated else "1"
        return self.run("test", *command, BLSGAN_REQUIRE_GPU=wanted) is not None

    def sanitize(self, tool: str) -> bool | None:
        """compute-sanitizer over a short run of every op; the emulator is one itself."""
        if self.emulated:
            command = [sys.executable, "-c", SHORT_RUN, self.device]
            return self.run(f"sanitize-{tool}", *command) is not None
        sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not Path(sanitizer).exists():
            print(f"== sanitize-{tool}: compute-sanitizer is not installed")
            return None
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable]
        command += ["-c", SHORT_RUN, self.device]
        done = self.run(f"sanitize-{tool}", *command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        return done is not None

    def bench(self, size: str, dtype: str) -> bool:
        """All ops at one size in one dtype."""
        stage = f"bench-{size}-{dtype}"
        file = self.folder / f"{size}-{dtype}.csv"
        blsgan = ["-c", TINY_BENCH] if self.emulated else ["-m", "blsgan"]
        command = [sys.executable, *blsgan, "bench", "ops", "--device", self.device]
        command += ["--size", size, "--dtype", dtype, "-o", str(file)]
        command += ["--seconds", "0.01" if self.emulated else "1"]
        if self.emulated:  # one op, and one compilation
            command += ["--quick", "--op", "layer_loss"]
            if stage != "bench-training-float32":
                command += ["--without", "compile"]
        if self.run(stage, *command) is None:
            return False
        with file.open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        others = [r for r in self.result["ops"] if (r["size"], r["dtype"]) != (size, dtype)]
        self.result["ops"] = others + rows
        return True

    def training(self) -> bool:
        """A training step on phantoms, where its time goes, peak memory."""
        file = self.folder / "training.csv"
        command = [sys.executable, str(ROOT / "benchmarks/bench_training.py")]
        command += ["--device", self.device, "-o", str(file)]
        if self.emulated:
            command += ["--preset", "lite", "--joints", "2", "--rounds", "1"]
            small = "model.configuration={widths: [8, 8, 8, 8], blocks: [1, 1, 1, 1]}"
            for key in (small, "data.crop=[16,32]", "data.validation=2"):
                command += ["--lite-set", key]
        if self.run("training", *command) is None:
            return False
        with file.open(encoding="utf-8") as lines:
            self.result["training"] = list(csv.DictReader(lines))
        return True

    def go(self, stage: str) -> str:
        """Run a stage and keep what became of it: passed, FAILED or not run."""
        begin = time.monotonic()
        passed = self.stages[stage]()
        status = {True: "passed", False: "FAILED", None: "not run"}[passed]
        seconds = time.monotonic() - begin
        print(f"-- {stage}: {status} in {seconds:.0f} s")
        self.result["stages"][stage] = {"status": status, "seconds": round(seconds, 1)}
        temporary = self.file.with_suffix(".partial")
        temporary.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.file)
        return status


def report(result: dict[str, Any]) -> str:
    """The table of docs/results.md and what stands beside it, as Markdown."""
    machine = result["machine"]
    name = machine.get("gpu", "the emulator: these are no figures of a GPU")
    lines = [
        f"On {name}, torch {machine['torch']}, {machine['time'][:10]}, commit {result['commit']}.",
        "",
        "| op, forward + backward, float32 | 12x2x256x256: eager | 12x2x256x256: torch.compile "
        "| 64x2x512x512: eager | 64x2x512x512: torch.compile | share of copy bandwidth, large |",
        "|---|---|---|---|---|---|",
    ]
    rows = {
        (row["op"], row["size"], row["variant"]): row
        for row in result["ops"]
        if row["phase"] == "full" and row["dtype"] == "float32"
    }
    for op in dict.fromkeys(op for op, _, _ in rows):
        cells = [f"`{op}`"]
        for size in SIZES:
            for variant in ("eager", "compile"):
                row = rows.get((op, size, variant))
                cells.append(f"{float(row['slower_than_blsgan']):.1f}x" if row else "-")
        large = rows.get((op, "large", "blsgan"))
        cells.append(f"{100 * float(large['roofline']):.0f} %" if large else "-")
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    if counts := result.get("launches"):
        lines.append(
            f"The generator's objective: {counts['blsgan']} launches, {counts['eager']} in eager."
        )
    for batch, row in result.get("inference", {}).items():
        lines.append(
            f"`lite`, {batch} at a time: {row['p50_ms']:.1f} ms, {row['psnr_to_cpu_db']:.0f} dB "
            "from the CPU."
        )
    if training := result["training"]:
        lines += ["", "| " + " | ".join(training[0]) + " |", "|" + "---|" * len(training[0])]
        lines += ["| " + " | ".join(row.values()) + " |" for row in training]
    lines += ["", "| stage | | s |", "|---|---|---:|"]
    for stage, row in result["stages"].items():
        lines.append(f"| {stage} | {row['status']} | {row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE")
    parser.add_argument("--emulated", action="store_true", help="on the CPU, tiny")
    parser.add_argument("--report", type=Path, metavar="FILE", help="print a result as a table")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.report:
        print(report(json.loads(options.report.read_text(encoding="utf-8"))), end="")
        return 0
    try:
        import torch
    except ImportError:
        print("gpu_check: torch is not installed in this environment")
        return 2
    if options.emulated and not EMULATED_LIBRARY.exists():
        print("gpu_check: the emulated kernels are not built: run make emulate")
        return 2
    if not options.emulated and not torch.cuda.is_available():
        print("gpu_check: no CUDA device can be used here (torch.cuda.is_available() is False)")
        return 2
    plan = Plan(options.emulated, options.output)
    asked = []
    for word in options.stages or plan.stages:
        chosen = [name for name in plan.stages if name == word or name.startswith(f"{word}-")]
        if not chosen:
            parser.error(f"there is no stage {word}; choose from {', '.join(plan.stages)}")
        asked += chosen
    from blsgan.ops.benchmark import machine

    plan.result |= {
        "machine": machine(plan.device),
        "commit": commit(),
        "emulated": plan.emulated,
    }
    if not plan.emulated:
        plan.result["machine"]["capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
    results = {stage: plan.go(stage) for stage in asked}
    print(f"\n{report(plan.result)}\n{plan.file}")
    return 1 if "FAILED" in results.values() else 0


if __name__ == "__main__":
    sys.exit(main())
