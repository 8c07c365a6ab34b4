"""Joint phantoms: a metacarpophalangeal joint radiographed by the physics, from a seed alone.

Each bone is a silhouette with a cortical shell (the ray's path through a round tube), a trabecular
network inside and a dense subchondral plate under its joint surface. The base of the phalanx is a
cup: beyond its plate a thin lip hangs over the metacarpal head, and that lip is what overlaps, as
in a real joint. Bones and soft tissue are attenuations (optical densities); the layers and
the image follow from Beer-Lambert, so a phantom's layers recompose exactly to its image.

The phantoms serve tests, examples and demonstrations. They are no substitute for radiographs:
nothing may be trained for use, or judged, on them alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from blsgan.errors import UsageError
from blsgan.joint.geometry import distance_px
from blsgan.synthesis.overlap import compose_image

FIELD_MM = 25.6  # side of the square field of view: 0.1 mm per pixel at 256x256
MIN_SIZE_PX = 64
MAX_SIZE_PX = 4096
_REFERENCE_PX = 256.0  # every length below is given for a field of 256 px
_JOINT_ROW = 128.0
_MAX_GAP = 40.0
_CANVAS_MARGIN = 24.0  # more than half the largest gap: what a moved bone shows is drawn

_GRAIN = 0.008  # standard deviation of the film grain before it is smoothed, optical density

UPPER, LOWER, SESAMOID = 0, 1, 2


@dataclass(frozen=True)
class Phantom:
    """A radiograph whose layers are known.

    Attributes:
        image: float32 [H,W] in [0,1], bones and the soft tissue around them.
        masks: bool [N,H,W]: upper bone, lower bone and, for N = 3, the sesamoid.
        layers: float32 [N,H,W] in [0,1], each bone with its soft tissue, 0 outside its mask;
            without ``edges`` ``compose_layers`` gives ``image`` back on the union of the masks.
        soft_tissue: k, the intensity of the soft tissue at the joint.
        background: float32 [H,W] in [0,1], the soft tissue alone.
        pixel_spacing_mm: side of a pixel.
    """

    image: np.ndarray
    masks: np.ndarray
    layers: np.ndarray
    soft_tissue: float
    background: np.ndarray
    pixel_spacing_mm: float

    @property
    def overlap(self) -> np.ndarray:
        """bool [H,W], pixels that at least two bones cover."""
        return self.masks.sum(axis=0) >= 2


@dataclass(frozen=True)
class _Bone:
    """Silhouette and attenuation of one bone, without soft tissue; both [H,W]."""

    mask: np.ndarray
    attenuation: np.ndarray


def _smoothstep(t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


class _Field:
    """The pixel grid in reference units (256 a side), and filters measured in them.

    A field moved down by ``shift`` reference px is how a bone moves: its outline is given in the
    field's coordinates, its texture is drawn on a canvas that reaches beyond the field and sampled
    at them, so a bone at another place is the same bone.
    """

    def __init__(self, size: int, shift: float = 0.0) -> None:
        self.scale = size / _REFERENCE_PX
        self.size = size
        self.shift = shift
        self.margin = int(np.ceil(_CANVAS_MARGIN * self.scale))
        axis = (np.arange(size) + 0.5) / self.scale
        self.y, self.x = np.meshgrid(axis - shift, axis, indexing="ij")

    def blur(self, array: np.ndarray, sigma_x: float, sigma_y: float | None = None) -> np.ndarray:
        sigma_y = sigma_x if sigma_y is None else sigma_y
        return cv2.GaussianBlur(
            array,
            (0, 0),
            sigmaX=max(sigma_x * self.scale, 0.05),
            sigmaY=max(sigma_y * self.scale, 0.05),
            borderType=cv2.BORDER_REFLECT_101,
        )

    def depth(self, mask: np.ndarray) -> np.ndarray:
        """Distance to the silhouette in reference units; the image's border is no edge."""
        pad = int(np.ceil(40 * self.scale))
        distance = distance_px(np.pad(mask, pad, mode="edge"))
        return distance[pad:-pad, pad:-pad] / self.scale

    def rounded(self, mask: np.ndarray, radius: float) -> np.ndarray:
        """The silhouette with its corners rounded off."""
        return self.blur(mask.astype(np.float64), radius) > 0.5

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """White noise on the canvas, drawn at one resolution so that it looks alike at every."""
        drawn = rng.standard_normal(
            (int(_REFERENCE_PX) + 2 * int(_CANVAS_MARGIN), int(_REFERENCE_PX))
        )
        rows = self.size + 2 * self.margin
        return cv2.resize(drawn, (self.size, rows), interpolation=cv2.INTER_CUBIC)

    def place(self, canvas: np.ndarray) -> np.ndarray:
        """The part of a canvas that the field shows, [H,W]."""
        matrix = np.array([[1, 0, 0], [0, 1, self.shift * self.scale - self.margin]], np.float64)
        return cv2.warpAffine(
            canvas,
            matrix,
            (self.size, self.size),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REFLECT_101,
        )


