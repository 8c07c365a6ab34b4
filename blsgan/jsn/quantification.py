"""Joint space narrowing and joint space width, from the registered bones of two visits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from blsgan.errors import InputError
from blsgan.io.masks import BONES
from blsgan.joint.distance import border_distance_px
from blsgan.joint.geometry import bone_width_px, joint_axis
from blsgan.joint.window import working_scale
from blsgan.jsn.registration import (
    Float,
    Focus,
    Registration,
    RigidTransform,
    read_registered,
    register_bone,
)

UPPER, LOWER = 0, 1

LAYER_TRUST = np.array(
    [
        [0.55, 0.55, 0.35, 0.37, 0.48, 0.59, 0.70, 0.78],  # upper bone; the first two together
        [0.61, 0.60, 0.56, 0.72, 0.87, 0.98, 1.00, 1.00],
    ]
)
"""Weight of a layer's pixels in registration at -4..-3 to +3..+4 px from the border between overlap
(-) and free part (+), at working scale: variance between visits where nothing is hidden, over the
same plus what separation adds. Measured with the shipped weights on joints that nobody trained on
(``blsgan evaluate --part layers``, "Weight of a layer by distance"). Deeper in the overlap the
first value holds; farther outside a layer is the image, which counts in full."""

_TRUST_AT_PX = np.arange(-3.5, 5.0)  # the middles of the bins, and where a layer is the image

CENTRAL_SHARE = 0.6
"""Share of the width both bones have in common, in its middle, over which JSW is taken: towards
the sides the borders turn away from each other."""

FOCUS_SHARE = 0.36
"""Pixels count by a Gaussian around the joint with this share of the bones' width as its standard
deviation."""

MAX_DISPLACEMENT_SHARE = 0.12
"""Bones that seem to move apart by more than this share of their width did not: a mismatch."""

MAX_TILT_DEG = 15.0
"""Nor did bones that seem to turn against each other by more."""

_MIN_LINES = 10  # fewer lines through the joint give no mean worth its name
_SMOOTHING_PX = 1.0
_STEP_PX = 0.5
_FIT_SHARE = 0.4  # of the lines, for the minimal width
_MIN_BORDER_SHARE = 0.5  # of the lines must show both borders


@dataclass(frozen=True)
class Visit:
    """One radiograph of a joint: ``layers`` float [2,H,W] in [0,1], ``masks`` bool [2,H,W].

    In registration pixels near the overlap count by :data:`LAYER_TRUST`, or those of the overlap by
    ``overlap_trust`` (0..1) and all others in full: without separation, where the layers are the
    image inside each mask, it is better 0. Pixels are square.
    """

    layers: NDArray[Any]
    masks: NDArray[np.bool_]
    overlap_trust: float | None = None

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or len(self.masks) != 2 or self.layers.shape != self.masks.shape:
            raise InputError(
                f"a visit has layers of shape {list(self.layers.shape)} and masks of "
                f"{list(self.masks.shape)}; give [2,H,W] for both."
            )
        for bone, mask in zip(BONES, self.masks, strict=True):
            if not mask.any():
                raise InputError(f"the {bone} mask is empty; mark the bone's pixels in it.")

    @property
    def weights(self) -> Float:
        """float64 [2,H,W]: how far registration may trust each bone's pixels."""
        overlap = self.masks[UPPER] & self.masks[LOWER]
        if self.overlap_trust is not None:
            return np.where(overlap, self.overlap_trust, np.ones(self.masks.shape))
        weights = np.ones(self.masks.shape)
        if not overlap.any():
            return weights
        scale = working_scale(self.masks)
        for bone, weight in enumerate(weights):
            trust = np.append(LAYER_TRUST[bone], 1.0)
            away = scale * border_distance_px(self.masks, bone)
            known = np.isfinite(away)
            weight[known] = np.interp(away[known], _TRUST_AT_PX, trust)
            weight[overlap & ~known] = trust[0]
        return weights


@dataclass(frozen=True)
class JointSpace:
    """The joint space of one visit: distance of the bones' borders along the axis, in px.

    Attributes:
        mean_px, minimum_px: over the lines; negative where the bones overlap.
        lines: how many lines parallel to the axis, one pixel apart, were measured.
        upper_border, lower_border: float64 [lines,2], the border points (row, column).
    """

    mean_px: float
    minimum_px: float
    lines: int
    upper_border: Float
    lower_border: Float


