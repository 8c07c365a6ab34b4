"""Synthetic overlaps for a whole batch: training pairs made on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from blsgan.ops import reference
from blsgan.ops.fused import _library

_OP = "synthesize_overlap"


class SyntheticPairs(NamedTuple):
    """What ``synthesize_overlap`` returns.

    Attributes:
        image: [B,1,H,W] in [0,1], the composed radiograph, 0 off the bones.
        masks: [B,N,H,W], the moved masks, dtype of the masks given.
        layers: [B,N,H,W], the true layers, 0 outside their masks.
        soft_tissue: [B] float32 (float64), the k of the composition; 0 where nothing overlaps.
    """

    image: Tensor
    masks: Tensor
    layers: Tensor
    soft_tissue: Tensor


def synthesize_overlap(
    image: Tensor,
    masks: Tensor,
    soft_tissue_background: Tensor,
    shift_upper_px: Tensor,
    shift_lower_px: Tensor,
) -> SyntheticPairs:
    """Push the bones of joints without overlap together and compose what a radiograph would show.

    For each image: every mask grows by one pixel (3x3) and cuts its bone out; bone 0 moves down by
    ``shift_upper_px`` and bone 1 up by ``shift_lower_px``, with linear interpolation between rows
    (a pixel is covered where the interpolated mask is one half or more; rows from outside the
    image are empty); further bones stay; k is the mean of the background over the new overlap; the
    layers are composed (``compose_layers``) and clamped to [0,1]; the rim of the overlap is
    smoothed by the 3x3 binomial kernel, mirrored at the image's border, which is OpenCV's 3x3
    Gaussian. Source: the pre-training pairs of Wang et al., BLS-GAN, AAAI 2025. Cropping and
    resizing are left to the caller.

    The rim is the Canny edge of the overlap's mask, dilated by a 4x4 square: one pixel up and left
    and two down and right of each edge pixel. On a mask Canny needs neither thresholds nor tracing,
    and the result is that of ``cv2.Canny(255 * overlap, 100, 200)`` and ``cv2.dilate`` to the pixel
    (tests/ops compares them). What differs from the recipe done with OpenCV: pixels of the rim that
    lie off the bones stay 0 in the composed image, and nothing is rounded to 8 bits in between.

    Args:
        image: [B,1,H,W] floating point, range [0,1], bones that do not overlap.
        masks: [B,N,H,W], N >= 2, bool, uint8 or floating point; not zero = covered.
        soft_tissue_background: [B,1,H,W] floating point, the joint's soft tissue alone.
        shift_upper_px: [B] floating point, rows; a shift that is not finite or reaches beyond the
            image leaves that bone's layer and mask empty.
        shift_lower_px: [B] floating point, rows.

    Returns:
        ``SyntheticPairs``; image and layers have the dtype of ``image``.

    Nothing has a gradient: pairs are training data, and an argument that asks for one is refused.
    ``vmap`` folds into the batch. During export the reference implementation is traced.

    Raises:
        TypeError: an argument is not a dense tensor of an allowed dtype.
        ValueError: shapes or devices do not fit together, or an argument requires a gradient.
    """
    batch, _, height, width = _library.check_masks(_OP, masks)
    _library.check_float(_OP, "image", image)
    _library.check_float(_OP, "soft_tissue_background", soft_tissue_background)
    _library.check_float(_OP, "shift_upper_px", shift_upper_px)
    _library.check_float(_OP, "shift_lower_px", shift_lower_px)
    plane = (batch, 1, height, width)
    _library.check_shape(_OP, "image", image, plane, "[B,1,H,W]")
    _library.check_shape(_OP, "soft_tissue_background", soft_tissue_background, plane, "[B,1,H,W]")
    _library.check_shape(_OP, "shift_upper_px", shift_upper_px, (batch,), "[B]")
    _library.check_shape(_OP, "shift_lower_px", shift_lower_px, (batch,), "[B]")
    _library.check_device(
        _OP,
        image=image,
        masks=masks,
        soft_tissue_background=soft_tissue_background,
        shift_upper_px=shift_upper_px,
        shift_lower_px=shift_lower_px,
    )
    args = (image, masks, soft_tissue_background, shift_upper_px, shift_lower_px)
    if torch.is_grad_enabled():
        names = ("image", "masks", "soft_tissue_background", "shift_upper_px", "shift_lower_px")
        for name, arg in zip(names, args, strict=True):
            if arg.requires_grad:
                raise ValueError(f"{_OP}: {name} has no gradient: pass {name}.detach()")
    if _library.is_exporting():
        return SyntheticPairs(*reference.synthesize_overlap(*args))
    return SyntheticPairs(*torch.ops.blsgan.synthesize_overlap(*args))


@_library.fake("synthesize_overlap")
def _fake(
    image: Tensor,
    masks: Tensor,
    soft_tissue_background: Tensor,
    shift_upper_px: Tensor,
    shift_lower_px: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = image.dtype == torch.float64
    return (
        image.new_empty(image.shape),
        masks.new_empty(masks.shape),
        image.new_empty(masks.shape),
        image.new_empty(shift_upper_px.shape, dtype=torch.float64 if wide else torch.float32),
    )


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    folded, size = _library.fold_batch(info, in_dims, args)
    results = torch.ops.blsgan.synthesize_overlap(*folded)
    return tuple(_library.unfold_batch(result, size) for result in results), (0, 0, 0, 0)


torch.library.register_vmap("blsgan::synthesize_overlap", _vmap)
