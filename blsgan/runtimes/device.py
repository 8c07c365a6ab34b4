"""Where a network runs: one word, and a number where a machine has several GPUs.

================= ==============================================================================
``cpu``           this machine's processor
``gpu``           the GPU, by what is there: an engine beside the weights, else ONNX Runtime's
                  TensorRT-RTX, else its CUDA
``cuda``          the GPU, by ONNX Runtime's CUDA provider
``tensorrt``      the GPU, by ONNX Runtime's TensorRT provider, which builds an engine at first use
``tensorrt-rtx``  the GPU, by ONNX Runtime's TensorRT-RTX plugin
================= ==============================================================================

``cuda:1`` is the second GPU. Whatever is named runs, or an error says why not: nothing falls back.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from blsgan.errors import UsageError

DEVICES = ("cpu", "gpu", "cuda", "tensorrt", "tensorrt-rtx")

# What the drivers of desktops and servers, of WSL and of Jetson make.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvgpu", "/dev/nvhost-gpu")


@dataclass(frozen=True)
class Device:
    """One of :data:`DEVICES`, and the number of the GPU."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


CPU = Device("cpu")


def parse_device(text: str) -> Device:
    """``cuda:1``, ``cuda`` or ``cpu``; raises :class:`UsageError` for anything else."""
    found = re.fullmatch(r"([a-z-]+)(?::([0-9]{1,2}))?", text)
    if found is None or found[1] not in DEVICES or (found[1] == "cpu" and found[2] is not None):
        raise UsageError(
            f"device {text!r} is unknown; choose one of {', '.join(DEVICES)}, and cuda:1 for the "
            "second GPU."
        )
    return Device(found[1], int(found[2] or 0))


def no_gpu() -> str | None:
    """Why there can be no NVIDIA GPU here, or None; looks for what its drivers make."""
    if any(os.path.exists(file) for file in _GPU_FILES):
        return None
    return f"there is no NVIDIA GPU (none of {', '.join(_GPU_FILES)})"