@dataclass(frozen=True, repr=False)
class Measurement:
    """What happened to a joint between two visits; lengths in px of the baseline.

    Attributes:
        narrowing_px: how much closer the lower bone came to the upper one along ``axis``: positive
            for a joint space that narrows. Not to be used where ``mismatch``.
        sideways_px: the lower bone's movement across the axis (the axis turned by +90 degrees from
            rows to columns).
        axis: float64 [2], unit vector (row, column) from the upper to the lower bone, on the
            baseline's picture: half way between both visits' axes.
        reference: float64 [2], the point of the lower bone whose movement is measured, on the
            baseline's picture: the middle of its border at the joint, half way between both visits.
        displacement_px: float64 [2,2], movement (row, column) on the picture of each bone at the
            joint.
        upper, lower: the registrations.
        baseline_space, followup_space: joint space width of each visit, or None where the masks
            show none.
        problems: why this is a mismatch, with the figures; empty for a measurement.
        notes: what a reader should know besides.
    """

    narrowing_px: float
    sideways_px: float
    axis: Float
    reference: Float
    displacement_px: Float
    upper: Registration
    lower: Registration
    baseline_space: JointSpace | None
    followup_space: JointSpace | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        if self.mismatch:
            return f"<Measurement: none, {self.problems[0]}>"
        return f"<Measurement: narrowing {self.narrowing_px:.2f} px, quality {self.quality:.2f}>"

    @property
    def mismatch(self) -> bool:
        """True where something failed, so that ``narrowing_px`` is no measurement."""
        return bool(self.problems)

    @property
    def tilt_deg(self) -> float:
        """By how much the lower bone turned against the upper one between the visits."""
        return tilt_deg(self.upper.transform, self.lower.transform)

    @property
    def disagreement_px(self) -> float:
        """How far the two directions of registration disagree, both bones together.

        What a narrowing can be off by where the bones' pictures are not rigid; 0 is no promise.
        """
        return math.hypot(self.upper.disagreement_px, self.lower.disagreement_px)

    @property
    def quality(self) -> float:
        """The worse bone's quality, 0..1; 0 for a mismatch."""
        return 0.0 if self.mismatch else min(self.upper.quality, self.lower.quality)


def measure(baseline: Visit, followup: Visit, *, fit_scale: bool = False) -> Measurement:
    """Register each bone between the visits and measure how the joint changed.

    Pixels near the joint count most (``FOCUS_SHARE``). Exchanging the visits turns the sign, up to
    a small share of ``disagreement_px``. With ``fit_scale`` each bone may also change
    its magnification. A measurement that failed says so in ``problems``, with the figure that
    tells.

    Raises:
        InputError: arrays that do not fit together, NaN or infinity in a layer.
    """
    visits = (baseline, followup)
    axes = [joint_axis(visit.masks) for visit in visits]
    spaces = [joint_space(v.masks, axis) for v, axis in zip(visits, axes, strict=True)]
    references = [
        reference_point(v.masks, axis, space)
        for v, axis, space in zip(visits, axes, spaces, strict=True)
    ]
    width = math.sqrt(bone_width_px(baseline.masks) * bone_width_px(followup.masks))
    focus, followup_focus = (Focus(point, FOCUS_SHARE * width) for point in references)
    weights = [visit.weights for visit in visits]
    upper, lower = (
        register_bone(
            baseline.layers[bone],
            followup.layers[bone],
            baseline.masks[bone],
            followup.masks[bone],
            baseline_weight=weights[0][bone],
            followup_weight=weights[1][bone],
            focus=focus,
            followup_focus=followup_focus,
            fit_scale=fit_scale,
        )
        for bone in (UPPER, LOWER)
    )
    axis, reference = shared_frame(axes, references, upper.transform, lower.transform)
    movement = relative_movement(upper.transform, lower.transform, reference)
    narrowing = -float((movement * axis).sum())
    sideways = float((movement * _across(axis)).sum())
    problems = [
        f"{bone} bone: {problem}"
        for bone, registration in zip(BONES, (upper, lower), strict=True)
        for problem in registration.problems
    ]
    limit = MAX_DISPLACEMENT_SHARE * width
    if (moved := float(np.hypot(*movement))) > limit:
        problems.append(
            f"the bones would have moved {moved:.1f} px against each other (at most {limit:.1f})"
        )
    tilt = tilt_deg(upper.transform, lower.transform)
    if abs(tilt) > MAX_TILT_DEG:
        problems.append(
            f"the bones would have turned {tilt:+.1f} degrees against each other (at most "
            f"{MAX_TILT_DEG:g})"
        )
    displacement = np.stack([bone.transform(reference) - reference for bone in (upper, lower)])
    if not problems:  # else each visit keeps its own axis: the other's is nowhere to be seen
        shared = (axis, _turned(axis, upper.transform))
        spaces = [joint_space(v.masks, axis) for v, axis in zip(visits, shared, strict=True)]
        if fit_scale and spaces[1] is not None:  # lengths are in px of the baseline
            scale = math.sqrt(upper.transform.scale * lower.transform.scale)
            spaces[1] = replace(
                spaces[1],
                mean_px=spaces[1].mean_px / scale,
                minimum_px=spaces[1].minimum_px / scale,
            )
    return Measurement(
        narrowing,
        sideways,
        axis,
        reference,
        displacement,
        upper,
        lower,
        spaces[0],
        spaces[1],
        tuple(problems),
        (
            *_visit_notes(baseline, spaces[0], "baseline"),
            *_visit_notes(followup, spaces[1], "follow-up"),
        ),
    )


