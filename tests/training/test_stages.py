"""The published method: two players, two stages, resumed in the second one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from blsgan.data.dataset import load_root
from blsgan.errors import InputError, UsageError, WeightsError
from blsgan.models import load_generator
from blsgan.training import separation
from blsgan.training.checkpoint import load_checkpoint
from blsgan.training.config import load_config
from blsgan.training.estimate import MadeUp
from blsgan.training.run import DivergedError, run_config, train
from blsgan.training.separation import SeparationTrainer
from blsgan.training.sources import load_sources

CPU = torch.device("cpu")


def run_cli(*arguments):
    return [sys.executable, "-m", "blsgan", "train", *map(str, arguments)]


def refuse(text):
    raise AssertionError(text)


@pytest.fixture(scope="module")
def finished(dataset, staged, tmp_path_factory):
    """A tiny run of both stages, from start to end, and what it reported."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    reports = []
    card = train(dataset, run, staged, report=reports.append)
    return run, card, reports


@pytest.fixture
def sources(dataset, staged):
    return load_sources(staged, load_root(dataset), None, CPU)


def test_both_stages_leave_their_terms_and_their_weights(finished):
    run, card, reports = finished
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["stage"]) for line in lines] == [
        (2, "pre-training"),
        (3, "pre-training"),
        (4, "main"),
        (6, "main"),
    ]
    assert {"layer", "reconstruction", "supervisor", "supervisor_own"} <= set(lines[0])
    assert "layer" not in lines[-1]
    assert reports[-1].steps == 6
    # A free head recomposes only as far as it learnt to: no graph for Separator is written.
    assert not card.with_suffix(".onnx").exists()
    assert set(json.loads(card.read_text())["sha256"]) == {"paper.safetensors"}
    assert load_generator(card.with_suffix(".safetensors")).head == "free"


def test_free_heads_are_not_for_the_separator(finished):
    from blsgan.tasks.backend import create

    with pytest.raises(WeightsError, match="needs two layers and the exact head"):
        create("torch", finished[1])


def test_one_forward_pass_of_the_generator_serves_both_players(sources, staged):
    trainer = SeparationTrainer(staged, sources, CPU)
    passes = []
    trainer._network.register_forward_hook(lambda *call: passes.append(len(call[1][0])))
    trainer.train_step()
    assert passes == [2]


def test_each_player_moves_by_its_own_loss_alone(sources, staged):
    trainer = SeparationTrainer(staged, sources, CPU)
    supervisor = [p.detach().clone() for p in trainer.supervisor.parameters()]
    trainer.supervisor.register_forward_hook(lambda *call: None)
    with torch.no_grad():
        for group in trainer._supervisor_optimiser.param_groups:
            group["lr"] = 0.0
    trainer.train_step()
    for before, after in zip(supervisor, trainer.supervisor.parameters(), strict=True):
        assert torch.equal(before, after)
        assert after.requires_grad
        assert after.grad.abs().sum() > 0
    generator = SeparationTrainer(staged, sources, CPU).generator.state_dict()
    moved = [not torch.equal(generator[k], v) for k, v in trainer.generator.state_dict().items()]
    assert any(moved)


def test_the_supervisor_learns_to_tell_layers_apart(staged):
    """With the generator standing still, what the supervisor is taught becomes easier to say."""
    config = load_config(
        "paper",
        [
            *staged_like(),
            "stages.0.optimiser.learning_rate=1e-12",
            "stages.0.steps=40",
            "optimiser.supervisor_learning_rate=0.01",
        ],
    )
    trainer = SeparationTrainer(config, MadeUp(lambda data: 1, CPU), CPU)
    own = [float(trainer.train_step().parts["supervisor_own"].detach()) for _ in range(40)]
    assert own[-1] < 0.8 * own[0]


def staged_like():
    return (
        "model.architecture=lite",
        "model.configuration={widths: [4, 4, 4, 4]}",
        "supervisor.widths=[4, 8]",
        "precision=float32",
        "data.size=64",
        "stages.0.data.synthetic=2",
    )


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("supervisor.enabled=false", "supervisor"),
        ("stages.0.loss.layer=0", "layer"),
        ("stages.0.loss.reconstruction=0", "reconstruction"),
    ],
)
def test_parts_are_switched_off_by_one_key(change, gone):
    config = load_config("paper", [*staged_like(), change])
    trainer = SeparationTrainer(config, MadeUp(lambda data: 1, CPU), CPU)
    assert gone not in trainer.train_step().parts
    assert (trainer.supervisor is None) == (gone == "supervisor")


