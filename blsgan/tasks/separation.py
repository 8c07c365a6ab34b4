"""The front door: an image and the masks of two bones in, one layer for each bone out.

Where only one bone can be seen nothing is to be decided: its layer is the image. In the zone that
both bones' pictures reach (``blsgan.joint.zone``) a small network gives each bone's share of the
attenuation and the soft tissue, from a window around the overlap at the scale it was trained at;
the split itself (``blsgan.ops``) runs at full resolution on the original pixels, so the layers
recompose to the image whatever the network says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import BlsganError, InputError, WeightsError
from blsgan.joint.geometry import bounding_box, doubtful_masks
from blsgan.joint.window import MAX_AREA_PX, Window, around_overlap
from blsgan.joint.zone import SOFT_TISSUE_LEAST_PX, extend, soft_tissue_beside, zone
from blsgan.tasks.backend import Backend, create
from blsgan.tasks.task import MAX_REACH_PX, WeightsFile

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

_BATCH_AREA_PX = 2 * MAX_AREA_PX  # pixels that go through the network at once


@dataclass(frozen=True, repr=False)
class Separation:
    """The layers of one joint; all arrays but ``tissue`` are [H,W].

    Attributes:
        upper: float32 in [0,1], the upper bone with the soft tissue around it: the image inside its
            mask, its estimated layer in the zone, 0 elsewhere.
        lower: the same for the lower bone.
        reconstruction: float32, the layers composed by Beer-Lambert, 0 outside bones and zone.
        residual: float32, image there minus ``reconstruction``.
        tissue: float32 [N] in [0, 0.95], display intensity of soft tissue alone
            (docs/explanation/physics.md) at the zone's pixels, row by row.
        overlap: bool, pixels that both masks cover.
        zone: bool, pixels that both bones' pictures may reach: the overlap and a few pixels beside
            it, where a bone fades beyond its drawn mask.
        scale: working pixels per image pixel the network saw (1: not resampled).
        notes: what a user should know about this result.
    """

    upper: Float32
    lower: Float32
    reconstruction: Float32
    residual: Float32
    tissue: Float32
    overlap: Bool
    zone: Bool
    scale: float = 1.0
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        height, width = self.overlap.shape
        return f"<Separation: {width}x{height} px, overlap {np.count_nonzero(self.overlap)} px>"

    @property
    def layers(self) -> Float32:
        """float32 [2,H,W]: upper and lower layer in one array (a copy)."""
        return np.stack((self.upper, self.lower))

    @property
    def soft_tissue(self) -> Float32:
        """float32 [H,W]: ``tissue`` in the zone, NaN elsewhere (a copy)."""
        plane = np.full(self.zone.shape, np.nan, np.float32)
        plane[self.zone] = self.tissue
        return plane


class SeparationBatch(Sequence[Separation]):
    """Separations of a batch: a sequence of them, and their arrays stacked along a first axis B.

    The stacked views need at least one picture, and all of one size; they raise
    :class:`InputError` otherwise.
    """

    def __init__(self, items: Sequence[Separation]) -> None:
        self._items = tuple(items)

    @overload
    def __getitem__(self, index: int) -> Separation: ...
    @overload
    def __getitem__(self, index: slice) -> SeparationBatch: ...
    def __getitem__(self, index: int | slice) -> Separation | SeparationBatch:
        if isinstance(index, slice):
            return SeparationBatch(self._items[index])
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Separation]:
        return iter(self._items)

    @property
    def upper(self) -> Float32:
        """float32 [B,H,W]."""
        return self._stacked("upper")

    @property
    def lower(self) -> Float32:
        """float32 [B,H,W]."""
        return self._stacked("lower")

    @property
    def reconstruction(self) -> Float32:
        """float32 [B,H,W]."""
        return self._stacked("reconstruction")

    @property
    def residual(self) -> Float32:
        """float32 [B,H,W]."""
        return self._stacked("residual")

    @property
    def overlap(self) -> Bool:
        """bool [B,H,W]."""
        return self._stacked("overlap")

    @property
    def zone(self) -> Bool:
        """bool [B,H,W]."""
        return self._stacked("zone")

    @property
    def soft_tissue(self) -> Float32:
        """float32 [B,H,W]."""
        return self._stacked("soft_tissue")

    def _stacked(self, name: str) -> NDArray[Any]:
        sizes = {item.overlap.shape for item in self._items}
        if len(sizes) != 1:
            raise InputError(
                f"{len(self)} separations of {len(sizes)} sizes cannot be stacked; take them one "
                "by one."
            )
        return np.stack([getattr(item, name) for item in self._items])


class Separator:
    """Separates two overlapping bones of a radiograph.

    >>> separator = blsgan.Separator.from_pretrained()
    >>> joint = separator(image, masks)
    >>> joint.layers.shape
    (2, 128, 128)

    It can be pickled: another process loads the same file again, by path and hash.

    Args:
        backend: what runs the network.
        mirrored: whether the network also sees each joint mirrored left to right, and the mean of
            its two answers, shares' logits and k, is taken: layers closer to the truth by 0.1 dB
            (validation joints, synthetic and real), for twice the time.
    """

    def __init__(self, backend: Backend, *, mirrored: bool = False) -> None:
        self.backend = backend
        self.mirrored = mirrored

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: os.PathLike[str] | str | None = None,
        backend: str = "auto",
        *,
        threads: int | None = None,
        device: str | None = None,
        mirrored: bool = False,
    ) -> Separator:
        """Load weights: the shipped ones by default, or by name, or from a file.

        ``backend`` is "auto", "onnx", "openvino", "torch", "tensorrt" or "tensorrt-rtx"; an engine,
        given by its path, needs no name. ``threads`` defaults to the usable cores; ``mirrored``
        is the class's. ``device`` is "cpu", "gpu", "cuda", "tensorrt" or "tensorrt-rtx", and
        "cuda:1" the second GPU (:mod:`blsgan.runtimes.device`); the default is the CPU, or an
        engine where one fits. Raises
        :class:`WeightsError` for a missing, damaged or unsuitable file and for a name that does not
        exist, :class:`BackendError` when the backend cannot run here, :class:`UsageError` for a
        backend or device that does not exist or less than one thread.
        """
        return cls(create(backend, path_or_name, threads, device=device), mirrored=mirrored)

    def __repr__(self) -> str:
        return f"<Separator: {self.backend}>"

    @property
    def weights(self) -> WeightsFile:
        """Name, path and SHA-256 of the weights in use."""
        return self.backend.weights

    def __call__(
        self, image: NDArray[Any], masks: NDArray[Any], *, margin_px: int = 0
    ) -> Separation:
        """Separate one joint.

        Args:
            image: [H,W], white = dense: floating point in [0,1], or uint8 / uint16 over their whole
                range; [1,H,W] and grey RGB are taken as well, and the notes say so.
            masks: bool (or 0 and 1, or 0 and 255) [2,H,W], upper and lower bone.
            margin_px: how far the bones may reach beyond their masks near the overlap, in pixels
                where bones have the usual size, 0 to 16; for predicted masks
                ``blsgan.joint.zone.PREDICTED_MARGIN_PX``.

        Raises:
            InputError: shapes that do not fit, NaN or infinity, values outside [0,1], a mask that
                is empty or covers everything, an image that is constant under the bones, another
                margin.
        """
        return self.batch([image], [masks], margin_px=margin_px)[0]

    def batch(
        self,
        images: Sequence[NDArray[Any]] | NDArray[Any],
        masks: Sequence[NDArray[Any]] | NDArray[Any],
        *,
        margin_px: int = 0,
    ) -> SeparationBatch:
        """Separate several joints: images [B,H,W] (or a sequence of [H,W]), masks [B,2,H,W].

        Crops of one size go through the network together. Raises as :meth:`__call__` does.
        """
        if len(images) != len(masks):
            raise InputError(
                f"{len(images)} images came with {len(masks)} pairs of masks; give one each."
            )
        if not 0 <= margin_px <= MAX_REACH_PX:
            raise InputError(f"margin_px is {margin_px}; give 0 to {MAX_REACH_PX}.")
        joints = [
            _Joint.check(image, pair, self.weights, margin_px)
            for image, pair in zip(images, masks, strict=True)
        ]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, joint in enumerate(joints):
            if joint.window is not None:
                groups.setdefault((joint.window.height, joint.window.width), []).append(index)
        results: list[Separation | None] = [
            joint.without_overlap() if joint.window is None else None for joint in joints
        ]
        for (height, width), members in groups.items():
            step = max(1, _BATCH_AREA_PX // (height * width))
            for start in range(0, len(members), step):
                chunk = members[start : start + step]
                crops = [joints[index].network_input() for index in chunk]
                logits, soft_tissue = self._predict(
                    np.stack([crop[0] for crop in crops]), np.stack([crop[1] for crop in crops])
                )
                for row, index in enumerate(chunk):
                    results[index] = joints[index].split(
                        logits[row], soft_tissue[row], crops[row][1]
                    )
        return SeparationBatch([result for result in results if result is not None])

    def _predict(self, image: Float32, masks: Float32) -> tuple[Float32, Float32]:
        """What the crops are split by: the network's answer, or the mean of two."""
        logits, soft_tissue = self._run(image, masks)
        if self.mirrored:
            other = self._run(*(np.ascontiguousarray(x[..., ::-1]) for x in (image, masks)))
            logits = np.float32(0.5) * (logits + other[0][..., ::-1])
            soft_tissue = np.float32(0.5) * (soft_tissue + other[1][..., ::-1])
        return logits, soft_tissue

    def _run(self, image: Float32, masks: Float32) -> tuple[Float32, Float32]:
        """Run the network, and make sure that what it gave can be split by."""
        try:
            logits, soft_tissue = self.backend.run(image, masks)
        except BlsganError:
            raise
        except Exception as error:  # a runtime's own error types share no base class
            reason = (str(error).splitlines() or [""])[0][:120]
            raise WeightsError(
                f"{self.weights.path} fails on a crop of {list(masks.shape)} ({reason}); use other "
                "weights."
            ) from error
        if logits.shape != masks.shape or soft_tissue.shape != image.shape:
            raise WeightsError(
                f"{self.weights.path} is of another architecture: it gave shapes "
                f"{list(logits.shape)} and {list(soft_tissue.shape)}; use other weights."
            )
        if not (np.isfinite(logits).all() and np.isfinite(soft_tissue).all()):
            raise WeightsError(
                f"{self.weights.path} gave NaN or infinite values; use other weights."
            )
        return logits, soft_tissue


