"""No runtime reports anything to anybody: nothing below the home folder, nothing looked up.

This holds of the newest release of each as well: one that learns to report fails here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import blsgan

LITE = Path(blsgan.__file__).with_name("weights").joinpath("lite.onnx")


def test_what_is_looked_up_is_seen(watched_machine):
    watched_machine.run(
        sys.executable, "-c", "import socket\nsocket.getaddrinfo('collector.invalid', 443)"
    )
    if watched_machine.connections is None:
        pytest.skip("strace is not on PATH or may not trace")
    assert watched_machine.connections


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_a_separation_tells_nobody(watched_machine, write_joint, tmp_path, backend):
    joint = write_joint(tmp_path / "joints")
    done = watched_machine.run(
        sys.executable, "-m", "blsgan", "separate", joint.image, "--output", tmp_path / "layers",
        "--backend", backend,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    watched_machine.left_alone()


@pytest.mark.slow
@pytest.mark.parametrize(
    "load",
    [
        "import onnxruntime; onnxruntime.InferenceSession({path!r})",
        "from onnxruntime.quantization import quantize_static",
        "import openvino; core = openvino.Core(); core.compile_model({path!r}, 'CPU')",
        "import openvino; openvino.convert_model({path!r})",
    ],
)
def test_no_runtime_reports_where_blsgan_was_imported(watched_machine, load):
    """A user's program, a script of ours, a worker: also for what blsgan itself does not call."""
    wait = "import time; time.sleep(2)"  # a report is sent by a thread of its own
    code = f"import blsgan; {load.format(path=str(LITE))}; {wait}"
    done = watched_machine.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    watched_machine.left_alone()


def test_processes_that_are_started_inherit_it():
    code = (
        "import blsgan, os, subprocess, sys; "
        "subprocess.run([sys.executable, '-c', 'import os; print(dict(os.environ))'])"
    )
    bare = {
        name: value
        for name, value in os.environ.items()
        if name not in ("ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
    )
    assert "'ORT_DISABLE_TELEMETRY': '1'" in done.stdout
    assert "'RAY_USAGE_STATS_ENABLED': '0'" in done.stdout
