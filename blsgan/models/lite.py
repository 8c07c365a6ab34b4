"""The default generator: a small residual U-Net that corrects what closed forms say.

It sees a window around the overlap: the radiograph with the soft tissue beside the bones, the
masks, and the priors of :mod:`blsgan.models.priors`. It moves the prior's layers, pixel by pixel,
and the soft tissue that those layers would need to compose to the radiograph is smoothed, as soft
tissue is. The detail that smoothing takes away belongs to the bones: half of it to every bone
alike, half to the one that the network says. The exact split then gives each bone its share of the
attenuation above that soft tissue. So levels and edges are the network's, while the texture is the
radiograph's own. There is no normalisation layer: one image's answer never depends on its
neighbours in a batch.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blsgan.joint.zone import REACH_PX
from blsgan.models.generator import Generator, Head
from blsgan.models.priors import Priors, attenuation, box_sum, display, slope
from blsgan.ops import K_MAX

_LARGEST_MOVE = 0.5  # of a layer away from its prior, in display intensity
_SMOOTHING_PX = 7  # side of the window that smooths the soft tissue
_SMOOTHINGS = 2
_LEAST_SHARE = 1e-3  # that even an absent bone keeps, so that its logarithm is finite
_LEAST_ATTENUATION = 1e-2  # of bones above soft tissue, below which shares mean nothing


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), near the identity at first: [B,C,H,W] -> [B,C,H,W]."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        with torch.no_grad():
            self.second.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.dropout(F.relu(self.first(F.relu(x)), inplace=True)))


def _stage(channels: int, blocks: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels, dropout) for _ in range(blocks)))


class LiteGenerator(Generator):
    """Image and masks of a window around the overlap -> share logits and a map of soft tissue.

    Args:
        widths: channels at full, half, quarter and eighth resolution.
        blocks: residual blocks of the encoder at each resolution; the decoder mirrors the first
            three.
        layers: N, the number of bones; the shipped weights are of two.
        head: see :class:`~blsgan.models.generator.Generator`.
        law: of the ops, the law between display and attenuation.
        reach_px: how far a bone's picture reaches beyond its mask (:mod:`blsgan.models.priors`).
        dropout: share of feature maps dropped in training.
        soft_tissue_map: whether soft tissue varies over the picture; else one value for each image.
        continued: whether the bones' continuations are part of the prior; else it is an even split.
        soft_tissue_seen: whether soft tissue is read beside the bones; else it is the typical one.
    """

    architecture = "lite"

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (16, 32, 48, 64),
        blocks: tuple[int, int, int, int] = (1, 1, 1, 1),
        layers: int = 2,
        head: Head = "exact",
        law: float = 0.0,
        reach_px: int = REACH_PX,
        dropout: float = 0.0,
        soft_tissue_map: bool = True,
        continued: bool = True,
        soft_tissue_seen: bool = True,
    ) -> None:
        super().__init__(layers, head, law=law, reach_px=reach_px)
        self.widths, self.blocks, self.dropout = tuple(widths), tuple(blocks), dropout
        self.soft_tissue_map = soft_tissue_map
        self.continued, self.soft_tissue_seen = continued, soft_tissue_seen
        self.stem = nn.Conv2d(7 + 4 * layers, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            _stage(w, n, dropout) for w, n in zip(widths, blocks, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(widths))
        self.decoder = nn.ModuleList(
            _stage(w, n, dropout) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        # A move of each layer, and its share of the detail.
        self.head_convolution = nn.Conv2d(widths[0], 2 * layers, 3, padding=1)
        with torch.no_grad():  # the start is the prior
            self.head_convolution.weight.normal_(std=1e-3)
            self.head_convolution.bias.zero_()  # type: ignore[union-attr]

    def configuration(self) -> dict[str, Any]:
        """What rebuilds this network: ``LiteGenerator(**configuration)``."""
        switches = {
            name: False
            for name in ("soft_tissue_map", "continued", "soft_tissue_seen")
            if not getattr(self, name)
        }
        return {
            "widths": list(self.widths),
            "blocks": list(self.blocks),
            "law": self.law,
            "reach_px": self.reach_px,
            **self._options(),
            **switches,
        }

    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts shares and soft tissue.

        Args:
            image: float [B,1,H,W] in [0,1], with what lies beside the bones.
            masks: float [B,N,H,W] in {0,1}, for two upper and lower bone; H and W divisible by 8.

        Returns:
            share_logits [B,N,H,W] (of a free head the layers' own logits) and soft_tissue [B,1,H,W]
            in [0, 0.95]; both are read in the zone alone.
        """
        image = image.clamp(0.0, 1.0).float()
        priors, layers, detail = self._free_layers(image, masks)
        if self.head == "free":
            return _logit(torch.where(priors.zone > 0, layers, image)), priors.soft_tissue
        return self._exact(image, priors, layers, detail)

    def learnt(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layers before they are made exact, and what :meth:`separate` makes of them.

        An error through the exact split alone would teach that soft tissue is none: where layers
        are so dark that it would have to be negative, their common level has no gradient any more.
        """
        if self.head == "free":
            return super().learnt(image, masks)
        image = image.clamp(0.0, 1.0).float()
        priors, layers, detail = self._free_layers(image, masks)
        logits, soft_tissue = self._exact(image, priors, layers, detail)
        free = torch.where(priors.zone > 0, layers, image) * priors.supports
        return free, self.layers_of(logits, image, masks, soft_tissue), soft_tissue

    def _exact(
        self, image: Tensor, priors: Priors, layers: Tensor, detail: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Share logits and soft tissue of layers [B,N,H,W] that need not compose to the image, and
        of logits of the detail's shares [B,N,H,W], a softmax."""
        bones, whole = attenuation(layers, self.law), attenuation(image, self.law)
        bones = bones * priors.supports
        # The soft tissue that these layers need to compose to the radiograph, without its detail.
        extra = (priors.supports.sum(dim=1, keepdim=True) - 1).clamp(min=1.0)
        needed = (bones.sum(dim=1, keepdim=True) - whole) / extra
        smooth = _smoothed(needed, priors.zone, self.soft_tissue_map)
        # Layers that are darker together than the radiograph would need less soft tissue than none:
        # all become brighter, as smoothly, by the same display intensity.
        alike = slope(bones, self.law) * priors.supports
        bones = bones + _divided(extra * (-smooth).clamp(min=0.0), alike)
        soft_tissue = display(smooth, self.law).clamp(0.0, K_MAX)
        soft = attenuation(soft_tissue, self.law)
        # The detail: half of it moves every layer's display intensity alike. Without that the
        # network gives all of it to one bone, and single pixels stand out there.
        share = torch.exp(detail.clamp(-9.0, 9.0))  # runtimes are slow at a softmax
        share = share / share.sum(dim=1, keepdim=True) + 1 / self.layers
        rest = whole + extra * soft - bones.sum(dim=1, keepdim=True)
        bones = bones + _divided(rest, slope(bones, self.law) * priors.supports * share)
        # Less than 0 where the radiograph is darker than soft tissue. Only ratios of shares count.
        above = (bones - soft) * (whole - soft).sign() * priors.fading
        shares = above / above.clamp(min=0.0).sum(1, keepdim=True).clamp(min=_LEAST_ATTENUATION)
        # Between the masks: what is brighter than soft tissue are the bones' blurred edges.
        shares = torch.where(priors.gap > 0, 1.0, shares)
        between = torch.minimum(image, priors.soft_tissue)
        soft_tissue = torch.where(priors.gap > 0, between, soft_tissue)
        return torch.log(shares.clamp(min=_LEAST_SHARE)), soft_tissue

    def _free_layers(self, image: Tensor, masks: Tensor) -> tuple[Priors, Tensor, Tensor]:
        """The priors, the layers that the network makes of them, [B,N,H,W] in [0,1], of which
        nothing says that they compose to the image, and logits of the detail's shares."""
        priors = Priors(
            image,
            masks.float(),
            self.reach_px,
            self.law,
            soft_tissue_seen=self.soft_tissue_seen,
        )
        if not self.continued:
            priors.without_continuation()
        answers = self._answers(priors.planes(image, masks)).float()
        moves, detail = answers.split(self.layers, dim=1)
        layers = (priors.layers + _LARGEST_MOVE * torch.tanh(moves)).clamp(0.0, 1.0)
        return priors, layers, detail

    def _answers(self, planes: Tensor) -> Tensor:
        x = self.stem(planes)
        skips = []
        for level, encode in enumerate(self.encoder):
            x = encode(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.up))):
            larger = F.interpolate(self.up[level](x), scale_factor=2.0, mode="bilinear")
            x = self.decoder[level](larger + skips[level])
        answers: Tensor = self.head_convolution(F.relu(x))
        return answers


def _smoothed(values: Tensor, zone: Tensor, locally: bool) -> Tensor:
    """``values`` [B,1,H,W] smoothed inside the zone, or to one value an image."""
    if not locally:
        mean = (values * zone).sum(dim=(2, 3)) / zone.sum(dim=(2, 3)).clamp(min=1.0)
        return mean[:, :, None, None].expand_as(values)
    weight = box_sum(zone, _SMOOTHING_PX).clamp(min=1.0)
    for _ in range(_SMOOTHINGS):
        values = box_sum(values * zone, _SMOOTHING_PX) / weight
    return values


def _divided(attenuation: Tensor, weight: Tensor) -> Tensor:
    """``attenuation`` [B,1,H,W] among layers in proportion to ``weight`` [B,N,H,W]."""
    return attenuation * weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)


def _logit(x: Tensor) -> Tensor:
    return torch.logit(x, eps=_LEAST_SHARE)
