"""A whole hand taken apart: from one picture to the masks and layers of each of its joints.

The locator says where the joints are and how the fingers lie. Each joint is cut out upright, a
first time 2.1 bone widths wide, where the segmenter tells what its centre, its axis and its bones'
width really are, and again by what it said; pixels keep their size. A joint is refused, with the
reason, or doubted where a guard's figure is beyond its limit; nothing is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from blsgan.anatomy import BELOW, BEYOND, JOINTS, LANDMARKS, PROMISED, WIDTH_SHARES, Side, title
from blsgan.errors import InputError, NoJointError
from blsgan.hands.growth import (
    CLOSING_PLATE,
    MOST_APART,
    OPEN_PLATE,
    bones_apart,
    growth_plate,
)
from blsgan.joint.geometry import bone_width_px, joint_axis
from blsgan.joint.zone import PREDICTED_MARGIN_PX
from blsgan.records.hand import Placement
from blsgan.tasks.joints import LEAST_LANDMARK, LocatedHand, Locator
from blsgan.tasks.segmentation import Segmentation, Segmenter
from blsgan.tasks.separation import Separation, Separator, as_unit_interval

if TYPE_CHECKING:
    from collections.abc import Callable

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Status = Literal["ok", "doubtful", "refused"]

FIRST_WIDTHS = 2.1
"""Side of the first crop, in bone widths."""

LAST_WIDTHS = {"mcp": (1.55, 1.75), "pip": (1.95, 2.1, 1.8), "ip": (1.95, 2.1, 1.8)}
"""Sides of the last crop: the first one whose masks are not doubted, else the most confident. At
1.55 bone widths 22 % of 37 PIP and IP joints of mature hands had masks without doubt, at 1.95 78 %.
"""

MOST_SHIFT = 0.6
"""Bone widths between where a joint was located and where its masks have it; else it is refused."""

LEAST_DISTANCE = 0.6
"""Bone widths between two joints; nearer ones are one joint found twice."""

LEAST_SPACING = 0.35
"""Distances between MCP 3 and PIP 3: neighbours' MCP or PIP joints that were found nearer to each
other are one joint under two names. On 209 hands of many devices none is; with a finger painted out
all 48 hands are whose MCP joints were misnamed, 127 of 129 whose PIP joints were."""

WIDTH_RATIOS = (0.62, 1.6)
"""Of the masks' bone width to what the hand's size lets expect; beyond it is doubted."""

MOST_REFUSED = 3
"""MCP joints of a hand: where so many are refused, or one less and none is without doubt, nothing
of it is measured."""

DOUBTFUL_LANDMARK = 0.55
"""Confidence of the landmark below which a joint is doubted."""

DOUBTFUL_TURN = 15.0
"""Degrees between the joint's axis by its landmarks and by its masks: bones displaced against each
other by a quarter of their width turn it by 17. Of 50 MCP joints of ten mature hands at most 9."""

MOST_OUTSIDE = 0.12
"""Share of a crop beyond the picture's edge."""

_LEAST_WIDTH_PX = 18.0
_DECIMALS = 3  # of a crop's place, in px and degrees
_FINGERS = LANDMARKS.index("cmc1")  # landmarks before it are the fingers'
_WITH_PLATES = PROMISED[1:]  # the thumb lies on its side
_OTHER_TRIES = (  # bone widths along the axis, degrees, scale: where the first crop is refused
    (0.3, 0.0, 1.0),
    (-0.3, 0.0, 1.0),
    (0.0, 10.0, 1.0),
    (0.0, -10.0, 1.0),
    (0.0, 0.0, 0.85),
    (0.0, 0.0, 1.25),
)


