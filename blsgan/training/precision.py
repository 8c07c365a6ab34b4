"""Whether networks may run in bfloat16 on a device, and what is said where they may not."""

from __future__ import annotations

from typing import Any

import torch

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16.

    Without them torch emulates it, many times slower than float32: on AVX2 a training step of
    ``lite`` took 13 times as long.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    # What torch itself asks before it takes oneDNN's kernels; a build without oneDNN has none. On
    # x86 it is content with AVX-512, where oneDNN converts to and fro.
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if asked is None or not asked():
        return False
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if known.get("architecture") != "x86_64":
        return True
    return any(known.get(name) for name in _INSTRUCTIONS)


def no_bfloat16(device: torch.device) -> str:
    """What a user is told where the networks run in float32 instead."""
    what = "this processor" if device.type == "cpu" else f"device '{device}'"
    return (
        f"{what} has no bfloat16 instructions; the networks run in float32, which takes longer "
        "and rounds differently"
    )
