"""Every op in plain PyTorch: the oracle of the tests, the baseline of the benchmarks, and what
``torch.export`` and the ONNX exporter trace.

Same names, arguments and results as in ``blsgan.ops``; any floating-point dtype. float16 and
bfloat16 are computed in float32, because logarithms and quotients of transmissions do not survive
half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blsgan.ops import K_MAX

TRANSMISSION_MIN = 2.0**-24
POWER_MAX = 80.0  # under the exponential law |b x| of a layer is at most that


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def _covered(masks: Tensor) -> Tensor:
    return masks if masks.dtype == torch.bool else masks != 0


def _soft_tissue(soft_tissue: Tensor, overlap: Tensor, dtype: torch.dtype) -> Tensor:
    """k clamped, as [B,1,1,1] or [B,1,H,W]; a map counts in the overlap only."""
    k = soft_tissue.to(dtype)
    k = k.view(-1, 1, 1, 1) if k.dim() == 1 else torch.where(overlap, k, 0.0)
    return k.clamp(0.0, K_MAX)


def _attenuation(display: Tensor, law: float) -> Tensor:
    """A of a display in [0, 1)."""
    return torch.exp(law * display) - 1 if law else -torch.log1p(-display)


def _display(attenuation: Tensor, law: float) -> Tensor:
    """The inverse of ``_attenuation``."""
    return torch.log1p(attenuation) / law if law else -torch.expm1(-attenuation)


def compose_layers(layers: Tensor, masks: Tensor, soft_tissue: Tensor, law: float = 0.0) -> Tensor:
    """See ``blsgan.ops.compose_layers``: [B,N,H,W] layers to the composed [B,1,H,W]."""
    dtype = _compute_dtype(layers)
    covered = _covered(masks)
    values = torch.where(covered, layers.to(dtype), 0.0)
    coverage = covered.sum(dim=1, keepdim=True)
    overlap = coverage > 1
    extra = (coverage - 1).clamp(min=0)
    k = _soft_tissue(soft_tissue, overlap, dtype)
    if law:
        # Bones that do not cover the pixel count as displays of 0 here: 1 each too much.
        powers = torch.exp((law * values).clamp(-POWER_MAX, POWER_MAX))
        soft = extra * torch.exp(law * k) + (values.shape[1] - coverage)
        total = torch.where(overlap, powers.sum(dim=1, keepdim=True) - soft, 1.0)
        shared = torch.where(total > 1, torch.log(total.clamp(min=1)), total - 1) / law
    else:
        transmission = 1 - values[:, :1]
        for index in range(1, values.shape[1]):
            transmission = transmission * (1 - values[:, index : index + 1])
        shared = 1 - transmission * torch.exp(extra * _attenuation(k, law))
    single = values.sum(dim=1, keepdim=True)
    return torch.where(overlap, shared, single).to(layers.dtype)


def split_attenuation(
    share_logits: Tensor, image: Tensor, masks: Tensor, soft_tissue: Tensor, law: float = 0.0
) -> Tensor:
    """See ``blsgan.ops.split_attenuation``: [B,1,H,W] image to layers [B,N,H,W]."""
    dtype = _compute_dtype(share_logits, image)
    covered = _covered(masks)
    overlap = covered.sum(dim=1, keepdim=True) > 1
    # The lowest finite value and not -inf: a pixel that no bone covers would become NaN.
    logits = torch.where(covered & overlap, share_logits.to(dtype), torch.finfo(dtype).min)
    shares = torch.softmax(logits, dim=1)
    radiograph = image.to(dtype)
    safe = torch.where(overlap, radiograph, 0.0).clamp(0.0, 1.0 if law else 1 - TRANSMISSION_MIN)
    soft = _attenuation(_soft_tissue(soft_tissue, overlap, dtype), law)
    inside = _display(soft + shares * (_attenuation(safe, law) - soft), law)
    layers = torch.where(overlap, inside, radiograph)
    return torch.where(covered, layers, 0.0).to(image.dtype)


def _root_mean_square(differences: Tensor, covered: Tensor) -> Tensor:
    """sqrt(mean(differences^2)) over covered elements; 0, with zero gradient, where that is 0."""
    count = covered.sum()
    squares = torch.where(covered, differences, 0.0).square().sum()
    mean = squares / count.clamp(min=1)
    # sqrt has an infinite slope at 0: take the root of something else there and drop it.
    positive = mean != 0
    return torch.where(positive, torch.where(positive, mean, 1.0).sqrt(), 0.0)


def reconstruction_loss(
    layers: Tensor, masks: Tensor, soft_tissue: Tensor, image: Tensor, law: float = 0.0
) -> Tensor:
    """See ``blsgan.ops.reconstruction_loss``: a scalar."""
    dtype = _compute_dtype(layers, image)
    composed = compose_layers(layers.to(dtype), masks, soft_tissue, law)
    union = _covered(masks).any(dim=1, keepdim=True)
    return _root_mean_square(composed - image.to(dtype), union)


def layer_loss(layers: Tensor, true_layers: Tensor, masks: Tensor) -> Tensor:
    """See ``blsgan.ops.layer_loss``: a scalar."""
    dtype = _compute_dtype(layers, true_layers)
    return _root_mean_square(layers.to(dtype) - true_layers.to(dtype), _covered(masks))


def _dice(p: Tensor, target: Tensor) -> Tensor:
    return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


def supervisor_loss(
    logits: Tensor, masks: Tensor, target_layers: str = "masks", terms: str = "hybrid"
) -> Tensor:
    """See ``blsgan.ops.supervisor_loss``: a scalar."""
    dtype = _compute_dtype(logits)
    z = logits.to(dtype)
    covered = _covered(masks)
    overlap = (covered.sum(dim=1, keepdim=True) > 1).expand_as(covered)
    overlap = torch.cat([overlap, overlap], dim=1).to(dtype)
    if target_layers == "exclusive":
        covered = covered & ~(covered.sum(dim=1, keepdim=True) > 1)
    real = torch.zeros_like(covered) if target_layers == "zeros" else covered
    target = torch.cat([covered, real], dim=1).to(dtype)
    elements = max(z.numel(), 1)
    # max(z, 0) - z t + log(1 + exp(-|z|)): BCE of sigmoid(z), finite for every finite z
    softplus = torch.log1p(torch.exp(-z.abs()))
    entropy = (z.clamp(min=0) - z * target + softplus).sum() / elements
    if terms == "bce":
        return entropy
    p = torch.sigmoid(z)
    overlap_entropy = (overlap * ((-z).clamp(min=0) + softplus)).sum() / elements
    plain = entropy + _dice(p, target)
    return 0.5 * plain + 0.5 * (overlap_entropy + _dice(p * overlap, overlap))


def _move_rows(planes: Tensor, shift: Tensor) -> Tensor:
    """[B,1,H,W] moved down by shift[B] rows with linear interpolation; rows from outside are 0."""
    batch, _, height, width = planes.shape
    whole = shift.floor()
    fraction = (shift - whole).to(planes.dtype)
    rounded_up = fraction == 1  # -1e-9 in float32: a whole row up and a whole row down
    whole = torch.where(rounded_up, whole + 1, whole)
    fraction = torch.where(rounded_up, 0.0, fraction).view(batch, 1, 1, 1)
    first = torch.arange(height, device=planes.device).view(1, height) - whole.view(batch, 1).long()

    def rows(index: Tensor) -> Tensor:
        inside = (index >= 0) & (index < height)
        at = index.clamp(0, max(height - 1, 0)).view(batch, 1, height, 1)
        moved = planes.gather(2, at.expand(batch, 1, height, width))
        return torch.where(inside.view(batch, 1, height, 1), moved, 0.0)

    mixed = (1 - fraction) * rows(first) + fraction * rows(first - 1)
    return torch.where(fraction == 0, rows(first), mixed)


def synthesize_overlap(
    image: Tensor,
    masks: Tensor,
    soft_tissue_background: Tensor,
    shift_upper_px: Tensor,
    shift_lower_px: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``blsgan.ops.synthesize_overlap``: composed image, masks, layers, soft tissue."""
    dtype = _compute_dtype(image)
    radiograph = image.to(dtype)
    height = image.shape[2]
    if image.numel() == 0:  # pooling refuses planes without pixels
        return (
            torch.empty_like(image),
            torch.empty_like(masks),
            torch.empty_like(masks, dtype=image.dtype),
            shift_upper_px.new_zeros(shift_upper_px.shape, dtype=dtype),
        )
    pool = torch.nn.functional.max_pool2d
    grown = pool(_covered(masks).to(dtype), 3, stride=1, padding=1)
    shifts = [shift_upper_px.double(), -shift_lower_px.double()]
    moved, layers = [], []
    for index in range(masks.shape[1]):
        shift = shifts[index] if index < 2 else torch.zeros_like(shifts[0])
        shift = torch.where(shift.abs() < height + 1, shift, float(height + 1))
        mask = _move_rows(grown[:, index : index + 1], shift) >= 0.5
        moved.append(mask)
        layers.append(torch.where(mask, _move_rows(radiograph, shift), 0.0))
    moved_masks = torch.cat(moved, dim=1)
    true_layers = torch.cat(layers, dim=1)
    overlap = moved_masks.sum(dim=1, keepdim=True) > 1
    union = moved_masks.any(dim=1, keepdim=True)
    count = overlap.sum(dim=(1, 2, 3))
    total = torch.where(overlap, soft_tissue_background.to(dtype), 0.0).sum(dim=(1, 2, 3))
    soft_tissue = (total / count.clamp(min=1)).clamp(0.0, K_MAX)
    composed = compose_layers(true_layers, moved_masks, soft_tissue).clamp(0.0, 1.0)
    rim = _rim(overlap) & union
    smooth = _binomial(_binomial(composed, 2), 3)
    composed = torch.where(rim, smooth, composed)
    return (
        composed.to(image.dtype),
        moved_masks.to(masks.dtype),
        true_layers.to(image.dtype),
        (soft_tissue),
    )


