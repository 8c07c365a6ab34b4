"""The wheels that ``make wheels`` built: what is inside, and that they run where nothing else is.

``make wheels`` names their folder in BLSGAN_WHEELS. Their dependencies come from PyPI.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))

from blsgan_build.wheels import GLIBC, LARGEST_BYTES, find_pythons  # noqa: E402

if not os.environ.get("BLSGAN_WHEELS"):
    pytest.skip("BLSGAN_WHEELS is not set: `make wheels` builds and names them", True)
WHEELS = sorted(Path(os.environ["BLSGAN_WHEELS"]).resolve(strict=True).glob("*.whl"))
TORCHES = os.environ.get("BLSGAN_WHEEL_TORCHES", "").split()

BONES = ("upper", "lower")
HERE = [wheel for wheel in WHEELS if wheel.stem.endswith(platform.machine())]

every_wheel = pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name)
every_wheel_of_this_machine = pytest.mark.parametrize("wheel", HERE, ids=lambda wheel: wheel.name)


def tag(wheel: Path) -> str:
    return wheel.name.split("-")[2]


@pytest.fixture(scope="module")
def interpreters() -> dict[str, str]:
    """Interpreter for each wheel's tag."""
    code = "import sys; print('cp%d%d' % sys.version_info[:2])"
    found = find_pythons(os.environ.get("BLSGAN_WHEEL_PYTHONS", "").split())
    return {
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        .stdout.strip(): python
        for python in found
    }  # fmt: skip


@pytest.fixture
def make_environment(interpreters, run):
    """``make_environment(wheel, *packages)`` -> a new environment's folder with what pip got."""
    # Not pytest's own folder, which it keeps: one with torch has gigabytes.
    with tempfile.TemporaryDirectory(prefix="blsgan-wheel-") as folder:

        def make(wheel: Path, *packages: str) -> Path:
            run([interpreters[tag(wheel)], "-m", "venv", folder])
            pip = [Path(folder, "bin", "python"), "-m", "pip", "install", "--quiet"]
            run([*pip, "--no-compile", *packages, wheel], cwd=folder)
            return Path(folder)

        yield make


def test_there_are_wheels():
    assert HERE
    others = {tag(wheel) for wheel in WHEELS if wheel not in HERE}
    assert others in (set(), {tag(wheel) for wheel in HERE})


@every_wheel
def test_wheel_is_small_and_holds_nothing_twice(wheel):
    assert wheel.stat().st_size <= LARGEST_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
        libraries = {
            str(name): archive.read(str(name)) for name in names if ".so" in name.name
        }  # fmt: skip
    networks = [name.stem for name in names if name.suffix in (".onnx", ".safetensors")]
    assert sorted(networks) == ["lite", "locator", "segmenter"]
    expected = {"_native", "_ops"} if wheel in HERE else {"_native"}
    assert {PurePosixPath(name).name.split(".")[0] for name in libraries} == expected
    for name, content in libraries.items():
        assert not re.search(rb"lib(g|i)?omp\d*\.so", content), f"{name} needs an OpenMP runtime"
        assert str(ROOT).encode() not in content, f"{name} names a folder of this machine"


@every_wheel
def test_name_says_the_oldest_glibc(wheel):
    platforms = re.findall(r"manylinux_(\d+)_(\d+)_(?:x86_64|aarch64)", wheel.name)
    assert platforms
    assert all((int(major), int(minor)) <= GLIBC for major, minor in platforms)


@every_wheel_of_this_machine
def test_an_older_glibc_is_refused_in_one_sentence(wheel, interpreters, tmp_path):
    """As pip on Ubuntu 20.04 does, which it takes this machine for."""
    pip = [interpreters[tag(wheel)], "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    older = f"manylinux_2_31_{platform.machine()}"
    command = [*pip, "--no-index", "--platform", older, "-d", tmp_path, wheel]
    done = subprocess.run(map(str, command), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is not a supported wheel on this platform" in done.stderr


@every_wheel_of_this_machine
def test_without_torch_it_separates_segments_measures_and_reports(wheel, make_environment, run):
    folder = make_environment(wheel)
    none = "import importlib.util as u; assert u.find_spec('torch') is None"
    run([folder / "bin" / "python", "-c", none], cwd=folder)

    def blsgan(*arguments: object) -> str:
        return run([folder / "bin" / "blsgan", *arguments], cwd=folder).stdout

    (folder / "joints").mkdir()
    for seed, name in enumerate(("first", "second")):
        blsgan("demo", "-o", name, "--seed", seed)
        (folder / name / "phantom.png").rename(folder / "joints" / f"{name}.png")
    first = "joints/first.png"
    blsgan("segment", first, "-o", "masks")
    blsgan("separate", "joints", "-o", "layers")
    blsgan("jsn", first, first, "-o", "jsn", "--pixel-spacing", "0.1")
    blsgan("report", "layers", "jsn", "-o", "report.html")
    made = {str(path.relative_to(folder)) for path in folder.glob("*/*.*")}
    layers = {f"layers/{name}_{bone}.png" for name in ("first", "second") for bone in BONES}
    assert layers | {"masks/first_mask_upper.png", "jsn/jsn.json"} <= made
    assert "second" in (folder / "report.html").read_text(encoding="utf-8")
    assert "torch" in blsgan("doctor")


@pytest.mark.parametrize("torch", TORCHES)
def test_torch_ops_run_under_the_oldest_and_the_newest_torch(torch, make_environment, run):
    """``newest`` is what pip takes by itself; the tests of the ops run, installed, from a copy."""
    wheel = HERE[-1]
    wanted = "torch" if torch == "newest" else f"torch=={torch}"
    folder = make_environment(wheel, wanted, "pytest", "hypothesis")
    tests = folder / "tests"
    tests.mkdir()
    shutil.copy2(ROOT / "tests" / "conftest.py", tests)
    shutil.copytree(ROOT / "tests" / "ops", tests / "ops")
    shutil.copy2(ROOT / "pyproject.toml", folder)
    python = folder / "bin" / "python"
    where = "import torch, blsgan; print(torch.__version__, blsgan.__file__)"
    version, path = run([python, "-I", "-c", where], cwd=folder).stdout.split()[-2:]
    assert version.startswith(torch) or torch == "newest"
    assert Path(path).is_relative_to(folder)
    output = run(
        # Those of the benchmarks want the scripts that a wheel does not hold.
        [
            folder / "bin" / "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "tests/ops",
            "--ignore=tests/ops/test_bench.py",
        ],
        cwd=folder,
        env={"CXXFLAGS": None},
    ).stdout
    print(f"torch {version}: {output.splitlines()[-1]}")
