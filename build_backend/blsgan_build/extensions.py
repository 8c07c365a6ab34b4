"""Compile and link ``blsgan/_native`` (pybind11, NumPy) and ``blsgan/_ops.so`` (torch ops).

No source list is written anywhere: the folders of csrc/ say what belongs to what.

=====================  ======================  ============================================
folder                 compiled with           linked into
=====================  ======================  ============================================
csrc/cpu/*.cpp         C++17, omp simd         both
csrc/joint/*.cpp       C++17, no contraction   blsgan/_native.<tag>.so
csrc/numpy/*.cpp       C++17, pybind11         blsgan/_native.<tag>.so
csrc/torch/*.cpp       C++20, stable ABI       blsgan/_ops.so, which needs no Python ABI
csrc/cuda/*.cu         nvcc, static cudart     blsgan/_ops.so
=====================  ======================  ============================================

Each object carries a stamp of its command, its source and every header, so that a rerun compiles
only what changed. Switches: ``BLSGAN_CUDA``, ``BLSGAN_CUDA_ARCHS``, ``BLSGAN_TORCH``,
``BLSGAN_SANITIZE`` (such as ``address,undefined``), ``MAX_JOBS``, and ``CXX``, ``CPPFLAGS``,
``CXXFLAGS``, ``LDFLAGS`` as everywhere.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from blsgan_build.cuda import CudaPlan, plan_cuda
from blsgan_build.torch_source import (
    STABLE_ABI,
    BuildError,
    Torch,
    find_torch,
    torch_wanted,
)

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


class CompileError(BuildError):
    """A compiler or the linker failed; ``output`` is everything that it said."""

    def __init__(self, command: list[str], output: str):
        self.output = output.strip()
        super().__init__(f"{shlex.join(command)}\n{self.output}")

    @property
    def first_error(self) -> str:
        """The first line that names an error, for a report of one line."""
        lines = self.output.splitlines() or ["no output"]
        return next((line for line in lines if re.search(r"\b(error|fatal)\b", line)), lines[0])


@dataclass(frozen=True)
class Unit:
    """One source and the command that compiles it (without ``-o`` and the source itself)."""

    source: Path
    command: tuple[str, ...]


def sources(folder: str, suffix: str = "cpp") -> list[Path]:
    """The sources of one folder of csrc/, sorted so that every build links in the same order."""
    return sorted((CSRC / folder).glob(f"*.{suffix}"))


def declared_extensions() -> list[Extension]:
    """The extensions that this build makes; ``_ops`` only where torch is wanted.

    Raises:
        BuildError: the source tree has no csrc/.
    """
    if not sources("cpu"):
        raise BuildError(f"{CSRC / 'cpu'} has no sources: the source tree is not complete.")
    extensions = [Extension("blsgan._native", [str(path) for path in sources("numpy")])]
    if torch_wanted() and sources("torch"):
        extensions.append(Extension("blsgan._ops", [str(path) for path in sources("torch")]))
    return extensions


def _version() -> str:
    text = (ROOT / "blsgan" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def _git_commit() -> str:
    """The commit that is built, with ``+dirty`` where tracked files differ; empty in an sdist."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _jobs() -> int:
    asked = os.environ.get("MAX_JOBS", "")
    return max(1, int(asked)) if asked.isdigit() else len(os.sched_getaffinity(0))


