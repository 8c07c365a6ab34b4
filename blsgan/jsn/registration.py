"""Rigid sub-pixel registration of one bone between two visits, on its own layer and mask.

Masked phase correlation (Padfield, IEEE TIP 2012; scikit-image) gives the shift to start from;
Gauss-Newton then fits translation and rotation, together with the gain and offset between the
visits, on a blurred picture; on the full one it also fits how the bone's picture stretches and
shears, as it does where the bone is seen from a slightly different side, held to a few percent by a
Gaussian prior, so that what the bone's texture does not determine stays near zero. What is returned
is the rigid share of that (with a small scale, where asked for), by weights that only depend on the
place: every part of the bone counts as much between any two visits, whichever of its edges happen
to match. The follow-up is read by cubic splines, its layer continued beyond the mask so that the
cut edge is no feature, and pixels count by Huber's weights, so a lesion that is new or a patch of a
poor layer does not pull the bone along. All this is done from baseline to follow-up and back, each
on its own pixels; the result is the middle of both, and how far they disagree tells how sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from blsgan.errors import InputError
from blsgan.joint.geometry import bounding_box

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

MIN_PIXELS = 400
"""Fewer pixels of a bone than this do not fix its position."""

MIN_CORRELATION = 0.75
"""Registered visits of one bone that correlate less are a mismatch."""

MIN_COVERAGE = 0.4
"""Least share of the baseline's bone that the follow-up must show."""

MAX_SCALE = 1.15
"""Visits of one patient differ less than this in magnification, and a bone's picture stretches by
less in any direction, either way."""

MAX_DISAGREEMENT_PX = 1.0
"""Registered there and back, a bone of the public dataset's size must come home this closely; a
larger picture may be off by more pixels, as it is by the same length."""

_USUAL_PX = 20_000  # pixels of a bone of the public dataset, about
_RETRY_PX = 0.3  # directions that disagree by more are each started from the other, too
_RIM_PX = 2.0  # pixels nearer to the mask's edge than this are read but do not count
_COARSE_SIGMA_PX = 3.0
_FINE_SIGMA_PX = 0.8
_COARSE_POINTS = 5_000
_FINE_POINTS = 30_000
_CORRELATION_SIDE_PX = 96  # phase correlation works on pictures reduced to at most this
_STRETCH_SD = 0.02  # a priori, of a bone's picture between two visits
_PATCH_PX = 25.0  # what a fit leaves is alike over about so many pixels
_HUBER = 1.345  # 95 % efficient on Gaussian residuals (Huber 1964)
_GAINS = (0.2, 5.0)  # a gain of 0 would hide every error
_MAX_STEPS = 40
_TOLERANCE_PX = 1e-3
_COARSE_TOLERANCE_PX = 0.03  # only a start for the fine one


@dataclass(frozen=True)
class RigidTransform:
    """``x -> matrix @ x + shift`` on (row, column) in px: rotation times scale, and a shift.

    ``matrix`` float64 [2,2], ``shift`` float64 [2].
    """

    matrix: Float
    shift: Float

    @classmethod
    def about(
        cls, centre: Float, shift: Float, angle_rad: float = 0.0, scale: float = 1.0
    ) -> RigidTransform:
        """Turn and scale about ``centre``, then move by ``shift``; both (row, column)."""
        cos, sin = scale * math.cos(angle_rad), scale * math.sin(angle_rad)
        matrix: Float = np.array([[cos, -sin], [sin, cos]], dtype=np.float64)
        moved: Float = np.asarray(centre + shift - matrix @ centre, dtype=np.float64)
        return cls(matrix, moved)

    def __call__(self, points: NDArray[Any]) -> Float:
        """Map points [...,2]."""
        return np.asarray(points @ self.matrix.T + self.shift)

    def inverse(self) -> RigidTransform:
        """The transform back."""
        inverse: Float = np.asarray(np.linalg.inv(self.matrix), dtype=np.float64)
        return RigidTransform(inverse, -inverse @ self.shift)

    def after(self, first: RigidTransform) -> RigidTransform:
        """This transform applied to what ``first`` gives."""
        return RigidTransform(self.matrix @ first.matrix, self.matrix @ first.shift + self.shift)

    @property
    def scale(self) -> float:
        """Magnification; 1 where the visits agree."""
        return math.hypot(self.matrix[0, 0], self.matrix[1, 0])

    @property
    def angle_deg(self) -> float:
        """Rotation that turns the row axis towards the column axis."""
        return math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))


