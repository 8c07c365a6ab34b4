"""What a figure or a run was made on: the processor's name, and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

_PACKAGE = Path(__file__).with_name("__init__.py")


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit_of(package: Path = _PACKAGE) -> str | None:
    """The commit of the repository that tracks a package, with "+" where its files were changed.

    None where no repository does: an installed package may lie in somebody else's.

    Args:
        package: the package's ``__init__.py``; default: blsgan's.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=package.parent, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", package.name)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
