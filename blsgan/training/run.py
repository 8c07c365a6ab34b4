"""One run: a configuration in, weights out, resumable at any moment, whatever the task.

A run folder holds ``config.yaml`` (resolved), ``environment.json``, ``metrics.jsonl`` (a line for
each validation), ``checkpoints/``, what its task keeps (``registration/``: visits, found once)
and at the end ``weights/NAME.{safetensors,onnx,json}``. A run that was killed and resumed ends with
the same bytes on the same CPU: all randomness depends on the seed and the step, or its state is in
the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blsgan.errors import BlsganError
from blsgan.models.weights import check_exporter, save_weights
from blsgan.progress import Track, silent
from blsgan.training import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, WEIGHTS
from blsgan.training.board import Board, check_tensorboard
from blsgan.training.checkpoint import latest_step, load_checkpoint, save_checkpoint
from blsgan.training.config import RunConfig, load_config
from blsgan.training.distributed import world_of
from blsgan.training.precision import no_bfloat16
from blsgan.training.run_folder import (
    check_run,
    describe_run,
    device_of,
    environment,
    first_weights,
    metrics_until,
    note_precision,
    prepared,
    trained_card,
    write_text,
)
from blsgan.training.trainer import Recipe, Trainer

TENSORBOARD = "tensorboard"
_READ_EVERY = 10  # steps between looks at the loss: each one waits for the device


class DivergedError(BlsganError, RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class StepReport:
    """What a step or a validation reports: ``validation`` is None between validations.

    ``terms`` are the parts of what is minimised by name, means since the last validation.
    """

    step: int
    steps: int
    stage: str
    terms: dict[str, float]
    validation: dict[str, float] | None


Report = Callable[[StepReport], None]
Warn = Callable[[str], None]


def recipe_of(config: RunConfig) -> Recipe:
    """How runs of the configuration's task are trained."""
    recipe = import_module(f"blsgan.training.{config.task}").RECIPE
    assert isinstance(recipe, Recipe)
    return recipe


def train(
    root: str | Path,
    run: str | Path,
    config: RunConfig,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    report: Report | None = None,
    warn: Warn | None = None,
    track: Track = silent,
) -> Path:
    """Trains a network and writes its weights.

    Under torchrun each process calls this, and the first one alone writes, reports and warns.

    Args:
        root: the dataset's folder ``Data``.
        run: the run's folder; it must be new unless ``resume``.
        config: the configuration; on resuming it must be the run's own (:func:`run_config`).
        resume: go on from the newest whole checkpoint.
        init: weights to start from instead of random ones: a name, a file or a folder.
        device: a torch device (``cpu``, ``cuda``, ``cuda:1``).
        tensorboard: write scalars and panels for TensorBoard into ``RUN/tensorboard``.
        report: called after every tenth step and every validation.
        warn: called with a sentence about anything a user should know.
        track: wraps what takes long before the first step: the registration of visits.

    Returns:
        The weights' card ``RUN/weights/NAME.json``, which ``from_pretrained`` of ``Separator`` or
        ``Segmenter`` takes.

    Raises:
        InputError: the dataset is not one, no checkpoint can be used, or ``init`` is of another
            model.
        WeightsError: ``init`` cannot be read, or what writes weights is not installed.
        UsageError: the folder holds a run already, is in use, or the device is not there.
        DivergedError: the loss is not finite; names the step and the last checkpoint.
        OutputError: the folder cannot be written.
    """
    run, report, warn = Path(run), report or _silent, warn or _silent
    recipe = recipe_of(config)
    check_exporter()
    if tensorboard:
        check_tensorboard()
    target = device_of(device)
    check_run(run, resume)
    given = first_weights(init, recipe.task) if init is not None else None
    recipe.check(config, None if given is None else given.path)
    samples = recipe.read(root)
    recipe.check_data(config, samples)
    with world_of(target) as (world, target), contextlib.ExitStack() as held:
        if world.first:
            held.enter_context(prepared(run, resume))
        found = None
        if resume:
            found = load_checkpoint(run / CHECKPOINTS, warn if world.first else _silent)
        if world.first:
            loaded = recipe.load(config, samples, run, target, track)
        world.wait()  # the first process finds what takes long, the others read it
        if not world.first:
            loaded = recipe.load(config, samples, run, target, silent)
        trainer = recipe.trainer(config, loaded, target, world)
        if world.first and trainer.precision != config.precision:
            warn(no_bfloat16(target))
        if found is not None:
            trainer.restore(found)
            if world.first:
                note_precision(run, trainer.precision, trainer.step, warn)
        elif given is not None:
            trainer.start_from(given.path)
        world.wait()
        board = None
        if world.first and not resume:
            save_checkpoint(run / CHECKPOINTS, trainer.checkpoint(), config.keep_checkpoints)
            described = environment(
                root, recipe.digest(samples), target, trainer.precision, world.size
            )
            describe_run(run, described, given, config.dump())
        if world.first and tensorboard:
            board = held.enter_context(Board(run / TENSORBOARD, trainer.step))
        metrics = _loop(trainer, config, run, report if world.first else _silent, board)
        card = run / WEIGHTS / f"{config.name}.json"
        if world.first:
            fields = trained_card(
                run,
                config.model_dump(mode="json"),
                [sample.joint for sample in samples],
                trainer.step,
                metrics,
                limits=recipe.limits,
            )
            card = save_weights(trainer.average, run / WEIGHTS, config.name, fields)
        world.wait()
    return card