@dataclass(frozen=True)
class Focus:
    """Pixels count by a Gaussian around ``centre`` (row, column), ``reach_px`` its deviation.

    A bone is rigid but its picture is not: seen from a slightly different side its far end moves
    otherwise than its near one.
    """

    centre: Float
    reach_px: float


@dataclass(frozen=True)
class Registration:
    """How one bone moved from the baseline to the follow-up, and how far that can be trusted.

    Attributes:
        transform: baseline to follow-up coordinates. Where ``problems`` is not empty it is the
            best that was found and must not be used as a measurement.
        correlation: of the registered visits on the pixels used, -1..1; 0 where none were. This
            and the next four are the worse direction's.
        pixels: pixels of the bone that both visits show.
        coverage: those pixels as a share of a visit's bone, 0..1.
        converged: whether the last step was below 0.001 px.
        steps: steps of the refinement at full resolution.
        disagreement_px: how far from its place at the focus (else at the bone's centre) a point
            ends that is registered to the follow-up and back.
        gain, offset: follow-up intensities times gain plus offset are the baseline's.
        problems: why this is no measurement, each with its figure; empty for a good one.
    """

    transform: RigidTransform
    correlation: float
    pixels: int
    coverage: float
    converged: bool
    steps: int
    disagreement_px: float
    gain: float
    offset: float
    problems: tuple[str, ...]

    @property
    def quality(self) -> float:
        """Correlation times coverage, in [0,1]; 0 where the registration did not converge."""
        return max(self.correlation, 0.0) * self.coverage if self.converged else 0.0


def register_bone(
    baseline: NDArray[Any],
    followup: NDArray[Any],
    baseline_mask: Bool,
    followup_mask: Bool,
    *,
    baseline_weight: NDArray[Any] | None = None,
    followup_weight: NDArray[Any] | None = None,
    focus: Focus | None = None,
    followup_focus: Focus | None = None,
    fit_scale: bool = False,
) -> Registration:
    """Register one bone's layer at baseline to its layer at follow-up.

    Exchanging the visits, with a focus for each, gives the inverse transform, up to a small share
    of ``disagreement_px``.

    Args:
        baseline, followup: float layers [H,W] in [0,1]; the visits may differ in size.
        baseline_mask, followup_mask: bool, of the shape of their layer; where the bone is.
        baseline_weight, followup_weight: how far each pixel can be trusted, in [0,1], of the shape
            of the layer; by default all are 1.
        focus: where the bone's position matters; by default all of it counts alike.
        followup_focus: the same place at the follow-up; by default where ``focus`` is found there.
        fit_scale: also fit a change of magnification. Left out by default: visits of one scanner
            share it, and a bone seen from a slightly different side looks like a change.

    Returns:
        A registration; one that failed says so in ``problems``.

    Raises:
        InputError: shapes that do not fit, an empty mask, NaN or infinity in a layer.
    """
    fixed = _Bone.prepare(baseline, baseline_mask, baseline_weight, "baseline")
    moving = _Bone.prepare(followup, followup_mask, followup_weight, "follow-up")
    forward = _Way(fixed, moving, _Options(focus, fit_scale))
    there = forward.register()
    if focus is not None and followup_focus is None:
        followup_focus = Focus(there.transform(focus.centre), focus.reach_px)
    backward = _Way(moving, fixed, _Options(followup_focus, fit_scale))
    back = backward.register()
    at = fixed.centre if focus is None else focus.centre
    if _disagreement_px(there, back, at) > _RETRY_PX:
        there, back = (
            way.retry(fit, other.transform.inverse())
            for way, fit, other in ((forward, there, back), (backward, back, there))
        )
    found = _combined(there, back, at)
    pixels = min(
        round(fit.coverage * bone.inner_px)
        for fit, bone in zip((there, back), (fixed, moving), strict=True)
    )
    disagreement_px = _disagreement_px(there, back, at)
    allowed_px = MAX_DISAGREEMENT_PX * _relative_size(min(fixed.inner_px, moving.inner_px))
    return Registration(
        found.transform,
        found.correlation,
        pixels,
        found.coverage,
        found.converged,
        found.steps,
        disagreement_px,
        found.gain,
        found.offset,
        tuple(_problems(found, pixels, disagreement_px, allowed_px)),
    )


