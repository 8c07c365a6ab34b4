"""What is known of hidden bones before anything is learnt: where they may reach, how they go on
from where they lie free, the soft tissue beside them, and an even split.

All of it is made of shifts, pooling and additions, so that it is part of the exported graph.
Tracing hundreds of shifts of free size would take a minute, so what has most of them is one
operator while a network is traced, and :func:`onnx_translations` says what it is in ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blsgan.joint.zone import (
    BLACK,
    SOFT_TISSUE_FAR_PX,
    SOFT_TISSUE_LEAST_PX,
    SOFT_TISSUE_NEAR_PX,
)
from blsgan.ops import K_MAX

SOFT_TISSUE_TYPICAL = 0.35
"""Display intensity of soft tissue where the picture shows none beside the bones: the mean over the
public dataset's real overlaps (SD 0.06)."""

_LEVELS = 5
_SWEEPS = 6
_PRIOR_SIDE_PX = 5  # side of the window that blurs the prior
_FADING_PX = 3  # over which a bone's share ends where its picture does
_SATURATED = 1e-3  # least transmission taken seriously


def grown(masks: Tensor, reach_px: int) -> Tensor:
    """Masks [B,C,H,W] of {0,1} dilated by ``reach_px``: squares and crosses in turn, which is
    nearly round. ``blsgan.joint.zone.grown`` does the same to arrays."""
    if torch.compiler.is_exporting():
        return _traced_grown(masks, reach_px)
    for step in range(reach_px):
        p = F.pad(masks, (1, 1, 1, 1))
        if step % 2 == 0:
            rows = torch.maximum(torch.maximum(p[..., :-2, :], p[..., 1:-1, :]), p[..., 2:, :])
            masks = torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])
        else:
            vertical = torch.maximum(p[..., :-2, 1:-1], p[..., 2:, 1:-1])
            across = torch.maximum(p[..., 1:-1, :-2], p[..., 1:-1, 2:])
            masks = torch.maximum(masks, torch.maximum(vertical, across))
    return masks


def zone(masks: Tensor, reach_px: int) -> Tensor:
    """Where more than one bone's picture may reach, {0,1} [B,1,H,W].

    A mask ends before the blurred edge of its bone does: the zone is where at least two of the
    masks [B,N,H,W], each dilated by ``reach_px``, cover a pixel that lies in one of the masks, or
    in a gap between them no wider than the reach. With a reach of 0 it is the overlap.
    ``blsgan.joint.zone.zone`` does the same to arrays.
    """
    reached = grown(masks, reach_px).sum(dim=1, keepdim=True) > 1
    union, closing_px = masks.amax(dim=1, keepdim=True), reach_px // 2
    closed = 1 - grown(1 - grown(union, closing_px), closing_px)
    return reached.to(masks.dtype) * torch.maximum(union, closed)


def attenuation(display: Tensor, law: float) -> Tensor:
    """Attenuation of a display intensity in [0,1] under a law of ``blsgan.ops``, up to a factor."""
    if law:
        return torch.expm1(law * display)
    return -torch.log((1 - display).clamp(min=_SATURATED))


def display(attenuation: Tensor, law: float) -> Tensor:
    """The inverse of :func:`attenuation`, for attenuations >= 0."""
    attenuation = attenuation.clamp(min=0.0)
    return torch.log1p(attenuation) / law if law else -torch.expm1(-attenuation)


def slope(attenuation: Tensor, law: float) -> Tensor:
    """How fast attenuation changes with display intensity, there where it is ``attenuation``."""
    return law * (attenuation + 1) if law else torch.exp(attenuation)


def _beside(x: Tensor) -> Tensor:
    """The sum of the four neighbours."""
    p = F.pad(x, (1, 1, 1, 1))
    vertical = p[..., :-2, 1:-1] + p[..., 2:, 1:-1]
    return vertical + (p[..., 1:-1, :-2] + p[..., 1:-1, 2:])


