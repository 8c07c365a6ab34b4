"""Types of the compiled NumPy kernels (csrc/numpy/module.cpp); blsgan.ops.native explains them."""

from typing import Any

from numpy.typing import NDArray

def compose_layers(
    layers: NDArray[Any], masks: NDArray[Any], soft_tissue: NDArray[Any], law: float = 0.0
) -> NDArray[Any]: ...
def split_attenuation(
    share_logits: NDArray[Any],
    image: NDArray[Any],
    masks: NDArray[Any],
    soft_tissue: NDArray[Any],
    law: float = 0.0,
) -> NDArray[Any]: ...
def build_info() -> dict[str, Any]: ...
