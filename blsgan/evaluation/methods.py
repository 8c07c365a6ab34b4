"""What can be evaluated: closed forms, oracles that know the truth, and any separator, alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blsgan.errors import InputError
from blsgan.evaluation import baselines
from blsgan.synthesis.overlap import compose_image
from blsgan.tasks.separation import Separation, Separator

K_SYNTHETIC = 0.245  # mean k of the protocol's synthetic overlaps on the public dataset
K_HALF = 0.5  # under which the upper bone of real overlaps comes out best
K_REAL = 0.55  # what true layers from other visits ask for (docs/explanation/evaluation.md)


@dataclass(frozen=True)
class Overlap:
    """One overlap to separate: ``image`` float32 [H,W], ``masks`` bool [2,H,W].

    ``layers`` and ``soft_tissue`` are the truth where it is known; only oracles look at it.
    ``margin_px`` is ``Separator``'s, for predicted masks.
    """

    image: np.ndarray
    masks: np.ndarray
    margin_px: int = field(default=0, kw_only=True)
    layers: np.ndarray | None = None
    soft_tissue: float | None = None


@dataclass(frozen=True)
class Answer:
    """What a method makes of a sample.

    Attributes:
        layers: float32 [2,H,W].
        soft_tissue: the k they recompose with by the paper's law, or the mean of the soft tissue
            they recompose with by the method's own, for a method that states it.
        reconstruction: float32 [H,W], their composition by the method's own law; None: the paper's.
        zone: bool [H,W], where a layer may differ from the image; None: the overlap.
    """

    layers: np.ndarray
    soft_tissue: float | None = None
    reconstruction: np.ndarray | None = None
    zone: np.ndarray | None = None

    def composed(self, masks: np.ndarray) -> np.ndarray | None:
        """The bones' pixels [H,W] that the layers make together, where the method says how."""
        if self.reconstruction is not None:
            return np.where(masks.any(axis=0), self.reconstruction, np.float32(0))
        if self.soft_tissue is None:
            return None
        return compose_image(self.layers, masks, self.soft_tissue)


@dataclass(frozen=True)
class Method:
    """A named separation; ``description`` holds what identifies a model (weights, backend)."""

    name: str
    run: Callable[[Overlap], Answer]
    description: dict[str, Any] = field(default_factory=dict)

    def __call__(self, sample: Overlap) -> Answer:
        """Runs the method and refuses an answer that is not one.

        Raises:
            InputError: layers of another shape, or a value that is not finite.
        """
        answer = self.run(sample)
        if answer.layers.shape != sample.masks.shape:
            raise InputError(
                f"{self.name} answered layers of shape {answer.layers.shape}; "
                f"expected {sample.masks.shape}"
            )
        if not np.isfinite(answer.layers).all():
            raise InputError(f"{self.name} answered layers with NaN or infinite values")
        return answer


def from_callable(
    name: str,
    separate: Callable[[np.ndarray, np.ndarray], Any],
    description: dict[str, Any] | None = None,
) -> Method:
    """Wraps ``(image [H,W], masks [2,H,W]) -> layers [2,H,W]`` or ``-> Separation``.

    A ``blsgan.Separator`` is such a callable; its answer's layers, soft tissue, reconstruction and
    zone are taken.
    """

    def run(sample: Overlap) -> Answer:
        answer = separate(sample.image, sample.masks)
        return Answer(answer) if isinstance(answer, np.ndarray) else _answer(answer)

    return Method(name, run, description or {})


def _answer(separation: Separation) -> Answer:
    tissue = separation.tissue
    return Answer(
        np.stack((separation.upper, separation.lower)),
        float(tissue.mean()) if len(tissue) else None,
        separation.reconstruction,
        separation.zone,
    )


def from_separator(separator: Separator) -> Method:
    """A loaded separator under the name of its weights, with their hash and its backend."""
    weights, backend = separator.weights, separator.backend
    description = {
        "weights": weights.name,
        "weights_file": weights.path.name,
        "sha256": weights.sha256,
        "architecture": weights.architecture,
        "backend": backend.name,
        "backend_version": backend.version,
        "mirrored": separator.mirrored,
    }

    def run(sample: Overlap) -> Answer:
        return _answer(separator(sample.image, sample.masks, margin_px=sample.margin_px))

    return Method(model_name(description), run, description)


