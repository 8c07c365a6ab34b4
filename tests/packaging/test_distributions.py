"""The sdist and the wheel are complete, hold nothing else, and run where nothing else is.

The wheel is built from the sdist, so that a file missing from the sdist shows. Environments are
empty but for links to the installed distributions that the wheel declares (and what those need):
an import that is not declared fails, and no network is used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.slow

WEIGHTS = {
    f"{name}.{ending}" for name in ("lite", "segmenter", "locator") for ending in ("onnx", "json")
}
NATIVE_WORKS = """
import importlib.util, numpy as np, blsgan
assert importlib.util.find_spec("torch") is None, "this environment has a torch"
from blsgan.ops import native
image = np.linspace(0.1, 0.9, 12, dtype=np.float32).reshape(1, 1, 3, 4)
masks = np.zeros((1, 2, 3, 4), dtype=bool)
masks[:, 0, :2], masks[:, 1, 1:] = True, True
k = np.array([0.3], dtype=np.float32)
layers = native.split_attenuation(np.zeros((1, 2, 3, 4), np.float32), image, masks, k)
composed = native.compose_layers(layers, masks, k)
assert np.abs(composed - image).max() < 1e-6, np.abs(composed - image).max()
assert (layers[0, 0, 0] == image[0, 0, 0]).all() and (layers[0, 0, 2] == 0).all()
print("version", blsgan.__version__, native.build_info()["version"])
"""


def archive_names(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        files = (PurePosixPath(member.name) for member in archive if member.isfile())
        return {str(PurePosixPath(*file.parts[1:])) for file in files}


def metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_sdist_holds_everything_that_a_build_and_its_tests_need(sdist, tracked):
    names = archive_names(sdist)
    kinds = {".h", ".cpp", ".cu", ".cuh", ".py", ".pyi", ".yaml", ".onnx", ".safetensors", ".json"}
    kinds |= {".md", ".ipynb", ".csv"}
    folders = {"csrc", "blsgan", "build_backend", "tests", "docs", "benchmarks"}
    needed = {str(p) for p in tracked if p.parts[0] in folders and p.suffix in kinds}
    assert any(name.startswith("csrc/cuda/") for name in needed)
    assert needed - names == set()
    top = {"LICENSE", "README.md", "pyproject.toml", "setup.py", "CMakeLists.txt", "Makefile"}
    assert top - names == set()
    packed = {PurePosixPath(n).name for n in names if n.startswith("blsgan/weights/")}
    assert WEIGHTS - packed == set()


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_no_radiograph_and_nothing_built_is_packed_by_accident(kind, request):
    path = request.getfixturevalue(kind)
    names = archive_names(path) if kind == "sdist" else set(zipfile.ZipFile(path).namelist())
    images = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".npz", ".npy"}
    shown = {"docs/images/phantom_panel.png"}  # in the documents: a phantom and two plots
    shown |= {f"benchmarks/results/ops-{size}.png" for size in ("training", "large")}
    found = {n for n in names if PurePosixPath(n).suffix.lower() in images}
    assert found == (shown if kind == "sdist" else set())
    objects = {n for n in names if PurePosixPath(n).suffix in (".o", ".so", ".a", ".pyc")}
    ours = ("blsgan/_native.", "blsgan/_ops.") if kind == "wheel" else ()
    assert {n for n in objects if not n.startswith(ours)} == set()


def test_wheel_holds_the_package_both_libraries_and_the_weights(wheel, tracked):
    names = set(zipfile.ZipFile(wheel).namelist())
    kinds = {".py", ".pyi", ".typed", ".yaml"}
    modules = {str(p) for p in tracked if p.parts[0] == "blsgan" and p.suffix in kinds}
    assert modules - names == set()
    libraries = {PurePosixPath(n).name.split(".")[0] for n in names if n.endswith(".so")}
    assert libraries == {"_native", "_ops"}
    assert {f"blsgan/weights/{n}" for n in WEIGHTS} - names == set()
    assert not any(n.endswith(".safetensors") for n in names)  # each network once
    expected = ("blsgan/", f"blsgan-{metadata(wheel)['Version']}.dist-info/")
    assert {n for n in names if not n.startswith(expected)} == set()
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


def test_wheel_says_where_method_and_data_are_from(wheel):
    urls = [url.split(", ")[1] for url in metadata(wheel).get_all("Project-URL")]
    assert urls == ["https://arxiv.org/abs/2409.07304", "https://github.com/pokeblow/BLS-GAN"]


def test_wheel_asks_for_no_torch_unless_an_extra_does(wheel):
    requirements = metadata(wheel).get_all("Requires-Dist")
    assert any(line.startswith("numpy") for line in requirements)
    torch = [line for line in requirements if line.startswith("torch")]
    assert all("extra ==" in line for line in torch)
    assert any(line.startswith("torch>=2.11") and 'extra == "train"' in line for line in torch)
    assert [line for line in requirements if line.startswith("pylibjpeg-libjpeg")] == []  # GPL


def test_torch_ops_name_torch_and_no_path_of_this_machine(wheel, tmp_path, run):
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    zipfile.ZipFile(wheel).extract("blsgan/_ops.so", tmp_path)
    dynamic = run(["readelf", "-d", tmp_path / "blsgan" / "_ops.so"]).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert "libtorch.so" in needed  # dropped, the symbol of the current CUDA stream is null
    assert not any("python" in name for name in needed)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_wheel_runs_in_an_empty_environment(wheel, empty_environment, installed_closure, run):
    empty_environment.link(installed_closure(metadata(wheel).get_all("Requires-Dist")))
    empty_environment.pip_install(wheel)
    version = metadata(wheel)["Version"]
    assert empty_environment.run(NATIVE_WORKS).strip() == f"version {version} {version}"
    blsgan = empty_environment.root / "bin" / "blsgan"
    assert version in run([blsgan, "--version"], cwd=empty_environment.root).stdout
    # The main job, from weights to pictures, with nothing but the declared dependencies.
    out = empty_environment.root / "demo"
    run([blsgan, "demo", "-o", out], cwd=empty_environment.root)
    assert list(out.rglob("*_upper.png"))


def test_sdist_installs_without_torch(sdist, empty_environment, installed_closure):
    """``BLSGAN_TORCH=0``, the edge device: compiled from the sdist, no torch anywhere."""
    empty_environment.link(installed_closure(["setuptools", "pybind11", "wheel", "numpy", "click"]))
    empty_environment.pip_install("--no-build-isolation", sdist, env={"BLSGAN_TORCH": "0"})
    assert "version" in empty_environment.run(NATIVE_WORKS)
    assert not (empty_environment.site / "blsgan" / "_ops.so").exists()
    built_for = "from blsgan.ops import native; print(repr(native.build_info()['torch_abi']))"
    assert empty_environment.run(built_for).strip() == "''"


def test_torch_free_build_drops_the_ops_of_an_earlier_build(unpacked_sdist, tmp_path, run, wheel):
    """The tree that built ``wheel`` has torch ops in build/lib; a torch-free wheel has none."""
    assert "blsgan/_ops.so" in zipfile.ZipFile(wheel).namelist()
    (unpacked_sdist / "build" / "lib" / "blsgan").mkdir(parents=True, exist_ok=True)
    (unpacked_sdist / "build" / "lib" / "blsgan" / "gone.py").write_text("")
    code = (
        "import sys; sys.path.insert(0, 'build_backend'); from blsgan_build import pep517;"
        f"pep517.build_wheel({str(tmp_path)!r})"
    )
    run([sys.executable, "-c", code], cwd=unpacked_sdist, env={"BLSGAN_TORCH": "0"})
    (built,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    assert "blsgan/_ops.so" not in names
    assert "blsgan/gone.py" not in names


def test_cuda_asked_for_without_nvcc_is_one_clear_error(unpacked_sdist, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", tmp_path],
        cwd=unpacked_sdist,
        env={**environment, "PATH": str(tmp_path), "BLSGAN_CUDA": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "BLSGAN_CUDA=1 asks for the CUDA kernels, but no nvcc on PATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*.so")) == []
