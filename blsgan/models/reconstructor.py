"""The published reconstructor: a VGG-11 that reads the soft tissue k off the radiograph.

Eight 3x3 convolutions in five stages (Simonyan & Zisserman, arXiv 1409.1556, configuration A,
without its classifier), then fully connected layers 1024-128-1 and a sigmoid (Wang et al., BLS-GAN,
AAAI 2025). The 1024 inputs are the mean and the maximum of each of the 512 last channels, so any
size of image will do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blsgan.ops import K_MAX

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class Reconstructor(nn.Module):
    """Image [B,1,H,W] in [0,1], 0 outside the bones, at least 32 px a side -> k [B] float32.

    k is 0.95 sigmoid(.): the composition clamps k at 0.95, and beyond it nothing could be learnt.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage in _STAGES:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(2 * channels, 128), nn.ReLU(inplace=True), nn.Linear(128, 1)
        )
        # Eleven layers without normalisation learn nothing from torch's default weights.
        for module in self.encoder:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = self.encoder(image)
        pooled = torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1)
        return K_MAX * torch.sigmoid(self.head(pooled).squeeze(1).float())