def read_registered(
    layer: NDArray[Any], registration: Registration, size: tuple[int, int]
) -> Float:
    """The follow-up's layer on the baseline's grid, with the baseline's intensities.

    Returns float64 of shape ``size`` = (height, width); what lies outside the follow-up is NaN.
    """
    transform = registration.transform
    read = ndimage.affine_transform(
        np.asarray(layer, dtype=np.float64),
        transform.matrix,
        transform.shift,
        output_shape=size,
        order=1,
        cval=np.nan,
    )
    return np.asarray(registration.gain * read + registration.offset)


@dataclass(frozen=True)
class _Bone:
    """One bone at one visit, ready to be read anywhere.

    ``filled`` is the layer continued beyond the mask, ``depth`` the distance to the mask's edge
    (the picture's border is no edge), ``trust`` the pixels' weight; all are windows whose first
    pixel is at ``origin``.
    """

    filled: Float
    depth: Float
    trust: Float
    origin: Float
    centre: Float

    @classmethod
    def prepare(
        cls, layer: NDArray[Any], mask: Bool, weight: NDArray[Any] | None, visit: str
    ) -> _Bone:
        layer, mask = np.asarray(layer, dtype=np.float64), np.asarray(mask, dtype=np.bool_)
        if layer.ndim != 2 or layer.shape != mask.shape:
            raise InputError(
                f"the {visit} layer has shape {list(layer.shape)} and its mask "
                f"{list(mask.shape)}; give [H,W] for both."
            )
        if not mask.any():
            raise InputError(f"the {visit} mask is empty; mark the bone's pixels in it.")
        trust = np.ones(layer.shape) if weight is None else np.asarray(weight, dtype=np.float64)
        if trust.shape != layer.shape:
            raise InputError(
                f"the {visit} weight has shape {list(trust.shape)} and its layer "
                f"{list(layer.shape)}; give [H,W] for both."
            )
        top, left, bottom, right = bounding_box(mask)
        window = np.s_[top:bottom, left:right]
        inside = mask[window]
        if not np.isfinite(layer[window][inside]).all():
            raise InputError(f"the {visit} layer has NaN or infinite values; replace them first.")
        # Padding is outside the picture, where nothing is known: there the layer goes on, too.
        nearest = ndimage.distance_transform_edt(
            ~inside, return_distances=False, return_indices=True
        )
        depth = (
            ndimage.distance_transform_edt(inside)
            if not inside.all()
            else np.full(inside.shape, float(max(inside.shape)))
        )
        origin = np.array([top, left], dtype=np.float64)
        centre = np.argwhere(inside).mean(axis=0) + origin
        return cls(layer[window][tuple(nearest)], depth, trust[window], origin, centre)

    @property
    def inner_px(self) -> int:
        return int(np.count_nonzero(self.depth > _RIM_PX))

    def points(self, most: int) -> tuple[NDArray[np.intp], int]:
        """Window coordinates [P,2] of pixels off the rim, about ``most``, on a grid; its step."""
        step = max(1, math.ceil(math.sqrt(self.inner_px / most)))
        points = np.argwhere(self.depth[::step, ::step] > _RIM_PX)
        return points * step, step


def _relative_size(pixels: int) -> float:
    """How many times longer than in the public dataset a bone of so many pixels is; at least 1."""
    return max(1.0, math.sqrt(pixels / _USUAL_PX))


def _blurred(picture: Float, sigma_px: float) -> Float:
    return np.asarray(ndimage.gaussian_filter(picture, sigma_px, mode="nearest"))


