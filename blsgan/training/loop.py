"""The training loop: one configuration in, weights out, resumable at any moment.

A run folder holds ``config.yaml`` (resolved), ``environment.json``, ``metrics.jsonl`` (a line for
each validation), ``checkpoints/``, ``registration-*.npz`` (the visits, found once) and at the end
``weights/NAME.{safetensors,onnx,json}``. All randomness comes from one generator whose state is in
the checkpoint, so a run that was killed and resumed ends with the same bytes on the same CPU.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blsgan import __version__
from blsgan.backends import WeightsFile, find_weights
from blsgan.data.layout import JointImage, load_root
from blsgan.data.splits import is_validation, select
from blsgan.data.truths import cached_visit_truths
from blsgan.data.visits import PROTOCOL, TRAINING
from blsgan.errors import BlsganError, InputError, UsageError, WeightsError
from blsgan.io.atomic import atomic_path, check_writable_folder
from blsgan.models import build_generator, load_generator, save_weights
from blsgan.models.weights import check_exporter
from blsgan.ops import split_attenuation
from blsgan.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from blsgan.training.config import TrainingConfig, load_config
from blsgan.training.objective import Terms, image_errors, objective
from blsgan.training.optimisers import Optimisers
from blsgan.training.pairs import PairBatch, SyntheticPairs, VisitPairs

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"
_VALIDATION_CROP = (96, 160)
_READ_EVERY = 10  # steps between looks at the loss: each one waits for the device


class DivergedError(BlsganError, RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Progress:
    """What a step or a validation reports: ``validation`` is None between validations."""

    step: int
    steps: int
    terms: dict[str, float]
    validation: dict[str, float] | None


Report = Callable[[Progress], None]
Warn = Callable[[str], None]


@dataclass
class _Pairs:
    training: SyntheticPairs
    visits: VisitPairs | None
    validation: PairBatch
    validation_visits: PairBatch | None


def learning_rate_share(step: int, config: TrainingConfig) -> float:
    """Learning rate of a step (from 0) as a share of the highest: linear warm-up, cosine decay."""
    optimiser = config.optimiser
    warm_up = min(1.0, (step + 1) / optimiser.warm_up_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
    return warm_up * (cosine * (1 - optimiser.final_share) + optimiser.final_share)


class Trainer:
    """A run in memory: pairs, generator, its average, optimiser, and the step they stand at.

    Args:
        config: the run's configuration.
        images: every image of the dataset; the split by joint is made here.
        cache: folder for the registered visits, or None to find them anew.
        device: where the network runs.

    Raises:
        InputError: the dataset lacks what the configuration asks for.
    """

    def __init__(
        self,
        config: TrainingConfig,
        images: Sequence[JointImage],
        cache: Path | None,
        device: torch.device,
    ) -> None:
        self.config, self.device, self.step = config, device, 0
        self._pairs = _load_pairs(config, images, cache)
        torch.manual_seed(config.seed)
        generator = build_generator(config.model.architecture, config.model.configuration)
        self.generator = generator.to(device)
        # Its stub knows no memory_format for modules.
        self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.generator)
        self.average.requires_grad_(False).eval()
        self._parameters: list[Tensor] = list(self.generator.parameters())
        self._optimisers = Optimisers(self.generator, config.optimiser)
        self._random = torch.Generator().manual_seed(config.seed + 1)

    def start_from(self, weights: Path) -> None:
        """Replaces the random first weights by those of a ``.safetensors`` file.

        Raises:
            WeightsError: the file cannot be read.
            InputError: it is of another architecture or size than the configuration's model.
        """
        given = load_generator(weights)
        try:
            for module in (self.generator, self.average):
                module.load_state_dict(given.state_dict())
        except RuntimeError as error:
            raise InputError(f"{weights}: is not of the configuration's model "
                             f"({self.config.model.architecture}, "
                             f"{self.config.model.configuration})") from error

    def train_step(self) -> Terms:
        """One step; the terms stay on the device."""
        config = self.config
        batch = self._pairs.training.draw(
            config.data.synthetic, self._random, size=config.data.crop,
            protocol_share=config.data.protocol_share,
        )
        if self._pairs.visits is not None:
            real = self._pairs.visits.draw(config.data.visits, self._random, size=config.data.crop)
            batch = PairBatch.join(batch, real)
        batch = _to(batch, self.device)
        layers, soft_tissue = _separate(self.generator, batch, config.precision)
        terms = objective(layers, soft_tissue, batch, config.loss)
        self.generator.zero_grad()
        terms.total.backward()
        nn.utils.clip_grad_norm_(self._parameters, config.optimiser.clip_norm)
        self._optimisers.step(learning_rate_share(self.step, config))
        # The average follows quickly at first, so that early validations mean something.
        decay = min(config.optimiser.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), self._parameters, 1 - decay)
            for kept, current in zip(
                self.average.buffers(), self.generator.buffers(), strict=True
            ):
                kept.copy_(current)  # running statistics of normalised architectures
        self.step += 1
        return terms

    def validate(self) -> dict[str, float]:
        """PSNR in dB of the averaged weights on crops of validation joints.

        ``synthetic_psnr_db`` on synthetic overlaps of the protocol's settings,
        ``upper_psnr_db`` and ``lower_psnr_db`` on real overlaps with another visit's truth. Quick
        stand-ins for ``blsgan evaluate``, which sees whole images through ``Separator``.
        """
        figures = {}
        batch = self._pairs.validation
        layers, soft_tissue = self._separate_all(batch)
        errors, usable = image_errors(layers, batch)
        figures["synthetic_psnr_db"] = _mean_psnr(errors[usable])
        figures["soft_tissue_error"] = float((soft_tissue - batch.soft_tissue).abs().mean())
        batch_visits = self._pairs.validation_visits
        if batch_visits is not None:
            layers, _ = self._separate_all(batch_visits)
            errors, usable = image_errors(layers, batch_visits)
            upper = batch_visits.valid[:, 0].flatten(1).any(dim=1)
            figures["upper_psnr_db"] = _mean_psnr(errors[usable & upper])
            figures["lower_psnr_db"] = _mean_psnr(errors[usable & ~upper])
        return figures

    def _separate_all(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(batch.image), 32):
                part = PairBatch(*(value[start : start + 32] for value in vars(batch).values()))
                layers, soft_tissue = _separate(self.average, _to(part, self.device), "float32")
                parts.append((layers.cpu(), soft_tissue.cpu()))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def checkpoint(self) -> Checkpoint:
        """Everything needed to go on from here."""
        tensors = {"random": self._random.get_state()}
        for prefix, module in (("generator", self.generator), ("average", self.average)):
            tensors |= {f"{prefix}.{k}": v.cpu() for k, v in module.state_dict().items()}
        tensors |= {f"optimiser.{k}": v for k, v in self._optimisers.state().items()}
        return Checkpoint(self.step, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint.

        Raises:
            InputError: it belongs to another model.
        """
        groups: dict[str, dict[str, Tensor]] = {"generator": {}, "average": {}, "optimiser": {}}
        for key, value in checkpoint.tensors.items():
            group, _, rest = key.partition(".")
            if group in groups:
                groups[group][rest] = value
        try:
            self.generator.load_state_dict(groups["generator"])
            self.average.load_state_dict(groups["average"])
        except RuntimeError as error:
            raise InputError("the checkpoint is of another model than the run's configuration "
                             f"({self.config.model.architecture}); restore config.yaml or start "
                             "the run anew in another folder") from error
        self._optimisers.restore(groups["optimiser"])
        self._random.set_state(checkpoint.tensors["random"])
        self.step = checkpoint.step


