"""The CUDA build of the ops, without a GPU: every architecture is inside, and CPU torch loads it.

``make cuda`` compiles and links it with nvcc and names it in BLSGAN_CUDA_LIBRARY; ``make
aarch64-ops`` does so for the machine that it names in BLSGAN_CUDA_MACHINE, where nothing is run.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))

from blsgan_build.cuda import DEFAULT_ARCHITECTURES  # noqa: E402

MACHINE = os.environ.get("BLSGAN_CUDA_MACHINE") or platform.machine()
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


@pytest.fixture(scope="module")
def library() -> Path:
    path = os.environ.get("BLSGAN_CUDA_LIBRARY")
    if not path:
        pytest.skip("BLSGAN_CUDA_LIBRARY is not set: `make cuda` builds the library and sets it")
    return Path(path).resolve(strict=True)


@pytest.fixture(scope="module")
def cuobjdump() -> str:
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump"))
    found = shutil.which("cuobjdump") or (str(packaged[-1]) if packaged else None)
    if found is None:
        pytest.skip("cuobjdump is not installed: the architectures in the library are NOT checked")
    return found


def listed(cuobjdump: str, what: str, library: Path) -> dict[str, int]:
    """Architecture -> number of code objects of the kind ``what`` (elf, ptx)."""
    done = subprocess.run(
        [cuobjdump, f"--list-{what}", library],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    counts: dict[str, int] = {}
    for architecture in re.findall(r"\.(?:sm|compute)_(\d+)[a-z]*\.", done.stdout):
        counts[architecture] = counts.get(architecture, 0) + 1
    return counts


def asked() -> list[str]:
    """The architectures that the library was to be compiled for; PTX too where ``+PTX`` is."""
    given = os.environ.get("BLSGAN_CUDA_ARCHS", "all")
    return (DEFAULT_ARCHITECTURES if given == "all" else given).split(";")


def number(architecture: str) -> str:
    return architecture.removesuffix("+PTX").replace(".", "")


def test_it_is_for_the_machine_that_was_asked_for(library):
    header = library.read_bytes()[:20]
    assert int.from_bytes(header[18:20], "little") == ELF_MACHINES[MACHINE]


def test_every_architecture_has_code_from_every_source(library, cuobjdump):
    wanted = {number(architecture) for architecture in asked()}
    found = listed(cuobjdump, "elf", library)
    assert set(found) == wanted
    assert set(found.values()) == {len(list((ROOT / "csrc" / "cuda").glob("*.cu")))}


def test_ptx_is_there_for_gpus_to_come(library, cuobjdump):
    wanted = {number(architecture) for architecture in asked() if architecture.endswith("+PTX")}
    assert set(listed(cuobjdump, "ptx", library)) == wanted


@pytest.mark.skipif(platform.machine() != MACHINE, reason="it is for another machine")
def test_cpu_torch_loads_it_and_runs_the_cpu_kernels(library):
    """One library for every torch: the CUDA shims are weak, cudart is inside."""
    code = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]);"
        "layers = torch.rand(1, 2, 3, 5); masks = torch.ones(1, 2, 3, 5, dtype=torch.bool);"
        "k = torch.tensor([0.3]); out = torch.ops.blsgan.compose_layers(layers, masks, k);"
        "true = 1 - (1 - layers).prod(1, keepdim=True) / 0.7;"
        "assert (out - true).abs().max() < 1e-6; print(torch.ops.blsgan.build_info())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, library],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cuda=yes" in done.stdout


def test_cudart_is_linked_statically(library):
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    done = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    assert "libtorch.so" in done.stdout
    assert "libcudart" not in done.stdout
