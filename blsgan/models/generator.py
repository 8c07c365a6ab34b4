"""What every generator is: a network that names its architecture and says how to rebuild itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn


class Generator(nn.Module):
    """Image [B,1,H,W] and masks [B,N,H,W] -> share logits [B,N,H,W] and k [B].

    Attributes:
        architecture: its name in the registry.
        size_multiple: height and width of what it sees must be multiples of this.
    """

    architecture: ClassVar[str]
    size_multiple: ClassVar[int] = 8

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """Arguments that rebuild this network, of JSON types."""

    @abstractmethod
    def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Share logits and soft tissue, see the class."""
