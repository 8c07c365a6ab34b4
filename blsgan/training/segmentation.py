"""Training the mask segmenter: one configuration in, weights out, resumable at any moment.

A run folder looks as that of the separator (``blsgan.training.loop``): ``config.yaml``,
``environment.json``, ``metrics.jsonl``, ``checkpoints/`` and at the end ``weights/``. What a step
sees depends on seed and step alone (``blsgan.training.scenes``), so a run that was killed and
resumed ends with the same bytes on the same CPU.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from blsgan.data.dataset import load_root
from blsgan.data.layout import JointImage, check_complete
from blsgan.data.splits import select
from blsgan.errors import InputError, UsageError
from blsgan.models.segmenter import SegmenterNetwork
from blsgan.models.weights import check_exporter, load_segmenter, save_weights
from blsgan.tasks.task import SEGMENTATION
from blsgan.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from blsgan.training.config import Positive, Share, Steps, apply_change
from blsgan.training.loop import DivergedError
from blsgan.training.optimisers import (
    follow,
    learning_rate_share,
    optimiser_state,
    restore_optimiser,
)
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
from blsgan.training.scenes import SceneBatch, Scenes

MIN_OVERLAP_PX = 150
"""From here on the Dice coefficient of the overlap says something (evaluation.md)."""

_READ_EVERY = 10  # steps between looks at the loss
_VALIDATION_SEED = 1_000_003


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SegmenterModelConfig(_Strict):
    """The network: channels and residual blocks at 1/2, 1/4, ... of 256x256."""

    widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=2, max_length=7)
    ] = (16, 32, 48, 64, 96, 96)
    blocks: Annotated[
        tuple[Annotated[int, Field(ge=0, le=8)], ...], Field(min_length=2, max_length=7)
    ] = (1, 1, 1, 1, 1, 2)

    @model_validator(mode="after")
    def _one_block_count_for_each_width(self) -> SegmenterModelConfig:
        if len(self.widths) != len(self.blocks):
            raise ValueError("widths and blocks must be of one length")
        return self


class SceneConfig(_Strict):
    """What a step sees."""

    batch: Annotated[int, Field(ge=1)] = Field(default=8, description="pictures in a step")
    phantom_share: Share = Field(default=0.08, description="of them: phantoms")
    negative_share: Share = Field(default=0.2, description="of them: pictures without a joint")
    composite_share: Share = Field(
        default=0.0, description="of them: synthetic overlaps of joints without one"
    )
    validation: Annotated[int, Field(ge=1)] = Field(
        default=96, description="validation joints in a validation, and a quarter as many negatives"
    )


class SegmentationLossConfig(_Strict):
    """Weights of the terms in :func:`segmentation_loss`."""

    border: Annotated[float, Field(ge=0)] = Field(
        default=4.0, description="extra weight within 3 px of a border"
    )
    overlap: Annotated[float, Field(ge=0)] = Field(
        default=4.0, description="extra weight where both bones are"
    )
    dice: Annotated[float, Field(ge=0)] = Field(default=1.0, description="Dice of each bone")
    overlap_dice: Annotated[float, Field(ge=0)] = Field(
        default=0.5, description="Dice of the overlap"
    )


class SegmentationOptimiserConfig(_Strict):
    """AdamW with a linear warm-up and a cosine decay; the gradient's norm is clipped."""

    learning_rate: Positive = 2e-3
    final_share: Share = Field(
        default=0.01, description="learning rate at the end / at its highest"
    )
    warm_up_steps: Steps = 150
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    clip_norm: Positive = 1.0
    ema_decay: Share = Field(
        default=0.998, description="of the averaged weights, the ones that ship"
    )


