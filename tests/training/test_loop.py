"""A run learns, resumes bit for bit after a kill, and says what stops it."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blsgan.data.dataset import load_root
from blsgan.data.layout import content_digest
from blsgan.errors import InputError, UsageError, WeightsError
from blsgan.machine import commit_of
from blsgan.models import load_generator
from blsgan.tasks.backend import create
from blsgan.training import precision, run_folder, separation
from blsgan.training import run as run_module
from blsgan.training import trainer as trainer_module
from blsgan.training.config import load_config, stages_of
from blsgan.training.distributed import World
from blsgan.training.estimate import estimate
from blsgan.training.optimisers import learning_rate_share
from blsgan.training.run import DivergedError, run_config, train
from blsgan.training.separation import SeparationTrainer
from blsgan.training.sources import check_sources, load_sources


def run_cli(*arguments):
    return [sys.executable, "-m", "blsgan", "train", *map(str, arguments)]


@pytest.fixture(scope="module")
def finished(dataset, tiny, tmp_path_factory):
    """A tiny run from start to end, and what it reported."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    reports = []
    card = train(dataset, run, tiny, report=reports.append)
    return run, card, reports


def test_a_run_leaves_everything_a_user_needs(finished, tiny, phantom):
    run, card, reports = finished
    assert run_config(run) == tiny
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert all(np.isfinite(line["synthetic_psnr_db"]) for line in lines)
    assert [r.step for r in reports if r.validation is not None] == [3, 6]
    assert json.loads((run / "environment.json").read_text())["torch"] == str(torch.__version__)
    fields = json.loads(card.read_text())
    assert fields["trained"]["steps"] == 6
    assert fields["trained"]["training_joints"] == 1
    image, masks = np.zeros((1, 1, 32, 64), np.float32), np.ones((1, 2, 32, 64), np.float32)
    outputs = [create(name, card).run(image, masks) for name in ("onnx", "torch")]
    for first, second in zip(*outputs, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.fixture
def registered(finished):
    """Makes a run's folder that has the registered visits of ``finished`` already."""

    def make(folder):
        shutil.copytree(finished[0] / "registration", folder / "registration")
        return folder

    return make


def test_training_lowers_its_objective(dataset, tiny, tmp_path, registered):
    config = tiny.model_copy(update={"steps": 40})
    cache = registered(tmp_path / "cache")
    sources = load_sources(config, load_root(dataset), cache, torch.device("cpu"))
    trainer = SeparationTrainer(config, sources, torch.device("cpu"))
    totals = [float(trainer.train_step().total.detach()) for _ in range(40)]
    assert np.mean(totals[-10:]) < np.mean(totals[:10]) - 0.02


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_gives_the_same_bytes(
    dataset, tiny_changes, tmp_path, registered
):
    changes = ["--preset", "fine-tune"]
    changes += [part for change in tiny_changes for part in ("--set", change)]
    changes += ["--set", "steps=30", "--set", "validate_every=10", "--set", "checkpoint_every=3"]
    # One thread: the processes are short, and two would wait for each other on a busy machine.
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    whole, killed = registered(tmp_path / "whole"), registered(tmp_path / "killed")
    subprocess.run(
        run_cli("--data", dataset, "-o", whole, *changes),
        check=True,
        capture_output=True,
        **options,
    )
    process = subprocess.Popen(
        run_cli("--data", dataset, "-o", killed, *changes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )
    index = killed / "checkpoints" / "index.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if index.exists() and json.loads(index.read_text())[-1]["step"] >= 6:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "weights").exists(), "the run ended before it could be killed"
    subprocess.run(
        run_cli("--data", dataset, "-o", killed, "--resume"),
        check=True,
        capture_output=True,
        **options,
    )
    for name in ("weights/lite.safetensors", "weights/lite.onnx"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").open()]
    assert steps == [10, 20, 30]


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(
    dataset, tiny, tmp_path, registered
):
    run = registered(tmp_path / "run")
    train(dataset, run, tiny.model_copy(update={"steps": 4}))
    newest = max((run / "checkpoints").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:100])
    warnings = []
    config = run_config(run)
    (run / "weights" / "lite.safetensors").unlink()
    train(dataset, run, config, resume=True, warn=warnings.append)
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    assert (run / "weights" / "lite.safetensors").exists()


def test_nan_stops_the_run_with_the_step_and_the_terms(
    dataset, tiny, tmp_path, registered, monkeypatch
):
    honest = separation.objective

    def broken(layers, *rest, **options):
        terms = honest(layers, *rest, **options)
        terms.total = terms.total * float("nan")
        return terms

    monkeypatch.setattr(separation, "objective", broken)
    with pytest.raises(DivergedError, match=r"not finite at step 1 \(loss nan, synthetic_db"):
        train(dataset, registered(tmp_path / "run"), tiny)
    index = json.loads((tmp_path / "run" / "checkpoints" / "index.json").read_text())
    assert [entry["step"] for entry in index] == [0]


def test_weights_that_are_not_finite_are_no_checkpoint(
    dataset, tiny, tmp_path, registered, monkeypatch
):
    """A finite loss may have a gradient that is not: nobody shall resume from what it leaves."""
    honest, calls = separation.objective, []

    def broken(layers, *rest, **options):
        calls.append(layers)
        terms = honest(layers, *rest, **options)
        if len(calls) == 4:
            terms.total = terms.total + (0 * layers.sum()).sqrt()  # 0, with the gradient NaN
        return terms

    monkeypatch.setattr(separation, "objective", broken)
    run = registered(tmp_path / "run")
    with pytest.raises(DivergedError, match=r"weights are not finite after step 4 \(.*step 2 in"):
        train(dataset, run, tiny)
    monkeypatch.undo()
    assert train(dataset, run, tiny, resume=True).exists()


def test_what_cannot_be_done_is_one_sentence(dataset, tiny, tmp_path, finished):
    run, _, _ = finished
    with pytest.raises(UsageError, match="holds a run already"):
        train(dataset, run, tiny)
    with pytest.raises(UsageError, match="holds no run to resume"):
        train(dataset, tmp_path / "none", tiny, resume=True)
    with pytest.raises(UsageError, match="not a torch device"):
        train(dataset, tmp_path / "none", tiny, device="gpu7")
    with pytest.raises(InputError, match="not a folder"):
        train(tmp_path / "nowhere", tmp_path / "none", tiny)
    with pytest.raises(InputError, match=f"is a list file.*; give the folder .*, {dataset}$"):
        train(dataset / "LS_K1_all_train", tmp_path / "none", tiny)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="sees 0 CUDA devices"):
            train(dataset, tmp_path / "none", tiny, device="cuda")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            ["model.configuration.width=4"],
            WeightsError,
            "'lite' has no option 'width'; it takes widths, blocks, layers",
        ),
        (
            [
                "model.architecture=swin",
                "model.configuration={soft_tissue: zero}",
                "data.crop=[32, 32]",
            ],
            UsageError,
            "'data.crop' is 32x32 px.*'swin' needs more",
        ),
        (
            [
                "model.architecture=unet",
                "model.configuration={soft_tissue: zero}",
                "data.crop=[48, 112]",
            ],
            UsageError,
            "'unet' needs multiples of 32",
        ),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_data_is_read(
    tiny_changes, tmp_path, changes, error, words
):
    if "swin" in changes[0]:
        pytest.importorskip("monai", reason="swin is MONAI's, the extra 'monai'")
    config = load_config("fine-tune", [*tiny_changes, *changes])
    with pytest.raises(error, match=words):
        train(tmp_path / "nowhere", tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def edited(dataset, tmp_path, edit):
    """A copy of the dataset with its list changed: entries -> entries."""
    root = tmp_path / "Data"
    shutil.copytree(dataset, root)
    path = root / "LS_K1_all_train"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    return root


def test_missing_files_are_counted_before_training(dataset, tiny, tmp_path):
    root = edited(dataset, tmp_path, lambda entries: entries)
    (root / json.loads((root / "LS_K1_all_train").read_text())[0]["upper"]).unlink()
    with pytest.raises(InputError, match=r"1 of 24 files that its lists name are missing"):
        train(root, tmp_path / "run", tiny)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_images_of_several_sizes_are_named(dataset, tiny, tmp_path, packed):
    from PIL import Image

    from blsgan.data.packed import pack

    root = edited(dataset, tmp_path, lambda entries: entries)
    entry = json.loads((root / "LS_K1_all_train").read_text())[-1]
    for path in entry.values():
        with Image.open(root / path) as picture:
            picture.resize((128, 128), Image.Resampling.NEAREST).save(root / path)
    if packed:
        pack(load_root(root), tmp_path / "packed")
        root = tmp_path / "packed"
    words = r"a(\.jpg)? 256x256, \S+b(\.jpg)? 128x128; `blsgan data verify`"
    with pytest.raises(InputError, match=words):
        train(root, tmp_path / "run", tiny)
    assert not (tmp_path / "run").exists()


def test_without_second_visits_the_way_out_is_said(dataset, tiny, tmp_path):
    root = edited(dataset, tmp_path, lambda entries: entries[1::2])
    with pytest.raises(InputError, match=r"none of the 1 training.*without: --set data\.visits=0"):
        train(root, tmp_path / "run", tiny)
    assert not (tmp_path / "run").exists()
    staged = load_config("lite-gan", [])
    with pytest.raises(InputError, match=r"0\.data\.visits=0 --set stages\.1\.data\.visits=0"):
        check_sources(staged, load_root(root))
    # Two visits, neither of which has an overlap.
    twice = edited(root, tmp_path / "twice", lambda entries: entries * 2)
    images = load_root(twice)
    images += [replace(image, image=image.image.with_name("c.jpg")) for image in images]
    for image in images:
        if not image.image.exists():
            shutil.copy(image.image.with_name("b.jpg"), image.image)
    with pytest.raises(InputError, match=r"no training joint has an overlap.*data\.visits=0"):
        load_sources(tiny, images, None, torch.device("cpu"))


def test_a_run_whose_checkpoints_are_gone_is_refused_before_visits_are_registered(
    dataset, tiny, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(tiny.dump())
    with pytest.raises(InputError, match=r"no checkpoint.*without --resume in another folder"):
        train(dataset, run, tiny, resume=True)
    assert not (run / "registration").exists()


def test_a_run_killed_before_its_first_step_starts_again(
    dataset, tiny, tmp_path, registered, monkeypatch
):
    run = registered(tmp_path / "run")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "describe_run", killed)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, run, tiny)
    assert (run / "checkpoints").exists()
    with pytest.raises(UsageError, match=r"no run to resume.*; start it there without"):
        run_config(run)
    assert train(dataset, run, tiny.model_copy(update={"steps": 1})).exists()


