"""Several processes train as one does."""

import json
import os
import subprocess
import sys

import pytest
import torch

from blsgan.training.distributed import World


def test_rows_of_all_processes_are_the_batch():
    batch = torch.arange(10).view(5, 2)
    shares = [World(rank, 3).rows(batch) for rank in range(3)]
    assert {len(share) for share in shares} == {2}
    assert torch.equal(torch.cat(shares)[:5], batch)
    assert World().rows(batch) is batch


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(dataset, staged_changes, tmp_path):
    """torchrun over gloo, both players, both stages; an odd batch, whose last share is padded."""
    changes = [part for change in staged_changes for part in ("--set", change)]
    changes += ["--set", "stages.1.data.synthetic=3", "--set", "validate_every=1",
                "--set", "stages.0.optimiser.learning_rate=0.001"]
    runs = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
                "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"],
    }
    for name, start in runs.items():
        done = subprocess.run(
            [*start, "-m", "blsgan", "train", "--data", str(dataset), "--preset", "paper",
             "-o", str(tmp_path / name), *changes],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
    lines = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in runs
    }
    assert len(lines["one"]) == len(lines["two"]) == 6
    for one, two in zip(lines["one"], lines["two"], strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - {"seconds", "stage"}:
            assert two[key] == pytest.approx(one[key], rel=2e-4, abs=2e-5), key
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
