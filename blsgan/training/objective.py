"""What the lite recipe minimises, and the same error as the figure that is reported.

Quality is reported as the mean over images of the PSNR in the overlap, so that is what is
minimised: the logarithm of each image's mean squared error. An L1 or L2 mean over a batch would be
ruled by its worst images. A floor keeps images that are already good from dominating.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blsgan.training.config import LossConfig
from blsgan.training.pairs import PairBatch

MIN_PX = 20  # an image with fewer pixels to compare says nothing


@dataclass
class Terms:
    """The parts of the objective, scalars: ``total`` is minimised, the others are read.

    ``synthetic`` and ``visits`` are an image's mean squared error in dB (minus its PSNR), averaged
    over images; ``soft_tissue`` is the mean absolute error of k on synthetic pairs.
    """

    total: Tensor
    synthetic: Tensor
    visits: Tensor
    soft_tissue: Tensor

    def detached(self) -> Tensor:
        """[4] in the order of the fields."""
        return torch.stack([value.detach() for value in vars(self).values()])


def image_errors(layers: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Mean squared error of each image over its valid pixels.

    Args:
        layers: [B,2,H,W], predicted.
        batch: the truth.

    Returns:
        errors [B] and usable, bool [B]: whether the image has at least 20 valid pixels.
    """
    pixels = batch.valid.sum(dim=(1, 2, 3))
    squared = ((layers - batch.layers) ** 2 * batch.valid).sum(dim=(1, 2, 3))
    return squared / pixels.clamp(min=1), pixels >= MIN_PX


def objective(layers: Tensor, soft_tissue: Tensor, batch: PairBatch, config: LossConfig) -> Terms:
    """The training objective.

    Args:
        layers: [B,2,H,W], predicted.
        soft_tissue: [B], predicted k.
        batch: the truth; its synthetic pairs are those whose k is known.
        config: weights of the terms.
    """
    errors, usable = image_errors(layers, batch)
    decibels = 10 * torch.log10(errors + config.mse_floor)
    known = ~torch.isnan(batch.soft_tissue)

    def mean(values: Tensor, where: Tensor) -> Tensor:
        kept = torch.where(where, values, torch.zeros_like(values))
        return kept.sum() / where.sum().clamp(min=1)

    synthetic = mean(decibels, usable & known)
    visits = mean(decibels, usable & ~known)
    tissue = mean((soft_tissue - torch.nan_to_num(batch.soft_tissue)).abs(), known)
    total = 0.1 * (synthetic + config.visits * visits) + config.soft_tissue * tissue
    return Terms(total, synthetic, visits, tissue)