def train(
    root: str | Path,
    run: str | Path,
    config: TrainingConfig,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    device: str = "cpu",
    report: Report | None = None,
    warn: Warn | None = None,
) -> Path:
    """Trains a generator and writes its weights.

    Args:
        root: the dataset's folder ``Data``.
        run: the run's folder; it must be new unless ``resume``.
        config: the configuration; on resuming it must be the run's own (:func:`run_config`).
        resume: go on from the newest whole checkpoint.
        init: weights to start from instead of random ones: a name, a file or a folder.
        device: a torch device (``cpu``, ``cuda``, ``cuda:1``).
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
    target = _device(device)
    check_exporter()
    images = load_root(root)
    check_writable_folder(run)
    if not resume and (run / CONFIG_FILE).exists():
        raise UsageError(f"{run}: holds a run already; add --resume to go on with it or choose "
                         "another folder")
    if resume and not (run / CONFIG_FILE).exists():
        raise UsageError(f"{run}: holds no run to resume (no {CONFIG_FILE})")
    first = _first_weights(init) if init is not None else None
    run.mkdir(parents=True, exist_ok=True)
    with _locked(run):
        trainer = Trainer(config, images, run, target)
        if resume:
            trainer.restore(load_checkpoint(run / CHECKPOINTS, warn))
        else:
            if first is not None:
                trainer.start_from(first.path)
            save_checkpoint(run / CHECKPOINTS, trainer.checkpoint(), config.keep_checkpoints)
            environment = _environment(root)
            if first is not None:
                environment["init"] = {"file": first.path.name, "sha256": first.sha256}
            _write(run / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")
            _write(run / CONFIG_FILE, config.dump())
        metrics = _metrics_until(run / METRICS_FILE, trainer.step)
        _loop(trainer, run, metrics, report)
        environment = json.loads((run / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        card = {
            "trained": {
                "config": config.model_dump(mode="json"),
                "init": environment.get("init"),
                "training_joints": len({i.joint for i in images if not is_validation(i.joint)}),
                "validation_joints": len({i.joint for i in images if is_validation(i.joint)}),
                "steps": trainer.step,
                "validation": metrics[-1] if metrics else None,
                "blsgan": __version__,
                "torch": str(torch.__version__),
            },
            "licence": "Apache-2.0",
            "intended_use": "research on hand radiographs; not a medical device",
            "limits": "two bones; images like those of the training joints; masks taken as given",
        }
        return save_weights(trainer.average, run / WEIGHTS, config.name, card)


def run_config(run: str | Path) -> TrainingConfig:
    """The configuration that a run folder holds.

    Raises:
        UsageError: there is no run, or its configuration was edited into something invalid.
    """
    path = Path(run) / CONFIG_FILE
    if not path.exists():
        raise UsageError(f"{run}: holds no run to resume (no {CONFIG_FILE})")
    return load_config(path)


def _loop(trainer: Trainer, run: Path, metrics: list[dict[str, Any]], report: Report) -> None:
    config = trainer.config
    sums, count, started = torch.zeros(4, device=trainer.device), 0, time.monotonic()
    shown: dict[str, float] = {}
    while trainer.step < config.steps:
        sums += trainer.train_step().detached()
        count += 1
        last = trainer.step == config.steps
        validate = last or trainer.step % config.validate_every == 0
        save = last or trainer.step % config.checkpoint_every == 0
        if trainer.step % _READ_EVERY == 0 or validate or save:
            means = (sums / count).tolist()
            shown = dict(zip(("loss", "synthetic_db", "visits_db", "soft_tissue"), means,
                             strict=True))
            if not all(math.isfinite(value) for value in means):
                raise DivergedError(_diverged(trainer.step, shown, run))
            report(Progress(trainer.step, config.steps, shown, None))
        if validate:
            figures = trainer.validate()
            metrics.append({
                "step": trainer.step, **shown, **figures,
                "seconds": round(time.monotonic() - started, 1),
            })
            _write(run / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in metrics))
            report(Progress(trainer.step, config.steps, shown, figures))
            sums, count = torch.zeros_like(sums), 0
        if save:
            save_checkpoint(run / CHECKPOINTS, trainer.checkpoint(), config.keep_checkpoints)


def _diverged(step: int, terms: dict[str, float], run: Path) -> str:
    listed = ", ".join(f"{key} {value:g}" for key, value in terms.items())
    return (f"the loss is not finite at step {step} ({listed}); lower optimiser.learning_rate and "
            f"start anew, or resume from the last checkpoint in {run / CHECKPOINTS}")


def _separate(
    generator: nn.Module, batch: PairBatch, precision: str
) -> tuple[Tensor, Tensor]:
    image = batch.image.contiguous(memory_format=torch.channels_last)
    masks = batch.masks.contiguous(memory_format=torch.channels_last)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits, soft_tissue = generator(image, masks)
    layers = split_attenuation(logits.float(), batch.image, batch.masks, soft_tissue.float())
    return layers, soft_tissue


def _load_pairs(
    config: TrainingConfig, images: Sequence[JointImage], cache: Path | None
) -> _Pairs:
    training, validation = select(images, "train"), select(images, "val")
    if not training or not validation:
        raise InputError(f"the dataset's {len(images)} images leave {len(training)} for training "
                         f"and {len(validation)} for validation; both must have some joints")
    held_out = SyntheticPairs(validation).draw(
        config.data.validation, torch.Generator().manual_seed(7), protocol=True,
        size=_VALIDATION_CROP,
    )
    visits, held_out_visits = None, None
    if config.data.visits:
        visits = VisitPairs(cached_visit_truths(training, cache, TRAINING), training)
        truths = cached_visit_truths(validation, cache, PROTOCOL)
        if truths:
            held_out_visits = VisitPairs(truths, validation).all(size=_VALIDATION_CROP)
    return _Pairs(SyntheticPairs(training), visits, held_out, held_out_visits)


def _to(batch: PairBatch, device: torch.device) -> PairBatch:
    return PairBatch(*(value.to(device, non_blocking=True) for value in vars(batch).values()))


def _mean_psnr(errors: Tensor) -> float:
    return float((-10 * torch.log10(errors.clamp(min=1e-10))).mean()) if len(errors) else math.nan


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device '{name}' is not a torch device; use cpu, cuda or "
                         "cuda:N") from error
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"device '{name}' is not there: torch {torch.__version__} sees "
                         f"{torch.cuda.device_count()} CUDA devices; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
    return device


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Holds the run folder: two processes writing into one run would corrupt it."""
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{run}: another process is training in this folder; wait for it or "
                             "choose another folder") from error
        yield


def _metrics_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines already written, without those of steps that a resumed run repeats."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["step"] <= step]


def _first_weights(init: str | Path) -> WeightsFile:
    weights = find_weights(init)
    if weights.safetensors is None:
        raise WeightsError(f"weights '{weights.name}' have no .safetensors file to start from")
    return weights.load(weights.safetensors)


def _environment(root: str | Path) -> dict[str, Any]:
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, check=True,
            capture_output=True, text=True,
        ).stdout.strip()
    return {
        "blsgan": __version__, "git": commit, "torch": str(torch.__version__),
        "python": platform.python_version(), "machine": platform.machine(),
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "data": str(root),
    }


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