def model_name(description: Mapping[str, Any]) -> str:
    """A model's name among the methods, of what identifies it."""
    return f"blsgan {description['weights']}" + (
        ", mirrored" if description.get("mirrored") else ""
    )


def _equal(soft_tissue: float) -> Callable[[Overlap], Answer]:
    def run(sample: Overlap) -> Answer:
        layers = baselines.equal_split(sample.image, sample.masks, soft_tissue)
        return Answer(layers, soft_tissue)

    return run


def _ring(
    split: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
) -> Callable[[Overlap], Answer]:
    def run(sample: Overlap) -> Answer:
        k = baselines.ring_soft_tissue(sample.image, sample.masks)
        return Answer(split(sample.image, sample.masks, k), k)

    return run


def _known(sample: Overlap) -> tuple[np.ndarray, float]:
    if sample.layers is None or sample.soft_tissue is None:
        raise ValueError("an oracle needs the truth of the sample")
    return sample.layers, sample.soft_tissue


def _equal_with_true_k(sample: Overlap) -> Answer:
    _, k = _known(sample)
    return Answer(baselines.equal_split(sample.image, sample.masks, k), k)


def _harmonic_with_true_k(sample: Overlap) -> Answer:
    _, k = _known(sample)
    return Answer(baselines.harmonic_with_physics(sample.image, sample.masks, k), k)


def _true_share(sample: Overlap) -> Answer:
    layers, k = _known(sample)
    # Softmax of the log attenuations above soft tissue's is the true share of the bones'.
    density = -np.log1p(-np.clip(layers.astype(np.float64), 0, 1 - 1e-4))
    logits = np.log(np.maximum(density + np.log1p(-k), 1e-6))
    return Answer(baselines.share_split(sample.image, sample.masks, logits, k), k)


def _closed(
    separate: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[Overlap], Answer]:
    return lambda sample: Answer(separate(sample.image, sample.masks))


COPY = Method("copy", _closed(baselines.copy_layers))
HARMONIC = Method("harmonic", _closed(baselines.harmonic))
EQUAL_RING = Method("equal split, ring k", _ring(baselines.equal_split))
HARMONIC_RING = Method("harmonic + physics, ring k", _ring(baselines.harmonic_with_physics))


def synthetic_baselines() -> list[Method]:
    """What is printed beside a model on synthetic pairs."""
    return [
        COPY,
        HARMONIC,
        Method("harmonic + physics, true k", _harmonic_with_true_k),
        EQUAL_RING,
        Method("equal split, true k", _equal_with_true_k),
    ]


def synthetic_limit() -> Method:
    """The best any exact split can do: the true share; only smoothing and resampling are lost."""
    return Method("limit: true share", _true_share)


def real_baselines() -> list[Method]:
    """What is printed beside a model on real overlaps, where nobody knows k."""
    return [
        COPY,
        Method(f"equal split, k={K_SYNTHETIC}", _equal(K_SYNTHETIC)),
        Method(f"equal split, k={K_REAL}", _equal(K_REAL)),
        EQUAL_RING,
        HARMONIC,
        HARMONIC_RING,
    ]


PRIOR = Method("prior: equal split + harmonic of the zone", _closed(baselines.prior))


def hidden_baselines() -> list[Method]:
    """What is printed beside a model where hidden bones are judged by several visits."""
    return [
        COPY,
        Method(f"equal split, k={K_HALF}", _equal(K_HALF)),
        Method(f"equal split, k={K_REAL}", _equal(K_REAL)),
        EQUAL_RING,
        Method("equal split, soft tissue beside", _closed(baselines.equal_split_beside)),
        HARMONIC,
        HARMONIC_RING,
        Method("equal split + harmonic, halved", _closed(baselines.halved_with_harmonic)),
        PRIOR,
    ]