@dataclass(frozen=True)
class Crop:
    """A square cut out of a picture, turned upright; its pixels have the picture's size.

    Attributes:
        centre: x and y in pixels of the picture, the first pixel's centre at 0.
        degrees: by how much its upward direction is turned clockwise in the picture.
        side_px: of the square.
    """

    centre: tuple[float, float]
    degrees: float
    side_px: int

    def to_picture(self) -> Float64:
        """[2,3], from x and y in the crop to x and y in the picture."""
        angle = math.radians(self.degrees)
        linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        middle = np.full(2, (self.side_px - 1) / 2)
        return np.column_stack((linear, np.array(self.centre) - linear @ middle))

    def cut(self, image: Float32) -> Float32:
        """Float32 [side,side] of ``image`` [H,W]; 0 outside of it."""
        import cv2

        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        size = (self.side_px, self.side_px)
        values = np.clip(cv2.warpAffine(image, self.to_picture(), size, flags=flags), 0, 1)
        # What is written as 16 bits and read again is what was looked at.
        return np.asarray(np.rint(values * 65535) / 65535, dtype=np.float32)

    def place(self, plane: Float32, shape: tuple[int, int]) -> tuple[Float32, tuple[slice, slice]]:
        """``plane`` [side,side] back on the pixels of a picture of ``shape``: the part of the
        picture that the crop covers, and where it lies."""
        import cv2

        matrix = self.to_picture()
        corners = np.array([[x, y] for x in (0, self.side_px - 1) for y in (0, self.side_px - 1)])
        reach = corners @ matrix[:, :2].T + matrix[:, 2]
        left, top = (max(math.floor(v), 0) for v in reach.min(axis=0))
        right = min(math.ceil(reach[:, 0].max()) + 1, shape[1])
        bottom = min(math.ceil(reach[:, 1].max()) + 1, shape[0])
        if left >= right or top >= bottom:
            return np.zeros((0, 0), np.float32), (slice(0, 0), slice(0, 0))
        matrix[:, 2] -= (left, top)
        part = cv2.warpAffine(plane, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
        return np.asarray(part, dtype=np.float32), (slice(top, bottom), slice(left, right))

    def outside(self, shape: tuple[int, int]) -> float:
        """Share of the crop that lies beyond a picture of ``shape``."""
        axis = np.linspace(0, self.side_px - 1, 24)
        x, y = (plane.ravel() for plane in np.meshgrid(axis, axis))
        places = np.stack((x, y), axis=1) @ self.to_picture()[:, :2].T + self.to_picture()[:, 2]
        inside = (places >= 0).all(axis=1) & (places <= np.array(shape[::-1]) - 1).all(axis=1)
        return float(1 - inside.mean())

    @classmethod
    def of(cls, placement: Placement) -> Crop:
        """The crop that a record tells."""
        centre = placement.centre_px
        return cls((centre["x"], centre["y"]), placement.turned_deg, placement.side_px)

    def record(self) -> dict[str, Any]:
        """What :class:`blsgan.records.hand.Placement` holds."""
        return {
            "centre_px": {
                "x": round(self.centre[0], _DECIMALS),
                "y": round(self.centre[1], _DECIMALS),
            },
            "turned_deg": round(self.degrees, _DECIMALS),
            "side_px": self.side_px,
        }


@dataclass(frozen=True)
class HandJoint:
    """One joint of a hand.

    Attributes:
        name: such as ``mcp3`` (``blsgan.anatomy.JOINTS``).
        status: ``refused`` joints have no masks and no layers.
        reasons: why it is doubted or refused.
        located: x and y where the locator saw it, in pixels of the picture.
        crop: where it was cut out; of a refused joint where it was looked for.
        image: float32 [S,S], the crop.
        segmentation, separation: masks and layers on the crop.
        bone_width_px: by the masks, or by the hand's size where there are none.
        figures: of the guards.
    """

    name: str
    status: Status
    reasons: tuple[str, ...]
    located: tuple[float, float]
    crop: Crop
    image: Float32
    segmentation: Segmentation | None
    separation: Separation | None
    bone_width_px: float
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def experimental(self) -> bool:
        """Whether it is a kind of joint that the segmenter was not trained on."""
        return self.name not in PROMISED


@dataclass(frozen=True)
class Hand:
    """A hand taken apart.

    Attributes:
        side: ``left`` or ``right``.
        located: what the locator found.
        joints: all of ``blsgan.anatomy.JOINTS``, in that order.
        notes: what a reader should know besides.
    """

    side: Side
    located: LocatedHand
    joints: tuple[HandJoint, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> HandJoint:
        """A joint by its name."""
        return self.joints[JOINTS.index(name)]


class HandSeparator:
    """Locator, segmenter and separator, one after the other.

    >>> separator = blsgan.HandSeparator.from_pretrained()
    >>> [hand["mcp3"].status for hand in separator(hand_image)]
    ['ok']
    """

    def __init__(self, locator: Locator, segmenter: Segmenter, separator: Separator) -> None:
        self.locator, self.segmenter, self.separator = locator, segmenter, separator

    @classmethod
    def from_pretrained(
        cls, backend: str = "auto", *, threads: int | None = None, device: str | None = None
    ) -> HandSeparator:
        """The shipped weights; errors are those of :meth:`blsgan.Separator.from_pretrained`."""
        return cls(
            Locator.from_pretrained(None, backend, threads=threads, device=device),
            Segmenter.from_pretrained(None, backend, threads=threads, device=device),
            Separator.from_pretrained(None, backend, threads=threads, device=device),
        )

    def __call__(
        self,
        image: NDArray[Any],
        *,
        side: Side | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[Hand]:
        """Every hand of a picture, from left to right.

        Args:
            image: [H,W], floating point in [0,1], or uint8 / uint16 over their whole range, of one
                or two hands turned by any angle; bone may be light or dark.
            side: of the hand, where that is known better than by the thumb (a picture may be
                mirrored); only for a picture of one hand.
            progress: called with each joint's name before it is looked at.

        Raises:
            NoHandError: there is none.
            InputError: the image cannot be used, or ``side`` is given for two hands.
        """
        hands = self.masks(image, side=side, progress=progress)
        return [
            replace(hand, joints=tuple(self._apart(joint) for joint in hand.joints))
            for hand in hands
        ]

    def masks(
        self,
        image: NDArray[Any],
        *,
        side: Side | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[Hand]:
        """As a call, without the layers: ``separation`` of every joint is None."""
        located = self.locator(image)
        if side is not None and len(located) > 1:
            raise InputError(
                f"{len(located)} hands are in the picture, so one side cannot be theirs; leave the "
                "side out or crop the picture."
            )
        values, _ = as_unit_interval(np.asarray(image))
        hands = []
        for hand in located:
            oriented = 1 - values if hand.negative else values
            joints = self._joints(oriented, hand, progress or (lambda name: None))
            hands.append(Hand(side or hand.side, hand, joints, tuple(_notes(hand, joints, side))))
        if len(hands) == 2 and hands[0].side == hands[1].side:
            note = (
                f"both hands look like {hands[0].side} ones: one is mirrored or misread, or "
                "they are two people's"
            )
            hands = [replace(hand, notes=(*hand.notes, note)) for hand in hands]
        return hands

    def _joints(
        self, image: Float32, hand: LocatedHand, progress: Callable[[str], None]
    ) -> tuple[HandJoint, ...]:
        misnamed = dict(_misnamed(hand))
        hand = _distinct_landmarks(hand)
        found = []
        for name in JOINTS:
            progress(name)
            found.append(self._joint(image, hand, name))
        judged = _mostly_refused(_grown_up(_distinct(found, hand)))
        return tuple(
            _doubt(joint, misnamed[joint.name])
            if joint.name in misnamed and joint.segmentation is not None
            else joint
            for joint in judged
        )

    def _apart(self, joint: HandJoint) -> HandJoint:
        if joint.segmentation is None:
            return joint
        separation = self.separator(
            joint.image, joint.segmentation.masks, margin_px=PREDICTED_MARGIN_PX
        )
        return replace(joint, separation=separation)

    def _joint(self, image: Float32, hand: LocatedHand, name: str) -> HandJoint:
        start, beyond, below = (hand.point(one) for one in (name, BEYOND[name], BELOW[name]))
        up = beyond - start
        if hand.confidence_of(BEYOND[name]) < LEAST_LANDMARK <= hand.confidence_of(BELOW[name]):
            up = start - below  # the picture ends there, or something hides it
        degrees = math.degrees(math.atan2(up[0], -up[1]))
        width = WIDTH_SHARES[name] * _unit_length(hand)
        centre = (float(start[0]), float(start[1]))
        crop = Crop(centre, degrees, max(round(FIRST_WIDTHS * width), 8))
        figures = {"landmark_confidence": hand.confidence_of(name), "expected_width_px": width}

        def refused(*reasons: str) -> HandJoint:
            shown = crop.cut(image)
            return HandJoint(
                name, "refused", reasons, centre, crop, shown, None, None, width, figures
            )

        if hand.confidence_of(name) < LEAST_LANDMARK:
            return refused("it was not found: missing, outside the picture, or hidden")
        if width < _LEAST_WIDTH_PX:
            return refused(f"its bones are less than {_LEAST_WIDTH_PX:g} px wide in this picture")
        try:
            crop, segmentation = self._segmented(image, crop, width, LAST_WIDTHS[name[:-1]])
        except NoJointError as error:
            return refused(_short(error))
        shown = crop.cut(image)
        measured = bone_width_px(segmentation.masks)
        if name in _WITH_PLATES:
            figures["growth_plate"] = growth_plate(shown, segmentation.masks)
        shift = math.dist(crop.centre, centre) / width
        figures |= {
            "shift": shift,
            "width_ratio": measured / width,
            "turn_deg": abs((crop.degrees - degrees + 180) % 360 - 180),
            "outside": crop.outside(image.shape),
            "bones_apart": bones_apart(segmentation.masks),
        }
        if shift > MOST_SHIFT:
            return refused("its masks lie on another joint than the one that was located")
        if figures["bones_apart"] > MOST_APART:
            return refused(
                "its bones lie further apart than a joint's: an open growth plate, or dislocated"
            )
        doubts = [*segmentation.doubts, *_doubts(figures)]
        return HandJoint(
            name,
            "doubtful" if doubts else "ok",
            tuple(doubts),
            centre,
            crop,
            shown,
            segmentation,
            None,
            measured,
            figures,
        )

    def _segmented(
        self, image: Float32, first: Crop, width: float, last_widths: Sequence[float]
    ) -> tuple[Crop, Segmentation]:
        """The last crop and its masks; the first way that the segmenter accepts."""
        reason: NoJointError | None = None
        for along, turn, scale in ((0.0, 0.0, 1.0), *_OTHER_TRIES):
            crop = _moved(first, along * width, turn, scale)
            try:
                masks = self.segmenter(crop.cut(image)).masks
                # The first look's bones may be cut off, and their axis with them.
                crop = _centred(crop, masks, last_widths[0])
                masks = self.segmenter(crop.cut(image)).masks
            except NoJointError as error:
                reason = reason or error
                continue
            found = []
            for wide in last_widths:
                last = _centred(crop, masks, wide)
                try:
                    found.append((last, self.segmenter(last.cut(image))))
                except NoJointError as error:
                    reason = reason or error
                    continue
                if not found[-1][1].doubts:
                    return found[-1]
            if found:
                return max(found, key=lambda one: one[1].confidence.score)
        assert reason is not None, "every way was refused"
        raise reason


def _misnamed(hand: LocatedHand) -> Iterable[tuple[str, str]]:
    """Joints that may go by another finger's name, and why: where a finger is missing or hidden,
    the locator finds a neighbour's joint twice, or lets the next ones move up."""
    least = LEAST_SPACING * _unit_length(hand)
    for kind, concerned in (("pip", ("pip",)), ("mcp", ("mcp", "pip"))):
        for finger in range(2, 5):
            pair = f"{kind}{finger}", f"{kind}{finger + 1}"
            if min(map(hand.confidence_of, pair)) < LEAST_LANDMARK:
                continue
            if math.dist(*map(hand.point, pair)) >= least:
                continue
            reason = (
                f"{title(pair[0])} and {title(pair[1])} were found nearly on one place: a finger "
                "is missing or hidden, and the fingers' names may be wrong"
            )
            for one in concerned:
                for number in range(2, 6):
                    yield f"{one}{number}", reason


def _distinct_landmarks(hand: LocatedHand) -> LocatedHand:
    """Of finger landmarks on one place, as where fingers are cut off, only the surest was found."""
    reach = LEAST_DISTANCE * min(WIDTH_SHARES.values()) * _unit_length(hand)
    sure = hand.confidences.copy()
    kept: list[int] = []
    for index in np.argsort(-sure[:_FINGERS], kind="stable"):
        if any(math.dist(hand.points[index], hand.points[other]) < reach for other in kept):
            sure[index] = 0.0
        else:
            kept.append(int(index))
    return replace(hand, confidences=sure)


def _unit_length(hand: LocatedHand) -> float:
    """Distance between MCP 3 and PIP 3, or what the other fingers let expect of it."""
    shares = {3: 1.0, 2: 0.91, 4: 0.92, 5: 0.73}  # of the proximal phalanges, medians of the atlas
    lengths = [
        (
            min(hand.confidence_of(f"mcp{n}"), hand.confidence_of(f"pip{n}")) >= LEAST_LANDMARK,
            math.dist(hand.point(f"mcp{n}"), hand.point(f"pip{n}")) / share,
        )
        for n, share in shares.items()
    ]
    sure = [length for known, length in lengths if known]
    return float(np.median(sure)) if sure else lengths[0][1]


def _moved(crop: Crop, along_px: float, turn: float, scale: float) -> Crop:
    angle = math.radians(crop.degrees)
    centre = (
        crop.centre[0] + along_px * math.sin(angle),
        crop.centre[1] - along_px * math.cos(angle),
    )
    return Crop(centre, crop.degrees + turn, max(round(crop.side_px * scale), 8))


def _centred(crop: Crop, masks: Bool, wide: float) -> Crop:
    """A crop of ``wide`` bone widths around the joint of ``masks`` in ``crop``, along its axis."""
    width = bone_width_px(masks)
    axis = joint_axis(masks)  # row, column, from the upper to the lower bone
    across = np.array([-axis[1], axis[0]])
    pixels = [np.argwhere(mask) for mask in masks]
    upper, lower = (bone @ axis for bone in pixels)
    line = (np.percentile(upper, 99) + np.percentile(lower, 1)) / 2
    near = [
        bone[np.abs(along - line) < 0.3 * width]
        for bone, along in zip(pixels, (upper, lower), strict=True)
    ]
    sides = [
        (np.percentile(bone @ across, 2) + np.percentile(bone @ across, 98)) / 2
        for bone in near
        if len(bone)
    ]
    middle = axis * line + across * (np.mean(sides) if sides else pixels[0].mean(axis=0) @ across)
    matrix = crop.to_picture()
    centre = matrix[:, :2] @ middle[::-1] + matrix[:, 2]
    # The axis points down: (1, 0) is a joint that stands upright.
    turn = math.degrees(math.atan2(-axis[1], axis[0]))
    side = max(round(wide * width), 8)
    # As records say it, so that what is placed back by a record falls on the same pixels.
    place = (round(float(centre[0]), _DECIMALS), round(float(centre[1]), _DECIMALS))
    return Crop(place, round(crop.degrees + turn, _DECIMALS), side)


def _doubts(figures: dict[str, float]) -> Iterable[str]:
    low, high = WIDTH_RATIOS
    if figures["landmark_confidence"] < DOUBTFUL_LANDMARK:
        yield "the locator is not sure of it"
    if not low <= figures["width_ratio"] <= high:
        yield "its bones are much wider or narrower than this hand lets expect"
    if figures["turn_deg"] > DOUBTFUL_TURN:
        yield "its bones lie askew to the finger: displaced (subluxed), or not seen right"
    if figures["outside"] > MOST_OUTSIDE:
        yield "the picture's edge cuts it"


def _distinct(joints: Sequence[HandJoint], hand: LocatedHand) -> list[HandJoint]:
    """Two joints on one place: the one further from where it was located is refused, the other
    doubted."""
    found = list(joints)
    for first in range(len(found)):
        for second in range(first + 1, len(found)):
            pair = (first, second)
            one, other = (found[n] for n in pair)
            if one.segmentation is None or other.segmentation is None:
                continue
            width = min(one.figures["expected_width_px"], other.figures["expected_width_px"])
            if math.dist(one.crop.centre, other.crop.centre) >= LEAST_DISTANCE * width:
                continue
            wrong = max(pair, key=lambda n: found[n].figures["shift"])
            right = pair[0] if wrong == pair[1] else pair[1]
            found[wrong] = _refuse(
                found[wrong], f"its masks coincide with those of {title(found[right].name)}"
            )
            found[right] = _doubt(
                found[right], f"{title(found[wrong].name)} was found at the same place"
            )
    return found


def _plates(joints: Iterable[HandJoint]) -> float:
    """How open a hand's growth plates are; 0 where fewer than two joints tell."""
    values = [one.figures["growth_plate"] for one in joints if "growth_plate" in one.figures]
    return float(np.median(values)) if len(values) > 1 else 0.0


def _grown_up(joints: Sequence[HandJoint]) -> list[HandJoint]:
    """Masks of a hand whose growth plates are open are refused, however sure they are."""
    if _plates(joints) < OPEN_PLATE:
        return list(joints)
    reason = "the growth plates of this hand are open: a child's hand is not measured"
    return [joint if joint.segmentation is None else _refuse(joint, reason) for joint in joints]


def _mostly_refused(joints: Sequence[HandJoint]) -> list[HandJoint]:
    """Where MCP joints are refused, doubt the rest; where none is sure or most are, refuse them."""
    reason = _unknown(joints)
    if reason is not None:
        return [joint if joint.segmentation is None else _refuse(joint, reason) for joint in joints]
    if _refused_main(joints) < MOST_REFUSED - 1:
        return list(joints)
    reason = "several MCP joints of this hand were refused"
    return [joint if joint.segmentation is None else _doubt(joint, reason) for joint in joints]


def _refused_main(joints: Iterable[HandJoint]) -> int:
    return sum(joint.name in PROMISED and joint.status == "refused" for joint in joints)


def _unknown(joints: Sequence[HandJoint]) -> str | None:
    """Why a hand is not one that the segmenter knows."""
    refused = _refused_main(joints)
    if refused >= MOST_REFUSED:
        return "most MCP joints of this hand were refused: a child's, or not like those it knows"
    sure = any(joint.name in PROMISED and joint.status == "ok" for joint in joints)
    if refused == MOST_REFUSED - 1 and not sure:
        return (
            "of this hand's MCP joints several were refused and none is without doubt: a child's, "
            "or not like those it knows"
        )
    return None


def _refuse(joint: HandJoint, reason: str) -> HandJoint:
    return replace(joint, status="refused", reasons=(reason,), segmentation=None, separation=None)


def _doubt(joint: HandJoint, reason: str) -> HandJoint:
    return replace(joint, status="doubtful", reasons=(*joint.reasons, reason))


def _notes(hand: LocatedHand, joints: Sequence[HandJoint], side: Side | None) -> Iterable[str]:
    if hand.negative:
        yield "bone is dark in the picture: it was inverted"
    if side is not None and side != hand.side:
        yield (
            f"the thumb lies as a {hand.side} hand's would, a {side} hand was said: the picture is "
            "mirrored, shows the palm, or the side is wrong"
        )
    plates = _plates(joints)
    if plates >= OPEN_PLATE:
        yield "its growth plates are open: a child's hand, which is not measured"
        return
    if plates >= CLOSING_PLATE:
        yield "its growth plates may not be closed yet: only adults' joints were validated"
    refused = [joint for joint in joints if joint.name in PROMISED and joint.status == "refused"]
    widths = [joint.figures["expected_width_px"] for joint in refused]
    if len(refused) >= MOST_REFUSED and min(widths) < _LEAST_WIDTH_PX:
        yield "the hand is too small in this picture; give it in its full resolution"
    elif len(refused) >= MOST_REFUSED:
        yield (
            f"{len(refused)} of {len(PROMISED)} MCP joints were refused: a hand with open growth "
            "plates (a child's), or one that the segmenter does not know, is not measured"
        )


def _short(error: NoJointError) -> str:
    """The reason without the way out, which is for pictures of one joint."""
    return str(error).split(";")[0].removeprefix("this is no finger joint: ")