def _blurred(x: Tensor, side: int) -> Tensor:
    """The mean over a window inside the picture; by columns and rows, which runtimes need told."""
    for window in ((side, 1), (1, side)):
        margin = (window[0] // 2, window[1] // 2)
        x = F.avg_pool2d(x, window, stride=1, padding=margin, count_include_pad=False)
    return x


def box_sum(x: Tensor, side: int) -> Tensor:
    """The sum over a square window of odd ``side``, with zeros beyond the picture. By additions:
    runtimes take several times as long to pool."""
    height, width = x.shape[-2:]
    p = F.pad(x, (side // 2,) * 4)
    rows = p[..., :height, :]
    for step in range(1, side):
        rows = rows + p[..., step : step + height, :]
    total = rows[..., :width]
    for step in range(1, side):
        total = total + rows[..., step : step + width]
    return total


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def continued(values: Tensor, known: Tensor, domain: Tensor) -> Tensor:
    """Values carried on from where they are known: nearly the solution of Laplace's equation.

    A cascade of grids from coarse to fine (Bornemann & Deuflhard, Numer. Math. 75, 1996) with six
    Jacobi sweeps on each; nothing flows across the border of the domain.

    Args:
        values: [B,C,H,W], read only where known.
        known: {0,1} [B,C,H,W]; these pixels keep their value.
        domain: {0,1} [B,C,H,W], where to continue.

    Returns:
        [B,C,H,W]; outside the domain the mean of what is known (0 where nothing is).
    """
    if torch.compiler.is_exporting():
        return _traced_continued(values, known, domain)
    grids = [(values * known, known, domain)]
    for _ in range(_LEVELS):
        value, weight, inside = grids[-1]
        inside = F.max_pool2d(inside, 2, ceil_mode=True)
        grids.append((_halved(value), _halved(weight), inside))
    value, weight, inside = grids[-1]
    mean = value.sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True).clamp(
        min=1e-6
    )
    x = mean.expand_as(value)
    for level in reversed(range(_LEVELS + 1)):
        value, weight, inside = grids[level]
        if level < _LEVELS:
            height, width = value.shape[2:]
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear")[..., :height, :width]
        neighbours = _beside(inside)
        x = torch.where(weight > 0, value / weight.clamp(min=1e-6), x) * inside
        held = ((weight > 0) | (neighbours == 0)).to(value.dtype)
        fixed = x * held
        share = inside * (1 - held) / neighbours.clamp(min=1.0)
        for _ in range(_SWEEPS):
            x = fixed + _beside(x) * share
        x = torch.where(inside > 0, x, mean)
    return x


def soft_tissue_beside(image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Soft tissue 3 to 14 px beside all bones of masks [B,N,H,W], in the exposed field.

    Returns:
        where it is read, {0,1} [B,1,H,W], and whether there is enough of it, {0,1} [B,1,1,1].
    """
    union = masks.amax(dim=1, keepdim=True)
    near = grown(union, SOFT_TISSUE_FAR_PX) * (1 - grown(union, SOFT_TISSUE_NEAR_PX))
    beside = near * (image > BLACK).to(image.dtype)
    enough = beside.sum(dim=(1, 2, 3), keepdim=True) >= SOFT_TISSUE_LEAST_PX
    return beside, enough.to(image.dtype)


class Priors:
    """The closed forms that a network starts from, for image [B,1,H,W] and masks [B,N,H,W].

    Attributes:
        zone: {0,1} [B,1,H,W], see :func:`zone`, without the gap.
        overlap: {0,1} [B,1,H,W], where two masks meet.
        gap: {0,1} [B,1,H,W], the zone beside all masks: soft tissue and the bones' blurred edges,
            which every layer has an even share of.
        supports: {0,1} [B,N,H,W], each mask with zone and gap: where its layer may be more than 0.
        fading: [B,N,H,W], what is left of a bone's share: 1 in its mask and up to 2 px before its
            picture's reach, then 2/3 and 1/3. Without it a layer would step where the zone ends.
        soft_tissue: [B,1,H,W] in [0, K_MAX], display intensity of soft tissue, continued from
            beside the bones across them.
        continued: [B,N,H,W], each bone continued from its free part into the zone.
        equal: [B,1,H,W], the layer that each bone has if all have an equal share.
        layers: [B,N,H,W] in [0,1]: in the overlap the mean of the equal split and the continuation,
            in the rest of the zone that of the continuation and the image where the bone itself is
            drawn, or soft tissue where it is not. In the zone it is blurred: masks are drawn a
            pixel off, and their borders would stand in the layers as steps.
    """

    def __init__(
        self,
        image: Tensor,
        masks: Tensor,
        reach_px: int,
        law: float,
        *,
        soft_tissue_seen: bool = True,
    ) -> None:
        coverage = masks.sum(dim=1, keepdim=True)
        self.overlap = (coverage > 1).to(masks.dtype)
        both, union = zone(masks, reach_px), masks.amax(dim=1, keepdim=True)
        self.zone, self.gap = both * union, both * (1 - union)
        self.supports = torch.maximum(masks, both)
        fading = [grown(masks, max(reach_px - before_px, 0)) for before_px in range(_FADING_PX)]
        self.fading = torch.stack(fading).mean(dim=0)
        estimated = torch.maximum(masks, self.zone)
        beside, enough = soft_tissue_beside(image, masks)
        known = torch.cat((masks * (1 - self.zone), beside), dim=1)
        domain = torch.cat((estimated, torch.ones_like(beside)), dim=1)
        bones = masks.shape[1]
        on = continued(image.expand(-1, bones + 1, -1, -1), known, domain)
        enough = enough * float(soft_tissue_seen)
        tissue = enough * on[:, bones:] + (1 - enough) * SOFT_TISSUE_TYPICAL
        self.soft_tissue = tissue.clamp(0.0, K_MAX)
        self.continued = on[:, :bones].clamp(0.0, 1.0)
        soft, whole = attenuation(self.soft_tissue, law), attenuation(image, law)
        self.equal = display(
            soft + (whole - soft) / estimated.sum(1, keepdim=True).clamp(min=1.0), law
        )
        beside_it = torch.where(masks > 0, image, self.soft_tissue)
        start = torch.where(self.overlap > 0, self.equal, beside_it)
        layers = (start + self.continued) / 2
        sums = box_sum(torch.cat((layers * estimated, estimated), dim=1), _PRIOR_SIDE_PX)
        blurred = sums[:, :bones] / sums[:, bones:].clamp(min=1.0)
        self.layers = torch.where(self.zone > 0, blurred, layers)

    def without_continuation(self) -> None:
        """Takes the even split alone, for an ablation."""
        self.continued = self.equal.expand_as(self.continued)
        self.layers = self.equal.expand_as(self.layers)

    def planes(self, image: Tensor, masks: Tensor) -> Tensor:
        """What a network is shown of all this: [B,7+4N,H,W]."""
        near, far = (_blurred(image, side) for side in (5, 9))
        return torch.cat(
            (
                image,
                near,
                far,
                masks,
                self.zone,
                self.overlap,
                self.soft_tissue,
                self.equal,
                self.continued,
                self.layers,
                self.continued - image,
            ),
            dim=1,
        )


@torch.library.custom_op("blsgan_priors::grown", mutates_args=())
def _traced_grown(masks: Tensor, reach_px: int) -> Tensor:
    return grown(masks, reach_px).clone()


@torch.library.custom_op("blsgan_priors::continued", mutates_args=())
def _traced_continued(values: Tensor, known: Tensor, domain: Tensor) -> Tensor:
    return continued(values, known, domain)


_traced_grown.register_fake(lambda masks, reach_px: torch.empty_like(masks))
_traced_continued.register_fake(lambda values, known, domain: torch.empty_like(values))


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What stands in ONNX for the operators of this module, for ``torch.onnx.export``."""
    from onnxscript import opset20

    op: Any = opset20  # its types are of one function each

    half = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
    after = 2**31 - 1

    def number(value: float) -> Any:
        return op.Constant(value_float=value)

    def numbers(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def largest(x: Any, rows: int, columns: int) -> Any:
        margin = [rows // 2, columns // 2]
        return op.MaxPool(x, kernel_shape=[rows, columns], pads=2 * margin)[0]

    def grow(masks: Any, reach_px: int) -> Any:
        for step in range(reach_px):
            if step % 2 == 0:
                masks = largest(masks, 3, 3)
            else:
                masks = op.Max(largest(masks, 3, 1), largest(masks, 1, 3))
        return masks

    def beside(x: Any) -> Any:
        x = op.Pad(x, numbers(0, 0, 1, 1, 0, 0, 1, 1))
        ends = {0: -2, 1: -1, 2: after}
        up, down, left, right = (
            op.Slice(x, numbers(row, column), numbers(ends[row], ends[column]), numbers(2, 3))
            for row, column in ((0, 1), (2, 1), (1, 0), (1, 2))
        )
        return op.Add(op.Add(up, down), op.Add(left, right))

    def carry_on(values: Any, known: Any, domain: Any) -> Any:
        grids = [(op.Mul(values, known), known, domain)]
        for _ in range(_LEVELS):
            value, weight, inside = grids[-1]
            halved = (op.AveragePool(x, count_include_pad=0, **half) for x in (value, weight))
            grids.append((*halved, op.MaxPool(inside, **half)[0]))
        value, weight, _ = grids[-1]
        axes, tiny = numbers(2, 3), number(1e-6)
        sums = [op.ReduceSum(x, axes, keepdims=1) for x in (value, weight)]
        mean = op.Div(sums[0], op.Max(sums[1], tiny))
        x = op.Expand(mean, op.Shape(value))
        for level in reversed(range(_LEVELS + 1)):
            value, weight, inside = grids[level]
            if level < _LEVELS:
                doubled = op.Constant(value_floats=[1.0, 1.0, 2.0, 2.0])
                x = op.Resize(x, None, doubled, mode="linear")
                x = op.Slice(x, numbers(0, 0), op.Shape(value, start=2), axes)
            given = op.Greater(weight, number(0.0))
            neighbours = beside(inside)
            x = op.Mul(op.Where(given, op.Div(value, op.Max(weight, tiny)), x), inside)
            held = op.Or(given, op.Equal(neighbours, number(0.0)))
            fixed = op.Where(held, x, number(0.0))
            share = op.Div(op.Where(held, number(0.0), inside), op.Max(neighbours, number(1.0)))
            for _ in range(_SWEEPS):
                x = op.Add(fixed, op.Mul(beside(x), share))
            x = op.Where(op.Greater(inside, number(0.0)), x, mean)
        return x

    ops = torch.ops.blsgan_priors
    return {ops.grown.default: grow, ops.continued.default: carry_on}