def test_k_is_nought_without_the_correction():
    network = ("model.architecture=unet", "model.configuration={soft_tissue: zero, widths: [4, 8]}")
    config = load_config("paper", [*staged_like(), *network])
    trainer = SeparationTrainer(config, MadeUp(lambda data: 1, CPU), CPU)
    *_, soft_tissue = trainer._separate(trainer.draw())
    assert not soft_tissue.any()


def test_three_bones_train_both_players():
    config = load_config(
        "paper",
        [
            *staged_like(),
            "model.configuration.layers=3",
            "model.configuration.head=exact",
            "loss.decibel=0.1",
        ],
    )
    trainer = SeparationTrainer(config, MadeUp(lambda data: 1, CPU, layers=3), CPU)
    first = trainer.train_step()
    for _ in range(5):
        last = trainer.train_step()
    assert trainer.supervisor.layers == 3
    assert torch.isfinite(last.detached()).all()
    assert float(first.parts["reconstruction"].detach()) < 1e-5  # the exact head, by construction


def test_stages_go_on_with_weights_and_start_with_fresh_optimisers(sources, staged):
    trainer = SeparationTrainer(staged, sources, CPU)
    for _ in range(3):
        trainer.train_step()
    assert trainer.stage.name == "main"
    assert not trainer._optimisers.state()
    assert not trainer._supervisor_optimiser.state_dict()["state"]
    assert trainer.draw().image.shape == (4, 1, 64, 64)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_killed_in_the_second_stage_and_resumed_gives_the_same_bytes(
    dataset, staged_changes, finished, tmp_path, one_thread
):
    run = tmp_path / "killed"
    changes = [part for change in staged_changes for part in ("--set", change)]
    changes += ["--set", "stages.1.steps=3000"]
    # One thread, there and here: two wait for each other on a busy machine, and sum otherwise.
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(
        run_cli("--data", dataset, "-o", run, "--preset", "paper", *changes),
        stderr=subprocess.DEVNULL,
        **options,
    )
    index = run / "checkpoints" / "index.json"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if index.exists() and json.loads(index.read_text())[-1]["step"] >= 5:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stopped = load_checkpoint(run / "checkpoints", lambda text: None).step
    assert stopped >= 5, "the run was not killed in its second stage"
    # What it would have become is computed without a break from the same start.
    config = run_config(run)
    goal = stopped + 3
    whole = SeparationTrainer(config, load_sources(config, load_root(dataset), None, CPU), CPU)
    while whole.step < goal:
        whole.train_step()
    resumed = SeparationTrainer(config, load_sources(config, load_root(dataset), None, CPU), CPU)
    resumed.restore(load_checkpoint(run / "checkpoints", lambda text: None))
    while resumed.step < goal:
        resumed.train_step()
    first, second = whole.checkpoint().tensors, resumed.checkpoint().tensors
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resumed_in_the_second_stage_after_damage_gives_the_same_bytes(dataset, finished, tmp_path):
    run, card, _ = finished
    again = tmp_path / "again"
    shutil.copytree(run, again)
    (again / "weights" / "paper.safetensors").unlink()
    newest = again / "checkpoints" / "step-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    warnings = []
    train(dataset, again, run_config(again), resume=True, warn=warnings.append)
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    written = (again / "weights" / "paper.safetensors").read_bytes()
    assert written == card.with_suffix(".safetensors").read_bytes()


def test_a_checkpoint_of_another_supervisor_is_refused(sources, finished):
    run, _, _ = finished
    other = load_config(run / "config.yaml", ["supervisor.widths=[4, 6]"])
    trainer = SeparationTrainer(other, sources, CPU)
    with pytest.raises(InputError, match="another model"):
        trainer.restore(load_checkpoint(run / "checkpoints", refuse))