def _standardised(array: np.ndarray) -> np.ndarray:
    return (array - array.mean()) / max(float(array.std()), 1e-9)


def _trabeculae(field: _Field, rng: np.random.Generator, strands: float) -> np.ndarray:
    """A trabecular network, mean 0 and standard deviation 1; ``strands`` in [0,1] is how much of
    it runs along the finger rather than being a mesh."""
    white = field.noise(rng)
    mesh = field.blur(white, 1.5, 1.8) - field.blur(white, 3.2, 3.8)
    # The zero lines of band-limited noise form a closed network of thin walls.
    network = -np.sqrt(np.abs(_standardised(mesh)))
    white = field.noise(rng)
    along = field.blur(white, 0.9, 6.0) - field.blur(white, 2.6, 12.0)
    coarse = field.blur(field.noise(rng), 9.0)
    return field.place(
        _standardised(
            (1 - strands) * _standardised(network)
            + strands * 1.4 * _standardised(along)
            + 0.7 * _standardised(coarse)
        )
    )


def _wobble(rng: np.random.Generator, along: np.ndarray, amplitude: float) -> np.ndarray:
    """A slow irregularity of an outline: three sines over one field's length."""
    phases = rng.uniform(0, 2 * np.pi, 3)
    weights = rng.normal(0, 1, 3) / np.array([1.0, 1.6, 2.4])
    turns = 2 * np.pi * along / _REFERENCE_PX
    orders = np.array([1.5, 2.5, 3.5])
    waves = weights * np.sin(orders * turns[..., None] + phases)
    return amplitude * waves.sum(axis=-1)


