"""An sdist of the tree, a wheel built from that sdist, and environments without anything else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


# Builds use no CUDA toolchain, sanitizer or path that the caller's shell may have set. What is
# tested is what gets packed and found, so the kernels are compiled quickly, not well.
CLEAN = {
    "BLSGAN_CUDA": "0",
    "BLSGAN_SANITIZE": None,
    "BLSGAN_TORCH": None,
    "CXXFLAGS": "-O1",
    "PYTHONPATH": None,
}


def _run(command: list[object], **options) -> subprocess.CompletedProcess:
    """Run ``command`` without input; its output is in the failure if it fails.

    ``env`` is added to the environment (None takes a variable away).
    """
    environment = {**os.environ, **CLEAN, **options.pop("env", {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        env=environment,
        check=False,
        **{"cwd": ROOT, **options},
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done


def closure(requirements: list[str]) -> set[str]:
    """Names of the installed distributions that ``requirements`` need, extras left out."""
    names: set[str] = set()
    waiting = [re.match(r"[\w.-]+", line)[0] for line in requirements if "extra ==" not in line]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in names:
            continue
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # a marker of another platform or Python; imports will tell
        names.add(name)
        waiting += [re.match(r"[\w.-]+", line)[0] for line in needed if "extra ==" not in line]
    return names


@dataclass
class Environment:
    """A virtual environment that holds nothing but what a test puts there."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    @property
    def site(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.root / "lib" / version / "site-packages"

    def link(self, names: set[str]) -> None:
        """Make these installed distributions, and no others, importable here by symbolic links."""
        for name in sorted(names):
            dist = distribution(name)
            for top in {Path(file).parts[0] for file in dist.files or []} - {"..", "__pycache__"}:
                source = Path(dist.locate_file(top))
                if source.exists() and not (self.site / top).exists():
                    (self.site / top).symlink_to(source)

    def pip_install(self, *arguments: object, **options) -> None:
        # `pip --python` runs this interpreter's pip for that environment, which has none itself.
        _run([sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps",
             "--no-index", *arguments], **options)  # fmt: skip

    def run(self, code: str, **options) -> str:
        # From a folder where the source tree cannot be imported by accident.
        return _run([self.python, "-c", code], cwd=self.root, **options).stdout


@pytest.fixture(scope="session")
def run():
    """``run(command, cwd=, env=)`` -> the finished process, its stdout and stderr together."""
    return _run


@pytest.fixture(scope="session")
def installed_closure():
    """``installed_closure(requirements)`` -> names of the installed distributions they need."""
    return closure


@pytest.fixture
def empty_environment(tmp_path) -> Environment:
    _run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "environment"])
    return Environment(tmp_path / "environment")


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """The files of the project, relative to its root: what git has or would take."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the files of the project cannot be told from others")
    listed = _run(["git", "ls-files", "--cached", "--others", "--exclude-standard"]).stdout
    return sorted(Path(line) for line in listed.splitlines() if (ROOT / line).is_file())


@pytest.fixture(scope="session")
def source_copy(tracked, tmp_path_factory) -> Path:
    """The project's files in a folder of their own, so that no build touches the tree."""
    folder = tmp_path_factory.mktemp("source")
    for path in tracked:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / path)
    return folder


def _hook(folder: Path, hook: str, destination: Path) -> Path:
    """Call one hook of the project's own PEP 517 backend, as a build frontend does."""
    code = (
        f"import sys; sys.path.insert(0, 'build_backend');"
        f"from blsgan_build import pep517; print('MADE', pep517.{hook}({str(destination)!r}))"
    )
    output = _run([sys.executable, "-c", code], cwd=folder).stdout
    return destination / re.search(r"^MADE (\S+)$", output, re.MULTILINE)[1]


@pytest.fixture(scope="session")
def sdist(source_copy, tmp_path_factory) -> Path:
    return _hook(source_copy, "build_sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def unpacked_sdist(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


@pytest.fixture(scope="session")
def wheel(unpacked_sdist, tmp_path_factory) -> Path:
    """A wheel with the torch ops, built from the sdist and not from the tree."""
    return _hook(unpacked_sdist, "build_wheel", tmp_path_factory.mktemp("wheel"))
