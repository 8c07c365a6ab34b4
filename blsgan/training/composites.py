"""Overlaps composed of real bones as radiographs show them, with every pixel's truth known.

Two free bones of the dataset are cut out with their blurred edges, each as its attenuation above
the soft tissue behind it, moved over each other and composed on that soft tissue by the law of Beer
and Lambert. The published pairs (:class:`~blsgan.training.pairs.SyntheticPairs`) cut bones out by
their masks: whoever learns from those alone leaves the outline of the other bone in real overlaps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blsgan.joint.zone import REACH_PX
from blsgan.models.priors import attenuation, display, zone
from blsgan.training.config import DataConfig
from blsgan.training.pairs import PairBatch, SyntheticPairs, Variation, Window, sent

_LAW = 0.0  # of the ops
_STRANGER_SHARE = 0.3  # of the pairs, whose lower bone is another joint's
_LARGEST_MOVE_PX = 9.0  # of each bone towards the other
_TAPER = 0.5  # most that a bone loses at its border where it lies over another
_TAPER_PX = 8  # depth inside a bone from which on it loses nothing
_LEVEL_SPREAD = 0.05  # SD of soft tissue around what lies beside the bones: the law is not exact
_NOISE = 0.006


class Composites:
    """Composed overlaps of the joints that synthetic pairs are made of.

    Args:
        joints: where bones, masks and soft tissue are taken from.
    """

    def __init__(self, joints: SyntheticPairs) -> None:
        self._joints = joints

    def draw(self, count: int, generator: torch.Generator, data: DataConfig) -> PairBatch:
        """Draws ``count`` overlaps of size ``data.crop``; layers are known in the whole zone."""
        g, n, size = generator, count, data.crop
        planes, device = self._joints.planes, self._joints.planes.device
        first = torch.randint(len(planes), (n,), generator=g)
        partner = torch.randint(len(planes), (n,), generator=g)
        second = torch.where(torch.rand(n, generator=g) < _STRANGER_SHARE, partner, first)
        rows = _LARGEST_MOVE_PX * torch.rand(n, 2, generator=g)
        columns = 2.5 * torch.randn(n, 2, generator=g)
        degrees = 3 * torch.randn(n, 2, generator=g)
        zoom = torch.exp(0.05 * torch.randn(n, 2, generator=g))
        loss = _TAPER * torch.rand(n, 2, generator=g)
        level = _LEVEL_SPREAD * torch.randn(n, 1, 1, 1, generator=g)
        slopes = 0.6 * _LEVEL_SPREAD * torch.randn(n, 1, 3, 4, generator=g)
        noise = _NOISE * torch.randn(n, 1, *size, generator=g)
        first, second, rows, columns, degrees, zoom, loss, level, slopes, noise = sent(
            device, first, second, rows, columns, degrees, zoom, loss, level, slopes, noise
        )
        varied = Variation.drawn(g, n, data, device)

        bones, masks, redrawn = [], [], []
        for bone, (index, sign) in enumerate(((first, 1.0), (second, -1.0))):
            # The bones meet in the crop's middle, moved by the variation's shift.
            move = torch.stack(
                (sign * rows[:, bone] - (rows[:, 0] - rows[:, 1]) / 2, columns[:, bone]), 1
            )
            window = Window.around(
                self._joints.centres[index],
                size,
                varied.shift + move,
                degrees[:, bone],
                zoom[:, bone],
            ).mirrored(varied.mirrored)
            seen = window.sample_of(planes, index, (0, 1 + bone, 3))
            edge = _blurred(seen[:, 1:2], 2)
            alone = attenuation(seen[:, :1], _LAW) - attenuation(_blurred(seen[:, 2:], 1), _LAW)
            bones.append(alone * edge)
            masks.append((seen[:, 1:2] > 0.5).float())
            redrawn.append(varied.mask(planes, index, window, bone))
            if bone == 0:
                tissue = _blurred(seen[:, 2:], 1)
        for bone, mask in enumerate(masks):
            bones[bone] = bones[bone] * _tapered(mask, masks[1 - bone], loss[:, bone])
        mask = torch.cat(masks, dim=1)
        union = mask.amax(dim=1, keepdim=True)
        level = level + F.interpolate(slopes, size=size, mode="bicubic")
        behind = torch.where(union > 0, (tissue + level).clamp(0.05, 0.7), tissue)
        soft = attenuation(behind, _LAW)
        image = display(soft + bones[0] + bones[1], _LAW) + noise
        layers = torch.cat([display(soft + bone, _LAW) for bone in bones], dim=1)
        known = zone(mask, REACH_PX).expand(-1, 2, -1, -1)
        return PairBatch(
            varied.toned(image.clamp(0, 1)),
            torch.cat(redrawn, dim=1),
            varied.toned(layers.clamp(0, 1)),
            known,
            torch.full((n,), float("nan"), device=device),
        )


def _blurred(planes: Tensor, times: int) -> Tensor:
    for _ in range(times):
        planes = F.avg_pool2d(planes, 3, stride=1, padding=1, count_include_pad=False)
    return planes


def _tapered(mask: Tensor, other: Tensor, loss: Tensor) -> Tensor:
    """What is left, [B,1,H,W], of a bone that loses ``loss`` [B] of its attenuation at its border
    where it lies over another one: there a real bone ends in a thin lip."""
    depth, inside = torch.zeros_like(mask), mask
    for _ in range(_TAPER_PX):
        depth = depth + inside / _TAPER_PX
        inside = 1 - F.max_pool2d(1 - inside, 3, stride=1, padding=1)
    near = _blurred(F.max_pool2d(other, 7, stride=1, padding=3), 6)
    return 1 - loss[:, None, None, None] * (1 - depth) * near
