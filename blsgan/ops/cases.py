"""Every op with example inputs: one table for the tests and for the benchmarks.

A case is a public op with options, the inputs it takes from a ``Joint`` of given shape and dtype,
which of them have gradients, and the bytes it cannot do without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blsgan import ops
from blsgan.ops import reference


@dataclass(frozen=True)
class Joint:
    """Tensors of a batch of joints, drawn from ``seed``.

    Attributes:
        shape: (B, N, H, W).
        dtype: of every image-sized floating-point tensor.
        mask_dtype: bool, uint8 or floating point.
        masks_kind: "joint" (bones that overlap in the middle fifth), "random", "none" or "all".
        soft_tissue_value: k of every image; None draws from 0.1..0.6.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    mask_dtype: torch.dtype = torch.bool
    masks_kind: str = "joint"
    soft_tissue_value: float | None = None
    seed: int = 0

    def _uniform(self, salt: int, *size: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        return torch.rand(size, generator=generator, dtype=torch.float64)

    def _place(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).to(self.device)

    @property
    def masks(self) -> Tensor:
        """[B,N,H,W]."""
        batch, layers, height, width = self.shape
        if self.masks_kind == "random":
            covered = self._uniform(1, *self.shape) > 0.4
        elif self.masks_kind in ("none", "all"):
            covered = torch.full(self.shape, self.masks_kind == "all")
        else:
            # Bands of rows; neighbours share a fifth of the height.
            row = torch.arange(height).view(1, 1, height, 1)
            index = torch.arange(layers).view(1, layers, 1, 1)
            band = height / layers
            begin, end = (index - 0.2) * band, (index + 1.2) * band
            covered = ((row >= begin) & (row < end)).expand(batch, layers, height, width)
        return covered.to(self.mask_dtype).to(self.device).contiguous()

    @property
    def apart(self) -> Tensor:
        """[B,N,H,W] masks of bones with a gap between them, for synthesize_overlap."""
        _, layers, height, width = self.shape
        row = torch.arange(height).view(1, 1, height, 1)
        index = torch.arange(layers).view(1, layers, 1, 1)
        column = torch.arange(width)
        band = height / layers
        inside = (row >= (index + 0.1) * band) & (row < (index + 0.9) * band)
        inside = inside & ((column >= 0.1 * width) & (column < 0.9 * width))
        if self.masks_kind in ("none", "all"):
            inside = torch.full_like(inside, self.masks_kind == "all")
        return inside.expand(self.shape).to(self.mask_dtype).to(self.device).contiguous()

    @property
    def layers(self) -> Tensor:
        """[B,N,H,W] in [0,1]."""
        return self._place(self._uniform(2, *self.shape))

    @property
    def true_layers(self) -> Tensor:
        """[B,N,H,W] in [0,1]."""
        return self._place(self._uniform(3, *self.shape))

    @property
    def image(self) -> Tensor:
        """[B,1,H,W] in [0,1], with exact zeros and ones."""
        batch, _, height, width = self.shape
        values = 1.04 * self._uniform(4, batch, 1, height, width) - 0.02
        return self._place(values.clamp(0, 1))

    @property
    def background(self) -> Tensor:
        """[B,1,H,W] in [0.1,0.3]."""
        batch, _, height, width = self.shape
        return self._place(0.1 + 0.2 * self._uniform(5, batch, 1, height, width))

    @property
    def soft_tissue(self) -> Tensor:
        """[B]."""
        values = 0.1 + 0.5 * self._uniform(6, self.shape[0])
        if self.soft_tissue_value is not None:
            values = torch.full_like(values, self.soft_tissue_value)
        return self._place(values)

    @property
    def soft_tissue_map(self) -> Tensor:
        """[B,1,H,W] around ``soft_tissue``."""
        batch, _, height, width = self.shape
        values = 0.1 + 0.5 * self._uniform(11, batch, 1, height, width)
        if self.soft_tissue_value is not None:
            values = torch.full_like(values, self.soft_tissue_value)
        return self._place(values)

    @property
    def share_logits(self) -> Tensor:
        """[B,N,H,W]."""
        return self._place(6 * self._uniform(7, *self.shape) - 3)

    @property
    def supervisor_logits(self) -> Tensor:
        """[B,2N,H,W]."""
        batch, layers, height, width = self.shape
        return self._place(10 * self._uniform(8, batch, 2 * layers, height, width) - 5)

    @property
    def shifts(self) -> tuple[Tensor, Tensor]:
        """Two [B] shifts in px that make the bones of ``apart`` meet, with fractions."""
        gap = 0.2 * self.shape[2] / self.shape[1]
        upper = 0.5 * gap + 2 + 3 * self._uniform(9, self.shape[0])
        lower = 0.5 * gap + 2 + 3 * self._uniform(10, self.shape[0])
        return upper.float().to(self.device), lower.float().to(self.device)


@dataclass(frozen=True)
class OpCase:
    """One op with options.

    Attributes:
        name: unique; the op's name, with the options if they are not the defaults.
        op: name in ``blsgan.ops`` and ``blsgan.ops.reference``.
        inputs: makes the positional arguments from a joint.
        gradients: which arguments have gradients, by position.
        trained: those of them that a training step asks for (not the image's).
        options: keyword arguments.
        traffic: (forward, backward) bytes for each pixel: f(N, bytes of a float, of a mask
            element). Every input is read once and every output written once, masks included, in
            whole images; gradients are those of ``trained``.
    """

    name: str
    op: str
    inputs: Callable[[Joint], tuple[Tensor, ...]]
    gradients: tuple[int, ...]
    trained: tuple[int, ...]
    traffic: Callable[[int, int, int], tuple[int, int]]
    options: dict[str, Any] = field(default_factory=dict)

    def call(self, *args: Tensor) -> Any:
        """The fused op."""
        return getattr(ops, self.op)(*args, **self.options)

    def call_reference(self, *args: Tensor) -> Any:
        """The same in plain PyTorch."""
        return getattr(reference, self.op)(*args, **self.options)

    def bytes_moved(self, joint: Joint) -> tuple[int, int]:
        """(forward, backward) bytes that the op must move for this joint."""
        batch, layers, height, width = joint.shape
        per_pixel = self.traffic(layers, joint.dtype.itemsize, joint.mask_dtype.itemsize)
        pixels = batch * height * width
        return pixels * per_pixel[0], pixels * per_pixel[1]


def _supervisor(name: str, **options: str) -> OpCase:
    return OpCase(
        name,
        "supervisor_loss",
        lambda joint: (joint.supervisor_logits, joint.masks),
        (0,),
        (0,),
        lambda n, f, m: (2 * n * f + n * m, 4 * n * f + n * m),
        dict(options),
    )


LAW = 7.4  # what real overlaps follow


def _physics(variant: str, soft_tissue: str, law: float) -> tuple[OpCase, ...]:
    """The three ops of the physics with soft tissue as a number or as a map, under one law."""
    options = {"law": law} if law else {}
    read = 1 if soft_tissue == "soft_tissue_map" else 0  # floats a pixel more, each way

    def k(joint: Joint) -> Tensor:
        value: Tensor = getattr(joint, soft_tissue)
        return value

    def layers(joint: Joint) -> Tensor:
        # Layers that hold less than the soft tissue cancel under the exponential law.
        return 0.6 + 0.4 * joint.layers if law else joint.layers

    return (
        OpCase(
            f"compose_layers{variant}",
            "compose_layers",
            lambda joint: (layers(joint), joint.masks, k(joint)),
            (0, 2),
            (0, 2),
            lambda n, f, m: ((n + 1 + read) * f + n * m, (1 + 2 * n + 2 * read) * f + n * m),
            options,
        ),
        OpCase(
            f"split_attenuation{variant}",
            "split_attenuation",
            lambda joint: (joint.share_logits, joint.image, joint.masks, k(joint)),
            (0, 1, 3),
            (0, 3),
            lambda n, f, m: ((2 * n + 1 + read) * f + n * m, (3 * n + 1 + 2 * read) * f + n * m),
            options,
        ),
        OpCase(
            f"reconstruction_loss{variant}",
            "reconstruction_loss",
            lambda joint: (layers(joint), joint.masks, k(joint), joint.image),
            (0, 2, 3),
            (0, 2),
            lambda n, f, m: ((n + 1 + read) * f + n * m, (2 * n + 1 + 2 * read) * f + n * m),
            options,
        ),
    )


CASES = (
    *_physics("", "soft_tissue", 0.0),
    *_physics("-map", "soft_tissue_map", 0.0),
    *_physics("-law", "soft_tissue", LAW),
    *_physics("-map-law", "soft_tissue_map", LAW),
    _supervisor("supervisor_loss"),
    _supervisor("supervisor_loss-bce-masks", target_layers="masks", terms="bce"),
    _supervisor("supervisor_loss-bce-zeros", target_layers="zeros", terms="bce"),
    _supervisor("supervisor_loss-bce-exclusive", target_layers="exclusive", terms="bce"),
    OpCase(
        "layer_loss",
        "layer_loss",
        lambda joint: (joint.layers, joint.true_layers, joint.masks),
        (0, 1),
        (0,),
        lambda n, f, m: (2 * n * f + n * m, 3 * n * f + n * m),
    ),
    OpCase(
        "synthesize_overlap",
        "synthesize_overlap",
        lambda joint: (joint.image, joint.apart, joint.background, *joint.shifts),
        (),
        (),
        lambda n, f, m: (3 * f + n * f + 2 * n * m, 0),
    ),
)
BY_NAME = {case.name: case for case in CASES}