class Toolchain:
    """The commands of one build, from the environment's switches."""

    def __init__(self, torch: Torch | None, cuda: CudaPlan):
        self.torch, self.cuda = torch, cuda
        configured = sysconfig.get_config_var("CXX") or "c++"
        self.cxx = shlex.split(os.environ.get("CXX") or "")
        if not self.cxx:
            # Python may have been built with a compiler that this machine does not have.
            known = (shlex.split(configured)[0], "g++", "c++", "clang++")
            self.cxx = [next((name for name in known if shutil.which(name)), "c++")]
        if shutil.which(self.cxx[0]) is None:
            raise BuildError(
                f"No C++ compiler: {self.cxx[0]} is not on PATH; install g++ (Debian, Ubuntu:"
                " apt-get install g++) or set CXX."
            )
        self.sanitize = os.environ.get("BLSGAN_SANITIZE", "").strip()
        if self.sanitize:
            # Debug lines make a sanitizer's report readable; ifunc resolvers run before its
            # runtime is up, so BLSGAN_NO_CLONES asks the sources for the default level alone.
            optimise = ["-O1", "-g1", "-fno-omit-frame-pointer", "-DBLSGAN_NO_CLONES"]
            optimise += [f"-fsanitize={self.sanitize}", "-fno-sanitize-recover=undefined"]
        else:
            optimise = ["-O3", "-g0", "-DNDEBUG"]
        self.cxx_flags = [
            *optimise,
            "-fPIC",
            "-fvisibility=hidden",
            # `#pragma omp simd` alone: no OpenMP runtime is linked.
            "-fopenmp-simd",
            # Without these a comparison may trap and sqrt may set errno, and loops stay scalar;
            # neither changes a result, and fast-math stays off.
            "-fno-math-errno",
            "-fno-trapping-math",
            "-Wall",
            "-Wextra",
            f"-I{CSRC}",
            # What __FILE__ leaves in a library names no folder of this machine.
            f"-ffile-prefix-map={ROOT}=.",
            *shlex.split(os.environ.get("CPPFLAGS", "")),
            *shlex.split(os.environ.get("CXXFLAGS", "")),
        ]
        self.link_flags = ["-shared", "-Wl,-z,defs"]
        if self.sanitize:
            self.link_flags.append(f"-fsanitize={self.sanitize}")
        else:
            # Of the kernels each library keeps those that it calls.
            self.link_flags += ["-Wl,--strip-all", "-Wl,--gc-sections"]
        self.link_flags += shlex.split(os.environ.get("LDFLAGS", ""))
        # For tests alone: the library that runs csrc/cuda on the CPU, built by CMake.
        self.emulator = os.environ.get("BLSGAN_EMULATOR", "").strip()

    def cpu_units(self) -> list[Unit]:
        command = (*self.cxx, "-std=c++17", *self.cxx_flags, "-c")
        return [Unit(source, command) for source in sources("cpu")]

    def joint_units(self) -> list[Unit]:
        # The same bits on every processor: a product is rounded before it is added.
        command = (*self.cxx, "-std=c++17", *self.cxx_flags, "-ffp-contract=off", "-c")
        return [Unit(source, command) for source in sources("joint")]

    def numpy_units(self, facts: dict[str, str]) -> list[Unit]:
        import pybind11

        includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
        command = (
            *self.cxx,
            "-std=c++17",
            *self.cxx_flags,
            *(flag for path in includes for flag in ("-isystem", path)),
            *(f'-D{name}="{value}"' for name, value in facts.items()),
            "-c",
        )
        return [Unit(source, command) for source in sources("numpy")]

    def torch_units(self, with_cuda: bool) -> list[Unit]:
        assert self.torch is not None
        target = f"0x{STABLE_ABI[0]:02x}{STABLE_ABI[1]:02x}{0:012x}"
        command = [*self.cxx, "-std=c++20", *self.cxx_flags, f"-DTORCH_TARGET_VERSION={target}"]
        command += [
            f"-ffile-prefix-map={self.torch.root.parent}=.",
            "-isystem",
            str(self.torch.include),
        ]
        if with_cuda:
            # USE_CUDA opens torch's CUDA shims in its headers.
            command += ["-DBLSGAN_WITH_CUDA", "-DUSE_CUDA"]
            command += ["-isystem", str(self.cuda.root / "include")]
        if self.emulator:
            command += ["-DBLSGAN_EMULATED_CUDA"]
        return [Unit(source, (*command, "-c")) for source in sources("torch")]

    def cuda_units(self) -> list[Unit]:
        host = "-fPIC,-fvisibility=hidden"
        command = [self.cuda.nvcc, "-std=c++17", "-O3", "-DNDEBUG", f"-I{CSRC}", "-Xcompiler", host]
        if os.environ.get("CXX"):
            command += ["-ccbin", self.cxx[0]]
        # No --use_fast_math: the split must invert the composition to float rounding.
        command += ["--threads", "2", "-cudart", "static", *self.cuda.gencode, "-c"]
        return [Unit(source, tuple(command)) for source in sources("cuda", "cu")]

    def torch_link_flags(self, with_cuda: bool) -> list[str]:
        assert self.torch is not None
        # Without --no-as-needed the linker drops libtorch, through which libtorch_cuda comes in,
        # and the weak symbol of torch's current stream is silently null.
        flags = ["-Wl,--no-as-needed", f"-L{self.torch.lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
        if with_cuda:
            folders = [
                self.cuda.root / name for name in ("lib64", "lib", "targets/x86_64-linux/lib")
            ]
            flags += [f"-L{folder}" for folder in folders if folder.is_dir()]
            flags += ["-Wl,--as-needed", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        if self.emulator:
            flags += [self.emulator, f"-Wl,-rpath,{Path(self.emulator).resolve().parent}"]
        return flags


class BuildExtensions(build_ext):
    """``build_ext`` that compiles each source once, in parallel, and links it where it belongs."""

    def get_ext_filename(self, ext_name):
        """``_ops`` is a plain shared library: its name carries no Python tag."""
        filename = super().get_ext_filename(ext_name)
        if ext_name.rpartition(".")[2] == "_ops":
            return os.path.join(os.path.dirname(filename), "_ops.so")
        return filename

    def copy_extensions_to_source(self):
        """In an editable install, take away the ops that an earlier build with torch left."""
        if "blsgan._ops" not in {ext.name for ext in self.extensions}:
            (ROOT / "blsgan" / "_ops.so").unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_extensions(self):
        try:
            self._build()
        except BuildError as error:
            # A traceback through setuptools would bury the sentence that matters.
            raise SystemExit(f"\nblsgan: {error}\n") from None

    def _build(self):
        if not sys.platform.startswith("linux"):
            raise BuildError(
                f"blsgan's extensions build on Linux (x86-64, aarch64), not on {sys.platform}:"
                " on Windows use WSL 2."
            )
        names = {ext.name for ext in self.extensions}
        with_ops = "blsgan._ops" in names
        torch = find_torch() if with_ops else None
        plan = plan_cuda(torch, bool(sources("cuda", "cu")))
        tools = Toolchain(torch, plan)

        cuda_objects, reason = self._cuda_objects(tools)
        cpu_objects = self._compile(tools.cpu_units())
        facts = self._facts(tools, built_cuda=bool(cuda_objects), reason=reason)
        numpy_objects = self._compile([*tools.joint_units(), *tools.numpy_units(facts)])
        for ext in self.extensions:
            target = Path(self.get_ext_fullpath(ext.name))
            if ext.name == "blsgan._native":
                self._link(tools, [*cpu_objects, *numpy_objects], target, python_module=True)
            else:
                objects = self._compile(tools.torch_units(bool(cuda_objects)))
                flags = tools.torch_link_flags(bool(cuda_objects))
                self._link(tools, [*cpu_objects, *objects, *cuda_objects], target, flags)

    def _cuda_objects(self, tools: Toolchain) -> tuple[list[Path], str]:
        """The compiled kernels, or none and the reason, which the build report repeats."""
        if tools.cuda.nvcc is None:
            print(f"blsgan: CUDA kernels are not built: {tools.cuda.reason}")
            return [], tools.cuda.reason
        try:
            return self._compile(tools.cuda_units()), ""
        except CompileError as error:
            if tools.cuda.required:
                raise BuildError(
                    "the CUDA kernels did not compile; set BLSGAN_CUDA=0 to build without them,"
                    f" or mend what nvcc says:\n{error}"
                ) from None
            # auto: a CPU install must succeed. pip hides a successful build's output, so the
            # cause also goes into the build report, where `blsgan doctor` shows it.
            print(f"blsgan: the CUDA build failed, going on without it:\n{error}")
            return [], f"nvcc failed: {error.first_error}"

    def _facts(self, tools: Toolchain, built_cuda: bool, reason: str) -> dict[str, str]:
        """Compile-time facts that ``blsgan._native.build_info()`` reports; "" means none."""
        version = subprocess.run(
            [*tools.cxx, "--version"], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        facts = {
            "BLSGAN_VERSION": _version(),
            "BLSGAN_GIT_COMMIT": _git_commit(),
            "BLSGAN_COMPILER": version[0] if version else tools.cxx[0],
            "BLSGAN_CXX_FLAGS": " ".join(flag for flag in tools.cxx_flags if str(ROOT) not in flag),
            "BLSGAN_CUDA_ARCHS": ";".join(tools.cuda.architectures) if built_cuda else "",
            "BLSGAN_CUDA_REASON": reason,
            "BLSGAN_TORCH_ABI": f"{STABLE_ABI[0]}.{STABLE_ABI[1]}" if tools.torch else "",
            "BLSGAN_TORCH_BUILT": tools.torch.version if tools.torch else "",
            "BLSGAN_SANITIZE": tools.sanitize,
        }
        # They become C string literals.
        return {k: re.sub(r"[\x00-\x1f\"\\]", " ", v)[:400] for k, v in facts.items()}

    def _object_folder(self) -> Path:
        """A folder that outlives one build; pip's temporary one where the tree is read-only."""
        folder = ROOT / "build" / "objects"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            folder = Path(self.build_temp)
            folder.mkdir(parents=True, exist_ok=True)
            return folder

    def _compile(self, units: list[Unit]) -> list[Path]:
        """Compile ``units`` that changed, in parallel; objects in the order of the units."""
        folder = self._object_folder()
        headers = hashlib.sha256()
        for header in sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")]):
            headers.update(header.read_bytes())

        def compile_one(unit: Unit) -> Path:
            # The flags are part of the name, so that CPU, sanitizer and other builds live side by
            # side; the facts, which change with every commit, are only in the stamp.
            command = list(unit.command)
            flags = [part for part in command if not re.match(r'-D\w+="', part)]
            text = shlex.join([platform.machine(), *flags, str(unit.source)])
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            target = folder / f"{unit.source.parent.name}-{unit.source.stem}-{name}.o"
            content = headers.digest() + unit.source.read_bytes() + shlex.join(command).encode()
            digest = hashlib.sha256(content).hexdigest()
            stamp = target.with_suffix(".stamp")
            if target.exists() and stamp.exists() and stamp.read_text() == digest:
                return target
            print(f"blsgan: compiling {unit.source.relative_to(ROOT)}", flush=True)
            self._run([*command, str(unit.source), "-o", str(target)])
            stamp.write_text(digest)
            return target

        with ThreadPoolExecutor(_jobs()) as pool:
            return list(pool.map(compile_one, units))

    def _link(self, tools, objects, target: Path, flags=(), python_module=False):
        target.parent.mkdir(parents=True, exist_ok=True)
        link_flags = list(tools.link_flags)
        if python_module or tools.sanitize:
            # Python's symbols come from the interpreter, a sanitizer's from its preloaded runtime.
            link_flags.remove("-Wl,-z,defs")
        # A running process may have the old library mapped: replace it, never write into it.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".link-") as folder:
            linked = Path(folder, target.name)
            paths = [str(path) for path in objects]
            print(f"blsgan: linking {target.name}", flush=True)
            self._run([*tools.cxx, *link_flags, *paths, *flags, "-o", str(linked)])
            os.replace(linked, target)

    @staticmethod
    def _run(command: list[str]):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise CompileError(command, done.stdout)
        if done.stdout.strip():
            print(done.stdout, flush=True)
