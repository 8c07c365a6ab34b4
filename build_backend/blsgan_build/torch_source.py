"""Where the torch is that the ops are compiled against. Nothing here imports torch."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Taken where an environment has none. The ops use the stable ABI of STABLE_ABI, so any torch from
# there on runs what this one compiled.
TORCH_REQUIREMENT = "torch==2.13.0"
STABLE_ABI = (2, 11)

_SITE_PATHS = (
    "import json, sys; print(json.dumps([list(sys.version_info[:2]),"
    " [p for p in sys.path if p.endswith(('site-packages', 'dist-packages'))]]))"
)


class BuildError(RuntimeError):
    """The build cannot go on; the message is one sentence that says why and what to do."""


def switch(name: str, default: str = "auto") -> str:
    """Value of an environment switch that is ``auto``, ``0`` or ``1``.

    Raises:
        BuildError: the variable holds anything else.
    """
    value = os.environ.get(name, default).strip() or default
    if value not in ("auto", "0", "1"):
        raise BuildError(f"{name}={value} is not understood: set it to auto, 0 or 1.")
    return value


def torch_wanted() -> bool:
    """Whether the torch ops are built: everywhere, unless ``BLSGAN_TORCH=0`` says not to."""
    return switch("BLSGAN_TORCH") != "0"


def _site_packages(python: str) -> list[str]:
    """Site-packages of ``python`` without build isolation, [] where it is of another version."""
    try:
        # -E drops the PYTHONPATH through which pip isolates a build.
        done = subprocess.run(
            [python, "-E", "-c", _SITE_PATHS],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    import json

    version, paths = json.loads(done.stdout)
    return paths if tuple(version) == sys.version_info[:2] else []


def expose_torch() -> bool:
    """Make an installed torch importable here, and say whether there is one.

    Looks, in this order, at the path as it is (no isolation), at the interpreter's own
    site-packages (pip's isolation) and at the active virtual environment (``build`` and uv, which
    isolate with an environment of their own).
    """
    if importlib.util.find_spec("torch") is not None:
        return True
    pythons = [sys.executable]
    if environment := os.environ.get("VIRTUAL_ENV"):
        pythons.append(str(Path(environment, "bin", "python")))
    for python in pythons:
        added = [path for path in _site_packages(python) if path not in sys.path]
        sys.path.extend(added)
        importlib.invalidate_caches()
        if importlib.util.find_spec("torch") is not None:
            return True
        for path in added:
            sys.path.remove(path)
    return False


@dataclass(frozen=True)
class Torch:
    """The torch that the ops are compiled against."""

    root: Path
    version: str
    cuda: str | None

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


def find_torch() -> Torch:
    """The importable torch, read from its files: importing it takes seconds and is not needed.

    Raises:
        BuildError: there is none, or it is older than the stable ABI that the ops are written to.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError(
            f"No torch is installed to build the torch ops against: run pip install"
            f" '{TORCH_REQUIREMENT}' first, or set BLSGAN_TORCH=0 to build without them."
        )
    root = Path(spec.origin).parent
    text = (root / "version.py").read_text(encoding="utf-8")
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    found = Torch(root, version.group(1) if version else "0", cuda.group(1) if cuda else None)
    numbers = tuple(int(part) for part in re.findall(r"\d+", found.version)[:2])
    if numbers < STABLE_ABI:
        raise BuildError(
            f"torch {found.version} in {root} is older than {STABLE_ABI[0]}.{STABLE_ABI[1]}, the"
            f" first with the stable ABI that blsgan uses: upgrade it (pip install"
            f" '{TORCH_REQUIREMENT}'), or set BLSGAN_TORCH=0 to build without the torch ops."
        )
    return found
