"""A plain U-Net: the segmentation network of the supervisor, and a backbone of the generator.

Ronneberger et al., "U-Net" (arXiv 1505.04597), with padded convolutions and group normalisation
in place of none: a sample's answer does not depend on its neighbours in the batch, so one process
and several give the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_GROUPS = 8


def _convolutions(channels: int, width: int) -> nn.Sequential:
    """Two 3x3 convolutions, each normalised and rectified."""
    layers: list[nn.Module] = []
    for inputs in (channels, width):
        layers += [
            nn.Conv2d(inputs, width, 3, padding=1, bias=False),
            nn.GroupNorm(math.gcd(_GROUPS, width), width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """[B,in_channels,H,W] -> logits [B,out_channels,H,W].

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        widths: channels at full, half, quarter ... resolution, 2 to 6 of them; H and W must be
            divisible by 2 to the power of their number minus one.

    Raises:
        ValueError: too few or too many widths.
    """

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int] = (32, 64, 128, 256, 512)
    ) -> None:
        super().__init__()
        if not 2 <= len(widths) <= 6:
            raise ValueError(f"widths={tuple(widths)} must be 2 to 6 numbers of channels")
        inputs = (in_channels, *widths[:-1])
        self.encoder = nn.ModuleList(
            _convolutions(a, b) for a, b in zip(inputs, widths, strict=True)
        )
        self.down = nn.MaxPool2d(2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.decoder = nn.ModuleList(_convolutions(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, encode in enumerate(self.encoder):
            x = encode(x if level == 0 else self.down(x))
            skips.append(x)
        skips.pop()
        for up, decode in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = decode(torch.cat((up(x), skips.pop()), dim=1))
        return self.head(x)
