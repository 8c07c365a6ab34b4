"""Build a manylinux wheel for each Python of this machine: ``python -m blsgan_build.wheels``.

The wheels are built from the sdist, so whoever has that file can repeat them, and twice in two
folders: a wheel whose bytes differ is not written. auditwheel names the oldest glibc that each
runs on. Torch's libraries and the CUDA driver stay outside. Needs the extra ``wheels``.

Those of another machine are cross-compiled, by Debian's ``g++-aarch64-linux-gnu``, for the same
Pythons: what pybind11 needs to know of Python is the same there. They have no torch ops.
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
MACHINES = ("x86_64", "aarch64")


def run(command: list[object], **options) -> str:
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


def _served(version: tuple[int, int]) -> bool:
    return version[0] == 3 and version[1] in MINORS


def find_pythons(asked: list[str], only: tuple[int, int] | None = None) -> list[str]:
    """An interpreter with headers for each minor version, oldest first.

    Args:
        asked: paths or names of interpreters; empty: the one that runs this, and what is on PATH,
            in pyenv and in /opt/python.
        only: look for this version alone.

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
        if not _served(version):
            raise BuildError(
                f"{python} is Python {version[0]}.{version[1]}: wheels are made for"
                f" 3.{MINORS.start} to 3.{MINORS[-1]}."
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
            if only not in (None, version):
                continue
            if version and version not in found and _served(version):
                found[version] = python
    if not found:
        wanted = ".".join(map(str, only)) if only else "3.10 or newer"
        raise BuildError(f"No Python {wanted} with its headers was found.")
    return [found[version] for version in sorted(found)]


def source_date() -> str:
    """Seconds that stand for the time of every file in a wheel: the commit's, else 1980."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    try:
        return run(["git", "log", "-1", "--format=%ct"], cwd=ROOT).strip()
    except (BuildError, OSError):
        return "315532800"


def compiler_for(machine: str) -> str:
    """Debian's name of the cross-compiler."""
    return f"{machine}-linux-gnu-g++"


def crossing(machine: str, python: str) -> dict[str, str]:
    """What the environment of a build for ``machine`` says beyond that of a build for this one."""
    if machine == platform.machine():
        return {}
    major, minor = _version(python) or (3, 0)
    return {
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{major}{minor}-{machine}-linux-gnu.so",
        "CXX": compiler_for(machine),
        "BLSGAN_TORCH": "0",
    }


def find_machines(asked: list[str]) -> list[str]:
    """The machines that wheels can be made for here, of ``asked`` or of all.

    Raises:
        BuildError: one that was asked for needs a compiler that is not there.
    """
    found = []
    for machine in asked or MACHINES:
        compiler = compiler_for(machine)
        if machine == platform.machine() or shutil.which(compiler) is not None:
            found.append(machine)
        elif asked:
            raise BuildError(
                f"No compiler for {machine}: {compiler} is not on PATH; install it (Debian, Ubuntu:"
                f" apt-get install g++-{machine.replace('_', '-')}-linux-gnu)."
            )
        else:
            print(f"blsgan: NOT BUILT, the wheels for {machine}: no {compiler} on PATH", flush=True)
    return found


def _clear(output: Path) -> None:
    """Remove what an earlier build left in ``output``.

    Raises:
        BuildError: something else is in there.
    """
    left = sorted(output.iterdir()) if output.exists() else []
    for path in left:
        if path.name != "work" and not path.name.startswith("blsgan-"):
            raise BuildError(
                f"{output} holds {path.name}, which no build of wheels left there: name a folder"
                " of its own by -o."
            )
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _hook(python: str, tree: Path, hook: str, folder: Path, environment: dict[str, str]) -> Path:
    """Call one hook of the tree's own PEP 517 backend, as a build frontend does."""
    code = (
        "import sys; sys.path.insert(0, 'build_backend'); from blsgan_build import pep517;"
        f" print('MADE', pep517.{hook}({str(folder)!r}))"
    )
    output = run([python, "-c", code], cwd=tree, env=environment)
    return folder / re.search(r"^MADE (\S+)$", output, re.MULTILINE)[1]


def _repair(wheel: Path, folder: Path, environment: dict[str, str]) -> Path:
    """Name the wheel after the oldest glibc that it runs on; nothing is copied into it.

    Raises:
        BuildError: it needs a library that it may not, or a newer glibc than :data:`GLIBC`.
    """
    folder.mkdir()
    # By itself it finds the machine in the wheel; a platform that is named must be this machine's.
    command = [sys.executable, "-m", "auditwheel", "repair", "-z", "9", "-w", folder, wheel]
    for name in OUTSIDE:
        command += ["--exclude", name]
    run(command, env=environment)
    (repaired,) = folder.glob("*.whl")
    asked = [
        tuple(map(int, match)) for match in re.findall(r"manylinux_(\d+)_(\d+)_", repaired.name)
    ]
    if not asked or min(asked) > GLIBC:
        raise BuildError(f"{repaired.name} needs a newer glibc than {GLIBC[0]}.{GLIBC[1]}.")
    return repaired


def _checked(same: list[Path]) -> str:
    """One line about a wheel and those that were built beside it.

    Raises:
        BuildError: it is larger than it may be, or another build gave other bytes.
    """
    wheel = same[0]
    size = wheel.stat().st_size
    if size > LARGEST_BYTES:
        raise BuildError(f"{wheel.name} has {size:,} bytes; at most {LARGEST_BYTES:,} are wanted.")
    digest, *others = (hashlib.sha256(path.read_bytes()).hexdigest() for path in same)
    for other, path in zip(others, same[1:], strict=True):
        if path.name != wheel.name or other != digest:
            raise BuildError(f"{wheel} and {path} were built from the same sdist and differ.")
    again = "  twice the same bytes" if others else ""
    return f"{wheel.name}  {size / 1e6:.1f} MB  sha256 {digest}{again}"


def build(
    output: Path, pythons: list[str], machines: list[str], folders: tuple[str, ...] = ("1", "2")
) -> list[Path]:
    """Build, check and write the sdist and a wheel for each of ``pythons`` and ``machines``.

    Args:
        output: the folder; what an earlier build left there is removed.
        pythons: interpreters.
        machines: of :data:`MACHINES`.
        folders: in which the same sdist is built; two show that the folder changes no byte.

    Raises:
        BuildError: a step failed; ``output`` then holds no wheel.
    """
    output = output.resolve()
    _clear(output)
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
    run([sys.executable, "-m", "pip", "install", "--quiet", "--target", work / "tools",
          "setuptools>=77", "pybind11>=2.13"])  # fmt: skip
    if torch_wanted() and platform.machine() in machines:
        # Its headers and libraries alone are used, and those are the same for every interpreter.
        (work / "torch").mkdir()
        (work / "torch" / "torch").symlink_to(find_torch().root)
    sdist = _hook(sys.executable, ROOT, "build_sdist", output, environment)
    wanted = [(python, machine) for machine in machines for python in pythons]
    made: dict[tuple[str, str], list[Path]] = {target: [] for target in wanted}
    for name in folders:
        folder = work / name
        folder.mkdir()
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (tree,) = folder.iterdir()
        for number, target in enumerate(wanted):
            python, machine = target
            print(f"blsgan: build {name}, {python}, {machine}", flush=True)
            there = {**environment, **crossing(machine, python)}
            wheel = _hook(python, tree, "build_wheel", folder, there)
            made[target].append(_repair(wheel, folder / f"repaired-{number}", environment))
    lines = [_checked(pair) for pair in made.values()]
    wheels = [output / pair[0].name for pair in made.values()]
    for pair, wheel in zip(made.values(), wheels, strict=True):
        shutil.move(pair[0], wheel)
    shutil.rmtree(work)
    print("\n".join(lines))
    return wheels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--machine", action="append", default=[], choices=MACHINES)
    parser.add_argument("pythons", nargs="*", help="interpreters; default: all that are found")
    arguments = parser.parse_args()
    try:
        if platform.system() != "Linux":
            raise BuildError(f"manylinux wheels are built on Linux, not on {platform.system()}.")
        machines = find_machines(arguments.machine)
        build(arguments.output, find_pythons(arguments.pythons), machines)
    except BuildError as error:
        raise SystemExit(f"blsgan: {error}") from None


if __name__ == "__main__":
    main()
