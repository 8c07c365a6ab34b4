"""The torch ops with CUDA kernels for a Jetson: ``python -m blsgan_build.aarch64_ops FOLDER``.

Compiles and links them for Orin (8.7) and Thor (11.0) with Debian's cross-compiler and this
machine's nvcc, against the aarch64 wheels of torch and of CUDA's runtime from PyPI, which are kept
in FOLDER/site. FOLDER/lib/blsgan/_ops.so is the result. Nothing of it is run: that takes a Jetson.

Ends with status 3 and one line where something that it takes cannot be had here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from blsgan_build.aarch64 import MACHINE, PLATFORMS, UNAVAILABLE, Unavailable
from blsgan_build.cuda import toolkit_root
from blsgan_build.torch_source import TORCH_REQUIREMENT, BuildError
from blsgan_build.wheels import ROOT, crossing, find_machines, run

ARCHITECTURES = "8.7;11.0"


def _cuda_runtime(nvcc: str) -> str:
    """The requirement of CUDA's runtime as new as ``nvcc``."""
    version = re.search(r"release (\d+)\.(\d+)", run([nvcc, "--version"]))
    if version is None or int(version[1]) < 13:
        # Those of CUDA 12 are of other names, and have no Thor.
        raise Unavailable(f"{nvcc} is older than CUDA 13")
    return f"nvidia-cuda-runtime=={version[1]}.{version[2]}.*"


def build_ops(folder: Path) -> Path:
    """Compile and link ``_ops.so`` for aarch64 below ``folder``.

    Raises:
        Unavailable: a compiler or a package that it takes cannot be had here.
        BuildError: a step failed.
    """
    folder = folder.resolve()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise Unavailable("no nvcc on PATH")
    try:
        find_machines([MACHINE])
    except BuildError as error:
        raise Unavailable(str(error)) from error
    site = folder / "site"
    wanted = [TORCH_REQUIREMENT, _cuda_runtime(nvcc)]
    stamp = site / "complete"
    if not stamp.exists() or stamp.read_text() != str(wanted):
        shutil.rmtree(site, ignore_errors=True)
        print(f"blsgan: fetching {' and '.join(wanted)} for {MACHINE}", flush=True)
        try:
            run([
                sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
                "--only-binary=:all:", "--target", site,
                *(f"--platform={name}" for name in PLATFORMS), *wanted,
            ])  # fmt: skip
        except BuildError as error:
            line = str(error).splitlines()[-1]
            raise Unavailable(f"no {' and '.join(wanted)} for {MACHINE} ({line})") from error
        stamp.write_text(str(wanted))
    (runtime,) = site.glob("nvidia/*/lib/libcudart_static.a")
    # The stable ABI is the same for every Python; that of the C++ library is the cross-compiler's.
    environment = {
        **os.environ,
        **crossing(MACHINE, sys.executable),
        "BLSGAN_TORCH": "1",
        "BLSGAN_CUDA": "1",
        "BLSGAN_CUDA_ARCHS": ARCHITECTURES,
        "LDFLAGS": f"-L{runtime.parent}",
        # nvcc looks for the headers among those of the other machine; they are the same.
        "NVCC_APPEND_FLAGS": f"-I{toolkit_root(nvcc) / 'include'}",
        "PYTHONPATH": str(site),
    }
    print(f"blsgan: compiling the ops for {MACHINE}, CUDA {ARCHITECTURES}", flush=True)
    run(
        [sys.executable, "setup.py", "build", "--build-base", folder / "build",
         "--build-lib", folder / "lib"],
        cwd=ROOT, env=environment,
    )  # fmt: skip
    return folder / "lib" / "blsgan" / "_ops.so"


def main() -> None:
    (folder,) = sys.argv[1:]
    try:
        print(build_ops(Path(folder)))
    except Unavailable as error:
        print(f"make aarch64-ops: NOT CHECKED, no torch ops were compiled for {MACHINE}: {error}")
        sys.exit(UNAVAILABLE)
    except (BuildError, subprocess.SubprocessError, OSError) as error:
        raise SystemExit(f"blsgan: {error}") from None


if __name__ == "__main__":
    main()
