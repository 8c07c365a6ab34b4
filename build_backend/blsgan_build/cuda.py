"""Whether CUDA kernels are built, with which nvcc and for which architectures."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from blsgan_build.torch_source import BuildError, Torch, switch

# Everything that nvcc 13 still supports and that runs torch, Jetson Orin (8.7) and Thor (11.0) too,
# with PTX for what comes later.
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;8.7;8.9;9.0;10.0;11.0;12.0+PTX"


@dataclass(frozen=True)
class CudaPlan:
    """What to do about CUDA. ``nvcc`` is None where no CUDA is built, and ``reason`` says why."""

    nvcc: str | None
    root: Path | None
    architectures: tuple[str, ...]
    reason: str
    required: bool = False

    @property
    def gencode(self) -> list[str]:
        """nvcc's flags: machine code for each architecture, and PTX where ``+PTX`` is written."""
        flags = []
        for architecture in self.architectures:
            number = architecture.removesuffix("+PTX").replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if architecture.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags


def _find_nvcc() -> str | None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            candidate = Path(home, "bin", "nvcc")
            return str(candidate) if candidate.exists() else None
    return shutil.which("nvcc")


def toolkit_root(nvcc: str) -> Path:
    """The toolkit's folder as nvcc itself sees it: ``nvcc`` on the path may be a wrapper."""
    done = subprocess.run(
        [nvcc, "--dryrun", "none.cu"], capture_output=True, text=True, timeout=60, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", done.stdout + done.stderr, re.MULTILINE)
    return Path(top.group(1).strip()).resolve() if top else Path(nvcc).resolve().parent.parent


def _supported(nvcc: str) -> set[str]:
    done = subprocess.run(
        [nvcc, "--list-gpu-code"], capture_output=True, text=True, timeout=60, check=True
    )
    return set(re.findall(r"sm_(\d+)\b", done.stdout))


def _visible_gpu() -> list[str]:
    """Compute capabilities of the GPUs of this machine, [] where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(set(re.findall(r"^\d+\.\d+$", done.stdout, re.MULTILINE)))


def choose_architectures(asked: str | None, visible: list[str], supported: set[str]) -> list[str]:
    """Architectures to compile for: those asked for, else the visible GPUs', else all.

    Args:
        asked: ``BLSGAN_CUDA_ARCHS``, such as ``8.6;9.0+PTX``, or ``all`` for the default list
            whatever GPU is visible; None or empty when not set.
        visible: compute capabilities of this machine's GPUs, such as ``["8.9"]``.
        supported: what nvcc can compile for, such as ``{"75", "90"}``.

    Raises:
        BuildError: an architecture that was asked for is malformed or not supported by this nvcc,
            or nothing is left to compile for.
    """
    asked = (asked or "").strip()
    if asked and asked != "all":
        chosen = [part.strip() for part in re.split(r"[;,\s]+", asked) if part.strip()]
        for architecture in chosen:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", architecture):
                raise BuildError(
                    f"BLSGAN_CUDA_ARCHS={asked} is not understood at '{architecture}': write"
                    " compute capabilities such as 8.6;9.0+PTX."
                )
            number = re.sub(r"[af]?(\+PTX)?$", "", architecture).replace(".", "")
            if number not in supported:
                listed = ", ".join(sorted(supported, key=int))
                raise BuildError(
                    f"This nvcc cannot compile for {architecture} (BLSGAN_CUDA_ARCHS={asked}): it"
                    f" supports {listed}."
                )
        return chosen
    if visible and not asked:
        # The driver of a GPU newer than nvcc compiles the default list's PTX.
        known = [capability for capability in visible if capability.replace(".", "") in supported]
        if known == visible:
            return known
    usable = [
        architecture
        for architecture in DEFAULT_ARCHITECTURES.split(";")
        if architecture.removesuffix("+PTX").replace(".", "") in supported
    ]
    if not usable:
        raise BuildError(
            f"This nvcc supports none of {DEFAULT_ARCHITECTURES}: set BLSGAN_CUDA_ARCHS, or"
            " BLSGAN_CUDA=0 to build without CUDA."
        )
    if not usable[-1].endswith("+PTX"):
        usable[-1] += "+PTX"
    return usable


def plan_cuda(torch: Torch | None, have_sources: bool) -> CudaPlan:
    """Decide from ``BLSGAN_CUDA`` (auto, 0, 1), nvcc and the torch at hand.

    ``auto`` builds CUDA where an nvcc is found AND the installed torch has CUDA: compiling for
    every architecture takes minutes that a machine with a CPU build of torch would not use. ``1``
    builds it in any case (the ops' library is the same under every torch) and fails otherwise.

    Raises:
        BuildError: ``BLSGAN_CUDA=1`` and it cannot be done.
    """
    wish = switch("BLSGAN_CUDA")
    if wish == "0":
        return CudaPlan(None, None, (), "BLSGAN_CUDA=0")
    required = wish == "1"
    nvcc = _find_nvcc()
    reason = ""
    if torch is None:
        reason = "built without torch (BLSGAN_TORCH=0)"
    elif not have_sources:
        reason = "the source tree has no csrc/cuda/*.cu"
    elif nvcc is None:
        reason = "no nvcc on PATH or in CUDA_HOME"
    elif torch.cuda is None and not required:
        reason = f"torch {torch.version} has no CUDA (BLSGAN_CUDA=1 builds the kernels anyway)"
    if reason:
        if required:
            raise BuildError(
                f"BLSGAN_CUDA=1 asks for the CUDA kernels, but {reason}: install the CUDA toolkit"
                " and put nvcc on PATH or set CUDA_HOME, or leave BLSGAN_CUDA unset."
                if nvcc is None
                else f"BLSGAN_CUDA=1 asks for the CUDA kernels, but {reason}."
            )
        return CudaPlan(None, None, (), reason)
    assert nvcc is not None
    architectures = choose_architectures(
        os.environ.get("BLSGAN_CUDA_ARCHS"), _visible_gpu(), _supported(nvcc)
    )
    return CudaPlan(nvcc, toolkit_root(nvcc), tuple(architectures), "", required)
