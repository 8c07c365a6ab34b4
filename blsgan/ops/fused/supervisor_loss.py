"""The supervisor's losses: sigmoid, cross entropy and Dice in one pass."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from blsgan.ops import reference
from blsgan.ops.fused import _library

_OP = "supervisor_loss"

TargetLayers = Literal["masks", "zeros", "exclusive"]
Terms = Literal["hybrid", "bce"]


def supervisor_loss(
    logits: Tensor,
    masks: Tensor,
    target_layers: TargetLayers = "masks",
    terms: Terms = "hybrid",
) -> Tensor:
    """Loss of the supervisor's output for layers of a known kind.

    The supervisor answers two questions for each pixel and bone: channels 0..N-1, "is bone i
    here?", channels N..2N-1, "is it a real, separated layer?". With P = sigmoid(logits), M the
    masks and O the pixels that two or more bones cover, repeated over the channels:

    - ``terms="hybrid"``, the generator's objective (Wang et al., BLS-GAN, AAAI 2025):
      ``0.5 (BCE(P, T) + Dice(P, T)) + 0.5 (BCE(P O, O) + Dice(P O, O))`` with T = (M, M);
    - ``terms="bce"``, the supervisor's own: ``BCE(P, T)``.

    BCE is the mean over all elements. Dice is ``1 - (2 sum(P T) + 1) / (sum P + sum T + 1)`` over
    all elements of the batch together; the one pixel of smoothing makes empty masks agree.

    Args:
        logits: [B,2N,H,W], N >= 2, floating point; finite logits give finite losses.
        masks: [B,N,H,W] bool, uint8 or floating point; not zero = covered.
        target_layers: T. "masks" (M, M) for true layers and the generator's goal; "zeros" (M, 0)
            for generated layers; "exclusive" (M - O, M - O) for real images in which bones overlap.
        terms: "hybrid" (only with ``target_layers="masks"``) or "bce".

    Returns:
        Scalar, float32 (float64 if ``logits`` is). 0 for tensors without elements.

    Gradients flow to ``logits``. ``vmap`` calls the op once for each index. During export the
    reference implementation is traced.

    Raises:
        TypeError: an argument is not a dense tensor of an allowed dtype.
        ValueError: shapes or devices do not fit together, or an option has another value.
    """
    batch, count, height, width = _library.check_masks(_OP, masks)
    _library.check_float(_OP, "logits", logits)
    _library.check_shape(_OP, "logits", logits, (batch, 2 * count, height, width), "[B,2N,H,W]")
    _library.check_device(_OP, logits=logits, masks=masks)
    if target_layers not in get_args(TargetLayers):
        raise ValueError(
            f"{_OP}: target_layers must be one of {', '.join(get_args(TargetLayers))}, "
            f"got {target_layers!r}"
        )
    if terms not in get_args(Terms):
        raise ValueError(f"{_OP}: terms must be hybrid or bce, got {terms!r}")
    if terms == "hybrid" and target_layers != "masks":
        raise ValueError(
            f'{_OP}: terms="hybrid" asks for both bones in the overlap, which target_layers='
            f'{target_layers!r} contradicts; use terms="bce"'
        )
    if _library.is_exporting():
        return reference.supervisor_loss(logits, masks, target_layers, terms)
    target = get_args(TargetLayers).index(target_layers)
    loss: Tensor = _call(logits, masks, target, terms == "hybrid")[0]
    return loss


@_library.fake("supervisor_loss")
def _fake(logits: Tensor, masks: Tensor, target: int, hybrid: bool) -> tuple[Tensor, Tensor]:
    return _library.fake_loss(logits), logits.new_empty((5,), dtype=torch.float64)


@_library.fake("supervisor_loss_backward")
def _fake_backward(
    grad_loss: Tensor, logits: Tensor, masks: Tensor, statistics: Tensor, target: int
) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, masks, target, _ = inputs
    statistics = output[1]
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)  # no zeros are written for the statistics
    ctx.save_for_backward(logits, masks, statistics)
    ctx.target = target


def _backward(
    ctx: Any, grad_loss: Tensor | None, grad_statistics: None
) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 4
    return _call_backward(grad_loss, *ctx.saved_tensors, ctx.target), None, None, None


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    return _library.each_of_batch(torch.ops.blsgan.supervisor_loss, info, in_dims, args)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    return _library.each_of_batch(torch.ops.blsgan.supervisor_loss_backward, info, in_dims, args)


_call = _library.differentiable(_OP, _setup_context, _backward, _vmap)
_call_backward = _library.first_order(_OP, _vmap_backward)
