"""TensorBoard's files are for looking on: what they cannot hold is no reason to stop."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest


def test_a_disk_that_takes_no_more_costs_the_board_and_not_the_run(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is the extra 'tensorboard'")
    code = (
        "import logging, sys, time, torch\n"
        "from pathlib import Path\n"
        "from blsgan.training.board import Board\n"
        "logging.basicConfig(format='%(message)s')\n"
        "with Board(Path(sys.argv[1]), 0) as board:\n"
        "    for step in range(3):\n"
        "        board.scalars(step, 'training', {'loss': 1.0})\n"
        "        board.panel(step, torch.rand(64, 64))\n"
        "        time.sleep(0.3)\n"  # of the thread that writes
        "print('the run goes on')\n"
    )
    folder = tmp_path / "tensorboard"
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "the run goes on\n")
    assert done.stderr == (
        f"{folder} cannot be written: it is larger than files may be here; raise the limit or "
        "choose another folder. The run goes on without TensorBoard.\n"
    )
