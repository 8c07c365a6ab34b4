"""Build a manylinux wheel for each Python of this machine: ``python -m blsgan_build.wheels``.

The wheels are built from the sdist, so whoever has that file can repeat them, and twice in two
folders: a wheel whose bytes differ is not written. auditwheel names the oldest glibc that each
runs on. Torch's libraries and the CUDA driver stay outside. Needs the extra ``wheels``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from blsgan_build.torch_source import BuildError, find_torch, torch_wanted

ROOT = Path(__file__).resolve().parents[2]
MINORS = range(10, 15)  # of Python 3: from requires-python to the newest
# The newest glibc that a wheel may ask for: that of RHEL 9, older than those of Ubuntu 22.04
# (and so JetPack 6) and Debian 12.
GLIBC = (2, 34)
LARGEST_BYTES = 12_000_000
# Of torch's and the driver's own; a copy inside the wheel would be a second torch.
OUTSIDE = ("libtorch*", "libc10*", "libcuda.so*")


def _run(command: list[object], **options) -> str:
    """Run ``command`` and return what it says.

    Raises:
        BuildError: it failed; the message ends with its output.
    """
    text = [str(part) for part in command]
    done = subprocess.run(
        text,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(text)} ended with {done.returncode}:\n{done.stdout[-6000:]}")
    return done.stdout


def _version(python: str) -> tuple[int, int] | None:
    """Version of an interpreter that runs and has its headers, else None."""
    code = (
        "import sys, sysconfig, os; print(*sys.version_info[:2],"
        " os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')))"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor, headers = done.stdout.split()
    return (int(major), int(minor)) if headers == "True" else None


def find_pythons(asked: list[str]) -> list[str]:
    """An interpreter with headers for each minor version, oldest first.

    Args:
        asked: paths or names of interpreters; empty: the one that runs this, and what is on PATH,
            in pyenv and in /opt/python.

    Raises:
        BuildError: one that was asked for cannot be used, or there is none.
    """
    found: dict[tuple[int, int], str] = {}
    for python in asked:
        version = _version(python)
        if version is None:
            raise BuildError(
                f"{python} cannot build a wheel: it does not run, or has no Python.h (Debian,"
                " Ubuntu: apt-get install python3-dev)."
            )
        found[version] = python
    if not asked:
        pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
        candidates = [getattr(sys, "_base_executable", sys.executable)]
        candidates += [f"python3.{minor}" for minor in MINORS]
        candidates += map(str, sorted(pyenv.glob("versions/3.*/bin/python")))
        candidates += map(str, sorted(Path("/opt/python").glob("cp3*-cp3??/bin/python")))
        for python in candidates:
            version = _version(python)
            if version and version not in found and version[0] == 3 and version[1] in MINORS:
                found[version] = python
    if not found:
        raise BuildError("No Python 3.10 or newer with its headers was found: name one.")
    return [found[version] for version in sorted(found)]


def source_date() -> str:
    """Seconds that stand for the time of every file in a wheel: the commit's, else 1980."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    try:
        return _run(["git", "log", "-1", "--format=%ct"], cwd=ROOT).strip()
    except (BuildError, OSError):
        return "315532800"


def _hook(python: str, tree: Path, hook: str, folder: Path, environment: dict[str, str]) -> Path:
    """Call one hook of the tree's own PEP 517 backend, as a build frontend does."""
    code = (
        "import sys; sys.path.insert(0, 'build_backend'); from blsgan_build import pep517;"
        f" print('MADE', pep517.{hook}({str(folder)!r}))"
    )
    output = _run([python, "-c", code], cwd=tree, env=environment)
    return folder / re.search(r"^MADE (\S+)$", output, re.MULTILINE)[1]


def _repair(wheel: Path, folder: Path, environment: dict[str, str]) -> Path:
    """Name the wheel after the oldest glibc that it runs on; nothing is copied into it."""
    folder.mkdir()
    target = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{wheel.stem.split('linux_')[-1]}"
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", target, "-w", folder, wheel]
    for name in OUTSIDE:
        command += ["--exclude", name]
    _run(command, env=environment)
    (repaired,) = folder.glob("*.whl")
    return repaired


def _checked(wheel: Path, again: Path) -> str:
    """One line about a wheel.

    Raises:
        BuildError: it is larger than it may be, or the second build gave other bytes.
    """
    size = wheel.stat().st_size
    if size > LARGEST_BYTES:
        raise BuildError(f"{wheel.name} has {size:,} bytes; at most {LARGEST_BYTES:,} are wanted.")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, again)]
    if wheel.name != again.name or digests[0] != digests[1]:
        raise BuildError(f"{wheel} and {again} were built from the same sdist and differ.")
    return f"{wheel.name}  {size / 1e6:.1f} MB  sha256 {digests[0]}  twice the same bytes"


def build(output: Path, pythons: list[str]) -> list[Path]:
    """Build, check and write the sdist and one wheel for each of ``pythons`` into ``output``.

    Raises:
        BuildError: a step failed; ``output`` then holds no wheel.
    """
    output = output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    work = output / "work"
    work.mkdir(parents=True)
    bin_folder = Path(sys.executable).parent
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONHOME"},
        "BLSGAN_CUDA": os.environ.get("BLSGAN_CUDA", "0"),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOURCE_DATE_EPOCH": source_date(),
        # One set of build tools, in Python alone, serves every interpreter.
        "PYTHONPATH": os.pathsep.join([str(work / "tools"), str(work / "torch")]),
    }
    os.umask(0o022)  # a wheel keeps its files' modes
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", work / "tools",
          "setuptools>=77", "pybind11>=2.13"])  # fmt: skip
    if torch_wanted():
        # Its headers and libraries alone are used, and those are the same for every interpreter.
        (work / "torch").mkdir()
        (work / "torch" / "torch").symlink_to(find_torch().root)
    sdist = _hook(sys.executable, ROOT, "build_sdist", output, environment)
    made: dict[str, list[Path]] = {python: [] for python in pythons}
    for folder in (work / "first", work / "second"):
        folder.mkdir()
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (tree,) = folder.iterdir()
        for number, python in enumerate(pythons):
            print(f"blsgan: {folder.name} build, {python}", flush=True)
            wheel = _hook(python, tree, "build_wheel", folder, environment)
            made[python].append(_repair(wheel, folder / f"repaired-{number}", environment))
    lines = [_checked(*pair) for pair in made.values()]
    wheels = [output / first.name for first, _ in made.values()]
    for (first, _), wheel in zip(made.values(), wheels, strict=True):
        shutil.move(first, wheel)
    shutil.rmtree(work)
    print("\n".join(lines))
    return wheels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist")
    parser.add_argument("pythons", nargs="*", help="interpreters; default: all that are found")
    arguments = parser.parse_args()
    try:
        if platform.system() != "Linux":
            raise BuildError(f"manylinux wheels are built on Linux, not on {platform.system()}.")
        pythons = find_pythons(arguments.pythons)
        build(arguments.output, pythons)
    except BuildError as error:
        raise SystemExit(f"blsgan: {error}") from None


if __name__ == "__main__":
    main()