def test_a_checkpoint_of_another_model_is_refused(dataset, tiny, tmp_path, finished):
    run, _, _ = finished
    other = load_config(run / "config.yaml", ["model.configuration.widths=[6, 6, 6, 8]"])
    with pytest.raises(InputError, match="another model"):
        train(dataset, run, other, resume=True)


def test_a_checkpoint_of_another_optimiser_is_refused(dataset, tiny, finished):
    run, _, _ = finished
    images, cpu = load_root(dataset), torch.device("cpu")
    sources = load_sources(tiny, images, run, cpu)
    trainer = SeparationTrainer(tiny, sources, cpu)
    trainer.train_step()
    saved = trainer.checkpoint()
    muon = tiny.optimiser.model_copy(update={"method": "muon"})
    other = SeparationTrainer(tiny.model_copy(update={"optimiser": muon}), sources, cpu)
    with pytest.raises(InputError, match=r"another model or optimiser\.method"):
        other.restore(saved)
    other.train_step()
    with pytest.raises(InputError, match=r"another model or optimiser\.method"):
        trainer.restore(other.checkpoint())


def test_two_processes_cannot_train_in_one_folder(dataset, tiny, finished):
    run, _, _ = finished
    with run_folder.locked(run), pytest.raises(UsageError, match="another process"):
        train(dataset, run, tiny, resume=True)