@dataclass(frozen=True)
class _Joint:
    """One checked image and its masks, with the window around its overlap (None without one), and
    the zone, which is empty then. The network sees the masks ``reached`` by the bones."""

    image: Float32
    masks: Bool
    reached: Bool
    overlap: Bool
    zone: Bool
    window: Window | None
    weights: WeightsFile
    notes: tuple[str, ...]

    @classmethod
    def check(
        cls, image: NDArray[Any], masks: NDArray[Any], weights: WeightsFile, margin_px: int
    ) -> _Joint:
        masks = np.asarray(masks)
        image, shape_notes = as_plane(np.asarray(image))
        if masks.shape != (2, *image.shape):
            raise InputError(
                f"masks have shape {list(masks.shape)} for an image of {list(image.shape)}; give "
                f"[2,{image.shape[0]},{image.shape[1]}] (upper, lower)."
            )
        masks, mask_notes = _as_masks(masks)
        image, notes = as_unit_interval(image)
        notes = (*shape_notes, *notes, *mask_notes)
        covered = masks[0] | masks[1]
        if covered.all():
            raise InputError("the masks cover every pixel; no background is left around the bones.")
        values = image[covered]
        if values.min() == values.max():
            raise InputError(
                f"the image is constant ({values[0]:g}) under the bones; there is nothing to "
                "separate."
            )
        doubt = doubtful_masks(masks)
        overlap = masks[0] & masks[1]
        window = around_overlap(masks, weights.size_multiple)
        reached, both = masks, np.zeros_like(overlap)
        if window is not None:
            if margin_px:
                reached = window.grown(masks, margin_px)
            both = window.zone(reached, weights.reach_px)
        return cls(
            image,
            masks,
            reached,
            overlap,
            both,
            window,
            weights,
            (*notes, doubt) if doubt else notes,
        )

    def without_overlap(self) -> Separation:
        """The separation of bones that do not overlap: each layer is the image inside its mask."""
        upper, lower, reconstruction = self._masked()
        return Separation(
            upper,
            lower,
            reconstruction,
            np.zeros(reconstruction.shape, np.float32),
            np.empty(0, np.float32),
            self.overlap,
            self.zone,
            notes=(
                *self.notes,
                "the bones do not overlap: the layers are the image inside each mask",
            ),
        )

    def network_input(self) -> tuple[Float32, Float32]:
        """Image [1,h,w] and masks [2,h,w] of the window at working scale, float32."""
        window = self._planned()
        image = window.resample(self.image)
        masks = np.stack([window.resample(mask) for mask in self.reached])
        working = masks >= 0.5
        if not (working[0] & working[1]).any():  # an overlap thinner than a working pixel
            working = masks > 0
        return image[None], working.astype(np.float32)

    def split(self, logits: Float32, soft_tissue: Float32, working_masks: Float32) -> Separation:
        """The layers, from share logits [2,h,w] and soft tissue [1,h,w] on the window."""
        window = self._planned()
        part, estimated = self._in_zone(logits, soft_tissue, working_masks)
        doubts = self._doubts_of_soft_tissue(working_masks)
        *layers, composed, tissue = estimated
        inside = self.zone[part]
        upper, lower, reconstruction = self._masked()
        original = self.image[part][inside]
        for plane, values in zip((upper, lower, reconstruction), (*layers, composed), strict=True):
            plane[part][inside] = values
        residual = np.zeros(reconstruction.shape, np.float32)
        residual[part][inside] = original - composed
        return Separation(
            upper,
            lower,
            reconstruction,
            residual,
            tissue,
            self.overlap,
            self.zone,
            window.scale,
            (*self.notes, *doubts),
        )

    def _in_zone(
        self, logits: Float32, soft_tissue: Float32, working_masks: Float32
    ) -> tuple[tuple[slice, slice], list[Float32]]:
        """Where the zone's box lies, and at the zone's pixels the layers, what they compose to and
        the soft tissue, each [N]."""
        from blsgan.ops import native

        window = self._planned()
        answers = np.concatenate((logits, soft_tissue))
        if not window.aligned:
            # The network answers for the zone only; interpolation must not take in what lies
            # outside.
            known = zone(working_masks > 0, self.weights.reach_px)
            answers = extend(answers, known)
        top, left, bottom, right = box = bounding_box(self.zone)
        part = np.s_[top:bottom, left:right]
        inside = self.zone[part]
        answers = window.restore(answers, box)[None]
        supports = np.ascontiguousarray(self.masks[:, top:bottom, left:right] | inside)[None]
        tissue, law = answers[:, 2:], self.weights.law
        image = np.ascontiguousarray(self.image[part])[None, None]
        layers = native.split_attenuation(answers[:, :2], image, supports, tissue, law)
        composed = native.compose_layers(layers, supports, tissue, law)
        return part, [plane[inside] for planes in (layers, composed, tissue) for plane in planes[0]]

    def _doubts_of_soft_tissue(self, working_masks: Float32) -> tuple[str, ...]:
        """What is doubtful about the soft tissue that the network saw beside the bones."""
        image, masks = self._planned().resample(self.image), working_masks > 0
        beside = soft_tissue_beside(image, masks)
        if np.count_nonzero(beside) < SOFT_TISSUE_LEAST_PX:
            return (
                "no soft tissue is seen beside the bones near the overlap: a typical one was "
                "assumed",
            )
        bones = masks[0] ^ masks[1]
        if bones.any() and np.median(image[beside]) >= np.median(image[bones]):
            return (
                "what lies beside the bones is as bright as they are: do the masks miss the bones?",
            )
        return ()

    def _masked(self) -> tuple[Float32, Float32, Float32]:
        union = self.masks[0] | self.masks[1]
        if self.reached is not self.masks:
            union |= self.zone
        top, left, bottom, right = bounding_box(union)
        box = np.s_[top:bottom, left:right]

        def inside(mask: Bool) -> Float32:
            # Pages of np.zeros that are never written take no memory: most of a large picture.
            plane = np.zeros(self.image.shape, np.float32)
            np.copyto(plane[box], self.image[box], where=mask[box])
            return plane

        return inside(self.masks[0]), inside(self.masks[1]), inside(union)

    def _planned(self) -> Window:
        assert self.window is not None, "only joints with an overlap go through the network"
        return self.window


