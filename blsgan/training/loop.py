"""The training loop: one configuration in, weights out, resumable at any moment.

A run folder holds ``config.yaml`` (resolved), ``environment.json``, ``metrics.jsonl`` (a line for
each validation), ``checkpoints/``, ``registration-*.npz`` (the visits, found once) and at the end
``weights/NAME.{safetensors,onnx,json}``. All randomness comes from one generator whose state is in
the checkpoint, so a run that was killed and resumed ends with the same bytes on the same CPU.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from blsgan.data.dataset import load_root
from blsgan.data.layout import JointImage, check_complete
from blsgan.errors import BlsganError, InputError, UsageError
from blsgan.models import build_generator, load_generator, save_weights
from blsgan.models.backbones import BackboneGenerator
from blsgan.models.generator import Generator, layers_from
from blsgan.models.supervisor import Supervisor
from blsgan.models.weights import check_exporter
from blsgan.tasks.task import WeightsFile
from blsgan.training.board import Board, check_tensorboard
from blsgan.training.checkpoint import (
    Checkpoint,
    latest_step,
    load_checkpoint,
    save_checkpoint,
)
from blsgan.training.config import (
    Stage,
    SupervisorConfig,
    TrainingConfig,
    load_config,
    stages_of,
)
from blsgan.training.distributed import World, world_of
from blsgan.training.objective import (
    Terms,
    image_errors,
    lesson,
    objective,
    supervisor_objective,
)
from blsgan.training.optimisers import (
    Optimisers,
    follow,
    learning_rate_share,
    optimiser_state,
    restore_optimiser,
)
from blsgan.training.pairs import PairBatch
from blsgan.training.precision import has_bfloat16, no_bfloat16
from blsgan.training.run_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    WEIGHTS,
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
from blsgan.training.sources import Sources, check_sources, load_sources

TENSORBOARD = "tensorboard"
_READ_EVERY = 10  # steps between looks at the loss: each one waits for the device
_Network = TypeVar("_Network", bound=nn.Module)


class DivergedError(BlsganError, RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Progress:
    """What a step or a validation reports: ``validation`` is None between validations.

    ``terms`` are the objective's parts by name (``objective.Terms``), means since the last
    validation.
    """

    step: int
    steps: int
    stage: str
    terms: dict[str, float]
    validation: dict[str, float] | None


Report = Callable[[Progress], None]
Warn = Callable[[str], None]


class Trainer:
    """A run in memory: sources, generator, its average, supervisor, optimisers, and the step.

    Args:
        config: the run's configuration.
        sources: where batches come from (``load_sources``).
        device: where the networks run.
        world: the processes that train together.

    Attributes:
        precision: what the networks run in: the configuration's, or float32 where the device of
            one of the processes has no bfloat16 instructions.
        stages: the run's stages; ``steps`` is the last one's end.
        phase: called with the name of each part of a step (data, generator, supervisor, optimiser),
            gives the context that it runs in; a benchmark replaces it by a clock.

    Raises:
        WeightsError: the architecture or its configuration is none.
        UsageError: images or crops of a size that does not fit the network.
    """

    def __init__(
        self,
        config: TrainingConfig,
        sources: Sources,
        device: torch.device,
        world: World | None = None,
    ) -> None:
        self.config, self.device, self.step = config, device, 0
        self.world = World() if world is None else world
        # All the same, or their weights would drift apart.
        self._bfloat16 = self.world.all(has_bfloat16(device))
        self.precision = config.precision if self._bfloat16 else "float32"
        self.phase: Callable[[str], contextlib.AbstractContextManager[Any]] = record_function
        self._sources = sources
        self.stages = stages_of(config, sources.epoch)
        self.steps = self.stages[-1].last
        generator = first_generator(config)
        self.generator = _placed(generator, device)
        self.average = copy.deepcopy(self.generator)
        self.average.requires_grad_(False).eval()
        self._parameters: list[Tensor] = list(self.generator.parameters())
        self.supervisor: Supervisor | None = None
        if config.has_supervisor():
            supervisor = Supervisor(generator.layers, config.supervisor.widths)
            self.supervisor = _placed(supervisor, device)
        self._random = torch.Generator().manual_seed(config.seed + 1)
        self._begin_stage()

    @property
    def stage(self) -> Stage:
        """The stage of the next step, or the last one when there is none."""
        return next((s for s in self.stages if self.step < s.last), self.stages[-1])

    @property
    def supervised(self) -> bool:
        """Whether the supervisor takes part in the next step."""
        return self.supervisor is not None and self.stage.loss.supervisor > 0

    def move_to(self, step: int) -> None:
        """Stands at a step as if all before it had been made, with the weights as they are."""
        self.step = step
        self._begin_stage()

    def _begin_stage(self) -> None:
        """Fresh optimisers, and the networks as this stage runs them."""
        stage = self.stage
        self._optimisers = Optimisers(self.generator, stage.optimiser, bfloat16=self._bfloat16)
        # A free head does not need k for its layers; MONAI's networks have heads for other uses.
        unused = self.generator.head == "free" or isinstance(self.generator, BackboneGenerator)
        self._network = self._as_run(self.world.wrap(self.generator, unused=unused))
        if self.supervisor is not None and self.supervised:
            self._supervisor_optimiser = torch.optim.Adam(
                self.supervisor.parameters(),
                lr=stage.optimiser.supervisor_learning_rate,
                betas=stage.optimiser.betas,
            )
            self._verdict = self._as_run(self.supervisor)
            self._pupil = self._as_run(self.world.wrap(self.supervisor, unused=False))

    def _as_run(self, network: nn.Module) -> nn.Module:
        return cast(nn.Module, torch.compile(network)) if self.config.compile else network

    def start_from(self, weights: Path) -> None:
        """Replaces the random first weights by those of a ``.safetensors`` file.

        Raises:
            WeightsError: the file cannot be read.
            InputError: it is of another architecture or size than the configuration's model; a
                ``lite`` may have fewer blocks.
        """
        for module in (self.generator, self.average):
            _load_first(module, weights, self.config)

    def draw(self) -> PairBatch:
        """The next step's batch; random numbers move on, the step does not."""
        return self._sources.draw(self.stage, self.step, self._random)

    def train_step(self, batch: PairBatch | None = None) -> Terms:
        """One step of both players; the terms stay on the device.

        Args:
            batch: what to learn from, synthetic pairs first; drawn by default.
        """
        stage = self.stage
        if batch is None:
            with self.phase("data"):
                batch = self.draw()
        with self.phase("generator"):
            layers, soft_tissue = self._separate(batch)
            verdict = self._judge(layers) if self.supervised else None
            terms = objective(
                layers,
                soft_tissue,
                batch,
                stage.loss,
                synthetic=stage.data.synthetic,
                verdict=verdict,
            )
            if not stage.data.visits:
                del terms.parts["visits_db"]  # of nothing: 0
            self.generator.zero_grad()
            terms.total.backward()
        with self.phase("optimiser"):
            if stage.optimiser.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._parameters, stage.optimiser.clip_norm)
            self._optimisers.step(
                learning_rate_share(self.step - stage.first, stage.steps, stage.optimiser)
            )
            self._follow(stage)
        if self.supervised:
            terms.parts["supervisor_own"] = self._teach(layers, batch, stage)
        self.step += 1
        if self.step == stage.last and self.step < self.steps:
            self._begin_stage()
        return terms

    def _separate(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Layers and k of the whole batch, of which this process computes its rows."""
        rows = self.world.rows
        layers, soft_tissue = _separate(
            self._network,
            self.generator.head,
            rows(batch.image),
            rows(batch.masks),
            self.precision,
        )
        count = len(batch.image)
        return self.world.gather(layers, count), self.world.gather(soft_tissue, count)

    def _judge(self, layers: Tensor) -> Tensor:
        """The supervisor's logits for layers, through which gradients flow to the generator."""
        assert self.supervisor is not None
        self.supervisor.requires_grad_(False)
        with self._autocast():
            logits = self._verdict(self.world.rows(layers))
        self.supervisor.requires_grad_(True)
        return self.world.gather(logits.float(), len(layers), summed=False)

    def _teach(self, layers: Tensor, batch: PairBatch, stage: Stage) -> Tensor:
        """The supervisor's step on the layers that the generator has just been judged by."""
        assert self.supervisor is not None
        with self.phase("supervisor"):
            given = lesson(layers, batch, stage.data.synthetic)
            with self._autocast():
                logits = self._pupil(self.world.rows(given.layers))
            loss = supervisor_objective(self.world.gather(logits.float(), len(given.layers)), given)
            self.supervisor.zero_grad()
            loss.backward()
        with self.phase("optimiser"):
            if stage.optimiser.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.supervisor.parameters(), stage.optimiser.clip_norm)
            self._supervisor_optimiser.step()
        return loss

    def _autocast(self) -> torch.autocast:
        return _autocast(self.device, self.precision)

    def _follow(self, stage: Stage) -> None:
        follow(self.average, self._parameters, stage.optimiser.ema_decay, self.step)
        with torch.no_grad():
            for kept, current in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                kept.copy_(current)  # running statistics of normalised architectures

    def validate(self) -> dict[str, float]:
        """PSNR in dB of the averaged weights on pairs of validation joints, in the overlap.

        ``synthetic_psnr_db`` on synthetic overlaps of the protocol's settings,
        ``upper_psnr_db`` and ``lower_psnr_db`` on real overlaps with another visit's truth. Quick
        stand-ins for ``blsgan evaluate``, which sees whole images through ``Separator``.
        """
        figures = {}
        batch = self._sources.validation
        layers, soft_tissue = self._separate_all(batch)
        errors, usable = image_errors(layers, batch)
        figures["synthetic_psnr_db"] = _mean_psnr(errors[usable])
        figures["soft_tissue_error"] = float((soft_tissue - batch.soft_tissue).abs().mean())
        batch_visits = self._sources.validation_visits
        if batch_visits is not None:
            layers, _ = self._separate_all(batch_visits)
            errors, usable = image_errors(layers, batch_visits)
            upper = batch_visits.valid[:, 0].flatten(1).any(dim=1)
            figures["upper_psnr_db"] = _mean_psnr(errors[usable & upper])
            figures["lower_psnr_db"] = _mean_psnr(errors[usable & ~upper])
        return figures

    def examples(self, count: int = 4) -> tuple[PairBatch, Tensor]:
        """The first validation pairs and the layers that the averaged weights make of them."""
        first = PairBatch(*(value[:count] for value in vars(self._sources.validation).values()))
        return first, self._separate_all(first)[0]

    def _separate_all(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(batch.image), 32):
                part = slice(start, start + 32)
                image, masks = batch.image[part].to(self.device), batch.masks[part].to(self.device)
                layers, k = _separate(self.average, self.average.head, image, masks, "float32")
                parts.append((layers.cpu(), k.cpu()))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def is_finite(self) -> bool:
        """Whether a checkpoint of now is worth keeping: no weight of either player is NaN or
        infinite. A step's own loss cannot tell, it is older than the step's update."""
        largest = [
            value.abs().amax()
            for module in self._modules().values()
            for value in module.state_dict().values()
            if value.is_floating_point()
        ]
        return bool(torch.isfinite(torch.stack(largest)).all())

    def checkpoint(self) -> Checkpoint:
        """Everything needed to go on from here."""
        weights = {
            f"{prefix}.{key}": value.cpu()
            for prefix, module in self._modules().items()
            for key, value in module.state_dict().items()
        }
        state = {"random": self._random.get_state()}
        state |= {f"optimiser.{k}": v for k, v in self._optimisers.state().items()}
        if self.supervised:
            own = optimiser_state(self._supervisor_optimiser)
            state |= {f"supervisor_optimiser.{k}": v for k, v in own.items()}
        return Checkpoint(self.step, weights, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint.

        Raises:
            InputError: it belongs to another model.
        """
        groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in checkpoint.tensors.items():
            group, _, rest = key.partition(".")
            groups[group][rest] = value
        try:
            for prefix, module in self._modules().items():
                module.load_state_dict(groups[prefix])
            self.move_to(checkpoint.step)
            self._optimisers.restore(groups["optimiser"])
            if self.supervised:
                restore_optimiser(self._supervisor_optimiser, groups["supervisor_optimiser"])
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                "the checkpoint is of another model or optimiser.method than the "
                "run's configuration "
                f"({self.config.model.architecture}); restore config.yaml or start "
                "the run anew in another folder"
            ) from error
        self._random.set_state(checkpoint.tensors["random"])

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"generator": self.generator, "average": self.average}
        if self.supervisor is not None:
            modules["supervisor"] = self.supervisor
        return modules


def first_generator(config: TrainingConfig, weights: Path | None = None) -> Generator:
    """The generator that a run starts with, checked against what the run will do with it.

    Args:
        config: the run's configuration.
        weights: a ``.safetensors`` file in the place of random weights.

    Raises:
        WeightsError: the architecture or its configuration is none, or the file cannot be read.
        UsageError: images or crops of a size that does not fit the network.
        InputError: the file is of another architecture or size than the configuration's model.
    """
    torch.manual_seed(config.seed)
    generator = build_generator(config.model.architecture, config.model.configuration)
    _check_sizes(generator, stages_of(config, lambda data: 1), config.supervisor)
    if weights is not None:
        _load_first(generator, weights, config)
    return generator


def _load_first(generator: Generator, weights: Path, config: TrainingConfig) -> None:
    given = load_generator(weights)
    try:
        generator.begin_with(given)
    except RuntimeError as error:
        raise InputError(
            f"{weights}: is not of the configuration's model "
            f"({config.model.architecture}, {config.model.configuration}); give other "
            "weights or set model.configuration to theirs (blocks of a lite may be "
            "more)"
        ) from error


def train(
    root: str | Path,
    run: str | Path,
    config: TrainingConfig,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    report: Report | None = None,
    warn: Warn | None = None,
) -> Path:
    """Trains a generator and writes its weights.

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

    Returns:
        The weights' card ``RUN/weights/NAME.json``, which ``Separator.from_pretrained`` takes.

    Raises:
        InputError: the dataset is not one, no checkpoint can be used, or ``init`` is of another
            model.
        WeightsError: ``init`` cannot be read, or what writes weights is not installed.
        UsageError: the folder holds a run already, is in use, or the device is not there.
        DivergedError: the loss is not finite; names the step and the last checkpoint.
        OutputError: the folder cannot be written.
    """
    run, report, warn = Path(run), report or (lambda progress: None), warn or (lambda text: None)
    check_exporter()
    if tensorboard:
        check_tensorboard()
    target = device_of(device)
    check_run(run, resume)
    given = first_weights(init) if init is not None else None
    first_generator(config, None if given is None else given.path)  # refused before minutes of work
    images = load_root(root)
    check_complete(root, images)
    check_sources(config, images)
    with world_of(target) as (world, target):
        _settle(config, target)
        with contextlib.ExitStack() as held:
            if world.first:
                held.enter_context(prepared(run, resume))
            found = None
            if resume:
                found = load_checkpoint(run / CHECKPOINTS, warn if world.first else _silent)
            if world.first:
                sources = load_sources(config, images, run, target)
            world.wait()  # the first process registers the visits, the others read what it found
            if not world.first:
                sources = load_sources(config, images, run, target)
            trainer = Trainer(config, sources, target, world)
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
            if world.first:
                if not resume:
                    _begin_run(trainer, run, root, images, given)
                if tensorboard:
                    board = held.enter_context(Board(run / TENSORBOARD, trainer.step))
            metrics = _loop(trainer, run, report if world.first else _silent, board)
            card = run / WEIGHTS / f"{config.name}.json"
            if world.first:
                card = save_weights(
                    trainer.average,
                    run / WEIGHTS,
                    config.name,
                    trained_card(
                        run,
                        config.model_dump(mode="json"),
                        images,
                        trainer.step,
                        metrics,
                        limits="two bones; images like those of the training joints; masks taken "
                        "as given",
                    ),
                )
            world.wait()
    return card


def _silent(*ignored: Any) -> None:
    """What processes other than the first one report and warn with."""


def _begin_run(
    trainer: Trainer,
    run: Path,
    root: str | Path,
    images: Sequence[JointImage],
    given: WeightsFile | None,
) -> None:
    config = trainer.config
    save_checkpoint(run / CHECKPOINTS, trainer.checkpoint(), config.keep_checkpoints)
    described = environment(root, images, trainer.device, trainer.precision, trainer.world.size)
    describe_run(run, described, given, config.dump())


def run_config(run: str | Path) -> TrainingConfig:
    """The configuration that a run folder holds.

    Raises:
        UsageError: there is no run, or its configuration was edited into something invalid.
    """
    check_run(Path(run), resume=True)
    return load_config(Path(run) / CONFIG_FILE)


def _loop(trainer: Trainer, run: Path, report: Report, board: Board | None) -> list[dict[str, Any]]:
    """Trains to the end; returns the lines of the metrics' file."""
    config, first = trainer.config, trainer.world.first
    metrics = metrics_until(run / METRICS_FILE, trainer.step) if first else []
    unread: list[Tensor] = []
    since_validation: list[list[float]] = []
    started = time.monotonic()
    while trainer.step < trainer.steps:
        stage = trainer.stage
        terms = trainer.train_step()
        unread.append(terms.detached())
        ended = trainer.step == stage.last
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
        progress = Progress(trainer.step, trainer.steps, stage.name, shown, None)
        report(progress)
        if first and board is not None:
            board.scalars(progress)
        if validate and first:
            figures = trainer.validate()
            metrics.append(
                {
                    "step": trainer.step,
                    "stage": stage.name,
                    **shown,
                    **figures,
                    "seconds": round(time.monotonic() - started, 1),
                }
            )
            write_text(run / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in metrics))
            progress = replace(progress, validation=figures)
            report(progress)
            if board is not None:
                board.scalars(progress)
                board.panel(trainer.step, *trainer.examples())
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