def test_learning_rate_warms_up_and_decays(tiny):
    config = load_config("fine-tune")
    (stage,) = stages_of(config, lambda data: 0)
    shares = [
        learning_rate_share(step, stage.steps, stage.optimiser) for step in range(config.steps)
    ]
    assert shares[0] == pytest.approx(1 / config.optimiser.warm_up_steps)
    peak = config.optimiser.warm_up_steps - 1
    decayed = 0.5 * (1 + np.cos(np.pi * peak / config.steps))
    assert max(shares) == pytest.approx(decayed, abs=1e-2)
    assert shares[-1] == pytest.approx(config.optimiser.final_share, abs=1e-3)
    assert np.argmax(shares) == peak


def test_terms_that_a_stage_does_not_have_are_not_reported(dataset, tiny):
    data = tiny.data.model_copy(update={"visits": 0})
    config = tiny.model_copy(update={"data": data})
    sources = load_sources(config, load_root(dataset), None, torch.device("cpu"))
    trainer = SeparationTrainer(config, sources, torch.device("cpu"))
    assert trainer.train_step().names() == ["loss", "synthetic_db", "soft_tissue"]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["compile", "deterministic"])
def test_compiled_and_deterministic_runs_end(dataset, tiny, tmp_path, registered, key):
    if key == "compile" and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and c++ is not on the path")
    # Two resolutions have every kind of layer, and half as many kernels to compile as four.
    shallow = {"widths": [4, 6], "blocks": [1, 1]}
    model = tiny.model.model_copy(update={"configuration": {**tiny.model.configuration, **shallow}})
    changes = {"steps": 2, "validate_every": 2, "model": model, key: True}
    config = tiny.model_copy(update=changes)
    try:
        card = train(dataset, registered(tmp_path / "run"), config)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.compiler.reset()
    assert json.loads(card.read_text())["trained"]["config"][key]
    assert np.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["loss"])


