"""The ops that inference needs for NumPy arrays, without torch.

The same compiled kernels as ``blsgan.ops``; results agree with them bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blsgan.joint.compiled import _native


def _floating(name: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")
    return np.ascontiguousarray(array)


def _mask(value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype not in (np.bool_, np.uint8):
        raise TypeError(f"masks must be bool or uint8, got {array.dtype}")
    return np.ascontiguousarray(array)


def compose_layers(
    layers: ArrayLike, masks: ArrayLike, soft_tissue: ArrayLike, law: float = 0.0
) -> NDArray[Any]:
    """Compose layers to the radiograph they make together; see ``blsgan.ops.compose_layers``.

    Args:
        layers: [B,N,H,W] float32 or float64, N >= 2, range [0,1].
        masks: [B,N,H,W] bool or uint8; not zero = covered.
        soft_tissue: [B] or a map [B,1,H,W], float32 or float64, clamped to [0, K_MAX].
        law: 0, the transmission law, or the exponential law's b in [1, 20].

    Returns:
        [B,1,H,W] with the dtype of ``layers``. Arrays that are not C-contiguous are copied first.

    Raises:
        TypeError: an array has another dtype.
        ValueError: shapes do not fit together, or there is no such law.
    """
    return _native.compose_layers(
        _floating("layers", layers), _mask(masks), _floating("soft_tissue", soft_tissue), law
    )


def split_attenuation(
    share_logits: ArrayLike,
    image: ArrayLike,
    masks: ArrayLike,
    soft_tissue: ArrayLike,
    law: float = 0.0,
) -> NDArray[Any]:
    """Split a radiograph into one layer for each bone; see ``blsgan.ops.split_attenuation``.

    Args:
        share_logits: [B,N,H,W] float32 or float64, N >= 2; read only where bones overlap.
        image: [B,1,H,W] float32 or float64, range [0,1], white = dense.
        masks: [B,N,H,W] bool or uint8; not zero = covered.
        soft_tissue: [B] or a map [B,1,H,W], float32 or float64, clamped to [0, K_MAX].
        law: 0, the transmission law, or the exponential law's b in [1, 20].

    Returns:
        layers [B,N,H,W] with the dtype of ``image``. Arrays that are not C-contiguous are copied
        first.

    Raises:
        TypeError: an array has another dtype.
        ValueError: shapes do not fit together, or there is no such law.
    """
    return _native.split_attenuation(
        _floating("share_logits", share_logits),
        _floating("image", image),
        _mask(masks),
        _floating("soft_tissue", soft_tissue),
        law,
    )


def build_info() -> dict[str, Any]:
    """What was compiled: CPU dispatch level on this machine, compiler, C++ standard, constants."""
    return dict(_native.build_info())