def _separate(
    network: nn.Module, head: str, image: Tensor, masks: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    with _autocast(image.device, precision):
        # Plain strides: channels-last ones make pooling of a single channel three times as slow on
        # a CPU, and the first convolution turns its input round by itself.
        logits, soft_tissue = network(image.contiguous(), masks.contiguous())
    return layers_from(head, logits, image, masks, soft_tissue), soft_tissue.float()


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _placed(network: _Network, device: torch.device) -> _Network:
    network = network.to(device)
    # Its stub knows no memory_format for modules.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _check_sizes(generator: Generator, stages: Sequence[Stage], config: SupervisorConfig) -> None:
    for stage in stages:
        data = stage.data
        sizes = {"data.size": (data.size, data.size)}
        if data.pairs == "crops":
            sizes = {"data.crop": data.crop, "data.large_crop": data.large_crop or data.crop}
        needs = {f"architecture '{generator.architecture}'": generator.size_multiple}
        if config.enabled and stage.loss.supervisor > 0:
            needs["supervisor"] = 2 ** (len(config.widths) - 1)
        for key, size in sizes.items():
            for network, multiple in needs.items():
                if any(side % multiple for side in size):
                    raise UsageError(
                        f"key '{key}' is {size[0]}x{size[1]} px; the {network} needs "
                        f"multiples of {multiple}"
                    )
            if size[0] * size[1] < generator.least_px:
                raise UsageError(
                    f"key '{key}' is {size[0]}x{size[1]} px; the architecture "
                    f"'{generator.architecture}' needs more, as in {size[0]}x"
                    f"{2 * size[1]}"
                )


def _settle(config: TrainingConfig, device: torch.device) -> None:
    """Which kernels a run may use."""
    torch.use_deterministic_algorithms(config.deterministic)
    if device.type == "cuda":
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = not config.deterministic


def _mean_psnr(errors: Tensor) -> float:
    return float((-10 * torch.log10(errors.clamp(min=1e-10))).mean()) if len(errors) else math.nan