def invoke(*arguments, **environment):
    from click.testing import CliRunner

    from blsgan.cli.train import command

    return CliRunner(env=environment).invoke(command, list(map(str, arguments)))


def test_a_dry_run_asks_for_a_dataset(tmp_path):
    result = invoke("--data", tmp_path / "nowhere", "-o", tmp_path / "run", "--dry-run")
    assert isinstance(result.exception, InputError)
    assert result.stdout == ""


def test_what_only_another_process_meets_is_said(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise InputError("its disk is away")

    monkeypatch.setattr(run_module, "train", fail)
    result = invoke("--data", tmp_path, "-o", tmp_path / "run", RANK="1")
    assert result.exit_code == 1
    assert "process 1: its disk is away" in result.stderr


def test_the_environment_names_data_and_code(finished, dataset, tmp_path):
    described = json.loads((finished[0] / "environment.json").read_text())
    assert described["data_sha256"] == content_digest(load_root(dataset))
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "package"
    package.mkdir()
    init = package / "__init__.py"
    init.write_text("one")

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@e")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "theirs").write_text("")
    git("add", "theirs")
    git("commit", "-qm", "theirs")
    assert commit_of(init) is None  # installed into somebody's repository
    git("add", "package")
    git("commit", "-qm", "ours")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "theirs").write_text("changed")
    (package / "new").write_text("")
    assert commit_of(init) == commit
    init.write_text("two")
    assert commit_of(init) == f"{commit}+"


def test_dry_run_prints_the_configuration_and_touches_nothing(dataset, tmp_path):
    from click.testing import CliRunner

    from blsgan.cli.train import command

    result = CliRunner().invoke(
        command,
        [
            "--data",
            str(dataset),
            "-o",
            str(tmp_path / "run"),
            "--dry-run",
            "--preset",
            "fine-tune",
            "--set",
            "data.synthetic=1",
            "--set",
            "data.visits=1",
        ],
    )
    assert result.exit_code == 0, result.output
    assert "learning_rate: 0.0005" in result.output
    assert "231,860 parameters" in result.output
    assert not (tmp_path / "run").exists()


