"""The physics and the losses as PyTorch modules, over the fused ops of :mod:`blsgan.ops`.

Arguments have one order everywhere: layers (or logits), masks, soft_tissue, image. Shapes: layers,
masks and logits [B,N,H,W], N >= 2 bones; image [B,1,H,W]; soft_tissue as the op takes it. What a
module is made with goes to its op as it is.

>>> import torch
>>> layers, masks = torch.rand(2, 2, 8, 8), torch.ones(2, 2, 8, 8)
>>> k = torch.full((2,), 0.3)
>>> image = blsgan.nn.Reconstructor()(layers, masks, k)
>>> image.shape
torch.Size([2, 1, 8, 8])
>>> round(blsgan.nn.ReconstructionLoss()(layers, masks, k, image).item(), 6)
0.0
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blsgan import ops
from blsgan.errors import BackendError

try:
    from torch import nn
except ImportError as error:
    raise BackendError("blsgan.nn needs torch; pip install 'blsgan[train]'.") from error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LayerLoss", "ReconstructionLoss", "Reconstructor", "SplitHead", "SupervisorLoss"]


class _Op(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        """What the op is called with."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class Reconstructor(_Op):
    """Layers to the radiograph they make together: :func:`blsgan.ops.compose_layers`."""

    def forward(self, layers: Tensor, masks: Tensor, soft_tissue: Tensor) -> Tensor:
        """Image [B,1,H,W], 0 outside the bones."""
        return ops.compose_layers(layers, masks, soft_tissue, **self.options)


class SplitHead(_Op):
    """Shares and a radiograph to its layers: :func:`blsgan.ops.split_attenuation`."""

    def forward(
        self, share_logits: Tensor, masks: Tensor, soft_tissue: Tensor, image: Tensor
    ) -> Tensor:
        """Layers [B,N,H,W]."""
        return ops.split_attenuation(share_logits, image, masks, soft_tissue, **self.options)


class ReconstructionLoss(_Op):
    """RMSE of the composed layers against the image: :func:`blsgan.ops.reconstruction_loss`."""

    def forward(self, layers: Tensor, masks: Tensor, soft_tissue: Tensor, image: Tensor) -> Tensor:
        """A scalar."""
        return ops.reconstruction_loss(layers, masks, soft_tissue, image, **self.options)


class SupervisorLoss(_Op):
    """BCE and Dice of the supervisor's logits: :func:`blsgan.ops.supervisor_loss`."""

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """A scalar."""
        return ops.supervisor_loss(logits, masks, **self.options)


class LayerLoss(_Op):
    """RMSE of layers against the true ones inside their masks: :func:`blsgan.ops.layer_loss`."""

    def forward(self, layers: Tensor, true_layers: Tensor, masks: Tensor) -> Tensor:
        """A scalar."""
        return ops.layer_loss(layers, true_layers, masks, **self.options)
