"""Breaks the CUDA kernels in known ways and sees that the emulator's test notices every one.

    python csrc/tests/cuda_emulator/mutants.py [BUILD]     of CMake, with test_emulated in it

Each mutant is one change of text in a copy of csrc/cuda, of which one op is compiled and put in the
place of the build's. Exit status 1 when the test passes in spite of a change, or when a change no
longer applies.
"""

# The sources' lines are quoted whole.
# ruff: noqa: E501

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CASES = "16"


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` wherever it stands in ``file``; ``op`` is the one that is run."""

    name: str
    file: str
    old: str
    new: str
    op: str = "layer_loss"


def common(name: str, old: str, new: str, op: str = "layer_loss") -> Mutant:
    return Mutant(name, "common.cuh", old, new, op)


BACKWARD_LAYER = "        load(a.true_layers, at, i, truth);\n#pragma unroll\n        for (int t = 0; t < kLanes; ++t) {\n          grad[t]"
AS_OUTPUT = "{const_cast<void*>(a.layers.data), a.layers.stride_batch, a.layers.stride_channel, a.layers.stride_pixel, a.layers.dtype}"
AS_INPUT = "{a.grad_layers.data, a.grad_layers.stride_batch, a.grad_layers.stride_channel, a.grad_layers.stride_pixel, a.grad_layers.dtype}"

MUTANTS = (
    # Barriers and shuffles
    common("no barrier before the second stage", "__syncthreads();\n  if (warp == 0)", "if (warp == 0)"),
    common("no barrier after the second stage", "__syncthreads();  // the next", "// the next"),
    common("a barrier that one warp reaches", "  }\n  __syncthreads();  //", "  __syncthreads();\n  }  //"),
    common("every warp's sum in one place", "warp_sums[k][warp] =", "warp_sums[k][0] ="),
    common("every lane writes the warp's sum", "if (lane == 0) warp_sums", "warp_sums"),
    common("every thread writes the partial sum", "  if (threadIdx.x == 0) {\n#pragma", "  {\n#pragma"),
    common("a mask of half a warp", "0xffffffffu, values[k]", "0xffffu, values[k]"),
    common("a reduction from half a warp", "offset = 16;", "offset = 8;"),
    common("one warp too many in the second stage", "lane < warps ?", "lane <= warps ?"),
    Mutant(
        "a reduction under a branch",
        "layer_loss.cu",
        "    store_partials",
        "    if (at.count > 0) store_partials",
    ),
    # Bounds, alignment, offsets
    common("alignment not asked for", " && where % align == 0", ""),
    common("vectors past the image's end", "at.count == kLanes && ", ""),
    common("vectors across strides", "view.stride_pixel == 1 && ", ""),
    common("reads past the end", "t < at.count ? static_cast<T>(source[t * step]) : T(0)",
           "static_cast<T>(source[t * step])"),
    common("writes past the end", "if (t < at.count) target", "target"),
    common("a count that is never less", "(left < kLanes ? left : kLanes)", "kLanes"),
    common("offsets of 32 bits", "const int64_t offset = at.batch", "const int32_t offset = at.batch"),
    common("images not told apart", "item % per_image * kChunkPixels", "item * kChunkPixels"),
    common("layers not told apart", "channel * view.stride_channel +\n                         at.begin",
           "at.begin"),
    common("a row of sums too many", "row < end; row", "row <= end; row"),
    common("overlapping rows of sums", "partials[item * K + k] =", "partials[item + k] ="),
    common("a mask's bytes taken twice", "8 * (t % 4)", "8 * (t % 2)"),
    Mutant("a work item left out", "layer_loss.cu", "item += gridDim.x", "item += gridDim.x + 1"),
    Mutant("statistics not written", "rmse.cuh", "    a.statistics[1] = sums[1];\n", ""),
    Mutant("an input written", "layer_loss.cu", "store(a.grad_layers, at, i, grad);",
           f"store(MutableView{AS_OUTPUT}, at, i, grad);"),
    Mutant("an output read as constant", "layer_loss.cu", BACKWARD_LAYER,
           f"store(a.grad_layers, at, i, layer), load(View{AS_INPUT}, at, i, layer);\n"
           + BACKWARD_LAYER),
    Mutant("the other half's plane", "supervisor_loss.cu", "i + half * layers", "i + half",
           "supervisor_loss"),
    Mutant("overlap and mask swapped", "supervisor_loss.cu", "mask & ~overlap", "overlap & ~mask",
           "supervisor_loss"),
    Mutant("edges past the image's end", "synthesize_overlap.cu",
           "      if (p >= a.shape.pixels()) break;\n      const int64_t y = p / a.shape.width, x = p % a.shape.width;\n      const Gradient",
           "      const int64_t y = p / a.shape.width, x = p % a.shape.width;\n      const Gradient",
           "synthesize_overlap"),
    Mutant("the edge read before it is written", "synthesize_overlap.cu",
           "const uint8_t* overlap = a.of(0, batch);", "const uint8_t* overlap = a.of(1, batch);",
           "synthesize_overlap"),
    Mutant("smoothed with rows outside", "synthesize_overlap.cu", "mirrored(y, v, height)", "y + v",
           "synthesize_overlap"),
)  # fmt: skip


class Build:
    """The objects of a finished build, and how they came about."""

    def __init__(self, folder: Path):
        self.folder = folder
        commands = json.loads((folder / "compile_commands.json").read_text(encoding="utf-8"))
        self.compile = {
            Path(entry["file"]).stem: entry
            for entry in commands
            if "blsgan_emulated_kernels" in entry["command"]
        }
        emulator = next(e for e in commands if e["file"].endswith("cuda_emulator/emulator.cpp"))
        self.emulator = self.output_of(emulator)
        self.compiler = shlex.split(emulator["command"])[0]
        self.exports = Path(__file__).with_name("exports.map")
        self.test = folder / "test_emulated"

    def output_of(self, entry: dict[str, str]) -> Path:
        words = shlex.split(entry["command"])
        return Path(entry["directory"], words[words.index("-o") + 1])

    def library(self, mutant: Mutant, folder: Path) -> str:
        """Compile and link the mutant; "" or what the compiler says."""
        csrc = folder / "csrc"
        shutil.copytree(ROOT / "csrc" / "cuda", csrc / "cuda")
        for header in (ROOT / "csrc").glob("*.h"):
            shutil.copy(header, csrc)
        file = csrc / "cuda" / mutant.file
        text = file.read_text(encoding="utf-8")
        if mutant.old not in text:
            return f"{mutant.file} does not hold what the mutant changes"
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        entry = self.compile[mutant.op]
        words = shlex.split(entry["command"])
        at = words.index("-o")
        words[at + 1] = str(folder / "op.o")
        words[words.index("-c") + 1] = str(csrc / "cuda" / f"{mutant.op}.cu")
        objects = [self.output_of(e) for op, e in self.compile.items() if op != mutant.op]
        link = [
            self.compiler, "-shared", "-o", str(folder / "libblsgan_emulated.so"),
            "-Wl,-soname,libblsgan_emulated.so", f"-Wl,--version-script={self.exports}",
            str(folder / "op.o"), str(self.emulator), *map(str, objects), "-ldl",
        ]  # fmt: skip
        for command in (words, link):
            done = subprocess.run(
                command, cwd=entry["directory"], capture_output=True, text=True, check=False
            )
            if done.returncode:
                return done.stderr
        return ""

    def run(self, mutant: Mutant) -> tuple[str, str]:
        """What became of the mutant: "noticed", "PASSED" or "BROKEN", and the first line on it."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if problem := self.library(mutant, folder):
                return "BROKEN", problem
            done = subprocess.run(
                [self.test, CASES, mutant.op],
                env={**os.environ, "LD_PRELOAD": str(folder / "libblsgan_emulated.so")},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=300,
                check=False,
            )
        lines = (done.stdout + done.stderr).splitlines() or [f"status {done.returncode}"]
        said = re.sub(r"^.*cudaErrorLaunchFailure \(|; address.*$", "", lines[0])
        return ("noticed" if done.returncode else "PASSED"), said


def main() -> int:
    build = Build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "cmake").resolve())
    begin = time.monotonic()
    as_it_is = Mutant("nothing", "common.cuh", "#pragma once", "#pragma once")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(build.run, (as_it_is, *MUTANTS)))
    sound = results[0][0] == "PASSED"
    bad = [] if sound else [f"unchanged kernels fail: {results[0][1]}"]
    for mutant, (result, said) in zip(MUTANTS, results[1:], strict=True):
        print(f"{result}: {mutant.name} ({mutant.op}): {said.strip()[:140]}")
        if result != "noticed":
            bad.append(f"{mutant.name}: {result} {said}")
    print(
        f"{len(MUTANTS) - len(bad)} of {len(MUTANTS)} mutants noticed, {time.monotonic() - begin:.0f} s"
    )
    print("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
