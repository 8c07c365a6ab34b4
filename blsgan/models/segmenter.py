"""The mask segmenter's network: a radiograph of one finger joint in, a logit for each bone out.

Both channels are independent (sigmoid, no softmax): bones are amodal, a pixel of the overlap
belongs to both. The network works on a fixed grid of 256x256 and folds each 2x2 block of pixels
into channels first and unfolds them last, so its widest layers see a quarter of the pixels while
every pixel keeps a logit of its own. Five more halvings leave 4x4 cells, each of which sees the
whole picture: whether there is a joint at all is not to be told from a patch. Like the separator it
has no normalisation layer, so a picture's answer never depends on its neighbours in a batch.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from blsgan.models.lite import ResidualBlock

FOLD = 2
"""Side of the blocks of pixels that become channels."""
_MAX_WIDTH, _MAX_BLOCKS = 256, 8
_LEAST_DEVIATION = 0.02  # a field flatter than this is not stretched into a picture


class FoldedUNet(nn.Module):
    """A residual U-Net without normalisation layers on pictures folded 2x2.

    Args:
        widths: channels at 1/2, 1/4, ... of the grid's resolution.
        blocks: residual blocks of the encoder at each resolution; the decoder mirrors all but the
            last.
        outputs: channels of the answer, at half of the grid's resolution.
    """

    architecture: ClassVar[str]
    exports: ClassVar[bool] = True

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"{len(widths)} widths for {len(blocks)} numbers of blocks")
        if not 2 <= len(widths) <= 7:
            raise ValueError(f"{len(widths)} resolutions; the grid allows 2 to 7")
        for value, most in ((max(widths), _MAX_WIDTH), (max(blocks), _MAX_BLOCKS)):
            if value > most:  # a file may ask for anything
                raise ValueError(f"{value} is more than the {most} that such a network may have")
        self.widths, self.blocks = tuple(widths), tuple(blocks)
        self.stem = nn.Conv2d(FOLD**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(_stage(w, n) for w, n in zip(widths, blocks, strict=True))
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.decoder = nn.ModuleList(
            _stage(w, n) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], outputs, 3, padding=1)

    def configuration(self) -> dict[str, list[int]]:
        """What rebuilds this network: ``type(network)(**configuration)``."""
        return {"widths": list(self.widths), "blocks": list(self.blocks)}

    def forward(self, image: Tensor) -> Tensor:
        """Image [B,1,H,W] -> answer [B,outputs,H/2,W/2]; every picture is standardised by its own
        mean and deviation, so brightness and contrast do not matter."""
        mean = image.mean(dim=(2, 3), keepdim=True)
        variance = (image - mean).square().mean(dim=(2, 3), keepdim=True)
        image = (image - mean) / (variance.sqrt() + _LEAST_DEVIATION)
        x = self.stem(F.pixel_unshuffle(image, FOLD))
        skips = []
        for level, encode in enumerate(self.encoder):
            x = encode(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.up))):
            x = self.decoder[level](self.up[level](x) + skips[level])
        return self.head(F.relu(x))


class SegmenterNetwork(FoldedUNet):
    """Image -> mask logits.

    Args:
        widths: see :class:`FoldedUNet`.
        blocks: see there.
    """

    architecture: ClassVar[str] = "segmenter"

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 48, 64, 96, 96),
        blocks: tuple[int, ...] = (1, 1, 1, 1, 1, 2),
    ) -> None:
        super().__init__(widths, blocks, 2 * FOLD**2)

    def forward(self, image: Tensor) -> Tensor:
        """Predicts the masks.

        Args:
            image: float [B,1,256,256] in [0,1]; what lies outside the picture is 0. Brightness and
                contrast do not matter: every picture is standardised by its own mean and deviation.

        Returns:
            Logits [B,2,256,256]: upper bone, lower bone.
        """
        return F.pixel_shuffle(super().forward(image), FOLD)


def _stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
