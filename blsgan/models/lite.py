"""The default generator: a small residual U-Net that predicts shares and the soft tissue k.

It sees a crop around the overlap and answers with one logit per bone and pixel, of which
``split_attenuation`` makes exact layers, A_i = r_i (A + (n-1) a_S); only the pixels of the overlap
matter. There is no normalisation layer, so that one image's answer never depends on its neighbours
in a batch or on the crop's size; every block starts near the identity instead.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blsgan.models.generator import Generator, Head, SoftTissue
from blsgan.ops import K_MAX

RING_PX = 6  # reach of the ring around the overlap from which k is read off
_K_START = 0.35  # k where an image has no ring to read it from, or it is not read
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
        return x + self.second(F.relu(self.first(F.relu(x)), inplace=True))


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
        masks: [B,N,H,W] in {0,1}; for N = 2 upper and lower bone.

    Returns:
        [B,N+2]: mean intensity of each bone alone within 6 px of the overlap (a of the upper and b
        of the lower one), o of the overlap itself, and k_ring = 1 - (1-a)(1-b)/(1-o) clamped to
        [0.05, 0.9] (our measurement on real overlaps: median 0.46, 5-95 % 0.29-0.60). Where a
        region is empty, its mean is 0 and k_ring the start value 0.35. For N > 2 see
        :func:`_ring_of_several`.
    """
    if masks.shape[1] > 2:
        return _ring_of_several(image, masks)
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


def _ring_of_several(image: Tensor, masks: Tensor) -> Tensor:
    """:func:`ring_statistics` of N > 2 bones.

    Where n bones overlap, 1-o = t^n / (1-k)^(n-1) with t the transmission of one bone. So with
    log t the mean over the bones that touch an overlap, weighted by their pixels in it, and n the
    overlap's mean coverage, k_ring = 1 - exp((n log t - log(1-o)) / (n-1)). For two bones with
    equal pixels that is the formula for two.
    """
    coverage = masks.sum(dim=1, keepdim=True)
    overlap = (coverage > 1).to(masks.dtype)
    alone = dilate(overlap, RING_PX) * masks * (1 - overlap)
    regions = torch.cat((alone, overlap), dim=1)
    pixels = regions.sum(dim=(2, 3))
    means = (image * regions).sum(dim=(2, 3)) / pixels.clamp(min=1)
    covered = (masks * overlap).sum(dim=(2, 3)) * (pixels[:, :-1] > 0)
    log_one = torch.log((1 - means[:, :-1]).clamp(min=_SOFTEST))
    log_one = (log_one * covered).sum(dim=1) / covered.sum(dim=1).clamp(min=1)
    count = (coverage * overlap).sum(dim=(1, 2, 3)) / pixels[:, -1].clamp(min=1)
    log_all = torch.log((1 - means[:, -1]).clamp(min=1 - K_MAX))
    k = 1 - torch.exp((count * log_one - log_all) / (count - 1).clamp(min=1))
    known = (pixels[:, -1] > 0) & (covered.sum(dim=1) > 0)
    k = torch.where(known, k.clamp(0.05, 0.9), torch.full_like(k, _K_START))
    return torch.cat((means, k.unsqueeze(1)), dim=1)


def _no_ring(image: Tensor, masks: Tensor) -> Tensor:
    """:func:`ring_statistics` of images that have no ring."""
    nothing = image.new_zeros(image.shape[0], masks.shape[1] + 1)
    return torch.cat((nothing, torch.full_like(nothing[:, :1], _K_START)), dim=1)