def _starts(fixed: _Bone, moving: _Bone) -> Iterator[Float]:
    """Shifts (row, column) to start from: masked phase correlation, then the masks alone."""
    from skimage.registration import phase_cross_correlation

    side = max(*fixed.filled.shape, *moving.filled.shape)
    step = max(1, math.ceil(side / _CORRELATION_SIDE_PX))
    pictures = [_blurred(bone.filled, step / 2)[::step, ::step] for bone in (fixed, moving)]
    masks = [bone.depth[::step, ::step] > 0 for bone in (fixed, moving)]
    if min(np.count_nonzero(mask) for mask in masks) > 16:
        shift, _, _ = phase_cross_correlation(
            *pictures, reference_mask=masks[0], moving_mask=masks[1], overlap_ratio=0.5
        )
        if np.isfinite(shift).all():
            yield moving.origin - fixed.origin - step * np.asarray(shift)
    yield moving.centre - fixed.centre


@dataclass(frozen=True)
class _Fit:
    transform: RigidTransform
    correlation: float
    coverage: float
    converged: bool
    steps: int
    gain: float
    offset: float
    stretch: tuple[float, float] = (1.0, 1.0)  # of the picture, least and greatest of any direction

    @property
    def score(self) -> float:
        return self.correlation * min(self.coverage / MIN_COVERAGE, 1.0)


@dataclass(frozen=True)
class _Options:
    focus: Focus | None
    fit_scale: bool

    def weights(self, places: Float) -> Float:
        if self.focus is None:
            return np.ones(len(places))
        squared = np.square(places - self.focus.centre).sum(axis=1)
        return np.asarray(np.exp(-0.5 * squared / self.focus.reach_px**2))


@dataclass(frozen=True)
class _Way:
    """One direction of a registration: ``fixed``'s pixels, read in ``moving``."""

    fixed: _Bone
    moving: _Bone
    options: _Options

    def register(self) -> _Fit:
        """The best start, refined on the blurred and then on the full picture."""
        best: _Fit | None = None
        for shift in _starts(self.fixed, self.moving):
            start = RigidTransform.about(self.fixed.centre, shift)
            fit = _refine(self.fixed, self.moving, start, self.options, coarse=True)
            if best is None or fit.score > best.score:
                best = fit
        assert best is not None, "there is always a start"
        return _refine(self.fixed, self.moving, best.transform, self.options, coarse=False)

    def retry(self, fit: _Fit, start: RigidTransform) -> _Fit:
        """``fit``, or what is found from ``start`` where that is better."""
        again = _refine(self.fixed, self.moving, start, self.options, coarse=False)
        better = (again.converged, again.score) > (fit.converged, fit.score)
        return again if better else fit


def _disagreement_px(there: _Fit, back: _Fit, at: Float) -> float:
    """How far from ``at`` it ends when it is taken there and back."""
    return float(np.hypot(*(back.transform(there.transform(at)) - at)))


def _combined(there: _Fit, back: _Fit, at: Float) -> _Fit:
    """The middle of both directions at ``at``, with the worse one's figures."""
    inverse = back.transform.inverse()
    turned_deg = (inverse.angle_deg - there.transform.angle_deg + 180) % 360 - 180
    transform = RigidTransform.about(
        at,
        (there.transform(at) + inverse(at)) / 2 - at,
        math.radians(there.transform.angle_deg + turned_deg / 2),
        math.sqrt(there.transform.scale * inverse.scale),
    )
    return _Fit(
        transform,
        min(there.correlation, back.correlation),
        min(there.coverage, back.coverage),
        there.converged and back.converged,
        max(there.steps, back.steps),
        there.gain,
        there.offset,
        (
            min(there.stretch[0], 1 / max(back.stretch[1], 1e-9)),
            max(there.stretch[1], 1 / max(back.stretch[0], 1e-9)),
        ),
    )


