"""Composition and masked root mean square error in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blsgan.ops import reference
from blsgan.ops.fused import _library

_OP = "reconstruction_loss"


def reconstruction_loss(
    layers: Tensor, masks: Tensor, soft_tissue: Tensor, image: Tensor, law: float = 0.0
) -> Tensor:
    """Root mean square error of the composed layers against the image, over the masks' union.

    ``sqrt(mean((compose_layers(layers, masks, soft_tissue, law) - image)^2))`` over all pixels of
    the batch that a bone covers; the composition is never written to memory. Source: the
    reconstruction term of Wang et al., BLS-GAN, AAAI 2025.

    Args:
        layers: [B,N,H,W], N >= 2, range [0,1], floating point; ignored outside ``masks``.
        masks: [B,N,H,W] bool, uint8 or floating point; not zero = covered.
        soft_tissue: [B] or [B,1,H,W] floating point, the display of soft tissue alone, k, clamped
            to [0, K_MAX]; read only where bones overlap.
        image: [B,1,H,W] floating point, range [0,1]; ignored outside the masks' union.
        law: 0, the transmission law, or the exponential law's b in [1, 20] (``blsgan.ops``).

    Returns:
        Scalar, float32 (float64 if ``layers`` or ``image`` is). 0 where no pixel is covered.

    Gradients flow to ``layers``, ``soft_tissue`` and ``image``; where the error is exactly 0, its
    minimum, they are 0. ``vmap`` calls the op once for each index. During export the reference
    implementation is traced.

    Raises:
        TypeError: an argument is not a dense tensor of an allowed dtype.
        ValueError: shapes or devices do not fit together, or there is no such law.
    """
    batch, count, height, width = _library.check_masks(_OP, masks)
    _library.check_float(_OP, "layers", layers)
    _library.check_float(_OP, "image", image)
    _library.check_shape(_OP, "layers", layers, (batch, count, height, width), "[B,N,H,W]")
    _library.check_soft_tissue(_OP, soft_tissue, batch, height, width)
    law = _library.check_law(_OP, law)
    _library.check_shape(_OP, "image", image, (batch, 1, height, width), "[B,1,H,W]")
    _library.check_device(_OP, layers=layers, masks=masks, soft_tissue=soft_tissue, image=image)
    if _library.is_exporting():
        return reference.reconstruction_loss(layers, masks, soft_tissue, image, law)
    loss: Tensor = _call(layers, masks, soft_tissue, image, law)[0]
    return loss


@_library.fake("reconstruction_loss")
def _fake(
    layers: Tensor, masks: Tensor, soft_tissue: Tensor, image: Tensor, law: float = 0.0
) -> tuple[Tensor, Tensor]:
    return _library.fake_loss(layers, image), layers.new_empty((2,), dtype=torch.float64)


@_library.fake("reconstruction_loss_backward")
def _fake_backward(
    grad_loss: Tensor,
    layers: Tensor,
    masks: Tensor,
    soft_tissue: Tensor,
    image: Tensor,
    statistics: Tensor,
    need_grad_image: bool,
    law: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        layers.new_empty(layers.shape),
        soft_tissue.new_empty(soft_tissue.shape),
        image.new_empty(image.shape if need_grad_image else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    statistics = output[1]
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)  # no zeros are written for the statistics
    *tensors, ctx.law = inputs
    ctx.save_for_backward(*tensors, statistics)


def _backward(
    ctx: Any, grad_loss: Tensor | None, grad_statistics: None
) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 5
    need_grad_image = ctx.needs_input_grad[3]
    grad_layers, grad_soft_tissue, grad_image = _call_backward(
        grad_loss, *ctx.saved_tensors, need_grad_image, ctx.law
    )
    return grad_layers, None, grad_soft_tissue, grad_image if need_grad_image else None, None


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    return _library.each_of_batch(torch.ops.blsgan.reconstruction_loss, info, in_dims, args)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    backward = torch.ops.blsgan.reconstruction_loss_backward
    return _library.each_of_batch(backward, info, in_dims, args)


_call = _library.differentiable(_OP, _setup_context, _backward, _vmap)
_call_backward = _library.first_order(_OP, _vmap_backward)