def test_nan_names_the_step_the_terms_and_the_last_good_checkpoint(
    dataset, staged, tmp_path, monkeypatch
):
    honest = separation.supervisor_objective
    calls = []

    def broken(*given):
        calls.append(given)
        return honest(*given) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(separation, "supervisor_objective", broken)
    with pytest.raises(DivergedError, match=r"step 3 \(loss .*supervisor_own nan.*, step 2 in"):
        train(dataset, tmp_path / "run", staged)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(
    dataset, staged, tmp_path, monkeypatch
):
    import errno
    from pathlib import Path

    from blsgan.errors import OutputError

    run, write = tmp_path / "run", Path.write_bytes

    def full(self, data):
        if (run / "config.yaml").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="disk is full"):
            train(dataset, run, staged)
    assert train(dataset, run, run_config(run), resume=True).exists()


def test_sizes_and_bones_that_do_not_fit_are_refused_before_anything_starts(dataset, tmp_path):
    changes = [
        "model.architecture=unet",
        "model.configuration={soft_tissue: zero}",
        "data.crop=[48, 112]",
    ]
    config = load_config("fine-tune", changes)
    with pytest.raises(UsageError, match=r"'data.crop' is 48x112 px.*'unet' needs multiples of 32"):
        SeparationTrainer(config, MadeUp(lambda data: 1, CPU), CPU)
    config = load_config("paper", ["model.configuration.layers=3"])
    with pytest.raises(UsageError, match="joints have 2 bones"):
        train(dataset, tmp_path / "run", config)


def test_dry_run_counts_networks_and_times_a_step(dataset, staged_changes, tmp_path):
    from click.testing import CliRunner

    from blsgan.cli.train import command

    changes = [part for change in staged_changes for part in ("--set", change)]
    changes += ["--set", "stages.0.epochs=4"]
    result = CliRunner().invoke(
        command,
        [
            "--data",
            str(dataset),
            "-o",
            str(tmp_path / "run"),
            "--preset",
            "paper",
            *changes,
            "--dry-run",
        ],
    )
    assert result.exit_code == 0, result.output
    assert "# supervisor: " in result.output
    # One training image is free: four epochs are four steps.
    assert "# pre-training: 4 steps of 2 synthetic images of 64x64 px; " in result.output
    assert "# main: 3 steps of 2 synthetic, 2 real images" in result.output
    assert "# estimated time: " in result.output
    assert not (tmp_path / "run").exists()


def test_dry_run_counts_epochs_of_crops_as_the_run_does(dataset, tiny):
    """Every source counts; visits may be what a stage has most of."""
    from blsgan.data.dataset import load_root
    from blsgan.training.estimate import estimate
    from blsgan.training.sources import epoch_steps, load_sources

    assert epoch_steps([(4, 2), (5, 1), (0, 0)]) == 5
    config = load_config(
        "lite",
        [
            *(
                f"{key}={value}"
                for key, value in (
                    ("stages.0.epochs", 3),
                    ("stages.0.data.visits", 1),
                    ("model.configuration.widths", "[4, 6, 6, 8]"),
                    ("data.synthetic", 2),
                    ("model.configuration.blocks", "[1, 1, 1, 1]"),
                    ("data.validation", 2),
                    ("data.crop", "[32, 64]"),
                    ("precision", "float32"),
                )
            )
        ],
    )
    sources = load_sources(config, load_root(dataset), None, CPU)
    (stage,) = SeparationTrainer(config, sources, CPU).stages
    (cost,) = estimate(config, dataset).stages
    assert cost.stage.steps == stage.steps == 3 * sources.epoch(stage.data)


def test_tensorboard_gets_scalars_and_panels(dataset, staged, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is the extra 'tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(dataset, tmp_path / "run", staged, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = events.Tags()
    assert {"training/supervisor", "validation/synthetic_psnr_db"} <= set(tags["scalars"])
    assert tags["images"] == ["validation"]
    assert [event.step for event in events.Images("validation")] == [2, 3, 4, 6]


def test_dry_run_counts_the_large_crops_of_every_fourth_step(dataset):
    from blsgan.training.estimate import estimate

    small = [
        "data.synthetic=2",
        "data.visits=0",
        "model.configuration.widths=[4, 6, 6, 8]",
        "model.configuration.blocks=[1, 1, 1, 1]",
        "data.crop=[32, 64]",
        "precision=float32",
    ]
    even, found = (
        estimate(load_config("lite", [*small, f"data.large_crop={large}"]), dataset)
        for large in ("null", "[64, 64]")
    )
    (cost,) = found.stages
    assert cost.flop == round(1.25 * even.stages[0].flop)
    assert "crops of 32x64 px (64x64 in every 4th); " in "".join(found.lines())
