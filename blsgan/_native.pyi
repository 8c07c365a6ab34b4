"""Types of the compiled NumPy kernels and windows (csrc/numpy); blsgan.ops.native and blsgan.joint
explain the functions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPICAL_BONE_WIDTH_PX: float
SAME_SCALE: tuple[float, float]
MAX_AREA_PX: int

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

class Window:
    """A part of an image at working scale.

    Attributes:
        top, left: where it begins, in image pixels; may be negative.
        height, width: in working pixels, 1 at least.
        scale: working pixels per image pixel, above 0.
        aligned: whether its pixels are the image's, so that nothing is resampled.
    """

    def __init__(
        self, top: float, left: float, height: int, width: int, scale: float = 1.0
    ) -> None: ...
    @property
    def top(self) -> float: ...
    @property
    def left(self) -> float: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def aligned(self) -> bool: ...
    def box(self, shape: tuple[int, int]) -> tuple[int, int, int, int]:
        """The pixels of a picture [H,W] that lie wholly inside the window."""

    def zone(self, masks: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
        """Where layers are estimated, [H,W], for masks [N,H,W] and a reach in working pixels.

        Bones that only touch far beside their overlap stay as they are.
        """

    def grown(self, masks: NDArray[np.bool_], margin_px: int) -> NDArray[np.bool_]:
        """Masks [N,H,W] dilated inside the window by so many working pixels, elsewhere as given."""

    def resample(self, plane: NDArray[Any]) -> NDArray[np.float32]:
        """Float32 [height,width] of ``plane`` [H,W]; 0 outside the image."""

    def restore(
        self,
        planes: NDArray[np.float32],
        box: tuple[int, int, int, int],
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Float32 [N,h,w] on the image's pixels of ``box``, which lies inside the window, from
        ``planes`` [N,height,width]; in ``out`` where that is given."""

def grown(mask: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]: ...
def zone(masks: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]: ...
def extend(planes: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]: ...
def bone_width_px(masks: NDArray[np.bool_]) -> float: ...
def working_scale(masks: NDArray[np.bool_]) -> float: ...
def around_overlap(masks: NDArray[np.bool_], size_multiple: int) -> Window | None: ...