class SegmentationConfig(_Strict):
    """A whole run; the defaults are those of the shipped weights."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "segmenter"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Steps = 4000
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    validate_every: Steps = 250
    checkpoint_every: Steps = 250
    keep_checkpoints: Steps = 3
    model: SegmenterModelConfig = SegmenterModelConfig()
    data: SceneConfig = SceneConfig()
    optimiser: SegmentationOptimiserConfig = SegmentationOptimiserConfig()
    loss: SegmentationLossConfig = SegmentationLossConfig()

    def dump(self) -> str:
        """The resolved configuration as YAML; :func:`segmentation_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def segmentation_config(
    path: str | Path | None = None, changes: Sequence[str] = ()
) -> SegmentationConfig:
    """The defaults, or a YAML file, with ``key=value`` changes.

    Raises:
        UsageError: no such file, not YAML, an unknown key or a value out of range.
    """
    fields: Any = {}
    if path is not None:
        try:
            fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: is not a readable YAML file ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{path}: is not a YAML file ({reason})") from error
        if not isinstance(fields, dict):
            raise UsageError(f"{path}: is not a configuration (keys and values)")
    for change in changes:
        apply_change(fields, change)
    try:
        return SegmentationConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        source = f"{path}: " if path is not None else ""
        raise UsageError(
            f"{source}key '{key}': {first['msg'].lower()} (got {first['input']!r})"
        ) from error


def segmentation_run_config(run: str | Path) -> SegmentationConfig:
    """The configuration that a run folder holds.

    Raises:
        UsageError: there is no run of a segmenter.
    """
    check_run(Path(run), resume=True)
    return segmentation_config(Path(run) / CONFIG_FILE)


@dataclass(frozen=True)
class SegmentationProgress:
    """What a step or a validation reports: ``validation`` is None between validations."""

    step: int
    steps: int
    loss: float
    validation: dict[str, float] | None


Report = Callable[[SegmentationProgress], None]
Warn = Callable[[str], None]


def segmentation_loss(logits: Tensor, batch: SceneBatch, config: SegmentationLossConfig) -> Tensor:
    """Weighted BCE plus Dice of each bone and of the overlap: a scalar.

    The BCE of a pixel weighs ``border`` more within 3 px of either bone's border and ``overlap``
    more where both bones are: these few rows decide what is separated. The Dice terms are means
    over the pictures that show a joint (and an overlap, p_upper * p_lower against its truth).

    Args:
        logits: float [B,2,H,W].
        batch: what they are of.
        config: weights of the terms.
    """
    masks = batch.masks
    both = masks[:, :1] * masks[:, 1:]
    weight = 1 + config.border * batch.border + config.overlap * both
    error = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    total = (error * weight).mean()
    probability = torch.sigmoid(logits)
    shown = masks.amax(dim=(1, 2, 3)) > 0.5
    if config.dice and shown.any():
        dice = soft_dice(probability[shown], masks[shown])
        total = total + config.dice * (1 - dice).mean()
    overlapped = both.sum(dim=(1, 2, 3)) >= 20
    if config.overlap_dice and overlapped.any():
        joint = probability[overlapped, :1] * probability[overlapped, 1:]
        dice = soft_dice(joint, both[overlapped])
        total = total + config.overlap_dice * (1 - dice).mean()
    return total


def soft_dice(first: Tensor, second: Tensor) -> Tensor:
    """2 sum(ab) / (sum(a) + sum(b)) over the pixels of each channel: [B,C,H,W] -> [B,C]."""
    product = (first * second).sum(dim=(2, 3))
    return (2 * product + 1) / (first.sum(dim=(2, 3)) + second.sum(dim=(2, 3)) + 1)


class SegmentationTrainer:
    """A run in memory: samples, network, its average, optimiser, and the step they stand at.

    Args:
        config: the run's configuration.
        images: every image of the dataset; the split by joint is made here.
        device: where the network runs.

    Raises:
        InputError: the dataset has no training or no validation joints.
    """

    def __init__(
        self, config: SegmentationConfig, images: Sequence[JointImage], device: torch.device
    ) -> None:
        self.config, self.device, self.step = config, device, 0
        self.precision = config.precision if has_bfloat16(device) else "float32"
        training, validation = select(images, "train"), select(images, "val")
        if not training or not validation:
            raise InputError(
                f"the dataset's {len(images)} images leave {len(training)} for "
                f"training and {len(validation)} for validation; both must have some "
                "joints"
            )
        data = config.data
        self._scenes = Scenes(
            training,
            phantom_share=data.phantom_share,
            negative_share=data.negative_share,
            composite_share=data.composite_share,
        )
        self._validation = _held_out(validation, data.validation)
        torch.manual_seed(config.seed)
        network = SegmenterNetwork(config.model.widths, config.model.blocks)
        # Its stub knows no memory_format for modules.
        self.network = network.to(device).to(  # type: ignore[call-overload]
            memory_format=torch.channels_last
        )
        self.average = copy.deepcopy(self.network)
        self.average.requires_grad_(False).eval()
        self._parameters: list[Tensor] = list(self.network.parameters())
        optimiser = config.optimiser
        self._optimiser = torch.optim.AdamW(
            self._parameters,
            lr=optimiser.learning_rate,
            betas=optimiser.betas,
            weight_decay=optimiser.weight_decay,
        )

    def start_from(self, weights: Path) -> None:
        """Replaces the random first weights by those of a ``.safetensors`` file.

        Raises:
            WeightsError: the file cannot be read or is no segmenter's.
            InputError: it is of another size than the configuration's model.
        """
        given = load_segmenter(weights)
        try:
            for module in (self.network, self.average):
                module.load_state_dict(given.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"{weights}: is not of the configuration's model "
                f"({self.config.model.widths}, {self.config.model.blocks})"
            ) from error

    def train_step(self) -> Tensor:
        """One step; the loss stays on the device."""
        config = self.config
        batch = self._scenes.draw(config.data.batch, (config.seed, self.step))
        batch = SceneBatch(*(value.to(self.device) for value in vars(batch).values()))
        rate = config.optimiser.learning_rate * learning_rate_share(
            self.step, config.steps, config.optimiser
        )
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.network(batch.image)
        loss = segmentation_loss(logits.float(), batch, config.loss)
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, config.optimiser.clip_norm)
        self._optimiser.step()
        follow(self.average, self._parameters, config.optimiser.ema_decay, self.step)
        self.step += 1
        return loss.detach()

    def validate(self) -> dict[str, float]:
        """Quick figures of the averaged weights on validation joints, without flips.

        ``upper_dice``, ``lower_dice``; ``overlap_dice`` where the true overlap has >= 150 px;
        ``negative_px``: mean number of pixels called bone where there is no joint.
        """
        masks, negatives = self._validation.masks, self._validation.masks.amax(dim=(1, 2, 3)) == 0
        found = []
        with torch.inference_mode():
            for start in range(0, len(masks), 16):
                image = self._validation.image[start : start + 16].to(self.device)
                found.append((self.average(image) > 0).cpu())
        predicted, truth = torch.cat(found).float(), (masks > 0.5).float()
        dice = soft_dice(predicted, truth)[~negatives].mean(dim=0)
        both, true_both = (planes.prod(dim=1, keepdim=True) for planes in (predicted, truth))
        large = true_both.sum(dim=(1, 2, 3)) >= MIN_OVERLAP_PX
        overlap = soft_dice(both[large], true_both[large])
        return {
            "upper_dice": float(dice[0]),
            "lower_dice": float(dice[1]),
            "overlap_dice": float(overlap.mean()) if len(overlap) else math.nan,
            "negative_px": float(predicted[negatives].sum(dim=(1, 2, 3)).mean()),
        }

    def checkpoint(self) -> Checkpoint:
        """Everything needed to go on from here."""
        weights = {
            f"{prefix}.{key}": value.cpu()
            for prefix, module in (("network", self.network), ("average", self.average))
            for key, value in module.state_dict().items()
        }
        state = {f"optimiser.{k}": v for k, v in optimiser_state(self._optimiser).items()}
        return Checkpoint(self.step, weights, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint.

        Raises:
            InputError: it belongs to another model.
        """
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
        for key, value in checkpoint.tensors.items():
            group, _, rest = key.partition(".")
            if group in groups:
                groups[group][rest] = value
        try:
            self.network.load_state_dict(groups["network"])
            self.average.load_state_dict(groups["average"])
        except RuntimeError as error:
            raise InputError(
                "the checkpoint is of another model than the run's configuration; "
                "restore config.yaml or start the run anew in another "
                "folder"
            ) from error
        restore_optimiser(self._optimiser, groups["optimiser"])
        self.step = checkpoint.step


def _held_out(images: Sequence[JointImage], count: int) -> SceneBatch:
    """``count`` validation joints as they are, evenly chosen, and negatives made of such joints."""
    chosen = [images[n] for n in np.unique(np.linspace(0, len(images) - 1, count).astype(int))]
    joints = Scenes(chosen, phantom_share=0, negative_share=0).all()
    negatives = Scenes(chosen, phantom_share=0, negative_share=1).draw(
        max(1, count // 4), (_VALIDATION_SEED,)
    )
    return SceneBatch.join(joints, negatives)


def train_segmenter(
    root: str | Path,
    run: str | Path,
    config: SegmentationConfig,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    device: str = "cpu",
    report: Report | None = None,
    warn: Warn | None = None,
) -> Path:
    """Trains a segmenter on the training joints and writes its weights.

    Args:
        root: the dataset's folder ``Data``.
        run: the run's folder; it must be new unless ``resume``.
        config: the configuration; on resuming the run's own (:func:`segmentation_run_config`).
        resume: go on from the newest whole checkpoint.
        init: weights to start from instead of random ones: a name, a file or a folder.
        device: a torch device (``cpu``, ``cuda``, ``cuda:1``).
        report: called after every tenth step and every validation.
        warn: called with a sentence about anything a user should know.

    Returns:
        The weights' card ``RUN/weights/NAME.json``, which ``Segmenter.from_pretrained`` takes.

    Raises:
        InputError: the dataset is not one, or no checkpoint can be used.
        WeightsError: ``init`` cannot be read, or what writes weights is not installed.
        UsageError: the folder holds a run already, is in use, or the device is not there.
        DivergedError: the loss is not finite.
        OutputError: the folder cannot be written.
    """
    run, report, warn = Path(run), report or (lambda progress: None), warn or (lambda text: None)
    target = device_of(device)
    check_exporter()
    images = load_root(root)
    check_complete(root, images)
    first = first_weights(init, SEGMENTATION) if init is not None else None
    with prepared(run, resume):
        trainer = SegmentationTrainer(config, images, target)
        if trainer.precision != config.precision:
            warn(no_bfloat16(target))
        if resume:
            trainer.restore(load_checkpoint(run / CHECKPOINTS, warn))
            note_precision(run, trainer.precision, trainer.step, warn)
        else:
            if first is not None:
                trainer.start_from(first.path)
            save_checkpoint(run / CHECKPOINTS, trainer.checkpoint(), config.keep_checkpoints)
            described = environment(root, images, target, trainer.precision)
            describe_run(run, described, first, config.dump())
        metrics = metrics_until(run / METRICS_FILE, trainer.step)
        _loop(trainer, run, metrics, report)
        card = trained_card(
            run,
            config.model_dump(mode="json"),
            images,
            trainer.step,
            metrics,
            limits="one upright finger joint in the picture, like those of the training joints",
        )
        return save_weights(trainer.average, run / WEIGHTS, config.name, card)


def _loop(
    trainer: SegmentationTrainer, run: Path, metrics: list[dict[str, Any]], report: Report
) -> None:
    config = trainer.config
    total, count, started = torch.zeros((), device=trainer.device), 0, time.monotonic()
    while trainer.step < config.steps:
        total += trainer.train_step()
        count += 1
        last = trainer.step == config.steps
        validate = last or trainer.step % config.validate_every == 0
        save = last or trainer.step % config.checkpoint_every == 0
        if not (validate or save or trainer.step % _READ_EVERY == 0):
            continue
        loss = float(total / count)
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is not finite at step {trainer.step}; lower "
                "optimiser.learning_rate and start anew, or resume from the last "
                f"checkpoint in {run / CHECKPOINTS}"
            )
        report(SegmentationProgress(trainer.step, config.steps, loss, None))
        if validate:
            figures = trainer.validate()
            metrics.append(
                {
                    "step": trainer.step,
                    "loss": loss,
                    **figures,
                    "seconds": round(time.monotonic() - started, 1),
                }
            )
            write_text(run / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in metrics))
            report(SegmentationProgress(trainer.step, config.steps, loss, figures))
            total, count = torch.zeros_like(total), 0
        if save:
            save_checkpoint(run / CHECKPOINTS, trainer.checkpoint(), config.keep_checkpoints)
