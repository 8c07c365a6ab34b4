"""Fréchet distance between separated and real bones, always with the features named.

The distance of two samples of features is that of two normal distributions with their means and
covariances (Heusel et al., 2017): |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)), here in float64. It
is called FID with the features of the FID's Inception network alone, which a user has to supply.
What is always there are :func:`patch_extractor`'s features, which pass the check of
:func:`compare_with_truth` (docs/explanation/evaluation.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.linalg import eigh

from blsgan.errors import BackendError, InputError
from blsgan.io.files import read_file
from blsgan.joint.geometry import cut
from blsgan.runtimes.onnx import OnnxSession

PATCH_PX = 8
PATCHES = 64  # of each bone, spread evenly over the overlap
BONE_CROP_PX = 64
INSIDE_PX = 48  # rows of a crop on the bone's side of its end at the joint; the others lie beyond
INCEPTION_FEATURES = 2048
_INCEPTION_SIZE_PX = 299
_LEAST_TRANSMISSION = 1e-3
UPPER = 0


@dataclass(frozen=True)
class Extractor:
    """Named features of one bone.

    Attributes:
        name: the metric's name.
        description: what identifies the features: ``what`` in words, ``features``, their number,
            and of a file its name and SHA-256.
        run: (layer float [H,W] in [0,1], mask bool [H,W], overlap bool [H,W], bone 0 or 1) ->
            float64 [n,D].
        standardised: whether the distance is taken in units of each feature's standard deviation
            over the real bones, and divided by D.
    """

    name: str
    description: dict[str, Any]
    run: Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
    standardised: bool = False

    def __call__(
        self, layers: np.ndarray, masks: np.ndarray, overlaps: np.ndarray
    ) -> list[np.ndarray]:
        """Features of every bone of layers, masks and overlaps [2,H,W].

        Raises:
            InputError: a network answers anything but finite numbers.
        """
        found = []
        for bone, (layer, mask, overlap) in enumerate(zip(layers, masks, overlaps, strict=True)):
            features = np.asarray(self.run(layer, mask, overlap, bone), np.float64)
            if not np.isfinite(features).all():
                raise InputError(f"{self.name}: answers features with NaN or infinite values")
            found.append(features)
        return found


def patch_extractor() -> Extractor:
    """The offline features: 8x8 DCT coefficients of the attenuation at pixels of the overlap.

    64 pixels of each overlap, evenly spread; around each the patch of -log(1 - L); its orthonormal
    DCT-II. Means and covariances of those 64 numbers hold brightness, slopes, and how much texture
    there is of each orientation and fineness.
    """
    return Extractor(
        "Fréchet distance, patch DCT",
        {
            "what": f"{PATCH_PX}x{PATCH_PX} DCT coefficients of the attenuation at pixels of the "
            "overlap, in units of their standard deviation",
            "features": PATCH_PX**2,
        },
        _patch_features,
        standardised=True,
    )


def _dct_matrix() -> np.ndarray:
    index = np.arange(PATCH_PX)
    matrix = np.cos(np.pi * (2 * index[None] + 1) * index[:, None] / (2 * PATCH_PX))
    matrix *= np.sqrt(2 / PATCH_PX)
    matrix[0] /= np.sqrt(2)
    return matrix


_DCT = _dct_matrix()


def _patch_features(
    layer: np.ndarray, mask: np.ndarray, overlap: np.ndarray, bone: int
) -> np.ndarray:
    before = PATCH_PX // 2
    padded = np.pad(layer, (before, PATCH_PX - 1 - before))
    windows = sliding_window_view(padded, (PATCH_PX, PATCH_PX))
    rows, columns = np.nonzero(overlap)
    chosen = np.linspace(0, len(rows) - 1, min(PATCHES, len(rows))).astype(int)
    patches = windows[rows[chosen], columns[chosen]].astype(np.float64)
    attenuation = -np.log(np.clip(1 - patches, _LEAST_TRANSMISSION, 1))
    return (_DCT @ attenuation @ _DCT.T).reshape(len(chosen), -1)


def pushed_together(masks: np.ndarray, shift_px: int) -> np.ndarray:
    """Where the bones of a free joint would overlap, on each bone's own pixels: bool [2,H,W].

    The other bone is moved ``shift_px`` rows towards this one: a real, free bone is cut out as an
    overlap would hide it, and its pixels stay as they are.
    """
    moved_up, moved_down = np.zeros_like(masks[0]), np.zeros_like(masks[0])
    moved_up[:-shift_px] = masks[1][shift_px:]
    moved_down[shift_px:] = masks[0][:-shift_px]
    return np.stack((masks[0] & moved_up, masks[1] & moved_down))


def load_extractor(path: str | Path, *, inception: bool = False) -> Extractor:
    """A feature network from a file.

    It sees the end of a bone at the joint (:func:`bone_crop`) as a picture [1,3,H,W] of three equal
    channels with values 0..255, float32, resized to the file's own input size where it has a fixed
    one (299x299 for Inception), and answers [1,D] or [1,D,1,1]. Scaling belongs into the file, as
    in the FID's own network.

    Args:
        path: ONNX (``.onnx``), or TorchScript, whose ``forward`` is called with
            ``return_features=True`` where it has such an argument.
        inception: the file is the FID's Inception network: the distance is called FID.

    Raises:
        InputError: the file is missing, no such network, or (``inception``) has other than 2048
            features.
        WeightsError: an ONNX file that cannot be loaded.
        BackendError: TorchScript without torch.
    """
    path = Path(path)
    file = read_file(path, what="feature network")
    network = _onnx(path, file.data) if path.suffix == ".onnx" else _torchscript(path, inception)

    def run(layer: np.ndarray, mask: np.ndarray, overlap: np.ndarray, bone: int) -> np.ndarray:
        features = network(bone_crop(layer, mask, bone))
        if features.ndim < 2 or features.shape[0] != 1:
            raise InputError(
                f"{path}: answers shape {features.shape} for one picture; give a "
                "network with one row of features for each"
            )
        return features.reshape(1, -1)

    found = run(
        np.zeros((BONE_CROP_PX, BONE_CROP_PX)),
        np.ones((BONE_CROP_PX, BONE_CROP_PX), bool),
        np.ones((BONE_CROP_PX, BONE_CROP_PX), bool),
        UPPER,
    ).shape[1]
    if inception and found != INCEPTION_FEATURES:
        raise InputError(
            f"{path}: has {found} features where the FID's Inception network has "
            f"{INCEPTION_FEATURES}; give it as --extractor, its distance is no FID"
        )
    name = "FID" if inception else f"Fréchet distance, {path.stem}"
    description = {
        "what": f"{path.name} (sha256 {file.sha256[:12]}) of {BONE_CROP_PX}x{BONE_CROP_PX} px at "
        "the bones' ends",
        "features": found,
        "file": path.name,
        "sha256": file.sha256,
    }
    return Extractor(name, description, run)


def _picture(crop: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """float32 [1,3,H,W], 0..255, of a crop [h,w] in [0,1]."""
    values = np.rint(np.clip(crop, 0, 1) * 255).astype(np.float32)
    if size is not None and size != values.shape:
        values = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.repeat(values[None, None], 3, axis=1)


def _onnx(path: Path, data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    session = OnnxSession(data, str(path))
    shapes = [shape or () for shape in session.inputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise InputError(f"{path}: is no feature network, which has one input, pictures [B,3,H,W]")
    ((name, _),), (_, _, height, width) = session.inputs.items(), shapes[0]
    size = (height, width) if height and width else None

    def run(crop: np.ndarray) -> np.ndarray:
        picture = _picture(crop, size)
        try:
            return np.asarray(next(iter(session.run({name: picture}).values())))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise InputError(
                f"{path}: takes no picture of shape {picture.shape} ({_first_line(error)})"
            ) from error

    return run


def _torchscript(path: Path, inception: bool) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            f"{path}: a TorchScript network needs PyTorch, which is not installed; "
            "pip install 'blsgan[train]' or give an ONNX file"
        ) from error
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"{path}: is neither TorchScript nor ONNX ({_first_line(error)})"
        ) from error
    schema = getattr(module.forward, "schema", None)
    arguments = {argument.name for argument in schema.arguments} if schema is not None else set()
    keywords = {"return_features": True} if "return_features" in arguments else {}
    # With that argument it resizes by itself, as the FID's own file does.
    size = (_INCEPTION_SIZE_PX, _INCEPTION_SIZE_PX) if inception and not keywords else None

    def run(crop: np.ndarray) -> np.ndarray:
        picture = _picture(crop, size)
        try:
            with torch.inference_mode():
                features = module(torch.from_numpy(picture), **keywords)
            return np.asarray(features.double().cpu().numpy())
        except (RuntimeError, AttributeError) as error:
            raise InputError(
                f"{path}: takes no picture of shape {picture.shape} ({_first_line(error)})"
            ) from error

    return run


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two samples of features [N,D] and [M,D], N, M >= 2, in float64.

    tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
    symmetric: no complex part to throw away, and nothing to add to a singular covariance.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"features of shapes {first.shape} and {second.shape} have no distance")
    difference = first.mean(axis=0) - second.mean(axis=0)
    one, other = (np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (first, second))
    values, vectors = eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ other @ root
    shared = np.sqrt(np.maximum(eigh((product + product.T) / 2, eigvals_only=True), 0)).sum()
    distance = difference @ difference + np.trace(one) + np.trace(other) - 2 * shared
    return float(max(distance, 0.0))


def bone_crop(layer: np.ndarray, mask: np.ndarray, bone: int) -> np.ndarray:
    """The end of a bone at the joint, float32 [64,64], 0 outside the bone and the picture.

    It depends on the bone's own mask alone, so a bone is cut out alike whether another one hides
    part of it or not: 48 rows of the bone and 16 beyond its end, around the middle of those rows.

    Args:
        layer: [H,W], the image inside the bone, or a separated layer.
        mask: bool [H,W], the bone.
        bone: 0 upper (its end is the lowest row), 1 lower (its end is the highest).
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if bone == UPPER:
        top = int(rows[-1]) + 1 - INSIDE_PX
        inside = mask[max(top, 0) : int(rows[-1]) + 1]
    else:
        top = int(rows[0]) - (BONE_CROP_PX - INSIDE_PX)
        inside = mask[int(rows[0]) : int(rows[0]) + INSIDE_PX]
    left = round(float(np.nonzero(inside)[1].mean())) - BONE_CROP_PX // 2
    bone_alone = np.where(mask, layer, 0).astype(np.float32)
    return cut(bone_alone, (top, left, top + BONE_CROP_PX, left + BONE_CROP_PX))


