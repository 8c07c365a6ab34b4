"""The hand at a glance: every joint outlined, named and coloured by doubt; the planes put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsgan.anatomy import title
from blsgan.hands.chain import Hand, HandJoint

if TYPE_CHECKING:
    from PIL import Image

Float32 = NDArray[np.float32]

MAX_SIDE_PX = 1600
COLOURS = {"ok": (64, 220, 120), "doubtful": (255, 190, 40), "refused": (255, 80, 80)}
"""Of a joint's outline, by its status."""


def draw_overview(image: Float32, hand: Hand, caption: str) -> Image.Image:
    """The picture with every joint of a hand outlined, numbered and coloured by doubt.

    Args:
        image: float32 [H,W] in [0,1], bone light.
        hand: taken apart from it.
        caption: a line below the picture.
    """
    import cv2
    from PIL import Image, ImageDraw, ImageFont

    height, width = image.shape
    scale = min(MAX_SIDE_PX / max(height, width), 4.0)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(image, size, interpolation=method)
    low, high = np.percentile(small, (0.5, 99.5))
    grey = np.clip((small - low) / max(float(high - low), 1e-6), 0, 1)
    canvas = np.repeat(np.rint(255 * grey).astype(np.uint8)[..., None], 3, axis=2)
    for joint in hand.joints:
        colour = COLOURS[joint.status]
        matrix = joint.crop.to_picture()
        if joint.segmentation is None:
            end = joint.crop.side_px - 1
            corners = [np.array([[0, 0], [end, 0], [end, end], [0, end]], np.float64)]
        else:
            corners = [outline for mask in joint.segmentation.masks for outline in _outlines(mask)]
        for outline in corners:
            placed = (outline @ matrix[:, :2].T + matrix[:, 2] + 0.5) * scale - 0.5
            points = np.rint(placed * 16).astype(np.int32)
            cv2.polylines(canvas, [points], True, colour, 2, cv2.LINE_AA, shift=4)
    page = Image.new("RGB", (size[0], size[1] + 30), (17, 17, 17))
    page.paste(Image.fromarray(canvas), (0, 0))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(max(14, round(size[1] / 48)))
    for joint in hand.joints:
        _name(draw, joint, scale, font)
    draw.text((10, size[1] + 15), caption, fill=(230, 230, 230), font=ImageFont.load_default(14),
              anchor="lm")  # fmt: skip
    return page


def put_back(hand: Hand, shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Masks and layers of all joints on the pixels of the whole picture.

    Returns ``upper``, ``lower`` float32 [H,W] in [0,1], 0 outside all masks, and ``upper_mask``,
    ``lower_mask`` bool [H,W]. ``upper`` is the bone beyond the joint; where the crops of two joints
    meet, the brighter value stays.
    """
    planes: dict[str, NDArray[Any]] = {}
    for bone, name in enumerate(("upper", "lower")):
        layer, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for joint in hand.joints:
            if joint.segmentation is None or joint.separation is None:
                continue
            part, place = joint.crop.place(getattr(joint.separation, name), shape)
            covered, _ = joint.crop.place(joint.segmentation.masks[bone].astype(np.float32), shape)
            np.maximum(layer[place], np.where(covered >= 0.5, part, 0), out=layer[place])
            mask[place] |= covered >= 0.5
        planes[name], planes[f"{name}_mask"] = layer, mask
    return planes


def _outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    import cv2

    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [outline[:, 0].astype(np.float64) for outline in found]


def _name(draw: Any, joint: HandJoint, scale: float, font: Any) -> None:
    """Beside the joint, to its right."""
    matrix = joint.crop.to_picture()
    right = matrix[:, :2] @ np.array([joint.crop.side_px * 0.98, joint.crop.side_px / 2])
    x, y = (right + matrix[:, 2]) * scale
    draw.text((x, y), title(joint.name), fill=COLOURS[joint.status], font=font, anchor="mm",
              stroke_width=2, stroke_fill=(0, 0, 0))  # fmt: skip
