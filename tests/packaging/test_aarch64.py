"""What the cross-built aarch64 wheel, runner and C++ tests do when qemu runs them.

``make test-aarch64`` prepares the folder and names it in BLSGAN_AARCH64.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("BLSGAN_AARCH64", "")).resolve()
if not (FOLDER / "bin" / "python").is_file():
    pytest.skip("BLSGAN_AARCH64 is not set: `make test-aarch64` prepares and names it", True)
PYTHON = FOLDER / "bin" / "python"


def run(*command: object, cwd: Path, **options) -> str:
    """What ``command`` says; a failure is told with it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=600,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def one_core():
    """Of several of pytest's processes each has a core: emulated threads wait by spinning."""
    cores = sorted(os.sched_getaffinity(0))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> dict[str, Path]:
    """``blsgan demo`` by both machines, beside each other."""
    folder = tmp_path_factory.mktemp("demos")
    processes = {
        name: subprocess.Popen(
            [python, "-m", "blsgan", "demo", "-o", folder / name],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, python in (("here", sys.executable), ("aarch64", PYTHON))
    }
    for name, process in processes.items():
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, f"{name}: {output[-6000:]}"
    return {name: folder / name for name in processes}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def assert_within_a_step(folder: Path, other: Path, names: set[str]) -> None:
    """The same 16-bit pictures, but for rounding: at most 1/65535 apart, in at most one of 100."""
    for name in sorted(names):
        difference = np.abs(pixels(folder / name) - pixels(other / name))
        assert difference.max() <= 1, f"{name}: {difference.max()} steps apart"
        assert (difference > 0).mean() < 0.01, f"{name}: {(difference > 0).mean():.1%} differ"


def test_import_is_of_the_wheel_and_of_that_machine(tmp_path):
    code = (
        "import platform, sys, blsgan; from blsgan.ops import native;"
        "print(platform.machine(), blsgan.__file__, native.__name__, 'torch' in sys.modules)"
    )
    machine, path, _, torch = run(PYTHON, "-c", code, cwd=tmp_path).split()[-4:]
    assert (machine, torch) == ("aarch64", "False")
    assert Path(path).is_relative_to(FOLDER / "site")


def test_doctor_finds_what_it_needs(tmp_path):
    output = run(PYTHON, "-m", "blsgan", "doctor", cwd=tmp_path)
    assert "aarch64" in output
    assert "onnx" in output


def test_the_demo_has_the_pixels_of_this_machine(demos):
    names = {path.name for path in demos["here"].glob("*.png")}
    assert {path.name for path in demos["aarch64"].glob("*.png")} == names
    layers = {f"phantom_{name}.png" for name in ("upper", "lower", "reconstruction")}
    assert layers < names
    assert_within_a_step(demos["here"], demos["aarch64"], layers)
    for name in ("phantom.png", "phantom_mask_upper.png", "phantom_mask_lower.png"):
        assert_within_a_step(demos["here"], demos["aarch64"], {name})


def test_the_runner_has_the_pixels_of_python(demos, tmp_path):
    (library,) = (FOLDER / "site" / "onnxruntime" / "capi").glob("libonnxruntime.so*")
    joint = demos["here"]
    run(
        FOLDER / "bin" / "blsgan-infer",
        joint / "phantom.png",
        "--upper-mask", joint / "phantom_mask_upper.png",
        "--lower-mask", joint / "phantom_mask_lower.png",
        "--weights", FOLDER / "site" / "blsgan" / "weights" / "lite.onnx",
        "--onnxruntime", library,
        "-o", tmp_path,
        cwd=tmp_path,
    )  # fmt: skip
    layers = {f"phantom_{name}.png" for name in ("upper", "lower", "reconstruction")}
    assert_within_a_step(joint, tmp_path, layers)


def test_the_cpp_tests_pass(tmp_path):
    # A build lists what was compiled; what was not is reported as not run, and so are failures.
    output = run(
        "ctest", "--test-dir", FOLDER / "cmake", "--output-on-failure", "--no-tests=error",
        "--exclude-regex", "emulated|fuzz",
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert "100% tests passed" in output


def test_the_numpy_ops_pass_their_tests(tmp_path):
    (tmp_path / "tests" / "ops").mkdir(parents=True)
    shutil.copy2(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    shutil.copy2(ROOT / "tests" / "ops" / "test_native.py", tmp_path / "tests" / "ops")
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops"]
    output = run(*command, cwd=tmp_path)
    assert " passed" in output.splitlines()[-1]
