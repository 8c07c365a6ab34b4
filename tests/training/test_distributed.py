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


GRADIENTS = """
import sys

import torch
from safetensors.torch import save_file

from blsgan.training.config import load_config
from blsgan.training.distributed import world_of
from blsgan.training.estimate import MadeUp
from blsgan.training.separation import SeparationTrainer

path, *changes = sys.argv[1:]
with world_of(torch.device("cpu")) as (world, device):
    trainer = SeparationTrainer(
        load_config("paper", changes), MadeUp(lambda data: 1, device), device, world
    )
    trainer.train_step()
    if world.first:
        networks = {"generator": trainer.generator, "supervisor": trainer.supervisor}
        save_file({
            f"{name}.{key}": parameter.grad.contiguous()
            for name, network in networks.items() for key, parameter in network.named_parameters()
        }, path)
    world.wait()  # gloo may abort a process whose partner still works when it leaves
"""

TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node=2",
    "--rdzv-backend=c10d",
    "--rdzv-endpoint=localhost:0",
)


def run(start, *arguments):
    done = subprocess.run(
        [*start, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    """Sums over the whole batch, unclipped: Adam would hide a factor. Five rows, padded to six."""
    from safetensors.torch import load_file

    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    changes = (
        "model.architecture=lite",
        "model.configuration={widths: [4, 4, 4, 4]}",
        "supervisor.widths=[4, 8]",
        "precision=float32",
        "data.size=64",
        "stages.0.epochs=0",
        "stages.1.data.synthetic=3",
        "stages.1.data.real=2",
        "stages.1.loss.layer=0.5",
    )
    run((sys.executable,), script, tmp_path / "one", *changes)
    run(TORCHRUN, script, tmp_path / "two", *changes)
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    for network in ("generator", "supervisor"):
        keys = [key for key in one if key.startswith(network)]
        largest = max(float(one[key].abs().max()) for key in keys)
        assert largest > 1e-4
        for key in keys:
            assert float((two[key] - one[key]).abs().max()) <= 1e-4 * largest, key


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(dataset, staged_changes, tmp_path):
    """torchrun over gloo, both players, both stages; only the first process writes and speaks."""
    changes = [part for change in staged_changes for part in ("--set", change)]
    changes += ["--set", "stages.1.data.synthetic=3", "--set", "validate_every=1"]
    for name, start in (("one", (sys.executable,)), ("two", TORCHRUN)):
        said = run(
            start,
            "-m",
            "blsgan",
            "train",
            "--data",
            dataset,
            "--preset",
            "paper",
            "-o",
            tmp_path / name,
            *changes,
        )
        assert said.count("wrote ") == 1
    lines = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("one", "two")
    }
    assert len(lines["one"]) == len(lines["two"]) == 6
    for one, two in zip(lines["one"], lines["two"], strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - {"seconds", "stage"}:
            # Adam's first steps take a gradient's sign, also of those that are rounding errors.
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), key
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
