"""Hand phantoms: a whole hand on one radiograph, where no single joint fills the picture.

What the mask segmenter must refuse: many bones and many joints. Nineteen long bones are tubes
between points of a hand skeleton, wider at their ends, eight carpal bones are ellipses, the soft
tissue is a hull around each finger and a palm; all are attenuations, composed as in
``blsgan.synthesis.phantoms``.
"""

from __future__ import annotations

import cv2
import numpy as np

from blsgan.anatomy import LANDMARKS
from blsgan.errors import UsageError

MIN_SIZE_PX = 64
MAX_SIZE_PX = 4096

# In units of the picture's side: where a ray of the hand starts at the wrist, its direction from
# upright in radians (positive to the right) and the length of its metacarpal.
_RAYS = (
    (0.40, -0.62, 0.17),
    (0.44, -0.22, 0.26),
    (0.49, -0.04, 0.26),
    (0.54, 0.11, 0.24),
    (0.58, 0.27, 0.22),
)
_PHALANGES = (
    (0.13, 0.10),
    (0.16, 0.09, 0.06),
    (0.18, 0.11, 0.07),
    (0.16, 0.10, 0.06),
    (0.12, 0.07, 0.05),
)
_WRIST_ROW = 0.86


def hand_phantom(seed: int, size: int = 512) -> np.ndarray:
    """A whole hand, fingers up: float32 [size,size] in [0,1], white = dense.

    Args:
        seed: any integer >= 0; same seed, same bytes.
        size: side of the picture in px, 64..4096.

    Raises:
        UsageError: an argument outside its range.
    """
    return marked_hand_phantom(seed, size)[0]


def marked_hand_phantom(seed: int, size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """:func:`hand_phantom` and its landmarks: float64 [L,2], x and y in px in the order of
    ``blsgan.anatomy.LANDMARKS``; NaN for the wrist's, which it does not have."""
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; give an integer from 0 on")
    if not MIN_SIZE_PX <= size <= MAX_SIZE_PX:
        raise UsageError(f"size {size} px is outside {MIN_SIZE_PX}..{MAX_SIZE_PX}")
    rng = np.random.default_rng([seed, 19])
    axis = (np.arange(size) + 0.5) / size
    y, x = (plane.astype(np.float32) for plane in np.meshgrid(axis, axis, indexing="ij"))
    tissue = _palm(x, y, rng)
    bones = np.zeros_like(tissue)
    spread, turn = rng.uniform(0.8, 1.15), rng.uniform(-0.08, 0.08)
    marked: dict[str, np.ndarray] = {}
    for finger, ((start, angle, metacarpal), phalanges) in enumerate(
        zip(_RAYS, _PHALANGES, strict=True), start=1
    ):
        ends = ("mcp", "pip", "dip", "tip") if finger > 1 else ("mcp", "ip", "tip")
        point = np.array([start + rng.uniform(-0.01, 0.01), _WRIST_ROW - 0.1])
        marked[f"cmc{finger}"] = point
        angle = angle * spread + turn
        width = rng.uniform(0.020, 0.026)
        for index, (name, length) in enumerate(zip(ends, (metacarpal, *phalanges), strict=True)):
            direction = np.array([np.sin(angle), -np.cos(angle)])
            end = point + direction * length * rng.uniform(0.93, 1.07)
            bones = np.maximum(bones, _tube(x, y, point, end, width))
            if index:
                tissue = np.maximum(tissue, _capsule(x, y, point, end, 2.2 * width))
            point = end + direction * rng.uniform(-0.004, 0.008)  # the joint space, or an overlap
            marked[f"{name}{finger}"] = (end + point) / 2
            angle += rng.normal(0, 0.04)
            width *= 0.86
    for _ in range(8):
        centre = np.array([rng.uniform(0.39, 0.6), rng.uniform(_WRIST_ROW - 0.1, _WRIST_ROW)])
        radius = rng.uniform(0.022, 0.036, 2)
        inside = 1 - ((x - centre[0]) / radius[0]) ** 2 - ((y - centre[1]) / radius[1]) ** 2
        bones += 0.5 * np.sqrt(np.maximum(inside, 0))
    for wrist, elbow in (((0.45, 0.9), (0.43, 1.2)), ((0.56, 0.9), (0.57, 1.2))):  # radius, ulna
        bones = np.maximum(bones, _tube(x, y, np.array(wrist), np.array(elbow), 0.05))
    mesh = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), 1.2)
    attenuation = tissue + bones * (1 + 0.15 * mesh / max(float(mesh.std()), 1e-6))
    attenuation += 0.006 * rng.standard_normal((size, size))
    image = -np.expm1(-np.maximum(cv2.GaussianBlur(attenuation, (0, 0), size / 512), 0))
    nowhere = np.full(2, np.nan)
    points = np.stack([marked.get(landmark, nowhere) for landmark in LANDMARKS])
    return image.astype(np.float32), points * size - 0.5


def _along(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel lies along start -> end (0..1, clipped) and how far from that segment."""
    dx, dy = end - start
    t = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    return t, np.hypot(x - start[0] - t * dx, y - start[1] - t * dy)


def _tube(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, width: float
) -> np.ndarray:
    """Attenuation of a hollow long bone of half-width ``width``, wider at both ends."""
    t, distance = _along(x, y, start, end)
    radius = width * (0.72 + 0.5 * np.abs(2 * t - 1) ** 3)
    outer = np.sqrt(np.maximum(1 - (distance / radius) ** 2, 0))
    inner = np.sqrt(np.maximum(0.55 - (distance / radius) ** 2, 0))
    ends = 0.16 * np.exp(-(((1 - np.abs(2 * t - 1)) / 0.08) ** 2)) * (outer > 0)
    return 0.75 * (outer - inner) + 0.25 * inner + ends


def _capsule(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float
) -> np.ndarray:
    _, distance = _along(x, y, start, end)
    return 0.3 * np.sqrt(np.maximum(1 - (distance / radius) ** 2, 0))


def _palm(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    across = (x - 0.5) / rng.uniform(0.16, 0.2)
    along = (y - 0.72) / rng.uniform(0.2, 0.25)
    palm = np.sqrt(np.maximum(1 - np.abs(across) ** 3 - np.abs(along) ** 3, 0))
    arm = np.sqrt(np.maximum(1 - ((x - 0.5) / 0.13) ** 2, 0)) * (y > _WRIST_ROW - 0.06)
    return np.asarray(0.4 * np.maximum(palm, arm), dtype=np.float32)
