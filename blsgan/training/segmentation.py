"""Training the mask segmenter: what a step sees depends on seed and step alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blsgan.data.layout import JointImage
from blsgan.data.splits import split_for_training
from blsgan.errors import InputError, UsageError
from blsgan.models.segmenter import SegmenterNetwork
from blsgan.models.weights import load_segmenter
from blsgan.progress import Track
from blsgan.tasks.task import SEGMENTATION
from blsgan.training.config import SegmentationConfig, SegmentationLossConfig
from blsgan.training.distributed import World
from blsgan.training.optimisers import (
    learning_rate_share,
    optimiser_state,
    restore_optimiser,
    update_average,
)
from blsgan.training.scenes import SceneBatch, Scenes
from blsgan.training.trainer import Recipe, Terms, Trainer, placed

LEAST_OVERLAP_PX = 150
"""From here on the Dice coefficient of the overlap says something (evaluation.md)."""

_VALIDATION_SEED = 1_000_003


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


class SegmentationTrainer(Trainer):
    """Pictures, network, its average, optimiser, and the step they stand at.

    Args:
        config: the run's configuration.
        images: every image of the dataset; the split by joint is made here.
        device: where the network runs.
        world: one process; more are refused.

    Raises:
        InputError: the dataset has no training or no validation joints.
        UsageError: several processes.
    """

    def __init__(
        self,
        config: SegmentationConfig,
        images: Sequence[JointImage],
        device: torch.device,
        world: World | None = None,
    ) -> None:
        super().__init__(config, device, world)
        if self.world.size > 1:
            raise UsageError("a segmenter is trained by one process; start it without torchrun")
        self.config, self.steps = config, config.steps
        training, validation = split_for_training(images)
        data = config.data
        self._scenes = Scenes(
            training,
            phantom_share=data.phantom_share,
            negative_share=data.negative_share,
        )
        self._validation = _held_out(validation, data.validation)
        torch.manual_seed(config.seed)
        network = SegmenterNetwork(config.model.widths, config.model.blocks)
        self.network = placed(network, device)
        self.average: SegmenterNetwork = copy.deepcopy(self.network)
        self.average.requires_grad_(False).eval()
        self._parameters: list[Tensor] = list(self.network.parameters())
        optimiser = config.optimiser
        self._optimiser = torch.optim.AdamW(
            self._parameters,
            lr=optimiser.learning_rate,
            betas=optimiser.betas,
            weight_decay=optimiser.weight_decay,
        )

    def part(self) -> tuple[str, int]:
        return self.config.name, self.steps

    def start_from(self, weights: Path) -> None:
        for module in (self.network, self.average):
            _load_first(module, weights, self.config)

    def train_step(self) -> Terms:
        config = self.config
        batch = self._scenes.draw(config.data.batch, (config.seed, self.step))
        batch = SceneBatch(*(value.to(self.device) for value in vars(batch).values()))
        rate = config.optimiser.learning_rate * learning_rate_share(
            self.step, config.steps, config.optimiser
        )
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        with self.autocast():
            logits = self.network(batch.image)
        loss = segmentation_loss(logits.float(), batch, config.loss)
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, config.optimiser.clip_norm)
        self._optimiser.step()
        update_average(self.average, self._parameters, config.optimiser.ema_decay, self.step)
        self.step += 1
        return Terms(loss)

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
        large = true_both.sum(dim=(1, 2, 3)) >= LEAST_OVERLAP_PX
        overlap = soft_dice(both[large], true_both[large])
        return {
            "upper_dice": float(dice[0]),
            "lower_dice": float(dice[1]),
            "overlap_dice": float(overlap.mean()) if len(overlap) else math.nan,
            "negative_px": float(predicted[negatives].sum(dim=(1, 2, 3)).mean()),
        }

    def picture(self) -> Tensor:
        """A row for each of four joints: picture, predicted and true masks."""
        image, masks = self._validation.image[:4], self._validation.masks[:4]
        with torch.inference_mode():
            found = torch.sigmoid(self.average(image.to(self.device))).cpu()
        row = torch.cat((image, found, masks), dim=1)
        return torch.cat([torch.cat(list(planes), dim=1) for planes in row])

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average}

    def state(self) -> dict[str, Tensor]:
        return {f"optimiser.{k}": v for k, v in optimiser_state(self._optimiser).items()}

    def restore_state(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        restore_optimiser(self._optimiser, groups["optimiser"])


def _held_out(images: Sequence[JointImage], count: int) -> SceneBatch:
    """``count`` validation joints as they are, evenly chosen, and negatives made of such joints."""
    chosen = [images[n] for n in np.unique(np.linspace(0, len(images) - 1, count).astype(int))]
    joints = Scenes(chosen, phantom_share=0, negative_share=0).all()
    negatives = Scenes(chosen, phantom_share=0, negative_share=1).draw(
        max(1, count // 4), (_VALIDATION_SEED,)
    )
    return SceneBatch.join(joints, negatives)


def _first_network(config: SegmentationConfig, weights: Path | None) -> SegmenterNetwork:
    network = SegmenterNetwork(config.model.widths, config.model.blocks)
    if weights is not None:
        _load_first(network, weights, config)
    return network


def _load_first(network: SegmenterNetwork, weights: Path, config: SegmentationConfig) -> None:
    try:
        network.load_state_dict(load_segmenter(weights).state_dict())
    except RuntimeError as error:
        raise InputError(
            f"{weights}: is not of the configuration's model "
            f"({config.model.widths}, {config.model.blocks})"
        ) from error


def _check_data(config: SegmentationConfig, images: Sequence[JointImage]) -> None:
    split_for_training(images)


def _load(
    config: SegmentationConfig,
    images: Sequence[JointImage],
    run: Path,
    device: torch.device,
    progress: Track,
) -> Sequence[JointImage]:
    return images


RECIPE = Recipe(
    SEGMENTATION,
    limits="one upright finger joint in the picture, like those of the training joints",
    check=_first_network,
    check_data=_check_data,
    load=_load,
    trainer=SegmentationTrainer,
)
