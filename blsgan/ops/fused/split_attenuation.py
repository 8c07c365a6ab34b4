"""The inverse of the composition, exact by construction: share the attenuation of an overlap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blsgan.ops import reference
from blsgan.ops.fused import _library

_OP = "split_attenuation"


def split_attenuation(
    share_logits: Tensor,
    image: Tensor,
    masks: Tensor,
    soft_tissue: Tensor,
    law: float = 0.0,
) -> Tensor:
    """Split a radiograph into one layer for each bone.

    Where one bone covers a pixel its layer is the image bit for bit. Where n bones overlap, with
    shares r of bone, the softmax of their logits, layer i shows the attenuation
    ``a + r_i (A - a)``,
    A that of the image and a that of soft tissue: a bone without a share shows soft tissue alone.
    ``compose_layers`` of the result is the image again whatever the shares and k are, where the
    image is darker than soft tissue too (to rounding; an overlapping pixel outside [0, 1 - 2^-24],
    under the exponential law [0, 1], counts as the nearest end of that range). Zero outside the
    masks.

    Args:
        share_logits: [B,N,H,W], N >= 2, floating point; read only where bones overlap. An infinite
            positive logit gives NaN, as in softmax.
        image: [B,1,H,W] floating point, range [0,1], white = dense.
        masks: [B,N,H,W] bool, uint8 or floating point; not zero = covered.
        soft_tissue: [B] or [B,1,H,W] floating point, the display of soft tissue alone, k, clamped
            to [0, K_MAX]; read only where bones overlap.
        law: 0, the transmission law, or the exponential law's b in [1, 20] (``blsgan.ops``).

    Returns:
        layers [B,N,H,W] with the dtype of ``image``.

    Gradients flow to ``share_logits``, ``image`` and ``soft_tissue`` (zero where clamped).
    ``vmap`` folds into the batch. During export the reference implementation is traced.

    Raises:
        TypeError: an argument is not a dense tensor of an allowed dtype.
        ValueError: shapes or devices do not fit together, or there is no such law.
    """
    batch, count, height, width = _library.check_masks(_OP, masks)
    _library.check_float(_OP, "share_logits", share_logits)
    _library.check_float(_OP, "image", image)
    _library.check_shape(
        _OP, "share_logits", share_logits, (batch, count, height, width), "[B,N,H,W]"
    )
    _library.check_shape(_OP, "image", image, (batch, 1, height, width), "[B,1,H,W]")
    _library.check_soft_tissue(_OP, soft_tissue, batch, height, width)
    law = _library.check_law(_OP, law)
    _library.check_device(
        _OP, share_logits=share_logits, image=image, masks=masks, soft_tissue=soft_tissue
    )
    if _library.is_exporting():
        return reference.split_attenuation(share_logits, image, masks, soft_tissue, law)
    layers: Tensor = _call(share_logits, image, masks, soft_tissue, law)
    return layers


@_library.fake("split_attenuation")
def _fake(
    share_logits: Tensor, image: Tensor, masks: Tensor, soft_tissue: Tensor, law: float = 0.0
) -> Tensor:
    return image.new_empty(share_logits.shape)


@_library.fake("split_attenuation_backward")
def _fake_backward(
    grad_layers: Tensor,
    share_logits: Tensor,
    image: Tensor,
    masks: Tensor,
    soft_tissue: Tensor,
    need_grad_image: bool,
    law: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        share_logits.new_empty(share_logits.shape),
        image.new_empty(image.shape if need_grad_image else (0,)),
        soft_tissue.new_empty(soft_tissue.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.law = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_layers: Tensor) -> tuple[Tensor | None, ...]:
    need_grad_image = ctx.needs_input_grad[1]
    grad_share_logits, grad_image, grad_soft_tissue = _call_backward(
        grad_layers, *ctx.saved_tensors, need_grad_image, ctx.law
    )
    grad_image = grad_image if need_grad_image else None
    return grad_share_logits, grad_image, None, grad_soft_tissue, None


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    folded, size = _library.fold_batch(info, in_dims, args)
    return _library.unfold_batch(torch.ops.blsgan.split_attenuation(*folded), size), 0


def _vmap_backward(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    folded, size = _library.fold_batch(info, in_dims, args)
    results = torch.ops.blsgan.split_attenuation_backward(*folded)
    return tuple(_library.unfold_batch(result, size) for result in results), (0, 0, 0)


_call = _library.differentiable(_OP, _setup_context, _backward, _vmap)
_call_backward = _library.first_order(_OP, _vmap_backward)