@dataclass(frozen=True)
class _Affine:
    """``x -> matrix @ (x - centre) + moved``: rigid while coarse, any matrix at full resolution."""

    matrix: Float
    centre: Float
    moved: Float

    @classmethod
    def from_rigid(cls, transform: RigidTransform, centre: Float) -> _Affine:
        return cls(transform.matrix, centre, transform(centre))

    def __call__(self, points: NDArray[Any]) -> Float:
        return np.asarray((points - self.centre) @ self.matrix.T + self.moved)

    def turned(self, down: float, right: float, turn: float) -> _Affine:
        """Moved, and turned by ``turn`` rad."""
        cos, sin = math.cos(turn), math.sin(turn)
        matrix = np.array([[cos, -sin], [sin, cos]]) @ self.matrix
        return _Affine(matrix, self.centre, self.moved + np.array([down, right]))

    def stretched(self, down: float, right: float, change: Float) -> _Affine:
        """Moved, and ``change`` [2,2] added to the matrix."""
        return _Affine(self.matrix + change, self.centre, self.moved + np.array([down, right]))

    @property
    def stretch(self) -> tuple[float, float]:
        values = np.linalg.svd(self.matrix, compute_uv=False)
        return float(values[1]), float(values[0])

    def stiffness(self, *, fit_scale: bool) -> tuple[Float, Float]:
        """How stretch and shear resist a change of the matrix (float64 [4,4]) and pull back ([4]).

        Gauss-Newton's second and the first derivative, by the matrix's entries by rows, of half the
        squared Frobenius norm of the strain: the symmetric polar factor minus 1, without its mean
        where the scale is fitted.
        """
        left, values, right = np.linalg.svd(self.matrix)
        rotation, strain = left @ right, right.T @ np.diag(values - 1.0) @ right
        if fit_scale:
            strain = strain - np.eye(2) * np.trace(strain) / 2
        columns = []
        for entry in np.eye(4):
            turned = rotation.T @ entry.reshape(2, 2)
            change = (turned + turned.T) / 2
            if fit_scale:
                change = change - np.eye(2) * np.trace(change) / 2
            columns.append(change.ravel())
        by_entry = np.array(columns)
        return by_entry @ by_entry.T, by_entry @ strain.ravel()

    def rigid(self, spread: Float, *, fit_scale: bool) -> RigidTransform:
        """The rigid transform nearest on points around the centre of covariance ``spread`` [2,2].

        Umeyama (IEEE TPAMI 1991), for two dimensions.
        """
        cross = self.matrix @ spread
        cos, sin = cross[0, 0] + cross[1, 1], cross[1, 0] - cross[0, 1]
        scale = math.hypot(cos, sin) / float(np.trace(spread)) if fit_scale else 1.0
        return RigidTransform.about(
            self.centre, self.moved - self.centre, math.atan2(sin, cos), scale
        )


