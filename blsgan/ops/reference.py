"""Every op in plain PyTorch: the oracle of the tests, the baseline of the benchmarks, and what
``torch.export`` and the ONNX exporter trace.

Same names, arguments and results as in ``blsgan.ops``; any floating-point dtype. float16 and
bfloat16 are computed in float32, because logarithms and quotients of transmissions do not survive
half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

K_MAX = 0.95
TRANSMISSION_MIN = 2.0**-24


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def _covered(masks: Tensor) -> Tensor:
    return masks if masks.dtype == torch.bool else masks != 0


def _soft_attenuation(soft_tissue: Tensor, dtype: torch.dtype) -> Tensor:
    """-log(1 - k) as [B,1,H,W] broadcasts it."""
    return -torch.log1p(-soft_tissue.to(dtype).clamp(0.0, K_MAX)).view(-1, 1, 1, 1)


def compose_layers(layers: Tensor, masks: Tensor, soft_tissue: Tensor) -> Tensor:
    """See ``blsgan.ops.compose_layers``: [B,N,H,W] layers to the composed [B,1,H,W]."""
    dtype = _compute_dtype(layers)
    covered = _covered(masks)
    values = torch.where(covered, layers.to(dtype), 0.0)
    coverage = covered.sum(dim=1, keepdim=True)
    transmission = 1 - values[:, :1]
    for index in range(1, values.shape[1]):
        transmission = transmission * (1 - values[:, index : index + 1])
    extra = (coverage - 1).clamp(min=0)
    correction = torch.exp(extra * _soft_attenuation(soft_tissue, dtype))
    single = values.sum(dim=1, keepdim=True)
    return torch.where(coverage > 1, 1 - transmission * correction, single).to(layers.dtype)


def split_attenuation(
    share_logits: Tensor, image: Tensor, masks: Tensor, soft_tissue: Tensor
) -> Tensor:
    """See ``blsgan.ops.split_attenuation``: [B,1,H,W] image to layers [B,N,H,W]."""
    dtype = _compute_dtype(share_logits, image)
    covered = _covered(masks)
    coverage = covered.sum(dim=1, keepdim=True)
    overlap = coverage > 1
    # The lowest finite value and not -inf: a pixel that no bone covers would become NaN.
    logits = torch.where(covered & overlap, share_logits.to(dtype), torch.finfo(dtype).min)
    shares = torch.softmax(logits, dim=1)
    radiograph = image.to(dtype)
    safe = torch.where(overlap, radiograph, 0.0).clamp(0.0, 1 - TRANSMISSION_MIN)
    total = (coverage - 1) * _soft_attenuation(soft_tissue, dtype) - torch.log1p(-safe)
    inside = -torch.expm1(-shares * total)
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
    layers: Tensor, masks: Tensor, soft_tissue: Tensor, image: Tensor
) -> Tensor:
    """See ``blsgan.ops.reconstruction_loss``: a scalar."""
    dtype = _compute_dtype(layers, image)
    composed = compose_layers(layers.to(dtype), masks, soft_tissue)
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