def _tube(depth: np.ndarray, shell: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Path of a ray through the wall of a round tube and through its inside.

    ``depth`` is the distance from the silhouette, ``shell`` the wall's thickness, ``radius`` the
    tube's; beyond ``radius`` the bone is taken to be as thick as at its middle.
    """
    offset = radius - np.minimum(depth, radius)
    outer = np.sqrt(np.maximum(radius**2 - offset**2, 0))
    inner = np.sqrt(np.maximum((radius - shell) ** 2 - offset**2, 0))
    return 2 * (outer - inner), 2 * inner


def _phalanx_base(field: _Field, rng: np.random.Generator) -> _Bone:
    """The upper bone: shaft, flare and cup; the lip ends in the joint's row on the axis."""
    bottom = _JOINT_ROW
    centre = 128 + rng.uniform(-8, 8)
    shaft, flare = rng.uniform(46, 58), rng.uniform(72, 84)
    hollow = rng.uniform(5, 11)
    rise = bottom - rng.uniform(17, 25)  # row of the greatest width
    tilt = rng.uniform(-0.03, 0.03)
    x = field.x - centre - tilt * (field.y - bottom)
    widen = 1.02 * _smoothstep((field.y - (rise - 105)) / 115) ** 1.1
    left, right = (
        shaft + (flare * rng.uniform(0.95, 1.05) - shaft) * widen + _wobble(rng, field.y, 1.2)
        for _ in range(2)
    )
    across = np.where(x < 0, x / left, x / right)
    taper = 0.16 * _smoothstep((field.y - rise) / 30)
    edge = bottom + hollow * np.minimum(across**2, 1) + _wobble(rng, field.x, 0.8)
    mask = field.rounded((np.abs(across) < 1 - taper) & (field.y < edge), 4.5)

    depth = field.depth(mask)
    wall, inside = _tube(depth, shell=rng.uniform(2.2, 3.0), radius=46.0)
    # The plate runs like the edge but higher, and nearer to it towards the corners of the cup.
    lip = rng.uniform(8, 13) * (1 - 0.75 * np.minimum(across**2, 1))
    above_plate = (edge - lip) - field.y
    plate = np.exp(-0.5 * (above_plate / rng.uniform(3.0, 4.2)) ** 2)
    plate *= _smoothstep((1 - np.abs(across)) / 0.25)
    body = 0.3 + 0.7 * _smoothstep((above_plate + 5) / 9)  # the lip is thin
    texture = _trabeculae(field, rng, strands=0.62)
    dense = 1 + 0.35 * np.exp(-np.maximum(above_plate, 0) / 14)
    attenuation = body * (
        0.021 * wall + 0.0046 * inside * dense * np.maximum(1 + 0.27 * texture, 0.1)
    ) + 0.42 * plate * (1 + 0.08 * texture)
    return _Bone(mask, np.where(mask, attenuation, 0))


def _metacarpal_head(field: _Field, rng: np.random.Generator) -> _Bone:
    """The lower bone: a round head whose highest row is the joint's, narrowing to the shaft."""
    top = _JOINT_ROW
    centre = 128 + rng.uniform(-6, 6)
    head, shaft = rng.uniform(64, 74), rng.uniform(52, 58)
    height = rng.uniform(58, 68)
    tilt = rng.uniform(-0.05, 0.05)
    x = field.x - centre - tilt * (field.y - top)
    down = field.y - top
    dome = head * np.maximum(1 - (1 - np.clip(down / height, 0, 1)) ** 2, 0) ** 0.5
    neck = (head - shaft) * _smoothstep((down - height) / 60)
    left, right = (
        dome - neck * rng.uniform(0.7, 1.3) + _wobble(rng, field.y, 1.5) for _ in range(2)
    )
    mask = field.rounded((down > 0) & (x > -left) & (x < right), 3.0)

    depth = field.depth(mask)
    wall, inside = _tube(depth, shell=rng.uniform(1.6, 2.3), radius=52.0)
    cap = np.exp(-np.maximum(depth - 1.5, 0) / 4.5) * _smoothstep((height - down) / height + 0.3)
    # The collateral ligaments' pits leave a brighter ridge on each side of the head.
    ridges = np.zeros_like(x)
    for side in (-1, 1):
        ridge_x = side * head * rng.uniform(0.5, 0.62)
        ridge_y = top + height + rng.uniform(-4, 10)
        ridges += rng.uniform(0.06, 0.24) * np.exp(
            -0.5 * (((x - ridge_x) / rng.uniform(5, 9)) ** 2 + ((field.y - ridge_y) / 18) ** 2)
        )
    texture = _trabeculae(field, rng, strands=0.3)
    attenuation = (
        0.018 * wall
        + 0.0044 * inside * np.maximum(1 + 0.3 * texture, 0.1)
        + 0.1 * cap
        + ridges * (1 + 0.15 * texture)
    )
    return _Bone(mask, np.where(mask, attenuation, 0))


def _sesamoid(field: _Field, rng: np.random.Generator) -> _Bone:
    """A pea of bone in the tendon, over the head's upper flank; it moves with the head."""
    side = rng.choice([-1.0, 1.0])
    x = field.x - (128 + side * rng.uniform(26, 36))
    y = field.y - (_JOINT_ROW + rng.uniform(5, 9))
    radius_x, radius_y = rng.uniform(14, 18), rng.uniform(16, 20)
    mask = field.rounded((x / radius_x) ** 2 + (y / radius_y) ** 2 < 1, 1.0)
    wall, inside = _tube(field.depth(mask), shell=1.6, radius=min(radius_x, radius_y))
    texture = _trabeculae(field, rng, strands=0.0)
    attenuation = 0.014 * wall + 0.006 * inside * np.maximum(1 + 0.25 * texture, 0.1)
    return _Bone(mask, np.where(mask, attenuation, 0))


def _soft_tissue(field: _Field, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """The finger's soft tissue as attenuation [H,W], and its value at the joint."""
    at_joint = -np.log1p(-rng.uniform(0.20, 0.29))
    half_width = rng.uniform(122, 165)
    across = (field.x - 128 - rng.uniform(-10, 10)) / half_width
    thickness = np.sqrt(np.maximum(1 - np.abs(across) ** 4, 0))
    slope = 1 + rng.uniform(-0.08, 0.08) * (field.y - _JOINT_ROW) / 128
    mottle = 1 + 0.012 * field.place(_standardised(field.blur(field.noise(rng), 10.0)))
    tissue = at_joint * field.blur(thickness * slope, 2.0) * mottle
    return np.maximum(tissue, 0), float(at_joint)


def joint_phantom(
    seed: int,
    size: int = 256,
    *,
    overlap: bool = True,
    bones: int = 2,
    gap_px: float | None = None,
    spacing_mm: float | None = None,
    edges: bool = False,
) -> Phantom:
    """A metacarpophalangeal joint as a radiograph with known layers.

    The same ``seed`` gives the same bones whatever the other arguments are, so two gaps of one
    seed are two visits of one joint.

    Args:
        seed: any integer >= 0; same seed, same bytes.
        size: side of the square image in px, 64..4096. The field of view stays the same.
        overlap: whether the bones overlap on the image (ignored where ``gap_px`` is given).
        bones: 2, or 3 with a sesamoid over the head, the joint line and the lip.
        gap_px: rows from the cup's edge down to the head's top on the joint's axis, in px of a
            256 px field (0.1 mm); negative values overlap. -40..40.
        spacing_mm: side of a pixel; by default that of a field of view of 25.6 mm.
        edges: whether bones have their blurred edges beyond their masks and lie on the soft tissue
            that there is, as on radiographs; else they are cut out, with one k for all, as in the
            paper's synthetic overlaps (docs/explanation/physics.md).

    Raises:
        UsageError: an argument outside its range.
    """
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; give an integer from 0 on")
    if not MIN_SIZE_PX <= size <= MAX_SIZE_PX:
        raise UsageError(f"size {size} px is outside {MIN_SIZE_PX}..{MAX_SIZE_PX}")
    if bones not in (2, 3):
        raise UsageError(f"bones is {bones}; a phantom has 2 bones, or 3 with a sesamoid")
    if gap_px is not None and not -_MAX_GAP <= gap_px <= _MAX_GAP:
        raise UsageError(f"gap {gap_px} px is outside {-_MAX_GAP:g}..{_MAX_GAP:g} px")
    spacing = FIELD_MM / size if spacing_mm is None else float(spacing_mm)
    if not (np.isfinite(spacing) and spacing > 0):
        raise UsageError(f"pixel spacing {spacing} mm is not a positive number")

    # One stream for each part: an argument that changes one part leaves the others as they are.
    streams = [np.random.default_rng([seed, part]) for part in range(6)]
    drawn = streams[0].uniform(-15, -7) if overlap else streams[0].uniform(4, 8)
    gap = float(drawn if gap_px is None else gap_px)
    above, field, below = (_Field(size, shift) for shift in (-gap / 2, 0.0, gap / 2))
    parts = [_phalanx_base(above, streams[1]), _metacarpal_head(below, streams[2])]
    if bones == 3:
        parts.append(_sesamoid(below, streams[3]))
    tissue, at_joint = _soft_tissue(field, streams[4])

    def grain() -> np.ndarray:
        return _GRAIN * field.place(field.blur(field.noise(streams[5]), 0.6))

    masks = np.stack([part.mask for part in parts])
    attenuations = np.stack(
        [
            tissue + np.where(part.mask, field.blur(part.attenuation, 0.9), 0) + grain()
            for part in parts
        ]
    )
    layers = np.where(masks, -np.expm1(-np.maximum(attenuations, 0)), 0).astype(np.float32)
    soft_tissue = float(-np.expm1(-at_joint))
    background = -np.expm1(-tissue)
    if edges:
        bones_alone = sum(field.blur(part.attenuation, 0.9) for part in parts)
        image = -np.expm1(-tissue - bones_alone) + grain()
    else:
        free = -np.expm1(-np.maximum(tissue + grain(), 0))
        image = np.where(masks.any(axis=0), compose_image(layers, masks, soft_tissue), free)
    return Phantom(
        image=np.clip(image, 0, 1).astype(np.float32),
        masks=masks,
        layers=layers,
        soft_tissue=soft_tissue,
        background=background.astype(np.float32),
        pixel_spacing_mm=spacing,
    )