def shared_frame(
    axes: Sequence[Float],
    references: Sequence[Float],
    upper: RigidTransform,
    lower: RigidTransform,
) -> tuple[Float, Float]:
    """Axis and reference point that both visits share, in baseline px: the middle of their own.

    ``axes`` and ``references`` are each visit's, in its own px. The follow-up's axis is brought
    back by the upper bone, its reference by the lower one, whose point it is. A joint that is bent
    otherwise turns the lower bone about a point in its head: along the axis half way between, its
    border then does not seem to come closer.
    """
    direction = axes[0] + _turned(axes[1], upper.inverse())
    length = float(np.hypot(*direction))
    axis = direction / length if length > 1e-6 else axes[0]
    return axis, (references[0] + lower.inverse()(references[1])) / 2


def residual_maps(baseline: Visit, followup: Visit, found: Measurement) -> NDArray[np.float32]:
    """What registration leaves of each bone: baseline minus registered follow-up, on its picture.

    Returns float32 [2,H,W], about -1..1, the follow-up's exposure brought to the baseline's; NaN
    where not both visits show the bone.
    """
    maps = []
    for bone, registration in enumerate((found.upper, found.lower)):
        mask = baseline.masks[bone]
        size = (*mask.shape,)
        registered = read_registered(followup.layers[bone], registration, size)
        # Where the mask lies, not how bright it is.
        place = replace(registration, gain=1.0, offset=0.0)
        seen = read_registered(followup.masks[bone].astype(np.float64), place, size)
        with np.errstate(invalid="ignore"):
            both = mask & (seen > 0.5)
        maps.append(np.where(both, baseline.layers[bone] - registered, np.nan))
    return np.stack(maps).astype(np.float32)


def relative_movement(upper: RigidTransform, lower: RigidTransform, reference: Float) -> Float:
    """How the lower bone's ``reference`` point moved as seen from the upper bone, in baseline px.

    Where the whole hand moved, turned or grew between the visits, the upper bone did the same, and
    it falls out. Returns float64 [2] (row, column).
    """
    return np.asarray(upper.inverse()(lower(reference)) - reference)


def tilt_deg(upper: RigidTransform, lower: RigidTransform) -> float:
    """By how much the lower bone turned against the upper one, -180..180."""
    return (lower.angle_deg - upper.angle_deg + 180) % 360 - 180


def reference_point(masks: NDArray[np.bool_], axis: Float, space: JointSpace | None) -> Float:
    """The middle of the lower bone's border at the joint, (row, column); see Measurement."""
    if space is not None:
        return np.asarray(space.lower_border.mean(axis=0))
    # No common border: the lower bone's pixel nearest to the joint along the axis.
    pixels = np.argwhere(masks[LOWER])
    return np.asarray(pixels[np.argmin((pixels * axis).sum(axis=1))], dtype=np.float64)


