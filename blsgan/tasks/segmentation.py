"""Masks from a radiograph: where the two bones of a finger joint are, and how sure that is.

A small network looks at the picture on a grid of 256x256, as it is and mirrored; where the joint is
much smaller or larger than the network knows joints, it looks again at a window around it. The
logits, not the masks, are brought to full resolution. Bones are amodal: in the overlap both masks
are set. A picture without one upright finger joint is refused (:class:`NoJointError`) rather than
given masks; masks that can be used but not trusted come with reasons in ``Segmentation.doubts``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import NoJointError
from blsgan.joint.geometry import GRID_PX, bone_width_px, bounding_box, distance_px, row_blocks
from blsgan.joint.window import SAME_SCALE, TYPICAL_BONE_WIDTH_PX, Window
from blsgan.tasks.grid import GridPredictor
from blsgan.tasks.separation import as_plane, as_unit_interval
from blsgan.tasks.task import SEGMENTATION

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

BORDER_PX = 3
"""Grid pixels on either side of a predicted border whose entropy is measured."""

_FINEST = 4  # image pixels for each grid pixel that a window is resampled from, at most about

_MOST_LOOKS = 3  # the size of what is small is first told badly, then well

MIN_BONE_SHARE = 0.01
"""Of the grid: a smaller region is not taken for a bone."""

# What is doubted lies just outside, what is refused far outside what the shipped weights give on
# 255 images of validation joints: agreement >= 0.965, entropy <= 0.40 bits, stray <= 0.006, gap <=
# 0.089, overlap <= 0.15 (two images 0.19 and 0.27), width ratio <= 1.28.
DOUBTFUL_AGREEMENT, LEAST_AGREEMENT = 0.96, 0.80
DOUBTFUL_ENTROPY, GREATEST_ENTROPY = 0.42, 0.65
DOUBTFUL_STRAY, MOST_STRAY = 0.02, 0.25
DOUBTFUL_GAP, GREATEST_GAP = 0.12, 0.35
DOUBTFUL_OVERLAP, GREATEST_OVERLAP = 0.18, 0.50
DOUBTFUL_WIDTH_RATIO, GREATEST_WIDTH_RATIO = 1.5, 3.0


@dataclass(frozen=True)
class Confidence:
    """How far masks can be trusted.

    Attributes:
        score: ``flip_agreement * (1 - border_entropy)``, 0..1: one figure to sort by.
        border_entropy: mean binary entropy, in bits, of the probabilities within 3 grid pixels of
            the predicted borders; the frame is no border.
        flip_agreement: Dice coefficient of the masks of the picture and of its mirror image, of the
            bone where it is lower.
        stray: share of a bone's pixels outside its largest connected piece, of the worse bone.
        gap: distance between the bones over their width; 0 where they touch or overlap.
        overlap: size of the overlap over that of the smaller bone.
        width_ratio: width of the wider bone over that of the other.
    """

    score: float
    border_entropy: float
    flip_agreement: float
    stray: float
    gap: float
    overlap: float
    width_ratio: float

    def record(self) -> dict[str, float]:
        """The figures, rounded to what they are good for."""
        return {name: round(float(value), 4) for name, value in vars(self).items()}


@dataclass(frozen=True, repr=False)
class Segmentation:
    """The masks of one joint.

    Attributes:
        masks: bool [2,H,W], upper and lower bone.
        probabilities: float32 [2,H,W] in [0,1]; each mask is where its own exceeds 0.5, without
            stray pieces and holes.
        confidence: see there.
        doubts: why the masks should be looked at before they are used; empty for most joints.
        scale: grid pixels per image pixel that the network saw last.
    """

    masks: Bool
    probabilities: Float32
    confidence: Confidence
    doubts: tuple[str, ...] = ()
    scale: float = 1.0

    def __repr__(self) -> str:
        height, width = self.masks.shape[1:]
        doubtful = ", doubtful" if self.doubts else ""
        return f"<Segmentation: {width}x{height} px, score {self.confidence.score:.2f}{doubtful}>"

    @property
    def upper(self) -> Bool:
        """bool [H,W]."""
        return self.masks[0]

    @property
    def lower(self) -> Bool:
        """bool [H,W]."""
        return self.masks[1]

    @property
    def overlap(self) -> Bool:
        """bool [H,W], pixels that both bones cover."""
        return self.masks[0] & self.masks[1]


class Segmenter(GridPredictor):
    """Predicts the masks of the two bones of a finger joint.

    >>> segmenter = blsgan.Segmenter.from_pretrained()
    >>> segmenter(image).masks.shape
    (2, 128, 128)
    """

    task, answer = SEGMENTATION, (2, GRID_PX, GRID_PX)

    def __call__(self, image: NDArray[Any]) -> Segmentation:
        """Predict the masks of one joint.

        Args:
            image: [H,W] of any size and aspect, white = dense: floating point in [0,1], or uint8 /
                uint16 over their whole range. The joint stands upright (phalanx above), within
                about 15 degrees, and fills at least half of the picture.

        Raises:
            NoJointError: the picture shows no such joint; the message says what was found instead.
            InputError: a wrong shape, NaN or infinity, values outside [0,1].
        """
        image, _ = as_plane(np.asarray(image))
        image, _ = as_unit_interval(image)
        if float(np.ptp(image)) == 0.0:
            raise NoJointError("the picture is constant; give a radiograph of one finger joint.")
        height, width = image.shape
        side = float(max(height, width))
        window = _square((height - side) / 2, (width - side) / 2, side)
        looks = [(window, self._look(image, window))]
        while len(looks) < _MOST_LOOKS:
            closer = _closer_window(looks[-1][1], looks[-1][0])
            if closer is None:
                break
            looks.append((closer, self._look(image, closer)))
        window, logits = looks[-1]
        confidence = _judge(logits)
        probabilities = _at_full_resolution(
            [(seen, pair.mean(axis=0)) for seen, pair in looks], image.shape
        )
        for plane in probabilities:
            for rows in row_blocks(plane):
                plane[rows] = _sigmoid(plane[rows])
        masks = np.empty(probabilities.shape, np.bool_)
        for bone, plane, mask in zip(("upper", "lower"), probabilities, masks, strict=True):
            mask[:] = _clean(plane > 0.5)
            if not mask.any():
                raise NoJointError(
                    f"no {bone} bone is left at full resolution; give a radiograph "
                    "of one finger joint."
                )
        return Segmentation(masks, probabilities, confidence, _doubts(confidence), window.scale)

    def _look(self, image: Float32, window: Window) -> Float32:
        """Logits [2,2,256,256] of a window: as it is, and mirrored (turned back)."""
        grid = _on_grid(image, window)
        logits = self._logits(np.stack((grid, grid[:, ::-1])))
        return np.stack((logits[0], logits[1, :, :, ::-1]))


def _square(top: float, left: float, side: float) -> Window:
    """A square of the image, in image pixels, on the grid."""
    return Window(top, left, GRID_PX, GRID_PX, GRID_PX / side)


def _side(window: Window) -> float:
    """Of a square in image pixels; whole numbers survive the division by the scale."""
    return round(GRID_PX / window.scale, 6)


def _on_grid(image: Float32, window: Window) -> Float32:
    """The window, float32 [256,256] in [0,1]; what lies outside the image is 0."""
    from PIL import Image

    factor = int(_side(window) // (_FINEST * GRID_PX))
    if factor > 1:  # a square around a long picture would take more memory than the picture
        image = np.asarray(Image.fromarray(image).reduce(factor), dtype=np.float32)
        top, left = window.top / factor, window.left / factor
        window = Window(top, left, GRID_PX, GRID_PX, window.scale * factor)
    return np.clip(window.resample(image), 0, 1)


def _closer_window(logits: Float32, window: Window) -> Window | None:
    """Where to look again, or None where the joint has about the size that the network knows."""
    masks = logits.mean(axis=0) > 0
    if min(np.count_nonzero(mask) for mask in masks) < 16:
        return None  # nothing to look at
    masks = np.stack([_clean(mask) for mask in masks])
    ratio = bone_width_px(masks) / TYPICAL_BONE_WIDTH_PX
    if SAME_SCALE[0] <= ratio <= SAME_SCALE[1]:
        return None
    upper, lower = (bounding_box(mask) for mask in masks)
    row = (upper[2] + lower[0]) / 2
    left, right = min(upper[1], lower[1]), max(upper[3], lower[3])
    side = _side(window) * ratio
    centre_y = window.top + row / window.scale
    centre_x = window.left + (left + right) / 2 / window.scale
    return _square(centre_y - side / 2, centre_x - side / 2, side)


def _judge(logits: Float32) -> Confidence:
    """Figures of a look [2,2,256,256]; refuses what is no joint."""
    mean = logits.mean(axis=0)
    raw = mean > 0
    found = [np.count_nonzero(mask) / mask.size for mask in raw]
    if max(found) < MIN_BONE_SHARE:
        raise NoJointError(
            "no bones were found; give a radiograph of one finger joint that stands "
            "upright and fills the picture."
        )
    for bone, other, share in (("upper", "lower", found[0]), ("lower", "upper", found[1])):
        if share < MIN_BONE_SHARE:
            raise NoJointError(
                f"only the {other} bone was found, not the {bone} one; give a "
                "radiograph of one finger joint that fills the picture."
            )
    masks = np.stack([_clean(mask) for mask in raw])
    stray = max(
        1 - np.count_nonzero(mask & full) / np.count_nonzero(full)
        for mask, full in zip(masks, raw, strict=True)
    )
    agreement = min(_dice(a, b) for a, b in zip(logits[0] > 0, logits[1] > 0, strict=True))
    entropy = _border_entropy(mean, masks)
    size = [np.count_nonzero(mask) for mask in masks]
    width = bone_width_px(masks)
    widths = [bone_width_px(np.stack((mask, mask))) for mask in masks]
    confidence = Confidence(
        score=max(agreement * (1 - entropy), 0.0),
        border_entropy=entropy,
        flip_agreement=agreement,
        stray=stray,
        gap=_gap(masks) / width,
        overlap=np.count_nonzero(masks[0] & masks[1]) / min(size),
        width_ratio=max(widths) / min(widths),
    )
    rows = [np.flatnonzero(mask.any(axis=1)).mean() for mask in masks]
    if rows[0] >= rows[1]:
        raise NoJointError(
            "the upper bone was found below the lower one: the picture seems to be "
            "upside down; turn it by 180 degrees."
        )
    _refuse(confidence)
    return confidence


def _refuse(confidence: Confidence) -> None:
    reason = None
    if confidence.flip_agreement < LEAST_AGREEMENT:
        reason = (
            f"the picture and its mirror image gave other bones (Dice "
            f"{confidence.flip_agreement:.2f})"
        )
    elif confidence.border_entropy > GREATEST_ENTROPY:
        reason = f"no border is clear (entropy {confidence.border_entropy:.2f} bits)"
    elif confidence.stray > MOST_STRAY:
        reason = f"what was found is in pieces ({100 * confidence.stray:.0f} % apart)"
    elif confidence.gap > GREATEST_GAP:
        reason = f"the two bones do not meet (gap {confidence.gap:.2f} of their width)"
    elif confidence.overlap > GREATEST_OVERLAP:
        reason = f"both masks show one bone (overlap {100 * confidence.overlap:.0f} %)"
    elif confidence.width_ratio > GREATEST_WIDTH_RATIO:
        reason = f"one bone is {confidence.width_ratio:.1f} times as wide as the other"
    if reason is not None:
        raise NoJointError(
            f"this is no finger joint: {reason}; give a radiograph of one joint "
            "that stands upright and fills the picture."
        )


def _doubts(confidence: Confidence) -> tuple[str, ...]:
    """Sentences without a figure of this picture, so that they can be counted."""
    found = (
        (confidence.flip_agreement < DOUBTFUL_AGREEMENT, "the mirror image gave other masks"),
        (confidence.border_entropy > DOUBTFUL_ENTROPY, "the bones' borders are not clear"),
        (confidence.stray > DOUBTFUL_STRAY, "a bone was found in several pieces"),
        (confidence.gap > DOUBTFUL_GAP, "the bones are far apart"),
        (confidence.overlap > DOUBTFUL_OVERLAP, "the bones overlap more than joints do"),
        (confidence.width_ratio > DOUBTFUL_WIDTH_RATIO, "the bones differ much in width"),
    )
    return tuple(text for holds, text in found if holds)


def _border_entropy(logits: Float32, masks: Bool) -> float:
    import cv2

    around = np.ones((2 * BORDER_PX + 1,) * 2, np.uint8)
    values = []
    for plane, mask in zip(_sigmoid(logits), masks, strict=True):
        whole = mask.astype(np.uint8)
        # Beyond the frame goes on what is at it: the frame is no border.
        near = cv2.dilate(whole, around, borderType=cv2.BORDER_REPLICATE) != cv2.erode(
            whole, around, borderType=cv2.BORDER_REPLICATE
        )
        p = np.clip(plane[near].astype(np.float64), 1e-7, 1 - 1e-7)
        values.append(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
    entropy = np.concatenate(values)
    return float(entropy.mean()) if entropy.size else 1.0


def _gap(masks: Bool) -> float:
    """Least distance between the bones in pixels, 0 where they touch or overlap."""
    return max(float(distance_px(~masks[0])[masks[1]].min()) - 1.0, 0.0)


def _dice(first: Bool, second: Bool) -> float:
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / total if total else 1.0


def _clean(mask: Bool) -> Bool:
    """The largest connected piece of a mask [H,W], its holes filled."""
    import cv2

    count, labels, found, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    if count == 1:
        return mask
    if count > 2:
        mask = labels == 1 + found[1:, cv2.CC_STAT_AREA].argmax()
    del labels
    # What the frame cannot be reached from is a hole.
    outside = np.pad(~mask, 1, constant_values=True).view(np.uint8)
    cv2.floodFill(outside, None, (0, 0), 2)
    return np.asarray(outside[1:-1, 1:-1] != 2, dtype=np.bool_)


def _at_full_resolution(looks: list[tuple[Window, Float32]], shape: tuple[int, int]) -> Float32:
    """Logits [2,H,W] of the image: later looks replace earlier ones inside their window."""
    full = np.full((2, *shape), -20, dtype=np.float32)
    for window, logits in looks:
        top, left, bottom, right = box = window.box(shape)
        if top < bottom and left < right:
            window.restore(logits, box, out=full[:, top:bottom, left:right])
    return full


def _sigmoid(logits: Float32) -> Float32:
    return (1 / (1 + np.exp(-np.clip(logits, -40, 40)))).astype(np.float32)