def _binomial(planes: Tensor, dim: int) -> Tensor:
    """The kernel (1, 2, 1) / 4 along one axis, mirrored at the ends without repeating them."""
    size = planes.shape[dim]
    if size == 1:
        return planes
    middle = torch.arange(size, device=planes.device)
    before = planes.index_select(dim, (middle - 1).abs())
    after = planes.index_select(dim, size - 1 - (size - 2 - middle).abs())
    return 0.25 * (before + after) + 0.5 * planes


def _rim(overlap: Tensor) -> Tensor:
    """Canny's edge of the bool masks [B,1,H,W], dilated by a 4x4 square as OpenCV does it.

    A mask's gradients are all above Canny's thresholds, so what remains of Canny is a maximum of
    the Sobel gradient's L1 norm across the edge, in one of three sectors of direction.
    """
    pad = torch.nn.functional.pad
    height, width = overlap.shape[-2:]
    padded = pad(overlap.to(torch.float32), (1, 1, 1, 1), mode="replicate")

    def window(planes: Tensor, dy: int, dx: int) -> Tensor:
        return planes[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    falling = window(padded, 1, 1) - window(padded, -1, -1)
    rising = window(padded, -1, 1) - window(padded, 1, -1)
    dx = falling + rising + 2 * (window(padded, 0, 1) - window(padded, 0, -1))
    dy = falling - rising + 2 * (window(padded, 1, 0) - window(padded, -1, 0))
    norm = dx.abs() + dy.abs()
    around = pad(norm, (1, 1, 1, 1))

    def above_all(strict: tuple[int, int], other: tuple[int, int], tie: bool) -> Tensor:
        behind = norm >= window(around, *other) if tie else norm > window(around, *other)
        return (norm > window(around, *strict)) & behind

    same_sign = (dx < 0) == (dy < 0)
    falling_edge = above_all((-1, -1), (1, 1), tie=False)
    rising_edge = above_all((-1, 1), (1, -1), tie=False)
    edge = torch.where(same_sign, falling_edge, rising_edge)
    edge = torch.where(2 * dy.abs() > 5 * dx.abs(), above_all((-1, 0), (1, 0), tie=True), edge)
    edge = torch.where(5 * dy.abs() < 2 * dx.abs(), above_all((0, -1), (0, 1), tie=True), edge)
    edge = (edge & (norm > 0)).to(torch.float32)
    # Rows and columns -2..1 of each pixel.
    return torch.nn.functional.max_pool2d(pad(edge, (2, 1, 2, 1)), 4, stride=1) > 0
