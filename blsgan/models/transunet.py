"""TransUNet, the generator of the published method: convolutions, a transformer, a decoder.

Chen et al., "TransUNet" (arXiv 2102.04306), in the size that BLS-GAN (arXiv 2409.07304) trains:

========== ============================================ ===================
part       layers                                        output at 256x256
========== ============================================ ===================
stem       7x7 convolution, stride 2                     128 x 128 x 128
encoder    three residual bottlenecks, stride 2 each     256, 512, 1024 channels at 64, 32, 16 px
bridge     8 transformer blocks of width 1024, 4 heads,  1024 x 16 x 16
           MLP 512, on 16 x 16 tokens; 3x3 convolution   512 x 16 x 16
decoder    4 steps: bilinear x2, skip, two 3x3           256, 128, 64, 16 channels
head       1x1 convolution                               N x 256 x 256
========== ============================================ ===================

67.2 million parameters and 65 GFLOP (a multiply-add counted as two) for one 256x256 image. The
published generator ends in free layers; here the last convolution gives share logits for
``split_attenuation`` or the free head alike. k comes from the transformer's tokens through the
sizes of the published reconstructor's last layers (1024-128-1), or from that reconstructor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blsgan.models.generator import Generator, Head, SoftTissue
from blsgan.ops import K_MAX


def _normalised(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


class Bottleneck(nn.Module):
    """Residual bottleneck that halves the resolution: [B,C,H,W] -> [B,D,H/2,W/2]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.shortcut = _normalised(nn.Conv2d(channels, out_channels, 1, stride=2, bias=False))
        self.body = nn.Sequential(
            _normalised(nn.Conv2d(channels, out_channels, 1, bias=False)),
            nn.ReLU(inplace=True),
            _normalised(nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1, bias=False)),
            nn.ReLU(inplace=True),
            _normalised(nn.Conv2d(out_channels, out_channels, 1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


class TransformerBlock(nn.Module):
    """Self-attention and MLP, each after a layer norm and around a residual: [B,T,C] -> [B,T,C]."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        packed = self.query_key_value(self.attention_norm(x))
        heads = packed.view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.mlp_norm(x))


class DecoderStep(nn.Module):
    """Doubles the resolution, joins a skip connection, and convolves twice."""

    def __init__(self, channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _normalised(
                nn.Conv2d(channels + skip_channels, out_channels, 3, padding=1, bias=False)
            ),
            nn.ReLU(inplace=True),
            _normalised(nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.body(x if skip is None else torch.cat((x, skip), dim=1))


class TransUNetGenerator(Generator):
    """Image and masks -> share logits and k.

    Args:
        layers: N, the number of bones.
        width: channels of the stem; the encoder's stages have 2, 4 and 8 times as many, and the
            transformer works at the last one's.
        blocks: transformer blocks.
        heads: attention heads; they must divide 8 x ``width``.
        mlp_width: hidden units of a block's MLP.
        decoder: channels of the decoder's four steps.
        token_grid: side of the token grid that the position embedding is learnt for; other sizes
            resample it.
        head: see :class:`~blsgan.models.generator.Generator`.
        soft_tissue: see there; ``own`` is read off the transformer's tokens.

    Raises:
        ValueError: widths that do not fit together.
    """

    architecture = "transunet"
    size_multiple = 16

    def __init__(
        self,
        layers: int = 2,
        width: int = 128,
        blocks: int = 8,
        heads: int = 4,
        mlp_width: int = 512,
        decoder: Sequence[int] = (256, 128, 64, 16),
        token_grid: int = 16,
        head: Head = "exact",
        soft_tissue: SoftTissue = "own",
    ) -> None:
        super().__init__(layers, head, soft_tissue)
        deep = 8 * width
        if heads < 1 or deep % heads or len(decoder) != 4:
            raise ValueError(
                f"heads={heads} must divide {deep}, and decoder={tuple(decoder)} have four steps"
            )
        self._configuration = {
            "layers": layers,
            "width": width,
            "blocks": blocks,
            "heads": heads,
            "mlp_width": mlp_width,
            "decoder": list(decoder),
            "token_grid": token_grid,
            **self._options(),
        }
        self.stem = nn.Sequential(
            _normalised(nn.Conv2d(1 + layers, width, 7, stride=2, padding=3, bias=False)),
            nn.ReLU(inplace=True),
        )
        self.encoder = nn.ModuleList(
            Bottleneck(width * 2**stage, width * 2 ** (stage + 1)) for stage in range(3)
        )
        self.embed = nn.Linear(deep, deep)
        self.position = nn.Parameter(torch.zeros(1, deep, token_grid, token_grid))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.transformer = nn.Sequential(
            *(TransformerBlock(deep, heads, mlp_width) for _ in range(blocks)),
            nn.LayerNorm(deep),
        )
        self.bridge = nn.Sequential(
            _normalised(nn.Conv2d(deep, deep // 2, 3, padding=1, bias=False)),
            nn.ReLU(inplace=True),
        )
        inputs = (deep // 2, *decoder[:3])
        skips = (4 * width, 2 * width, width, 0)
        self.decoder = nn.ModuleList(
            DecoderStep(*channels) for channels in zip(inputs, skips, decoder, strict=True)
        )
        self.share_head = nn.Conv2d(decoder[3], layers, 1)
        if soft_tissue == "own":
            self.k_head = nn.Sequential(nn.Linear(deep, 128), nn.ReLU(), nn.Linear(128, 1))

    def configuration(self) -> dict[str, object]:
        """What rebuilds this network: ``TransUNetGenerator(**configuration)``."""
        return dict(self._configuration)

    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts shares and soft tissue.

        Args:
            image: float [B,1,H,W] in [0,1]; what lies outside the bones is ignored.
            masks: float [B,N,H,W] in {0,1}; H and W divisible by 16.

        Returns:
            share_logits [B,N,H,W] and soft_tissue [B] in [0, 0.95].
        """
        image = image * masks.amax(dim=1, keepdim=True)
        x = self.stem(torch.cat((image, masks), dim=1))
        skips = []
        for stage in self.encoder:
            skips.append(x)
            x = stage(x)

        batch, channels, rows, columns = x.shape
        tokens = self.embed(x.flatten(2).transpose(1, 2))
        position: Tensor = self.position
        if position.shape[-2:] != x.shape[-2:]:
            position = F.interpolate(
                position, (rows, columns), mode="bilinear", align_corners=False
            )
        tokens = self.transformer(tokens + position.flatten(2).transpose(1, 2))
        if self.soft_tissue == "own":
            logit = self.k_head(tokens.mean(dim=1)).squeeze(1)
            soft_tissue = K_MAX * torch.sigmoid(logit.float())
        else:
            soft_tissue = self._given_soft_tissue(image)

        x = self.bridge(tokens.transpose(1, 2).reshape(batch, channels, rows, columns))
        for step, skip in zip(self.decoder, (*reversed(skips), None), strict=True):
            x = step(x, skip)
        return self.share_head(x), soft_tissue