def run_config(run: str | Path) -> RunConfig:
    """The configuration that a run folder holds.

    Raises:
        UsageError: there is no run, or its configuration was edited into something invalid.
    """
    check_run(Path(run), resume=True)
    return load_config(Path(run) / CONFIG_FILE)


def _silent(*ignored: Any) -> None:
    """What processes other than the first one report and warn with."""


def _loop(
    trainer: Trainer, config: RunConfig, run: Path, report: Report, board: Board | None
) -> list[dict[str, Any]]:
    """Trains to the end; returns the lines of the metrics' file."""
    first = trainer.world.first
    metrics = metrics_until(run / METRICS_FILE, trainer.step) if first else []
    unread: list[Tensor] = []
    since_validation: list[list[float]] = []
    started = time.monotonic()
    while trainer.step < trainer.steps:
        stage, end = trainer.part()
        terms = trainer.train_step()
        unread.append(terms.detached())
        ended = trainer.step == end
        validate = ended or trainer.step % config.validate_every == 0
        save = ended or trainer.step % config.checkpoint_every == 0
        if trainer.step % _READ_EVERY and not validate and not save:
            continue
        read = torch.stack(unread).tolist()
        unread.clear()
        for step, values in enumerate(read, start=trainer.step - len(read) + 1):
            if not all(math.isfinite(value) for value in values):
                found = dict(zip(terms.names(), values, strict=True))
                raise DivergedError(_diverged("the loss is not finite at", step, found, run))
        since_validation += read
        means = [sum(values) / len(values) for values in zip(*since_validation, strict=True)]
        shown = dict(zip(terms.names(), means, strict=True))
        if save and not trainer.is_finite():
            found = dict(zip(terms.names(), read[-1], strict=True))
            raise DivergedError(
                _diverged("the weights are not finite after", trainer.step, found, run)
            )
        progress = StepReport(trainer.step, trainer.steps, stage, shown, None)
        report(progress)
        if board is not None:
            board.scalars(trainer.step, "training", shown)
        if validate and first:
            figures = trainer.validate()
            seconds = round(time.monotonic() - started, 1)
            line = {"step": trainer.step, "stage": stage, **shown, **figures, "seconds": seconds}
            metrics.append(line)
            write_text(run / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in metrics))
            report(replace(progress, validation=figures))
            if board is not None:
                board.scalars(trainer.step, "validation", figures)
                board.panel(trainer.step, trainer.picture())
        if validate:
            since_validation.clear()
        if save and first:
            save_checkpoint(run / CHECKPOINTS, trainer.checkpoint(), config.keep_checkpoints)
    return metrics


def _diverged(what: str, step: int, terms: dict[str, float], run: Path) -> str:
    listed = ", ".join(f"{key} {value:g}" for key, value in terms.items())
    folder = run / CHECKPOINTS
    good = latest_step(folder)
    return (
        f"{what} step {step} ({listed}); lower the learning rate and "
        f"start anew, or resume from the last checkpoint, step {good} in {folder}"
    )
