"""The supervisor: a segmentation network that tells separated layers from cut-out radiographs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from blsgan.models.unet import UNet


class Supervisor(nn.Module):
    """Layers [B,N,H,W] in [0,1], 0 outside their masks -> logits [B,2N,H,W].

    The first N channels answer "is bone i here?", the last N "is it a real, separated layer?"
    (Wang et al., BLS-GAN, AAAI 2025); ``blsgan.ops.supervisor_loss`` takes them as they are.

    Args:
        layers: N, at least 2.
        widths: channels of the U-Net at full, half, ... resolution.

    Raises:
        ValueError: another number of layers or of widths.
    """

    def __init__(self, layers: int = 2, widths: Sequence[int] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"layers={layers} must be >= 2")
        self.layers = layers
        self.network = UNet(layers, 2 * layers, widths)

    def forward(self, layers: Tensor) -> Tensor:
        logits: Tensor = self.network(layers)
        return logits
