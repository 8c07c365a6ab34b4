"""Training the mask segmenter: what a step sees depends on seed and step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blsgan.data.layout import JointImage
from blsgan.data.splits import split_for_training
from blsgan.models.segmenter import SegmenterNetwork
from blsgan.models.weights import load_segmenter
from blsgan.tasks.task import SEGMENTATION
from blsgan.training.config import SegmentationConfig, SegmentationLossConfig
from blsgan.training.grid import GridTrainer, grid_recipe, picture_rows
from blsgan.training.scenes import LEAST_OVERLAP_PX, SceneBatch, Scenes

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


class SegmentationTrainer(GridTrainer[SegmentationConfig, SceneBatch]):
    """Of images of the public dataset's layout, divided by joint."""

    network_type, load = SegmenterNetwork, staticmethod(load_segmenter)

    def pictures(
        self, samples: Sequence[JointImage]
    ) -> tuple[Callable[[int, Sequence[int]], SceneBatch], SceneBatch]:
        training, validation = split_for_training(samples)
        data = self.config.data
        scenes = Scenes(
            training,
            phantom_share=data.phantom_share,
            negative_share=data.negative_share,
            overlap_share=data.overlap_share,
        )
        return scenes.draw, _held_out(validation, data.validation)

    def loss(self, logits: Tensor, batch: SceneBatch) -> Tensor:
        return segmentation_loss(logits, batch, self.config.loss)

    def validate(self) -> dict[str, float]:
        """Quick figures of the averaged weights on validation joints, without flips.

        ``upper_dice``, ``lower_dice``; ``overlap_dice`` where the true overlap has >= 150 px;
        ``negative_px``: mean number of pixels called bone where there is no joint.
        """
        masks, negatives = self._validation.masks, self._validation.masks.amax(dim=(1, 2, 3)) == 0
        predicted, truth = (self.answers() > 0).float(), (masks > 0.5).float()
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
        return picture_rows(torch.cat((image, torch.sigmoid(self.answers(4)), masks), dim=1))


def _held_out(images: Sequence[JointImage], count: int) -> SceneBatch:
    """``count`` validation joints as they are, evenly chosen, and negatives made of such joints."""
    chosen = [images[n] for n in np.unique(np.linspace(0, len(images) - 1, count).astype(int))]
    joints = Scenes(chosen, phantom_share=0, negative_share=0).all()
    negatives = Scenes(chosen, phantom_share=0, negative_share=1).draw(
        max(1, count // 4), (_VALIDATION_SEED,)
    )
    return SceneBatch.join(joints, negatives)


RECIPE = grid_recipe(
    SEGMENTATION,
    SegmentationTrainer,
    split_for_training,
    limits="one upright finger joint in the picture, like those of the training joints",
)
