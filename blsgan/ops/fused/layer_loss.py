"""Masked root mean square error between layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blsgan.ops import reference
from blsgan.ops.fused import _library

_OP = "layer_loss"


def layer_loss(layers: Tensor, true_layers: Tensor, masks: Tensor) -> Tensor:
    """Root mean square error of layers against the true layers, each inside its own mask.

    The mean runs over all covered pixels of all layers of the batch together. Source: the layer
    term of Wang et al., BLS-GAN, AAAI 2025, for synthetic pairs.

    Args:
        layers: [B,N,H,W], N >= 2, floating point; ignored outside ``masks``.
        true_layers: [B,N,H,W] floating point; ignored outside ``masks``.
        masks: [B,N,H,W] bool, uint8 or floating point; not zero = covered.

    Returns:
        Scalar, float32 (float64 if a layer tensor is). 0 where no pixel is covered.

    Gradients flow to ``layers`` and ``true_layers``; where the error is exactly 0, its minimum,
    they are 0. ``vmap`` calls the op once for each index. During export the reference
    implementation is traced.

    Raises:
        TypeError: an argument is not a dense tensor of an allowed dtype.
        ValueError: shapes or devices do not fit together.
    """
    batch, count, height, width = _library.check_masks(_OP, masks)
    _library.check_float(_OP, "layers", layers)
    _library.check_float(_OP, "true_layers", true_layers)
    shape = (batch, count, height, width)
    _library.check_shape(_OP, "layers", layers, shape, "[B,N,H,W]")
    _library.check_shape(_OP, "true_layers", true_layers, shape, "[B,N,H,W]")
    _library.check_device(_OP, layers=layers, true_layers=true_layers, masks=masks)
    if _library.is_exporting():
        return reference.layer_loss(layers, true_layers, masks)
    loss: Tensor = _call(layers, true_layers, masks)[0]
    return loss


@_library.fake("layer_loss")
def _fake(layers: Tensor, true_layers: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    return _library.fake_loss(layers, true_layers), layers.new_empty((2,), dtype=torch.float64)


@_library.fake("layer_loss_backward")
def _fake_backward(
    grad_loss: Tensor,
    layers: Tensor,
    true_layers: Tensor,
    masks: Tensor,
    statistics: Tensor,
    need_grad_true_layers: bool,
) -> tuple[Tensor, Tensor]:
    return (
        layers.new_empty(layers.shape),
        true_layers.new_empty(true_layers.shape if need_grad_true_layers else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    statistics = output[1]
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)  # no zeros are written for the statistics
    ctx.save_for_backward(*inputs, statistics)


def _backward(
    ctx: Any, grad_loss: Tensor | None, grad_statistics: None
) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 3
    need_grad_true_layers = ctx.needs_input_grad[1]
    grad_layers, grad_true_layers = _call_backward(
        grad_loss, *ctx.saved_tensors, need_grad_true_layers
    )
    return grad_layers, grad_true_layers if need_grad_true_layers else None, None


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    return _library.each_of_batch(torch.ops.blsgan.layer_loss, info, in_dims, args)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    return _library.each_of_batch(torch.ops.blsgan.layer_loss_backward, info, in_dims, args)


_call = _library.differentiable(_OP, _setup_context, _backward, _vmap)
_call_backward = _library.first_order(_OP, _vmap_backward)