def joint_space(masks: NDArray[Any], axis: Float | None = None) -> JointSpace | None:
    """Joint space width on masks [2,H,W], or None where the bones do not face each other.

    ``masks`` is bool, or float in [0,1], the share of each pixel that the bone covers: a bool mask
    is cut at whole pixels and so good to about 0.1 px in the mean over the lines and 0.5 px in the
    minimum, coverage to a few hundredths in both.

    Lines parallel to ``axis`` (default: ``geometry.joint_axis``), one pixel apart, cross the
    central 60 % of the width the bones have in common. On each, the upper bone's last and the lower
    bone's first border are where the mask, smoothed by a Gaussian of 1 px, crosses one half; a line
    on which a border lies outside the picture is left out. The minimum is taken after fitting a
    parabola around each line (Savitzky & Golay, Analytical Chemistry 1964), over 40 % of the lines:
    the least of many widths would else be that with the largest error of its masks.
    """
    inside = [np.argwhere(mask >= 0.5) for mask in masks]
    if min(map(len, inside)) == 0:
        return None
    axis = joint_axis(np.asarray(masks) >= 0.5) if axis is None else axis
    across = _across(axis)
    origin = np.mean([pixels.mean(axis=0) for pixels in inside], axis=0)
    reach = [(pixels - origin) @ across for pixels in inside]
    low, high = max(r.min() for r in reach), min(r.max() for r in reach)
    middle, half = (low + high) / 2, CENTRAL_SHARE * (high - low) / 2
    lines = np.arange(np.ceil(middle - half), np.floor(middle + half) + 1)
    if len(lines) < _MIN_LINES:
        return None
    diagonal = float(np.hypot(*masks.shape[1:]))
    along = np.arange(-diagonal, diagonal, _STEP_PX)
    places = origin + lines[:, None, None] * across + along[:, None] * axis
    borders = [_borders(mask, places, along, last=bone == UPPER) for bone, mask in enumerate(masks)]
    both = np.isfinite(borders[0]) & np.isfinite(borders[1])
    if np.count_nonzero(both) < max(_MIN_LINES, _MIN_BORDER_SHARE * len(lines)):
        return None
    start = origin + lines[both][:, None] * across
    distance = borders[1][both] - borders[0][both]
    window = max(int(_FIT_SHARE * len(distance)) // 2 * 2 + 1, 5)
    return JointSpace(
        float(distance.mean()),
        float(signal.savgol_filter(distance, window, 2).min()),
        len(distance),
        start + borders[0][both][:, None] * axis,
        start + borders[1][both][:, None] * axis,
    )


def _borders(mask: NDArray[Any], places: Float, along: Float, *, last: bool) -> Float:
    """Position along each line [L] of the upper bone's last or the lower's first border; NaN: none.

    ``places`` is [L,T,2], ``along`` [T].
    """
    smooth = ndimage.gaussian_filter(mask.astype(np.float64), _SMOOTHING_PX, mode="nearest")
    level = ndimage.map_coordinates(smooth, np.moveaxis(places, -1, 0), order=1, cval=np.nan) - 0.5
    here, there = level[:, :-1], level[:, 1:]
    # Comparisons with NaN are False: a border outside the picture is none.
    crossing = (here >= 0) & (there < 0) if last else (here < 0) & (there >= 0)
    rows = np.arange(len(level))
    index = (
        crossing.shape[1] - 1 - np.argmax(crossing[:, ::-1], axis=1)
        if last
        else np.argmax(crossing, axis=1)
    )
    before, after = here[rows, index], there[rows, index]
    with np.errstate(invalid="ignore", divide="ignore"):
        position = along[index] + _STEP_PX * before / (before - after)
    return np.where(crossing[rows, index], position, np.nan)


def _across(axis: Float) -> Float:
    return np.array([-axis[1], axis[0]])


def _turned(axis: Float, transform: RigidTransform) -> Float:
    """An axis as it lies after the transform."""
    return np.asarray(transform.matrix @ axis / transform.scale)


def _visit_notes(visit: Visit, space: JointSpace | None, name: str) -> list[str]:
    notes = []
    for bone, mask in zip(BONES, visit.masks, strict=True):
        edge = mask.copy()
        edge[1:-1, 1:-1] = False
        if count := int(np.count_nonzero(edge)):
            notes.append(f"{name}: the {bone} mask touches the picture's border over {count} px")
    if space is None:
        notes.append(f"{name}: the masks show no joint space along the axis, so no width is given")
    return notes