@dataclass
class FeatureRows:
    """Features of many bones and the joint of each row."""

    rows: list[np.ndarray] = field(default_factory=list)
    joints: list[str] = field(default_factory=list)
    bones: int = 0

    def add(self, features: list[np.ndarray], joint: str) -> None:
        """Adds the features of one image's bones."""
        for rows in features:
            self.rows.append(rows)
            self.joints += [joint] * len(rows)
            self.bones += 1

    def stacked(self) -> np.ndarray:
        """float64 [N,D]."""
        return np.concatenate(self.rows)

    def half(self) -> np.ndarray:
        """Which half of the joints each row belongs to, bool [N]; fixed by the joint's name."""
        side = {
            joint: hashlib.sha256(f"half:{joint}".encode()).digest()[0] % 2 == 0
            for joint in set(self.joints)
        }
        return np.array([side[joint] for joint in self.joints])


def _scaled_distance(extractor: Extractor, real: np.ndarray) -> Callable[..., float]:
    """:func:`frechet_distance` in the extractor's units; ``real`` are the real bones' features."""
    if not extractor.standardised:
        return frechet_distance
    scale = np.maximum(real.std(axis=0), 1e-9)
    return lambda first, second: frechet_distance(first / scale, second / scale) / len(scale)


def _halved_distance(
    distance: Callable[..., float], first: FeatureRows, second: FeatureRows
) -> float | None:
    """Mean distance of one half of the joints in ``first`` to the other half in ``second``."""
    found = []
    for side in (False, True):
        one = first.stacked()[first.half() == side]
        other = second.stacked()[second.half() != side]
        if min(len(one), len(other)) < 2:
            return None
        found.append(distance(one, other))
    return float(np.mean(found))