def _refine(
    fixed: _Bone, moving: _Bone, start: RigidTransform, options: _Options, *, coarse: bool
) -> _Fit:
    """Gauss-Newton from ``start``; see the module's text for the model."""
    points, step = fixed.points(_COARSE_POINTS if coarse else _FINE_POINTS)
    if len(points) < 16:
        return _Fit(start, 0.0, 0.0, False, 0, 1.0, 0.0)
    # A picture of thousands of pixels moves by more of them: the blur grows with the bone.
    wide = math.sqrt(fixed.inner_px / _USUAL_PX)
    sigma = max(_COARSE_SIGMA_PX * wide, _FINE_SIGMA_PX) if coarse else _FINE_SIGMA_PX
    tolerance_px = _COARSE_TOLERANCE_PX if coarse else _TOLERANCE_PX
    target = _blurred(fixed.filled, sigma)[tuple(points.T)]
    picture = _blurred(moving.filled, sigma)
    spline = ndimage.spline_filter(picture, order=3, mode="mirror")
    slopes = np.gradient(picture) if min(picture.shape) > 1 else [np.zeros_like(picture)] * 2
    planes = np.stack((*slopes, moving.depth, moving.trust), axis=2).astype(np.float32)
    places = points + fixed.origin
    near = options.weights(places) * fixed.trust[tuple(points.T)]
    if near.sum() <= 0:
        return _Fit(start, 0.0, 0.0, False, 0, 1.0, 0.0)
    # About the weights' own centre, where movement and stretch do not mix.
    share = near / near.sum()
    centre = np.asarray((share[:, None] * places).sum(axis=0))
    arms = places - centre
    spread = np.einsum("p,pi,pj->ij", share, arms, arms)
    radius = math.sqrt(float(np.trace(spread)))
    transform, last_step = _Affine.from_rigid(start, centre), math.inf
    previous: tuple[Float, Float] | None = None
    steps, converged = 0, False
    while True:
        at = (transform(places) - moving.origin).T
        rows, columns, depth, trust = _read_linearly(planes, at)
        seen = _seen(depth, at, picture.shape)
        weight = near * seen * trust
        values = ndimage.map_coordinates(spline, at, order=3, mode="mirror", prefilter=False)
        coverage = float(seen.mean())
        if coverage * len(points) < 16 or weight.sum() <= 0:
            return _Fit(start, 0.0, coverage, False, steps, 1.0, 0.0)
        gain, offset = _line(values, target, weight)
        residual = gain * values + offset - target
        robust = weight * _huber(residual, weight)
        if converged or steps == _MAX_STEPS:
            break
        # Columns: shift down, shift right, then turn or the matrix (in px at the weights' radius),
        # and what gain and offset explain.
        if coarse:
            turned = arms @ transform.matrix.T / radius
            shape = [gain * (columns * turned[:, 0] - rows * turned[:, 1])]
        else:
            shape = [gain * by * arm / radius for by in (rows, columns) for arm in arms.T]
        jacobian = np.stack(
            [gain * rows, gain * columns, *shape, values, np.ones_like(values)], axis=1
        )
        # einsum, not BLAS: the same sum whatever the number of threads.
        weighted = jacobian * robust[:, None]
        normal = np.einsum("pi,pj->ij", weighted, jacobian)
        slope = np.einsum("pi,p->i", weighted, residual)
        if not coarse:
            # Of noise that is alike over a patch, a fit knows less than its pixels say.
            variance = (robust * np.square(residual)).sum() / max(robust.sum(), 1e-12)
            stiff = variance * _PATCH_PX / step**2 / (_STRETCH_SD * radius) ** 2
            held, pull = transform.stiffness(fit_scale=options.fit_scale)
            normal[2:6, 2:6] += stiff * held
            slope[2:6] += stiff * radius * pull
        try:
            solved = -np.linalg.solve(normal, slope)
        except np.linalg.LinAlgError:  # a bone without texture
            break
        update = solved[:-2]
        steps += 1
        length = float(np.abs(update).max())
        if not math.isfinite(length):
            break
        converged = length < tolerance_px
        if length > 2 * last_step and steps > _MAX_STEPS // 2:
            break
        last_step = length
        applied = _accelerated(update, previous)
        size = float(np.abs(applied).max())
        # The linear model reaches about as far as the blur.
        applied *= min(1.0, 2 * sigma / size if size > 0 else 1.0)
        previous = (update, applied)
        if coarse:
            transform = transform.turned(applied[0], applied[1], applied[2] / radius)
        else:
            change = applied[2:].reshape(2, 2) / radius
            transform = transform.stretched(applied[0], applied[1], change)
    return _Fit(
        transform.rigid(spread, fit_scale=options.fit_scale),
        _correlation(values, target, weight),
        coverage,
        converged,
        steps,
        gain,
        offset,
        transform.stretch,
    )


def _accelerated(update: Float, previous: tuple[Float, Float] | None) -> Float:
    """Anderson's acceleration (J. ACM 1965) with one step of memory.

    Steps that shrink slowly in one direction, as they do where the visits differ much, are
    lengthened, at most four times; steps that swing are shortened. ``previous`` holds
    the last step as computed and as applied.
    """
    if previous is None:
        return update.copy()
    change = update - previous[0]
    squared = float(change @ change)
    if squared == 0:
        return update.copy()
    mixed = update - float(change @ update) / squared * (previous[1] + change)
    size, most = float(np.abs(mixed).max()), 4 * float(np.abs(update).max())
    usable = math.isfinite(size) and size > 0
    return np.asarray(mixed * min(1.0, most / size)) if usable else update.copy()


