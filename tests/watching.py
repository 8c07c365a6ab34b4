"""A command under watch: what it writes below the home folder and whom it calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# OpenVINO sends nothing from what it takes for a test machine.
MACHINES = ("CI", "TF_BUILD", "JENKINS_URL")
# Of addresses, and of the service that may look up names instead of the process.
BEYOND = ("AF_INET", "systemd.Resolve", "systemd/resolve")
SWITCHES = ("ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")


class WatchedMachine:
    """Runs a command with an empty home folder, as a new user would, and watches its connections.

    Attributes:
        home: the folder.
        connections: the system calls that reach beyond the machine; None: strace is not there or
            may not trace.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self._trace = folder / "trace"
        self.connections: list[str] | None = None

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in (*MACHINES, *SWITCHES) and not name.startswith("XDG_")
        }
        environment["HOME"] = str(self.home)
        watched = [str(part) for part in command]
        if traces():
            strace = ("strace", "-f", "-qq", "-e", "trace=%network", "-o", str(self._trace))
            watched = [*strace, *watched]
        done = subprocess.run(
            watched, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if traces():
            lines = self._trace.read_text(errors="replace").splitlines()
            self.connections = [line for line in lines if any(w in line for w in BEYOND)]
        return done

    def left_alone(self) -> None:
        """Nothing was written, and nothing looked up."""
        assert sorted(self.home.rglob("*")) == []
        if self.connections is None:
            pytest.skip("strace is not on PATH or may not trace, so connections were not watched")
        assert self.connections == []


def traces() -> bool:
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True)
    return done.returncode == 0
