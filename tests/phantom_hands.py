"""A hand that locator and segmenter know: the hand phantom with joint phantoms for its joints."""

import math

import cv2
import numpy as np

from blsgan.anatomy import BEYOND, LANDMARKS, PROMISED, WIDTH_SHARES
from blsgan.joint.geometry import bone_width_px
from blsgan.synthesis.hand import marked_hand_phantom
from blsgan.synthesis.phantoms import joint_phantom


def hand_of_joints(
    seed: int, size: int = 1000, gap_px: float = -4.0
) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """Float32 [size,size] in [0,1] with five MCP joints, and where they are (x, y).

    ``gap_px`` is that of every joint phantom, so two visits may differ by it.
    """
    image, points = marked_hand_phantom(seed, size)
    places = dict(zip(LANDMARKS, points, strict=True))
    unit = math.dist(places["mcp3"], places["pip3"])
    for number, name in enumerate(PROMISED):
        joint = joint_phantom(100 * seed + number, gap_px=gap_px)
        up = places[BEYOND[name]] - places[name]
        angle = math.atan2(up[0], -up[1])
        zoom = WIDTH_SHARES[name] * unit / bone_width_px(joint.masks)
        linear = zoom * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        matrix = np.column_stack((linear, places[name] - linear @ np.full(2, 127.5)))
        inside = cv2.GaussianBlur(joint.masks.any(axis=0).astype(np.float32), (0, 0), 2)
        share, shown = (
            cv2.warpAffine(plane, matrix, (size, size), flags=cv2.INTER_AREA)
            for plane in (inside, joint.image)
        )
        image = image * (1 - share) + shown * share
    return image.astype(np.float32), {name: tuple(places[name]) for name in PROMISED}
