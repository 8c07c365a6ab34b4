"""In which arithmetic networks run on a device."""

from __future__ import annotations

import torch


def precision_on(device: torch.device, wanted: str) -> str:
    """The arithmetic that networks run in: ``wanted``, or float32 where a device has no
    instructions for bfloat16, which is then emulated and many times slower than float32 (a training
    step of ``lite`` on AVX2: 13 times).

    Args:
        device: where they run.
        wanted: bfloat16 or float32.
    """
    return wanted if wanted != "bfloat16" or has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 that torch uses."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # What torch itself asks before it takes oneDNN's kernels; a build without oneDNN has none.
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is not None and bool(asked())


def no_bfloat16(device: torch.device) -> str:
    """What a user is told where :func:`precision_on` gives way."""
    what = "processor" if device.type == "cpu" else f"device '{device}'"
    return (f"this {what} has no bfloat16 instructions; the networks run in float32, which takes "
            "longer and rounds differently")