def _as_masks(masks: NDArray[Any]) -> tuple[Bool, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if masks.dtype != np.bool_:
        if masks.dtype.kind not in "uif":
            raise InputError(f"masks have dtype {masks.dtype}; give bool, or 0 and 1.")
        if (masks == 255).any():
            notes = ("the masks are of 0 and 255: 255 was taken as bone",)
        if not ((masks == 0) | (masks == (255 if notes else 1))).all():
            raise InputError("masks have values other than 0 and 1; threshold them to bool first.")
        masks = masks.astype(np.bool_)
    for bone, mask in zip(("upper", "lower"), masks, strict=True):
        if not mask.any():
            raise InputError(f"the {bone} mask is empty; mark the bone's pixels in it.")
        if mask.all():
            raise InputError(
                f"the {bone} mask covers every pixel; mark only the bone's pixels in it."
            )
    return np.ascontiguousarray(masks), notes


def as_plane(image: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """An image as [H,W], from [1,H,W] and from RGB of equal channels too, and a note about it.

    Raises :class:`InputError` for another shape and for colours.
    """
    shape = list(image.shape)
    if image.ndim == 3 and shape[0] == 1:
        return image[0], (f"the image of shape {shape} was taken as [H,W]",)
    if image.ndim == 3 and shape[2] in (3, 4):
        grey = image[..., 0]
        if not (image[..., 1:3] == grey[..., None]).all():
            raise InputError(f"image of shape {shape} is in colour; give a radiograph [H,W].")
        return grey, (f"the grey RGB image of shape {shape} was taken as [H,W]",)
    if image.ndim != 2 or 0 in shape:
        raise InputError(f"image has shape {shape}; give [H,W].")
    return image, ()


def as_unit_interval(image: NDArray[Any]) -> tuple[Float32, tuple[str, ...]]:
    """An image as float32 in [0,1], and what a user should know about how it was read.

    Raises :class:`InputError` for another dtype, NaN or infinity, and values outside [0,1].
    """
    if image.dtype in (np.uint8, np.uint16):
        full = np.iinfo(image.dtype).max
        notes: tuple[str, ...] = ()
        if image.dtype == np.uint16 and image.size and image.max() < 2**14:
            notes = (
                f"the uint16 image reaches only {image.max()} of 65535: if it holds fewer "
                "bits, divide it by their maximum first",
            )
        return np.divide(image, np.float32(full), dtype=np.float32), notes
    if image.dtype.kind != "f":
        raise InputError(f"image has dtype {image.dtype}; give floats in [0,1], uint8 or uint16.")
    image = np.ascontiguousarray(image, dtype=np.float32)
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("image has NaN or infinite values; replace them first.")
    if low < 0 or high > 1:
        raise InputError(
            f"image has values from {low:g} to {high:g}, outside [0,1]; scale it first."
        )
    return image, ()
