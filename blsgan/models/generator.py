"""What every generator is: a network that names its architecture and says how to rebuild itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from blsgan.models.priors import zone
from blsgan.models.reconstructor import Reconstructor
from blsgan.ops import LAW_MAX, split_attenuation

Head = Literal["exact", "free"]
SoftTissue = Literal["own", "reconstructor", "zero"]
_REACH_MAX = 16


class Generator(nn.Module):
    """Image [B,1,H,W] and masks [B,N,H,W] -> share logits [B,N,H,W] and soft tissue.

    Soft tissue is a map [B,1,H,W] or one k [B].

    Args:
        layers: N, the number of bones, at least 2.
        head: what turns logits into layers: ``exact``, ``split_attenuation``; or ``free``, the
            published sigmoid(logits) * masks, which recomposes to the image only as far as it
            was learnt.
        soft_tissue: where k comes from: the network's ``own`` head, the published ``reconstructor``
            (a VGG-11 of its own), or ``zero``, no correction for soft tissue counted twice.
        law: of the ops, the law between display and attenuation; 0: the paper's.
        reach_px: how far a bone's picture reaches beyond its mask, in pixels that the network sees:
            both layers are estimated in the zone that this makes
            (:func:`~blsgan.models.priors.zone`),
            0: where the masks meet.

    Attributes:
        architecture: its name in the registry.
        size_multiple: height and width of what it sees must be multiples of this.
        least_px: fewest pixels that it can see.
        any_size: whether one exported graph runs at every such size.

    Raises:
        ValueError: another value.
    """

    architecture: str
    size_multiple: ClassVar[int] = 8
    least_px: int = 1
    any_size: bool = True

    def __init__(
        self,
        layers: int = 2,
        head: Head = "exact",
        soft_tissue: SoftTissue = "own",
        *,
        law: float = 0.0,
        reach_px: int = 0,
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"layers={layers} must be >= 2")
        if head not in get_args(Head):
            raise ValueError(f"head='{head}' must be one of {', '.join(get_args(Head))}")
        if soft_tissue not in get_args(SoftTissue):
            raise ValueError(
                f"soft_tissue='{soft_tissue}' must be one of {', '.join(get_args(SoftTissue))}"
            )
        if not 0 <= law <= LAW_MAX:
            raise ValueError(f"law={law} must be from 0 to {LAW_MAX:g}")
        if not 0 <= reach_px <= _REACH_MAX:
            raise ValueError(f"reach_px={reach_px} must be from 0 to {_REACH_MAX}")
        self.layers, self.head, self.soft_tissue = layers, head, soft_tissue
        self.law, self.reach_px = law, reach_px
        if soft_tissue == "reconstructor":
            self.reconstructor = Reconstructor()

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """Arguments that rebuild this network, of JSON types."""

    @abstractmethod
    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Share logits and soft tissue, see the class."""

    @property
    def exports(self) -> bool:
        """Whether it is written as ONNX: what ``Separator`` runs has two exact layers."""
        return self.head == "exact" and self.layers == 2 and self.any_size

    def separate(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Layers [B,N,H,W] in [0,1], 0 outside their supports, and soft tissue, both float32.

        Args:
            image: float [B,1,H,W] in [0,1].
            masks: float [B,N,H,W] in {0,1}; H and W divisible by ``size_multiple``.
        """
        logits, soft_tissue = self(image, masks)
        return self.layers_of(logits, image, masks, soft_tissue), soft_tissue.float()

    def learnt(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What losses are taken of: layers whose errors are learnt from, and the layers and the
        soft tissue of :meth:`separate`, which are the same layers unless a network learns better
        from others."""
        layers, soft_tissue = self.separate(image, masks)
        return layers, layers, soft_tissue

    def supports(self, masks: Tensor) -> Tensor:
        """Where each layer may be more than 0, [B,N,H,W]: its mask and the zone."""
        return torch.maximum(masks, zone(masks, self.reach_px)) if self.reach_px else masks

    def described(self) -> dict[str, str]:
        """What a model of this network says of the separation it is for."""
        return {
            "size_multiple": str(self.size_multiple),
            "law": f"{self.law:g}",
            "reach_px": str(self.reach_px),
        }

    def answers(self) -> nn.Module:
        """The network as ``Separator`` and other runtimes run it: soft tissue is always a map."""
        return _Answers(self).eval()

    def layers_of(
        self, logits: Tensor, image: Tensor, masks: Tensor, soft_tissue: Tensor
    ) -> Tensor:
        """What this generator's head makes of its logits: float32 [B,N,H,W]."""
        supports = self.supports(masks)
        if self.head == "free":
            return torch.sigmoid(logits.float()) * supports
        return split_attenuation(logits.float(), image, supports, soft_tissue.float(), law=self.law)

    def _options(self) -> dict[str, Any]:
        """The arguments of this base class that differ from their defaults."""
        given = {"layers": self.layers, "head": self.head, "soft_tissue": self.soft_tissue}
        default = {"layers": 2, "head": "exact", "soft_tissue": "own"}
        return {key: value for key, value in given.items() if value != default[key]}

    def _given_soft_tissue(self, image: Tensor) -> Tensor:
        """k [B] where it is not the network's own; ``image`` is 0 outside the bones."""
        if self.soft_tissue == "reconstructor":
            k: Tensor = self.reconstructor(image)
            return k
        return image.new_zeros(image.shape[0], dtype=torch.float32)


class Learner(nn.Module):
    """A generator as it is trained: its :meth:`~Generator.learnt` is what ``forward`` gives."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.generator.learnt(image, masks)


class _Answers(nn.Module):
    """A generator whose soft tissue is a map [B,1,H,W], whether it varies or not."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        share_logits, soft_tissue = self.generator(image, masks)
        if soft_tissue.dim() == 1:
            soft_tissue = soft_tissue[:, None, None, None] * torch.ones_like(image)
        return share_logits, soft_tissue