def _read_linearly(planes: NDArray[np.float32], at: Float) -> Float:
    """Planes [H,W,4] at places [2,P], by OpenCV to a 32nd of a pixel: float64 [4,P].

    Good enough for what only weighs or steers; the values compared are read by splines.
    """
    count = at.shape[1]
    width = min(count, 1024)  # OpenCV's pictures have fewer than 32,767 rows and columns
    padded = np.pad(at, ((0, 0), (0, -count % width)), mode="edge").astype(np.float32)
    rows, columns = padded.reshape(2, -1, width)
    read = cv2.remap(planes, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return read.reshape(-1, 4)[:count].T.astype(np.float64)


def _seen(depth: Float, at: Float, size: tuple[int, ...]) -> Float:
    """Weight of each place: 1 well inside the follow-up's bone, falling to 0 at its rim.

    Soft edges, at the mask's and at the picture's border, so that a pixel does not jump in and out
    between two steps. ``depth`` is the distance to the mask's edge at the places ``at`` [2,P] of a
    window of so many rows and columns.
    """
    last = np.array(size, dtype=np.float64)[:, None] - 1
    beyond = np.maximum(-at, at - last).max(axis=0)
    inside = np.clip(1.0 - beyond, 0.0, 1.0)
    return np.asarray(np.clip(depth - (_RIM_PX - 1), 0.0, 1.0) * inside)


def _line(values: Float, target: Float, weight: Float) -> tuple[float, float]:
    """Gain and offset that map ``values`` to ``target``."""
    total = weight.sum()
    mean_v, mean_t = (weight * values).sum() / total, (weight * target).sum() / total
    variance = (weight * np.square(values - mean_v)).sum()
    covariance = (weight * (values - mean_v) * (target - mean_t)).sum()
    gain = float(np.clip(covariance / variance if variance > 0 else 1.0, *_GAINS))
    return gain, float(mean_t - gain * mean_v)


def _huber(residual: Float, weight: Float) -> Float:
    used = np.abs(residual[weight > 0])
    limit = _HUBER * 1.4826 * float(np.median(used))
    return np.asarray(np.minimum(1.0, limit / np.maximum(np.abs(residual), 1e-12)))


def _correlation(a: Float, b: Float, weight: Float) -> float:
    total = weight.sum()
    a, b = a - (weight * a).sum() / total, b - (weight * b).sum() / total
    norm = math.sqrt((weight * np.square(a)).sum() * (weight * np.square(b)).sum())
    return float((weight * a * b).sum() / norm) if norm > 0 else 0.0


def _problems(fit: _Fit, pixels: int, disagreement_px: float, allowed_px: float) -> Iterator[str]:
    if pixels < MIN_PIXELS:
        yield f"only {pixels} pixels of the bone are in both visits ({MIN_PIXELS} needed)"
    elif fit.coverage < MIN_COVERAGE:
        yield (
            f"a visit shows only {fit.coverage:.0%} of the other's bone ({MIN_COVERAGE:.0%} needed)"
        )
    if not fit.converged:
        yield f"the registration did not converge in {fit.steps} steps"
    if fit.correlation < MIN_CORRELATION:
        yield f"the registered visits correlate by {fit.correlation:.2f} ({MIN_CORRELATION} needed)"
    if not 1 / MAX_SCALE <= fit.transform.scale <= MAX_SCALE:
        yield f"the bone would have changed its size by a factor of {fit.transform.scale:.2f}"
    elif not 1 / MAX_SCALE <= fit.stretch[0] <= fit.stretch[1] <= MAX_SCALE:
        yield (
            f"the bone's picture would have stretched by factors of {fit.stretch[0]:.2f} to "
            f"{fit.stretch[1]:.2f} (at most {MAX_SCALE})"
        )
    if not disagreement_px <= allowed_px:
        yield (
            f"registered to the follow-up and back the bone ends {disagreement_px:.2f} px from its "
            f"place (at most {allowed_px:.2f})"
        )