def test_a_run_can_start_from_given_weights(dataset, tiny, tmp_path, registered, finished):
    _, card, _ = finished
    one = tiny.model_copy(update={"steps": 1})
    again = train(dataset, registered(tmp_path / "run"), one, init=card)
    given = json.loads(card.read_text())["sha256"]["lite.safetensors"]
    assert json.loads(again.read_text())["trained"]["init"]["sha256"] == given
    first, second = (load_generator(path.with_suffix(".safetensors")) for path in (card, again))
    moved = [
        (a - b).abs().max() for a, b in zip(first.parameters(), second.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.01
    other = load_config("fine-tune", ["model.configuration.widths=[6, 6, 6, 8]", "steps=1"])
    with pytest.raises(InputError, match="is not of the configuration's model"):
        train(dataset, tmp_path / "other", other, init=card)
    assert not (tmp_path / "other").exists()
    with pytest.raises(WeightsError, match="no weights for separation called 'nobody'"):
        train(dataset, tmp_path / "third", one, init="nobody")


def arithmetic_of(trainer):
    """What the generator's last layer gave in a step."""
    seen = []
    hook = trainer.generator.head_convolution.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    trainer.train_step()
    hook.remove()
    assert len(seen) == 1
    return seen[0]


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_is_not_emulated(dataset, tiny, tmp_path, registered, monkeypatch, there):
    """Without the instructions a step in bfloat16 takes many times as long as in float32."""
    monkeypatch.setattr(trainer_module, "has_bfloat16", lambda device: there)
    wanted = tiny.model_copy(update={"precision": "bfloat16", "steps": 1})
    said, cpu = [], torch.device("cpu")
    run = registered(tmp_path / "run")
    card = train(dataset, run, wanted, warn=said.append)
    taken = "bfloat16" if there else "float32"
    assert json.loads((run / "environment.json").read_text())["precision"] == taken
    assert json.loads(card.read_text())["trained"]["precision"] == taken
    assert "precision: bfloat16" in (run / "config.yaml").read_text()
    assert [text for text in said if "no bfloat16 instructions" in text] == said
    assert bool(said) != there
    sources = load_sources(wanted, load_root(dataset), run, cpu)
    assert arithmetic_of(SeparationTrainer(wanted, sources, cpu)) == getattr(torch, taken)
    lines = list(estimate(wanted, dataset).lines())
    assert any("no bfloat16 instructions" in line for line in lines) != there
    exact = tiny.model_copy(update={"precision": "float32"})
    assert arithmetic_of(SeparationTrainer(exact, sources, cpu)) == torch.float32


def test_one_process_without_bfloat16_takes_it_from_all(dataset, tiny, monkeypatch):
    """Weights that one process moves in bfloat16 and another in float32 would drift apart."""
    monkeypatch.setattr(trainer_module, "has_bfloat16", lambda device: True)

    class Mixed(World):
        def all(self, flag):
            assert flag
            return False

    wanted = tiny.model_copy(update={"precision": "bfloat16"})
    sources = load_sources(wanted, load_root(dataset), None, torch.device("cpu"))
    assert SeparationTrainer(wanted, sources, torch.device("cpu"), Mixed()).precision == "float32"


def test_going_on_in_another_precision_is_said_and_recorded(
    dataset, tiny, tmp_path, registered, monkeypatch
):
    wanted = tiny.model_copy(update={"precision": "bfloat16", "steps": 2, "checkpoint_every": 1})
    run, said = registered(tmp_path / "run"), []
    monkeypatch.setattr(trainer_module, "has_bfloat16", lambda device: True)

    def stop(progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_READ_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, run, wanted, report=stop)
    monkeypatch.setattr(trainer_module, "has_bfloat16", lambda device: False)
    card = train(dataset, run, run_config(run), resume=True, warn=said.append)
    assert any("was trained in bfloat16 until now and goes on in float32" in text for text in said)
    recorded = json.loads((run / "environment.json").read_text())["precision"]
    assert recorded.startswith("bfloat16, from step ")
    assert recorded.endswith(" float32")
    assert json.loads(card.read_text())["trained"]["precision"] == recorded


def test_bfloat16_is_there_where_the_processor_lists_it():
    # torch's question under its present name: without it no processor would count as having it.
    assert callable(torch.ops.mkldnn._is_mkldnn_bf16_supported)
    listed = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not listed.exists():
        pytest.skip("the processor's instructions are listed for x86-64 on Linux alone")
    flags = set(re.search(r"^flags\s*: (.*)$", listed.read_text(), re.M)[1].split())
    assert precision.has_bfloat16(torch.device("cpu")) == bool(flags & {"avx512_bf16", "amx_bf16"})
