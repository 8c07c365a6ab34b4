"""What the build decides before it compiles: which torch, whether CUDA, which architectures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_backend"))

from blsgan_build import cuda, torch_source, wheels  # noqa: E402
from blsgan_build.torch_source import BuildError, Torch  # noqa: E402

NVCC_13 = {"75", "80", "86", "87", "88", "89", "90", "100", "103", "110", "120", "121"}
NVCC_12_4 = {"50", "60", "70", "75", "80", "86", "87", "89", "90"}
TORCH_CPU = Torch(Path("/torch"), "2.13.0+cpu", None)
TORCH_CUDA = Torch(Path("/torch"), "2.13.0+cu130", "13.0")


@pytest.fixture(autouse=True)
def no_switches(monkeypatch):
    for name in ("BLSGAN_CUDA", "BLSGAN_CUDA_ARCHS", "BLSGAN_TORCH", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_architectures_asked_for_come_first():
    chosen = cuda.choose_architectures("8.6; 9.0+PTX", ["8.9"], NVCC_13)
    assert chosen == ["8.6", "9.0+PTX"]


def test_architecture_of_the_visible_gpu():
    assert cuda.choose_architectures(None, ["8.9"], NVCC_13) == ["8.9"]


def test_without_a_gpu_all_are_built_and_the_last_has_ptx():
    chosen = cuda.choose_architectures("", [], NVCC_13)
    assert ";".join(chosen) == cuda.DEFAULT_ARCHITECTURES


def test_the_documentation_lists_the_architectures():
    page = (ROOT / "docs/how-to/gpu.md").read_text(encoding="utf-8")
    listed = page.split("compiled and linked for ")[1].split(" and PTX")[0]
    assert re.findall(r"\d+\.\d", listed) == re.findall(r"\d+\.\d", cuda.DEFAULT_ARCHITECTURES)


def test_all_ignores_the_visible_gpu():
    assert (
        ";".join(cuda.choose_architectures("all", ["8.9"], NVCC_13)) == cuda.DEFAULT_ARCHITECTURES
    )


def test_an_older_nvcc_builds_what_it_can_with_ptx_for_the_rest():
    assert cuda.choose_architectures(None, [], NVCC_12_4)[-1] == "9.0+PTX"


def test_a_gpu_newer_than_nvcc_gets_the_list_that_has_ptx():
    assert cuda.choose_architectures(None, ["12.0"], NVCC_12_4)[-1] == "9.0+PTX"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("3.5", "cannot compile for 3.5"),
        ("9.0,7.0", "cannot compile for 7.0"),
        ("Hopper", "not understood at 'Hopper'"),
        ("90", "not understood at '90'"),
        ("9.0+ptx", "not understood at '9.0+ptx'"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_named(asked, message):
    with pytest.raises(BuildError, match=message.replace("+", r"\+")):
        cuda.choose_architectures(asked, [], NVCC_13)


def test_gencode_has_machine_code_for_each_and_ptx_where_written():
    plan = cuda.CudaPlan("nvcc", Path("/cuda"), ("7.5", "12.0+PTX"), "")
    assert plan.gencode == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def fake_nvcc(folder: Path) -> Path:
    """An nvcc that answers what the build asks before it compiles."""
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(
        f'#!/bin/sh\ncase "$1" in\n--dryrun) echo "#$ TOP={folder}" >&2 ;;\n'
        "--list-gpu-code) echo sm_80 sm_90 ;;\nesac\n"
    )
    nvcc.chmod(0o755)
    return nvcc


def test_auto_builds_cuda_for_a_torch_with_cuda(monkeypatch, tmp_path):
    fake_nvcc(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(cuda, "_visible_gpu", list)
    plan = cuda.plan_cuda(TORCH_CUDA, have_sources=True)
    assert plan.architectures == ("8.0", "9.0+PTX")
    assert plan.root == tmp_path
    assert not plan.required


def test_auto_says_why_it_builds_no_cuda(monkeypatch, tmp_path):
    fake_nvcc(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert "has no CUDA" in cuda.plan_cuda(TORCH_CPU, have_sources=True).reason
    assert "csrc/cuda" in cuda.plan_cuda(TORCH_CUDA, have_sources=False).reason
    assert "BLSGAN_TORCH=0" in cuda.plan_cuda(None, have_sources=True).reason
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert "no nvcc" in cuda.plan_cuda(TORCH_CUDA, have_sources=True).reason
    monkeypatch.setenv("BLSGAN_CUDA", "0")
    assert cuda.plan_cuda(TORCH_CUDA, have_sources=True).reason == "BLSGAN_CUDA=0"


def test_one_builds_cuda_even_for_a_torch_without(monkeypatch, tmp_path):
    fake_nvcc(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("BLSGAN_CUDA", "1")
    assert cuda.plan_cuda(TORCH_CPU, have_sources=True).required


@pytest.mark.parametrize(
    ("torch", "sources"), [(None, True), (TORCH_CUDA, False), (TORCH_CUDA, True)]
)
def test_one_fails_where_it_cannot(monkeypatch, tmp_path, torch, sources):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("BLSGAN_CUDA", "1")
    with pytest.raises(BuildError, match="BLSGAN_CUDA=1 asks for the CUDA kernels, but"):
        cuda.plan_cuda(torch, have_sources=sources)


def test_a_switch_that_is_not_understood_is_named(monkeypatch):
    monkeypatch.setenv("BLSGAN_CUDA", "yes")
    with pytest.raises(BuildError, match="BLSGAN_CUDA=yes is not understood"):
        cuda.plan_cuda(TORCH_CUDA, have_sources=True)


def write_torch(folder: Path, version: str, cuda_version: str | None = None) -> Path:
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the build must not import torch')\n")
    (package / "version.py").write_text(
        "from typing import Optional\n"
        f"__version__ = '{version}'\n"
        f"cuda: Optional[str] = {cuda_version!r}\n"
    )
    return package


def test_torch_is_read_without_being_imported(monkeypatch, tmp_path):
    package = write_torch(tmp_path, "2.14.1+cu130", "13.0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert torch_source.find_torch() == Torch(package, "2.14.1+cu130", "13.0")


def test_torch_too_old_for_the_stable_abi_is_named(monkeypatch, tmp_path):
    write_torch(tmp_path, "2.9.1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(BuildError, match=r"torch 2\.9\.1 in .* is older than 2\.11"):
        torch_source.find_torch()


@pytest.fixture
def tools(tmp_path):
    """A folder with setuptools alone, as in an isolated build."""
    import setuptools

    folder = tmp_path / "tools"
    folder.mkdir()
    site = Path(setuptools.__file__).parent.parent
    for name in ("setuptools", "_distutils_hack", "pkg_resources"):
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return folder


class TestBackendAsksForTorch:
    """-S hides site-packages from an interpreter, as pip's build isolation does."""

    def ask(self, environment, tools, *flags, **variables):
        code = (
            f"import sys; sys.path[:0] = [{str(ROOT / 'build_backend')!r}, {str(tools)!r}];"
            "from blsgan_build import pep517; print('NEEDS', *pep517._requires(None, lambda _: []))"
        )
        done = subprocess.run(
            [environment.python, *flags, "-c", code],
            capture_output=True,
            text=True,
            cwd=environment.root,
            env={"PATH": os.environ["PATH"], **variables},
            timeout=120,
            check=True,
        )
        return done.stdout.split("NEEDS", 1)[1].split()

    def test_where_there_is_none(self, empty_environment, tools):
        assert self.ask(empty_environment, tools, "-S") == [torch_source.TORCH_REQUIREMENT]

    def test_not_where_there_is_one(self, empty_environment, tools):
        write_torch(empty_environment.site, "2.12.0")
        assert self.ask(empty_environment, tools, "-S") == []
        assert self.ask(empty_environment, tools) == []

    def test_not_in_the_active_environment_of_another_frontend(
        self, empty_environment, tools, tmp_path
    ):
        """``build`` and uv isolate with an environment of their own; VIRTUAL_ENV is the user's."""
        write_torch(empty_environment.site, "2.12.0")
        isolated = tmp_path / "isolated"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", isolated], check=True)
        other = type(empty_environment)(isolated)
        assert self.ask(other, tools) == [torch_source.TORCH_REQUIREMENT]
        assert self.ask(other, tools, VIRTUAL_ENV=str(empty_environment.root)) == []

    def test_not_when_it_is_not_wanted(self, empty_environment, tools):
        assert self.ask(empty_environment, tools, "-S", BLSGAN_TORCH="0") == []


class TestWheels:
    @pytest.mark.parametrize(
        ("facts", "message"),
        [("3 9 True", r"is Python 3\.9: wheels are made for 3\.10 to 3\.14"),
         ("3 12 False", r"has no Python\.h"),
         (None, "it does not run")],
    )  # fmt: skip
    def test_a_python_that_no_wheel_can_be_made_for_is_named(self, tmp_path, facts, message):
        python = tmp_path / "python"
        if facts is not None:
            python.write_text(f"#!/bin/sh\necho {facts}\n")
            python.chmod(0o755)
        with pytest.raises(BuildError, match=message):
            wheels.find_pythons([str(python)])

    def test_only_what_a_build_left_is_removed(self, tmp_path):
        (tmp_path / "work" / "1").mkdir(parents=True)
        (tmp_path / "blsgan-0.1.0.tar.gz").touch()
        wheels._clear(tmp_path)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "thesis.tex").touch()
        (tmp_path / "blsgan-0.1.0.tar.gz").touch()
        with pytest.raises(BuildError, match=r"holds thesis\.tex, which no build of wheels left"):
            wheels._clear(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
