"""The kernels of the physics and of the losses: one public function for each op.

======================= ==========================================================================
``compose_layers``      layers of N bones to the radiograph they make together
``split_attenuation``   a radiograph and each bone's share of the attenuation to layers, exactly
``reconstruction_loss`` compose and masked RMSE in one, without writing the reconstruction
``supervisor_loss``     sigmoid, BCE and Dice, plain and weighted by the overlap, in one pass
``layer_loss``          masked RMSE between layers
``synthesize_overlap``  a batch of radiographs without overlap to synthetic pairs with known layers
======================= ==========================================================================

``blsgan.ops.reference`` holds the same functions in plain PyTorch, ``blsgan.ops.native`` the two
that inference needs for NumPy arrays without torch. Importing this package imports neither.

Rules all ops share. Masks are bool, uint8 or floating point and cover a pixel where they are not
zero; what a layer holds outside its mask, NaN included, has no effect. Floating-point inputs may be
float64, float32, float16 or bfloat16, also mixed in one call; arithmetic is float32 (float64 when
an image, layers or logits are), so autocast casts nothing. Inputs may be contiguous, channels_last
or expanded and are then read in place; a slice whose rows are not adjacent is copied once. Outputs
are contiguous. Results are the same bits on every run. Gradients are of first order.

Soft tissue is one intensity k for each image, [B], or a map of it, [B,1,H,W]: what the display
shows of soft tissue alone. It counts where bones overlap, clamped to [0, K_MAX], with zero gradient
where it is clamped, and its dtype does not decide the arithmetic's. ``law`` says how attenuation A
and display x belong together: 0 is transmission, ``A = -log(1 - x)``, the paper's; b of
[LAW_MIN, LAW_MAX] is the exponential law, ``A = exp(b x) - 1``. Attenuations add up along a ray.

>>> import torch
>>> masks = torch.ones(1, 2, 8, 8)
>>> blsgan.ops.compose_layers(torch.full((1, 2, 8, 8), 0.5), masks, torch.tensor([0.0])).unique()
tensor([0.7500])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blsgan.ops.fused.compose_layers import compose_layers
    from blsgan.ops.fused.layer_loss import layer_loss
    from blsgan.ops.fused.reconstruction_loss import reconstruction_loss
    from blsgan.ops.fused.split_attenuation import split_attenuation
    from blsgan.ops.fused.supervisor_loss import supervisor_loss
    from blsgan.ops.fused.synthesize_overlap import synthesize_overlap

K_MAX = 0.95
"""Upper limit of the soft-tissue intensity k; larger values are clamped, with zero gradient."""

LAW_MIN, LAW_MAX = 1.0, 20.0
"""Limits of the exponential law's exponent b."""

OPS = (
    "compose_layers",
    "split_attenuation",
    "reconstruction_loss",
    "supervisor_loss",
    "layer_loss",
    "synthesize_overlap",
)

__all__ = [
    "K_MAX",
    "LAW_MAX",
    "LAW_MIN",
    "OPS",
    "compose_layers",
    "layer_loss",
    "reconstruction_loss",
    "split_attenuation",
    "supervisor_loss",
    "synthesize_overlap",
]


def __getattr__(name: str) -> Any:
    if name not in OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # All at once: they share torch's import, and a function that torch.compile traces later finds
    # its op bound instead of an import.
    for op in OPS:
        globals()[op] = getattr(importlib.import_module(f"{__name__}.fused.{op}"), op)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