def compare_with_real(
    extractor: Extractor, generated: Mapping[str, FeatureRows], real: FeatureRows
) -> dict[str, Any] | None:
    """Each method's distance to real bones, and that of real bones to other joints' real bones.

    Args:
        extractor: the features.
        generated: method -> separated bones.
        real: bones that nothing hides.

    Returns:
        ``distance`` (method -> value), ``real_halves`` (None where there are too few joints), and
        the numbers of bones; None with fewer than two bones on either side.
    """
    if real.bones < 2 or any(sample.bones < 2 for sample in generated.values()):
        return None
    features = real.stacked()
    distance = _scaled_distance(extractor, features)
    return {
        "name": extractor.name,
        "extractor": extractor.description,
        "generated": next(iter(generated.values())).bones,
        "real": real.bones,
        "distance": {
            method: distance(sample.stacked(), features) for method, sample in generated.items()
        },
        "real_halves": _halved_distance(distance, real, real),
    }


def compare_with_truth(
    extractor: Extractor, generated: Mapping[str, FeatureRows], truth: FeatureRows
) -> dict[str, Any] | None:
    """The check of the features themselves, where the true layers are known.

    Layers of one half of the joints against the true layers of the other half, both ways. Features
    are worth something only where no closed form comes nearer than the truth itself does.

    Args:
        extractor: the features.
        generated: method -> separated bones.
        truth: the true layers of the same bones.

    Returns:
        ``distance`` (method -> value, among them ``truth``), ``nearer_than_truth`` (methods that
        the features rank above the truth), the number of bones; None with too few joints.
    """
    if truth.bones < 2:
        return None
    distance = _scaled_distance(extractor, truth.stacked())
    found = {"truth": _halved_distance(distance, truth, truth)}
    for method, sample in generated.items():
        found[method] = _halved_distance(distance, sample, truth)
    own = found["truth"]
    if own is None:
        return None
    return {
        "name": extractor.name,
        "extractor": extractor.description,
        "generated": truth.bones,
        "distance": found,
        "nearer_than_truth": [m for m, value in found.items() if value is not None and value < own],
    }
