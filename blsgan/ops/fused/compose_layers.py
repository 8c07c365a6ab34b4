"""The composition of N bone layers to one radiograph (Beer-Lambert)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blsgan.ops import reference
from blsgan.ops.fused import _library

_OP = "compose_layers"


def compose_layers(layers: Tensor, masks: Tensor, soft_tissue: Tensor, law: float = 0.0) -> Tensor:
    """Compose layers to the radiograph that they make together.

    Over the n bones that cover a pixel the attenuations of its layers add up, less that of the soft
    tissue counted n - 1 times too often: ``1 - prod_i (1 - layer_i) / (1 - k)^(n - 1)``, or under
    the exponential law ``log(S) / b`` with ``S = sum_i exp(b layer_i) - (n - 1) exp(b k)``. Where S
    falls below 1, a display of 0, the logarithm goes on as its tangent ``S - 1``. With one covering
    bone the pixel is that layer bit for bit, with none it is 0. Source: Beer-Lambert law; Wang et
    al., BLS-GAN, AAAI 2025, for N = 2.

    Args:
        layers: [B,N,H,W], N >= 2, range [0,1], floating point; ignored outside ``masks``.
        masks: [B,N,H,W] bool, uint8 or floating point; not zero = covered.
        soft_tissue: [B] or [B,1,H,W] floating point, the display of soft tissue alone, k, clamped
            to [0, K_MAX]; read only where bones overlap.
        law: 0, the transmission law, or the exponential law's b in [1, 20] (``blsgan.ops``).

    Returns:
        [B,1,H,W] with the dtype of ``layers``.

    Gradients flow to ``layers`` and ``soft_tissue`` (zero where k is clamped). ``vmap`` folds into
    the batch. During export the reference implementation is traced instead of the op.

    Raises:
        TypeError: an argument is not a dense tensor of an allowed dtype.
        ValueError: shapes or devices do not fit together, or there is no such law.
    """
    batch, count, height, width = _library.check_masks(_OP, masks)
    _library.check_float(_OP, "layers", layers)
    _library.check_shape(_OP, "layers", layers, (batch, count, height, width), "[B,N,H,W]")
    _library.check_soft_tissue(_OP, soft_tissue, batch, height, width)
    law = _library.check_law(_OP, law)
    _library.check_device(_OP, layers=layers, masks=masks, soft_tissue=soft_tissue)
    if _library.is_exporting():
        return reference.compose_layers(layers, masks, soft_tissue, law)
    result: Tensor = _call(layers, masks, soft_tissue, law)
    return result


@_library.fake("compose_layers")
def _fake(layers: Tensor, masks: Tensor, soft_tissue: Tensor, law: float = 0.0) -> Tensor:
    batch, _, height, width = layers.shape
    return layers.new_empty((batch, 1, height, width))


@_library.fake("compose_layers_backward")
def _fake_backward(
    grad_composed: Tensor, layers: Tensor, masks: Tensor, soft_tissue: Tensor, law: float = 0.0
) -> tuple[Tensor, Tensor]:
    return layers.new_empty(layers.shape), soft_tissue.new_empty(soft_tissue.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.law = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_composed: Tensor) -> tuple[Tensor | None, ...]:
    grad_layers, grad_soft_tissue = _call_backward(grad_composed, *ctx.saved_tensors, ctx.law)
    return grad_layers, None, grad_soft_tissue, None


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    folded, size = _library.fold_batch(info, in_dims, args)
    return _library.unfold_batch(torch.ops.blsgan.compose_layers(*folded), size), 0


def _vmap_backward(
    info: Any, in_dims: tuple[int | None, ...], *args: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    folded, size = _library.fold_batch(info, in_dims, args)
    results = torch.ops.blsgan.compose_layers_backward(*folded)
    return tuple(_library.unfold_batch(result, size) for result in results), (0, 0)


_call = _library.differentiable(_OP, _setup_context, _backward, _vmap)
_call_backward = _library.first_order(_OP, _vmap_backward)
