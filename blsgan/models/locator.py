"""The joint locator's network: a picture of a hand in, a heatmap for each landmark out.

It sees the whole picture on a grid of 192x192 and answers with 96x96 cells. The logits of a
landmark compete with one more outcome of logit 0, "elsewhere": so their softmax says where a
landmark is and how likely it is there at all. A finger outside the picture, or a picture without a
hand, has its probability elsewhere.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from blsgan.anatomy import LANDMARKS
from blsgan.models.segmenter import FoldedUNet


class LocatorNetwork(FoldedUNet):
    """Image -> landmark logits.

    Args:
        widths: see :class:`~blsgan.models.segmenter.FoldedUNet`.
        blocks: see there.
    """

    architecture: ClassVar[str] = "locator"

    def __init__(
        self,
        widths: tuple[int, ...] = (24, 48, 72, 96, 128, 128),
        blocks: tuple[int, ...] = (1, 1, 1, 1, 1, 1),
    ) -> None:
        super().__init__(widths, blocks, len(LANDMARKS))
        with torch.no_grad():  # at first half of the probability is elsewhere
            self.head.weight.mul_(0.1)
            self.head.bias.fill_(-9.0)  # type: ignore[union-attr]

    def forward(self, image: Tensor) -> Tensor:
        """Predicts where the landmarks are.

        Args:
            image: float [B,1,192,192] in [0,1], a hand with its fingers up within about 60 degrees.

        Returns:
            Logits [B,L,96,96] in the order of ``blsgan.anatomy.LANDMARKS``; the probability of a
            cell is exp(logit) / (1 + sum of exp over all cells).
        """
        return super().forward(image)