class LiteGenerator(Generator):
    """Image and masks of a crop around the overlap -> share logits and k.

    Args:
        widths: channels at full, half, quarter and eighth resolution.
        blocks: residual blocks of the encoder at each resolution; the decoder mirrors the first
            three.
        layers: N, the number of bones; the shipped weights are of two.
        head: see :class:`~blsgan.models.generator.Generator`.
        soft_tissue: see there.
        ring: whether the network is told what the ring around the overlap says of k
            (:func:`ring_statistics`) and its own k starts there; else it is told 0 and 0.35, as for
            an image without a ring.
    """

    architecture = "lite"

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (32, 64, 96, 128),
        blocks: tuple[int, int, int, int] = (1, 1, 2, 2),
        layers: int = 2,
        head: Head = "exact",
        soft_tissue: SoftTissue = "own",
        ring: bool = True,
    ) -> None:
        super().__init__(layers, head, soft_tissue)
        self.ring = ring
        self.widths, self.blocks = tuple(widths), tuple(blocks)
        statistics = 2 + layers
        self.stem = nn.Conv2d(3 + layers + statistics, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(_stage(w, n) for w, n in zip(widths, blocks, strict=True))
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.decoder = nn.ModuleList(
            _stage(w, n) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        self.share_head = nn.Conv2d(widths[0], layers, 3, padding=1)
        if soft_tissue == "own":
            self.k_head = nn.Sequential(
                nn.Linear(2 * widths[-1] + statistics, 64), nn.ReLU(), nn.Linear(64, 1)
            )
        # The start is an even split with the k that the ring around the overlap shows.
        with torch.no_grad():
            if soft_tissue == "own":
                for parameter in self.k_head[-1].parameters():
                    parameter.zero_()
            self.share_head.weight.normal_(std=1e-3)
            self.share_head.bias.zero_()  # type: ignore[union-attr]

    def configuration(self) -> dict[str, Any]:
        """What rebuilds this network: ``LiteGenerator(**configuration)``."""
        told = {} if self.ring else {"ring": False}
        return {"widths": list(self.widths), "blocks": list(self.blocks), **self._options(), **told}

    def begin_with(self, other: Generator) -> None:
        """Takes over the weights of ``other``, which may have fewer blocks: those that it lacks
        begin as the identity, so that both networks say the same (Net2Net: Chen, Goodfellow &
        Shlens, ICLR 2016).

        Raises:
            RuntimeError: it is of another architecture or of other widths, or has more blocks.
        """
        weights = dict(other.state_dict())
        if isinstance(other, LiteGenerator):
            for name, block in self.named_modules():
                if isinstance(block, ResidualBlock) and f"{name}.first.weight" not in weights:
                    for key, value in block.state_dict().items():
                        added = torch.zeros_like(value) if key.startswith("second.") else value
                        weights[f"{name}.{key}"] = added
        self.load_state_dict(weights)

    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts shares and soft tissue.

        Args:
            image: float [B,1,H,W] in [0,1]; what lies outside both bones is ignored.
            masks: float [B,N,H,W] in {0,1}, for two upper and lower bone; H and W divisible by 8.

        Returns:
            share_logits [B,N,H,W] and soft_tissue [B] in [0, 0.95].
        """
        if self.layers == 2:
            upper, lower = masks[:, :1], masks[:, 1:]
            overlap = upper * lower
            union = upper + lower - overlap
        else:
            overlap = (masks.sum(dim=1, keepdim=True) > 1).to(masks.dtype)
            union = masks.amax(dim=1, keepdim=True)
        image = image.clamp(0, 1) * union
        attenuation = -torch.log((1 - image).clamp(min=_SOFTEST))
        statistics = ring_statistics(image, masks) if self.ring else _no_ring(image, masks)
        planes = statistics[:, :, None, None] * torch.ones_like(image)
        x = self.stem(torch.cat((image, attenuation, masks, overlap, planes), dim=1))

        skips = []
        for level, encode in enumerate(self.encoder):
            x = encode(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)

        if self.soft_tissue == "own":
            soft_tissue = self._own_soft_tissue(x, overlap, statistics)
        else:
            soft_tissue = self._given_soft_tissue(image)

        for level in reversed(range(len(self.up))):
            x = self.decoder[level](self.up[level](x) + skips[level])
        return self.share_head(F.relu(x)), soft_tissue

    def _own_soft_tissue(self, x: Tensor, overlap: Tensor, statistics: Tensor) -> Tensor:
        # Mean over the overlap's neighbourhood and over the crop: k is one number per image.
        near = F.max_pool2d(overlap, 8)
        local = (x * near).sum(dim=(2, 3)) / near.sum(dim=(2, 3)).clamp(min=1)
        pooled = torch.cat((local, x.mean(dim=(2, 3)), statistics.to(x.dtype)), dim=1)
        shift = self.k_head(pooled).squeeze(1).float()
        start = statistics[:, -1].float() / K_MAX
        return K_MAX * torch.sigmoid(torch.log(start / (1 - start)) + shift)
