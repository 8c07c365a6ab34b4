"""Segmentation networks as generators: the plain U-Net, and MONAI's.

Each backbone is a function of (input channels, output channels, its own arguments) that gives a
module; :class:`BackboneGenerator` makes a generator of any of them. MONAI (Apache-2.0) is the extra
``monai``; it is imported when one of its networks is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blsgan.errors import BackendError
from blsgan.models.generator import Generator, Head, SoftTissue

Backbone = Callable[..., nn.Module]

_LEAST_PX = {"swin": 32 * 32 + 1}  # its deepest level normalises over more than one place
_FIXED_SIZE = ("swin",)  # its attention masks are worked out for one size and baked into a graph
_MAX_SWIN_WIDTH, _MAX_SWIN_BLOCKS = 192, 64  # some 600 million parameters


class BackboneGenerator(Generator):
    """Image and masks -> share logits of a segmentation network, and k.

    Args:
        name: the backbone's name in the registry.
        backbone: (input channels, output channels, ``**arguments``) -> module.
        layers: N, the number of bones.
        head: see :class:`~blsgan.models.generator.Generator`.
        soft_tissue: ``reconstructor`` or ``zero``: a segmentation network has no k of its own.
        arguments: the backbone's own.

    Raises:
        ValueError: a value that does not fit.
        BackendError: MONAI is not installed.
    """

    size_multiple = 32

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        *,
        layers: int = 2,
        head: Head = "exact",
        soft_tissue: SoftTissue = "reconstructor",
        **arguments: Any,
    ) -> None:
        super().__init__(layers, head, soft_tissue)
        if soft_tissue == "own":
            raise ValueError(
                f"'{name}' has no soft tissue of its own; soft_tissue must be reconstructor or zero"
            )
        self.architecture = name
        self.any_size = name not in _FIXED_SIZE
        self.least_px = _LEAST_PX.get(name, 1)
        self._arguments = arguments
        self.network = backbone(1 + layers, layers, **arguments)

    def configuration(self) -> dict[str, Any]:
        """What rebuilds this network through the registry."""
        return {
            "layers": self.layers,
            "head": self.head,
            "soft_tissue": self.soft_tissue,
            **self._arguments,
        }

    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts share logits [B,N,H,W] and soft tissue [B].

        Args:
            image: float [B,1,H,W] in [0,1]; what lies outside the bones is ignored.
            masks: float [B,N,H,W] in {0,1}; H and W divisible by 32.
        """
        image = image * masks.amax(dim=1, keepdim=True)
        logits: Tensor = self.network(torch.cat((image, masks), dim=1))
        return logits, self._given_soft_tissue(image)


class _First(nn.Module):
    """A network that answers with a list, of which the first entry is meant."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.network(x)[0]
        return first


def _monai() -> Any:
    try:
        from monai.networks import nets
    except ImportError as error:
        raise BackendError(
            "this architecture is MONAI's, which is not installed; pip install 'blsgan[monai]'"
        ) from error
    return nets


def unet_plus_plus(
    in_channels: int, out_channels: int, widths: Sequence[int] = (32, 32, 64, 128, 256, 32)
) -> nn.Module:
    """U-Net++ (Zhou et al., arXiv 1807.10165): nested decoders; ``widths`` of five levels and of
    the last decoder."""
    if len(widths) != 6:
        raise ValueError(f"widths={tuple(widths)} must be six numbers of channels")
    network = _monai().BasicUNetPlusPlus(
        spatial_dims=2, in_channels=in_channels, out_channels=out_channels, features=tuple(widths)
    )
    # Its heads at lower depth are for deep supervision, which is off: nothing ever reaches them.
    for depth in (1, 2, 3):
        getattr(network, f"final_conv_0_{depth}").requires_grad_(False)
    return _First(network)


def residual(
    in_channels: int,
    out_channels: int,
    width: int = 32,
    blocks: Sequence[int] = (1, 2, 2, 4),
) -> nn.Module:
    """Residual encoder-decoder (SegResNet, Myronenko, arXiv 1810.11654): ``width`` channels at full
    resolution, twice as many at each level below, ``blocks`` residual blocks in each."""
    if not 1 <= len(blocks) <= 6:
        raise ValueError(f"blocks={tuple(blocks)} must be one to six numbers")
    network: nn.Module = _monai().SegResNet(
        spatial_dims=2,
        init_filters=width,
        in_channels=in_channels,
        out_channels=out_channels,
        blocks_down=tuple(blocks),
        blocks_up=(1,) * (len(blocks) - 1),
    )
    return network


def dense(in_channels: int, out_channels: int, width: int = 64) -> nn.Module:
    """Densely connected encoder-decoder (QuickNAT, Roy et al., arXiv 1801.04161)."""
    network: nn.Module = _monai().Quicknat(
        num_classes=out_channels, num_channels=in_channels, num_filters=width
    )
    return network


def swin(
    in_channels: int,
    out_channels: int,
    width: int = 24,
    blocks: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
) -> nn.Module:
    """Swin UNETR (Hatamizadeh et al., arXiv 2201.01266) in two dimensions: shifted-window attention
    in the encoder, convolutions in the decoder; ``width`` must be a multiple of 12."""
    if width % 12 or not 0 < width <= _MAX_SWIN_WIDTH:
        raise ValueError(f"width={width} must be a multiple of 12 up to {_MAX_SWIN_WIDTH}")
    if len(blocks) != 4 or len(heads) != 4 or sum(blocks) > _MAX_SWIN_BLOCKS:
        raise ValueError(
            f"blocks={tuple(blocks)} and heads={tuple(heads)} must be four numbers, "
            f"and the blocks {_MAX_SWIN_BLOCKS} at most"
        )
    network: nn.Module = _monai().SwinUNETR(
        in_channels=in_channels,
        out_channels=out_channels,
        feature_size=width,
        depths=tuple(blocks),
        num_heads=tuple(heads),
        spatial_dims=2,
    )
    return network
