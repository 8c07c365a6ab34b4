"""A run of the segmenter learns, resumes to the same bytes, and says what stops it."""

import json

import numpy as np
import pytest
import torch
import yaml

from blsgan.cli import main
from blsgan.data.dataset import load_root
from blsgan.errors import InputError, UsageError, WeightsError
from blsgan.models.weights import safetensors_bytes
from blsgan.tasks.backend import create
from blsgan.tasks.task import SEGMENTATION, WEIGHTS_FOLDER
from blsgan.training import segmentation
from blsgan.training import trainer as trainer_module
from blsgan.training.config import SegmentationConfig, SegmentationLossConfig, load_config
from blsgan.training.run import DivergedError, run_config, train
from blsgan.training.scenes import SceneBatch
from blsgan.training.segmentation import segmentation_loss

TINY = (
    "steps=6",
    "validate_every=3",
    "checkpoint_every=2",
    "precision=float32",
    "model.widths=[4, 6, 8]",
    "model.blocks=[1, 1, 1]",
    "data.batch=2",
    "data.validation=4",
    "data.phantom_share=0",
    "optimiser.warm_up_steps=2",
)


@pytest.fixture(scope="module")
def tiny():
    return load_config("segmenter", TINY)


@pytest.fixture(scope="module")
def finished(dataset, tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    reports = []
    card = train(dataset, run, tiny, report=reports.append)
    return run, card, reports


def test_a_run_leaves_everything_a_user_needs(finished, tiny):
    run, card, reports = finished
    assert run_config(run) == tiny
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert all(0 <= line["upper_dice"] <= 1 for line in lines)
    assert [r.step for r in reports if r.validation is not None] == [3, 6]
    fields = json.loads(card.read_text())
    assert fields["trained"]["training_joints"] == 1
    assert fields["trained"]["steps"] == 6
    image = np.random.default_rng(0).random((2, 1, 256, 256), np.float32)
    outputs = [
        create(name, card.parent, task=SEGMENTATION).run(image)[0] for name in ("onnx", "torch")
    ]
    np.testing.assert_allclose(*outputs, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_bytes(finished, dataset, tiny, tmp_path):
    def stop(progress):
        if progress.validation is not None and progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", tiny, report=stop)
    card = train(dataset, tmp_path / "run", run_config(tmp_path / "run"), resume=True)
    for ending in (".safetensors", ".onnx"):
        assert card.with_suffix(ending).read_bytes() == (
            finished[1].with_suffix(ending).read_bytes()
        )


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_is_not_emulated(dataset, tiny, tmp_path, monkeypatch, there):
    monkeypatch.setattr(trainer_module, "has_bfloat16", lambda device: there)
    wanted = tiny.model_copy(update={"precision": "bfloat16", "steps": 1})
    said, seen = [], []
    forward = segmentation.SegmenterNetwork.forward

    def watched(self, image):
        logits = forward(self, image)
        if self.training:
            seen.append(logits.dtype)
        return logits

    monkeypatch.setattr(segmentation.SegmenterNetwork, "forward", watched)
    train(dataset, tmp_path / "run", wanted, warn=said.append)
    taken = "bfloat16" if there else "float32"
    assert seen[0] == getattr(torch, taken)
    assert json.loads((tmp_path / "run/environment.json").read_text())["precision"] == taken
    assert any("no bfloat16 instructions" in text for text in said) != there


def test_it_starts_from_given_weights(finished, dataset, tiny, tmp_path):
    kept = finished[1].with_suffix(".safetensors")
    trainer = segmentation.SegmentationTrainer(tiny, load_root(dataset), torch.device("cpu"))
    trainer.start_from(kept)
    for network in (trainer.network, trainer.average):
        assert safetensors_bytes(network) == kept.read_bytes()
    with pytest.raises(InputError, match="not of the configuration's model"):
        trainer.start_from(WEIGHTS_FOLDER / "segmenter.safetensors")
    with pytest.raises(WeightsError, match="no weights for segmentation called 'none'"):
        train(dataset, tmp_path / "run", tiny, init="none")


@pytest.mark.slow
def test_it_learns(dataset, tmp_path):
    config = load_config(
        "segmenter",
        (
            "steps=20",
            "precision=float32",
            "model.widths=[8, 12, 16, 16]",
            "model.blocks=[1, 1, 1, 1]",
            "data.batch=2",
            "data.negative_share=0",
            "data.phantom_share=0",
            "optimiser.warm_up_steps=5",
            "optimiser.learning_rate=5e-3",
        ),
    )
    trainer = segmentation.SegmentationTrainer(config, load_root(dataset), torch.device("cpu"))
    losses = [float(trainer.train_step().total) for _ in range(20)]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_a_run_is_refused_where_it_cannot_be(finished, dataset, tiny, tmp_path):
    with pytest.raises(UsageError, match="holds a run already"):
        train(dataset, finished[0], tiny)
    with pytest.raises(UsageError, match="holds no run to resume"):
        train(dataset, tmp_path / "new", tiny, resume=True)
    with pytest.raises(InputError, match="holds none of the dataset's list files"):
        train(tmp_path, tmp_path / "new", tiny)


def test_a_loss_that_is_not_finite_stops_the_run(dataset, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        segmentation, "segmentation_loss", lambda logits, *rest: logits.sum() * float("nan")
    )
    with pytest.raises(DivergedError, match="not finite at step 1"):
        train(dataset, tmp_path / "run", tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.bacth=3", "key 'data.bacth'"),
        ("steps=0", "key 'steps'"),
        ("steps", "is not key=value"),
    ],
)
def test_wrong_keys(change, message):
    with pytest.raises(UsageError, match=message):
        load_config("segmenter", (change,))


def test_files_of_configurations(tmp_path, tiny):
    path = tmp_path / "mine.yaml"
    path.write_text(tiny.dump())
    assert load_config(path) == tiny
    path.write_text("[")
    with pytest.raises(UsageError, match="not a YAML file"):
        load_config(path)
    with pytest.raises(UsageError, match="nor a readable YAML file"):
        load_config(tmp_path / "none.yaml")


def test_dry_run(tmp_path, capsys):
    assert main(["train-segmenter", "--data", "none", "-o", str(tmp_path), "--dry-run"]) == 0
    assert "# 1,107,624 parameters; 4000 steps of 8 pictures" in capsys.readouterr().out


class TestLoss:
    def batch(self, overlap=40):
        masks = torch.zeros(1, 2, 64, 64)
        masks[:, 0, : 30 + overlap // 4, 10:50] = 1
        masks[:, 1, 30:, 12:52] = 1
        return SceneBatch(torch.zeros(1, 1, 64, 64), masks, torch.zeros(1, 1, 64, 64))

    def loss(self, logits, batch, **weights):
        fields = {"border": 0, "overlap": 0, "dice": 0, "overlap_dice": 0, **weights}
        return float(segmentation_loss(logits, batch, SegmentationLossConfig(**fields)))

    def test_plain_bce(self):
        batch = self.batch()
        logits = torch.randn(1, 2, 64, 64)
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.masks)
        assert self.loss(logits, batch) == pytest.approx(float(expected), rel=1e-5)

    def test_a_perfect_answer_costs_nothing_and_every_term_counts(self):
        batch = self.batch()
        right = 40 * (2 * batch.masks - 1)
        everything = {"border": 4, "overlap": 4, "dice": 1, "overlap_dice": 0.5}
        assert self.loss(right, batch, **everything) == pytest.approx(0, abs=1e-5)
        wrong = right.clone()
        wrong[:, 0, 30:40, 10:50] *= -1  # the overlap is missed
        base = self.loss(wrong, batch)
        for term in ("overlap", "dice", "overlap_dice"):
            assert self.loss(wrong, batch, **{term: 1.0}) > base + 0.01

    def test_a_picture_without_a_joint_has_no_dice(self):
        batch = self.batch()
        empty = SceneBatch(batch.image, torch.zeros_like(batch.masks), batch.border)
        logits = torch.full((1, 2, 64, 64), -3.0)
        assert self.loss(logits, empty, dice=1, overlap_dice=1) == self.loss(logits, empty)


def test_the_preset_is_the_defaults():
    assert load_config("segmenter") == SegmentationConfig()


def test_runs_of_before_are_read(tiny, tmp_path):
    """They named no task, and had a key that nothing used."""
    fields = yaml.safe_load(tiny.dump())
    del fields["task"]
    fields["data"]["composite_share"] = 0.0
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(fields))
    assert load_config(path) == tiny
    fields["data"]["composite_share"] = 0.1
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(UsageError, match=r"key 'data\.composite_share'"):
        load_config(path)


def test_the_old_command_says_that_it_is_one(dataset, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 7\n")
    given = ["--data", "none", "-o", str(tmp_path / "run"), "--dry-run"]
    assert main(["train-segmenter", *given, "--config", str(path), "--set", "seed=3"]) == 0
    out, err = capsys.readouterr()
    assert "note: train-segmenter is now `blsgan train --preset segmenter`" in err
    assert main(["train", "--preset", "segmenter", *given, "--steps", "7", "--set", "seed=3"]) == 0
    assert capsys.readouterr().out == out
    assert main(["train-segmenter", "--data", str(dataset), "-o", str(tmp_path), "--resume"]) == 2
    assert "holds no run to resume" in capsys.readouterr().err
