"""The default generator: a small residual U-Net that predicts shares and the soft tissue k.

It sees a crop around the overlap and answers with one logit per bone and pixel, of which
``split_attenuation`` makes exact layers, A_i = r_i (A + (n-1) a_S); only the pixels of the overlap
matter. There is no normalisation layer, so that one image's answer never depends on its neighbours
in a batch or on the crop's size; every block starts near the identity instead.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blsgan.models.generator import Generator
from blsgan.ops import K_MAX

RING_PX = 6  # reach of the ring around the overlap from which k is read off
_K_START = 0.35  # k where an image has no ring to read it from
_SOFTEST = 1e-3  # least transmission taken seriously: 1 - I below it is a saturated pixel


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), near the identity at first: [B,C,H,W] -> [B,C,H,W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def _stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))


def dilate(mask: Tensor, radius_px: int) -> Tensor:
    """Square dilation of a {0,1} mask [B,C,H,W] by ``radius_px``, as two one-dimensional maxima."""
    size = 2 * radius_px + 1
    mask = F.max_pool2d(mask, (size, 1), stride=1, padding=(radius_px, 0))
    return F.max_pool2d(mask, (1, size), stride=1, padding=(0, radius_px))


def ring_statistics(image: Tensor, masks: Tensor) -> Tensor:
    """What the surroundings of the overlap say about k.

    Args:
        image: [B,1,H,W] in [0,1], the radiograph.
        masks: [B,2,H,W] in {0,1}, upper and lower bone.

    Returns:
        [B,4]: mean intensity a of the upper bone alone and b of the lower one alone within 6 px of
        the overlap, o of the overlap itself, and k_ring = 1 - (1-a)(1-b)/(1-o) clamped to
        [0.05, 0.9] (our measurement on real overlaps: median 0.46, 5-95 % 0.29-0.60). Where a
        region is empty, its mean is 0 and k_ring the start value 0.35.
    """
    upper, lower = masks[:, :1], masks[:, 1:]
    overlap = upper * lower
    ring = dilate(overlap, RING_PX)
    regions = torch.cat((ring * upper * (1 - lower), ring * lower * (1 - upper), overlap), dim=1)
    pixels = regions.sum(dim=(2, 3))
    means = (image * regions).sum(dim=(2, 3)) / pixels.clamp(min=1)
    a, b, o = means.unbind(dim=1)
    k = 1 - (1 - a) * (1 - b) / (1 - o).clamp(min=1 - K_MAX)
    known = (pixels > 0).all(dim=1)
    k = torch.where(known, k.clamp(0.05, 0.9), torch.full_like(k, _K_START))
    return torch.cat((means, k.unsqueeze(1)), dim=1)


class LiteGenerator(Generator):
    """Image and masks of a crop around the overlap -> share logits and k.

    Args:
        widths: channels at full, half, quarter and eighth resolution.
        blocks: residual blocks of the encoder at each resolution; the decoder mirrors the first
            three.
    """

    architecture = "lite"

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (32, 64, 96, 128),
        blocks: tuple[int, int, int, int] = (1, 1, 2, 2),
    ) -> None:
        super().__init__()
        self.widths, self.blocks = tuple(widths), tuple(blocks)
        statistics = 4
        self.stem = nn.Conv2d(5 + statistics, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(_stage(w, n) for w, n in zip(widths, blocks, strict=True))
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2)
            for a, b in itertools.pairwise(widths)
        )
        self.decoder = nn.ModuleList(
            _stage(w, n) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        self.share_head = nn.Conv2d(widths[0], 2, 3, padding=1)
        self.k_head = nn.Sequential(
            nn.Linear(2 * widths[-1] + statistics, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        # The start is an even split with the k that the ring around the overlap shows.
        with torch.no_grad():
            for parameter in self.k_head[-1].parameters():
                parameter.zero_()
            self.share_head.weight.normal_(std=1e-3)
            self.share_head.bias.zero_()  # type: ignore[union-attr]

    def configuration(self) -> dict[str, list[int]]:
        """What rebuilds this network: ``LiteGenerator(**configuration)``."""
        return {"widths": list(self.widths), "blocks": list(self.blocks)}

    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts shares and soft tissue.

        Args:
            image: float [B,1,H,W] in [0,1]; what lies outside both bones is ignored.
            masks: float [B,2,H,W] in {0,1}, upper and lower bone; H and W divisible by 8.

        Returns:
            share_logits [B,2,H,W] and soft_tissue [B] in [0, 0.95].
        """
        upper, lower = masks[:, :1], masks[:, 1:]
        union = upper + lower - upper * lower
        image = image.clamp(0, 1) * union
        attenuation = -torch.log((1 - image).clamp(min=_SOFTEST))
        statistics = ring_statistics(image, masks)
        planes = statistics[:, :, None, None] * torch.ones_like(image)
        x = self.stem(torch.cat((image, attenuation, masks, upper * lower, planes), dim=1))

        skips = []
        for level, encode in enumerate(self.encoder):
            x = encode(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)

        # Mean over the overlap's neighbourhood and over the crop: k is one number per image.
        near = F.max_pool2d(upper * lower, 8)
        local = (x * near).sum(dim=(2, 3)) / near.sum(dim=(2, 3)).clamp(min=1)
        pooled = torch.cat((local, x.mean(dim=(2, 3)), statistics.to(x.dtype)), dim=1)
        shift = self.k_head(pooled).squeeze(1).float()
        start = statistics[:, 3].float() / K_MAX
        soft_tissue = K_MAX * torch.sigmoid(torch.log(start / (1 - start)) + shift)

        for level in reversed(range(len(self.up))):
            x = self.decoder[level](self.up[level](x) + skips[level])
        return self.share_head(F.relu(x)), soft_tissue
