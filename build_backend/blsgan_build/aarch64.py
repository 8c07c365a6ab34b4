"""An aarch64 Python with blsgan's wheel, run by qemu: ``python -m blsgan_build.aarch64 FOLDER``.

Needs no root, docker or ARM machine: Debian's own packages for arm64 are unpacked into a folder,
and qemu-user runs what is in them. In FOLDER:

===============  ================================================================================
root/            Debian 12 for arm64: C library, Python 3.11, libpng
dist/            the cross-built wheel
site/            that wheel and what it needs, from PyPI
bin/python       runs the Python of root/ with site/
cmake/           the C++ tests and blsgan-infer, cross-built; ctest runs them by qemu
===============  ================================================================================

Ends with status 3 and one line where something that it takes cannot be had here.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from blsgan_build.torch_source import BuildError
from blsgan_build.wheels import ROOT, build, compiler_for, find_machines, find_pythons, run

MACHINE = "aarch64"
# The last one has Python 3.11 and glibc 2.36, what the wheel asks for is older.
SUITE, PYTHON = "bookworm", (3, 11)
PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libpng-dev", "zlib1g-dev")
# Older ones end in ONNX Runtime by a segmentation fault; that of the suite is 7.2.
OLDEST_QEMU, QEMU_SUITE = (9, 0), "trixie"
PLATFORMS = [f"manylinux_2_{minor}_{MACHINE}" for minor in (34, 28, 27, 26, 17)]
UNAVAILABLE = 3


class Unavailable(BuildError):
    """What this takes cannot be had on this machine."""


def _mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    if shutil.which("apt-get") is None:
        raise Unavailable("no apt-get, which fetches Debian's packages")
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    mirrors = [line for line in listed.split() if line.rstrip("/").endswith("/debian")]
    if not mirrors:
        raise Unavailable("apt has no Debian mirror to fetch arm64 packages from")
    return mirrors[0]


def _fetch(folder: Path, suite: str, architecture: str, names: tuple[str, ...], *, alone: bool):
    """Unpack packages of Debian, with all that they need unless ``alone``, into ``folder``."""
    state = folder.with_name(f"{folder.name}-apt")
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [arch={architecture}] {_mirror()} {suite} main\n")
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    try:
        run([*apt, "update"])
        if alone:
            run([*apt, "download", *names], cwd=state / "cache" / "archives")
        else:
            run([*apt, "-y", "--download-only", "install", *names])
    except BuildError as error:
        line = str(error).splitlines()[-1]
        raise Unavailable(
            f"Debian's packages for {architecture} cannot be fetched ({line})"
        ) from error
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        run(["dpkg-deb", "-x", package, folder])
    shutil.rmtree(state)


def find_qemu(folder: Path) -> Path:
    """A qemu-aarch64 that is new enough, fetched where this machine has none."""
    fetched = folder / "qemu" / "usr" / "bin" / "qemu-aarch64"
    for path in (shutil.which("qemu-aarch64"), shutil.which("qemu-aarch64-static"), fetched):
        if path is not None and Path(path).exists():
            version = re.search(r"version (\d+)\.(\d+)", run([path, "--version"]))
            if version and tuple(map(int, version.groups())) >= OLDEST_QEMU:
                return Path(path)
    _fetch(folder / "qemu", QEMU_SUITE, "amd64", ("qemu-user",), alone=True)
    return fetched


def _wrapper(path: Path, qemu: Path, root: Path, program: Path, **variables: Path) -> Path:
    """A script that runs ``program``, which sees the script's own path as its name."""
    path.parent.mkdir(exist_ok=True)
    words = [str(qemu), "-0", "$0", "-L", str(root), str(program)]
    quoted = " ".join('"$0"' if word == "$0" else shlex.quote(word) for word in words)
    exports = "".join(f"export {k}={shlex.quote(str(v))}\n" for k, v in variables.items())
    # An emulated core is none that OpenBLAS was told of.
    path.write_text(f'#!/bin/sh\nunset OPENBLAS_CORETYPE\n{exports}exec {quoted} "$@"\n')
    path.chmod(0o755)
    return path


def _compile(folder: Path, qemu: Path, root: Path) -> None:
    """The C++ tests and blsgan-infer."""
    libraries = root / "usr" / "lib" / f"{MACHINE}-linux-gnu"
    definitions = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": MACHINE,
        "CMAKE_CXX_COMPILER": compiler_for(MACHINE),
        "CMAKE_CROSSCOMPILING_EMULATOR": f"{qemu};-L;{root}",
        # Static, so that the runner needs neither on the device.
        "PNG_LIBRARY": libraries / "libpng16.a",
        "PNG_PNG_INCLUDE_DIR": root / "usr" / "include" / "libpng16",
        "ZLIB_LIBRARY": libraries / "libz.a",
        "ZLIB_INCLUDE_DIR": root / "usr" / "include" / "libpng16",
    }
    cmake = ["cmake", "-S", ROOT, "-B", folder / "cmake", "-G", "Ninja"]
    run([*cmake, *(f"-D{key}={value}" for key, value in definitions.items())])
    # Kernels of a GPU that threads of this machine run, and damaged files, say nothing of another.
    tests = sorted(path.stem for path in (ROOT / "csrc" / "tests").glob("test_*.cpp"))
    tests = [name for name in tests if name not in ("test_emulated", "test_fuzz")]
    run(["cmake", "--build", folder / "cmake", "--target", "blsgan-infer", *tests])


def prepare(folder: Path) -> None:
    """Make all that is in the table above, in ``folder``.

    Raises:
        Unavailable: something that it takes cannot be had here.
        BuildError: a step failed.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    root, python = folder / "root", folder / "bin" / "python"
    python.unlink(missing_ok=True)
    try:
        machines = find_machines([MACHINE])
        pythons = find_pythons([], only=PYTHON)
    except BuildError as error:
        raise Unavailable(str(error)) from error
    qemu = find_qemu(folder)
    if not (root / "usr" / "bin" / "python3.11").exists():
        _fetch(root, SUITE, "arm64", PACKAGES, alone=False)
    print("blsgan: cross-compiling the C++ tests and blsgan-infer", flush=True)
    _compile(folder, qemu, root)
    (wheel,) = build(folder / "dist", pythons, machines, folders=("once",))
    print("blsgan: installing the wheel and what it needs", flush=True)
    shutil.rmtree(folder / "site", ignore_errors=True)
    run([
        sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target",
        folder / "site", "--only-binary=:all:", "--python-version", ".".join(map(str, PYTHON)),
        *(f"--platform={name}" for name in PLATFORMS), wheel, "pytest", "hypothesis",
    ])  # fmt: skip
    _wrapper(folder / "bin" / "blsgan-infer", qemu, root, folder / "cmake" / "blsgan-infer")
    _wrapper(
        python, qemu, root, root / "usr" / "bin" / "python3.11",
        PYTHONHOME=root / "usr", PYTHONPATH=folder / "site",
    )  # fmt: skip


def main() -> None:
    (folder,) = sys.argv[1:]
    try:
        prepare(Path(folder))
    except Unavailable as error:
        print(f"make test-aarch64: NOT CHECKED, nothing ran as on aarch64: {error}")
        sys.exit(UNAVAILABLE)
    except (BuildError, subprocess.SubprocessError, OSError) as error:
        raise SystemExit(f"blsgan: {error}") from None


if __name__ == "__main__":
    main()
