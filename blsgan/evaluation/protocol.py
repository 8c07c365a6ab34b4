"""The evaluation protocol: synthetic overlaps with a known truth, real ones with another visit's.

Reads the public dataset's layout, runs every method on the same samples, and returns plain data:
one record for each image (or comparison) and method, and a summary with bootstrap intervals over
joints. Nothing is written here (``blsgan.evaluation.results`` does that).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blsgan.data.layout import (
    MIN_OVERLAP_PX,
    JointArrays,
    JointImage,
    joints_of,
    overlap_px,
    read_joint,
)
from blsgan.data.visits import PROTOCOL, VisitTruth
from blsgan.errors import InputError
from blsgan.evaluation import frechet
from blsgan.evaluation.frechet import Extractor
from blsgan.evaluation.methods import (
    Method,
    Overlap,
    real_baselines,
    synthetic_baselines,
    synthetic_limit,
)
from blsgan.evaluation.metrics import (
    BUCKETS,
    SPECTRUM_EDGES,
    bootstrap_balanced_mean,
    bootstrap_mean,
    bucket_name,
    bucket_of,
    error_spectrum,
    psnr_db,
    region_mse,
    score_regions,
)
from blsgan.io.masks import BONES
from blsgan.progress import Track, silent
from blsgan.synthesis.overlap import (
    PROTOCOL_SHIFT_PX,
    as_unit,
    image_rng,
    protocol_overlap,
)

# Layers and masks [2,H,W] -> a supervisor's probabilities [4,h,w] (upper and lower bone here, upper
# and lower one real) and the masks [2,h,w] of what it saw (blsgan.evaluation.networks).
Supervise = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class NothingToMeasureError(InputError):
    """The images are fine, but none of them has what a part of the protocol measures."""


@dataclass
class Part:
    """One part of an evaluation: flat records, their summary, and what was left out and why."""

    records: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def _average(
    records: Sequence[dict[str, Any]], keys: Sequence[str], seed: int
) -> dict[str, dict[str, float]]:
    """Mean and interval of every key that has a value, over the records that have one."""
    averages = {}
    for key in keys:
        having = [r for r in records if r.get(key) is not None]
        if having:
            interval = bootstrap_mean(
                [r[key] for r in having], [r["joint"] for r in having], seed=seed
            )
            averages[key] = interval.as_dict()
    return averages


def _count(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "images": len({r["image"] for r in records}),
        "joints": len({r["joint"] for r in records}),
    }


class _Features:
    """The features of all methods' bones, and of those they are compared with, by extractor."""

    def __init__(self, extractors: Sequence[Extractor]) -> None:
        self._samples = [
            (extractor, defaultdict[str, frechet.FeatureRows](frechet.FeatureRows))
            for extractor in extractors
        ]

    def add(
        self, method: str, joint: str, layers: np.ndarray, masks: np.ndarray, overlap: np.ndarray
    ) -> None:
        for extractor, samples in self._samples:
            samples[method].add(extractor(layers, masks, np.stack([overlap] * len(masks))), joint)

    def add_free_bones(
        self, method: str, joint: JointImage, arrays: JointArrays, seed: int
    ) -> None:
        """The bones of an image without overlap, cut out where an overlap would lie."""
        image = as_unit(arrays.image)
        low, high = PROTOCOL_SHIFT_PX
        shift = int(image_rng(joint.name, seed).integers(2 * low, 2 * high + 1))
        hidden = frechet.pushed_together(arrays.masks, shift)
        if hidden.sum(axis=(1, 2)).min() < MIN_OVERLAP_PX:
            return
        for extractor, samples in self._samples:
            found = extractor(image * arrays.masks, arrays.masks, hidden)
            samples[method].add(found, joint.joint)

    def compare(
        self, reference: str, how: Callable[..., dict[str, Any] | None]
    ) -> list[dict[str, Any]]:
        """``how`` of every extractor, without those that found too few bones."""
        found = []
        for extractor, samples in self._samples:
            methods = {name: sample for name, sample in samples.items() if name != reference}
            result = how(extractor, methods, samples[reference]) if methods else None
            if result is not None:
                found.append(result)
        return found


def evaluate_synthetic(
    images: Sequence[JointImage],
    model: Method | None,
    *,
    seed: int = 0,
    progress: Track = silent,
    extractors: Sequence[Extractor] = (),
    baselines: bool = True,
) -> Part:
    """Scores the protocol's synthetic overlaps of the joints without overlap among ``images``.

    Args:
        images: entries of the dataset; those with an overlap of >= 20 px have no known layers and
            are left out, as are composites whose bones meet in fewer than 20 px.
        model: the separator, or None for the closed forms alone.
        seed: of the shifts and of the bootstrap.
        progress: wraps the loop over the images.
        extractors: features whose Fréchet distance is checked against the truth.
        baselines: also measure the closed forms and the limit.

    Raises:
        InputError: a listed file is missing or damaged.
        NothingToMeasureError: no image gives a composite.
    """
    methods = [model] if model else []
    if baselines:
        methods = [*synthetic_baselines(), *methods, synthetic_limit()]
    spectra: dict[str, list[np.ndarray]] = defaultdict(list)
    features = _Features(extractors)
    part = Part(left_out={"real overlap": 0, "no background": 0, "bones do not meet": 0})
    for joint in progress(images, "synthetic overlaps", len(images)):
        arrays = read_joint(joint)
        if overlap_px(arrays.masks) >= MIN_OVERLAP_PX:
            part.left_out["real overlap"] += 1
            continue
        if arrays.background is None:
            part.left_out["no background"] += 1
            continue
        pair = protocol_overlap(
            joint.name, arrays.image, arrays.masks, arrays.background, seed=seed
        )
        if pair is None:
            part.left_out["bones do not meet"] += 1
            continue
        sample = Overlap(pair.image, pair.masks, pair.layers, pair.soft_tissue)
        regions = {"overlap": pair.overlap, "union": pair.union}
        size = int(pair.overlap.sum())
        features.add("truth", joint.joint, pair.layers, pair.masks, pair.overlap)
        for method in methods:
            started = time.perf_counter()
            answer = method(sample)
            elapsed_ms = 1000 * (time.perf_counter() - started)
            record: dict[str, Any] = {
                "method": method.name,
                "joint": joint.joint,
                "image": joint.name,
                "overlap_px": size,
                "bucket": bucket_of(size),
                "time_ms": elapsed_ms,
            }
            for region, score in score_regions(answer.layers, pair.layers, regions).items():
                record |= {
                    f"{region}_mse": score.mse,
                    f"{region}_psnr_db": score.psnr_db,
                    f"{region}_ssim": score.ssim,
                }
            spectra[method.name].append(error_spectrum(answer.layers, pair.layers, pair.overlap))
            features.add(method.name, joint.joint, answer.layers, pair.masks, pair.overlap)
            composed = answer.composed(sample.masks)
            if composed is not None and answer.soft_tissue is not None:
                record["reconstruction_mse"] = region_mse(composed, sample.image, regions["union"])
                record["soft_tissue"] = answer.soft_tissue
                record["soft_tissue_error"] = abs(answer.soft_tissue - pair.soft_tissue)
            part.records.append(record)
    if not part.records:
        raise NothingToMeasureError(
            f"none of the {len(images)} images gives a synthetic overlap "
            f"({_reasons(part.left_out)}); give a split with joints "
            "without overlap"
        )
    part.summary = {
        **_count(part.records),
        "left_out": part.left_out,
        "methods": _by_method(part.records, methods, seed, _summarise_synthetic),
        "spectrum": {
            "cycles_per_px": SPECTRUM_EDGES.tolist(),
            "mse": {name: np.mean(bands, axis=0).tolist() for name, bands in spectra.items()},
        },
    }
    part.summary["frechet"] = features.compare("truth", frechet.compare_with_truth)
    return part


_SYNTHETIC_KEYS = (
    "overlap_mse",
    "overlap_psnr_db",
    "overlap_ssim",
    "union_mse",
    "union_psnr_db",
    "union_ssim",
    "reconstruction_mse",
    "soft_tissue",
    "soft_tissue_error",
    "time_ms",
)


def _reasons(left_out: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in left_out.items())


def _by_method(
    records: Sequence[dict[str, Any]],
    methods: Sequence[Method],
    seed: int,
    summarise: Callable[[Sequence[dict[str, Any]], int], dict[str, Any]],
) -> dict[str, Any]:
    groups = defaultdict(list)
    for record in records:
        groups[record["method"]].append(record)
    return {m.name: summarise(groups[m.name], seed) for m in methods if groups[m.name]}


def _summarise_synthetic(records: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    buckets = {}
    for bucket in map(bucket_name, BUCKETS):
        chosen = [r for r in records if r["bucket"] == bucket]
        if chosen:
            buckets[bucket] = {**_count(chosen), **_average(chosen, _SYNTHETIC_KEYS[:6], seed)}
    return {**_average(records, _SYNTHETIC_KEYS, seed), "buckets": buckets}


def evaluate_real(
    images: Sequence[JointImage],
    truths: Sequence[VisitTruth],
    model: Method | None,
    *,
    seed: int = 0,
    progress: Track = silent,
    extractors: Sequence[Extractor] = (),
    supervise: Supervise | None = None,
    baselines: bool = True,
) -> Part:
    """Scores real overlaps: hidden bones against another visit, recomposition against the image.

    Args:
        images: entries of the dataset; those with an overlap of >= 20 px are separated.
        truths: what :func:`blsgan.data.visits.visit_truths` finds among ``images``.
        model: the separator, or None for the closed forms alone.
        seed: of the bootstrap.
        progress: wraps the loop over the images.
        extractors: features for the Fréchet distance to the bones of images without overlap.
        supervise: a trained supervisor, to say how much it agrees with the masks.
        baselines: also measure the closed forms.

    Returns:
        Records of two kinds: ``kind`` "layer" (one for each truth and method: ``psnr_db``,
        ``mse``, the ``floor_psnr_db`` of its registration, and ``another_visit_psnr_db``, what
        further visits of that bone score against it, None where there is none) and "image" (one for
        each image and method: reconstruction over the union where it states its k, the
        supervisor's agreement).

    Raises:
        InputError: a listed file is missing or damaged.
        NothingToMeasureError: no image has an overlap.
    """
    methods = [*(real_baselines() if baselines else []), *([model] if model else [])]
    wanted: dict[str, list[VisitTruth]] = defaultdict(list)
    for truth in truths:
        wanted[truth.image].append(truth)
    part = Part(left_out={"no overlap": 0})
    features = _Features(extractors)
    for joint in progress(images, "real overlaps", len(images)):
        arrays = read_joint(joint)
        size = overlap_px(arrays.masks)
        if size < MIN_OVERLAP_PX:
            part.left_out["no overlap"] += 1
            if extractors:
                features.add_free_bones("real", joint, arrays, seed)
            continue
        overlap, union = arrays.masks[0] & arrays.masks[1], arrays.masks[0] | arrays.masks[1]
        sample = Overlap(as_unit(arrays.image), arrays.masks)
        inside = sample.image * union
        others = [_another_visit(truth, wanted[joint.name]) for truth in wanted[joint.name]]
        for method in methods:
            answer = method(sample)
            base = {
                "method": method.name,
                "joint": joint.joint,
                "image": joint.name,
                "overlap_px": size,
                "bucket": bucket_of(size),
            }
            record: dict[str, Any] = {**base, "kind": "image", "soft_tissue": answer.soft_tissue}
            composed = answer.composed(sample.masks)
            if composed is not None:
                score = score_regions(composed[None], inside[None], {"union": union})["union"]
                record |= {
                    "reconstruction_mse": score.mse,
                    "reconstruction_psnr_db": score.psnr_db,
                    "reconstruction_ssim": score.ssim,
                }
            features.add(method.name, joint.joint, answer.layers, sample.masks, overlap)
            if supervise is not None:
                record |= _agreement(*supervise(answer.layers, sample.masks))
            part.records.append(record)
            for truth, other in zip(wanted[joint.name], others, strict=True):
                mse = region_mse(answer.layers[truth.bone], truth.truth, truth.valid)
                part.records.append(
                    {
                        **base,
                        "kind": "layer",
                        "other": truth.other,
                        "bone": BONES[truth.bone],
                        "mse": mse,
                        "psnr_db": psnr_db(mse),
                        "correlation": truth.correlation,
                        "floor_psnr_db": psnr_db(truth.floor_mse),
                        "pixels": int(truth.valid.sum()),
                        "another_visit_psnr_db": other,
                    }
                )
    if not part.records:
        raise NothingToMeasureError(
            f"none of the {len(images)} images has an overlap of "
            f"{MIN_OVERLAP_PX} px or more; give a split with overlapped "
            "joints"
        )
    part.summary = _real_summary(part, methods, seed)
    part.summary["frechet"] = features.compare("real", frechet.compare_with_real)
    return part


def _another_visit(truth: VisitTruth, truths: Sequence[VisitTruth]) -> float | None:
    """PSNR in dB of what further visits show of the same hidden bone against ``truth``: the mean
    over those that share as many pixels with it as a truth must have."""
    scores = []
    for other in truths:
        shared = truth.valid & other.valid
        if (
            other.bone == truth.bone
            and other.other != truth.other
            and shared.sum() >= PROTOCOL.truth_px
        ):
            scores.append(psnr_db(region_mse(other.truth, truth.truth, shared)))
    return float(np.mean(scores)) if scores else None


def _agreement(probabilities: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """How much a supervisor finds each bone in its layer, and takes the overlap for real.

    ``supervisor_dice``: Dice of the first two channels, cut at 0.5, and the masks, mean over the
    bones; ``supervisor_real``: share of the overlap that its last two channels take for a real,
    separated layer, mean over the bones.
    """
    here, real = probabilities[: len(masks)] > 0.5, probabilities[len(masks) :] > 0.5
    shared = np.logical_and(here, masks).sum(axis=(1, 2))
    both = here.sum(axis=(1, 2)) + masks.sum(axis=(1, 2))
    overlap = masks.all(axis=0)
    return {
        "supervisor_dice": float(np.mean(2 * shared / both)),
        "supervisor_real": float(real[:, overlap].mean()),
    }


def _real_summary(part: Part, methods: Sequence[Method], seed: int) -> dict[str, Any]:
    layer = [r for r in part.records if r["kind"] == "layer"]
    first = [r for r in layer if r["method"] == methods[0].name]
    summary: dict[str, Any] = {
        **_count(part.records),
        "left_out": part.left_out,
        "methods": _by_method(part.records, methods, seed, _summarise_real),
        "comparisons": {bone: len([r for r in first if r["bone"] == bone]) for bone in BONES},
        "floor": {},
        "another_visit": {},
    }
    for bone in BONES:
        chosen = [r for r in first if r["bone"] == bone]
        if chosen:
            floor = _average(chosen, ("floor_psnr_db",), seed)
            summary["floor"][bone] = floor["floor_psnr_db"] | _count(chosen)
        seen = [r for r in layer if r["bone"] == bone and r["another_visit_psnr_db"] is not None]
        if seen:
            own = [r for r in seen if r["method"] == methods[0].name]
            summary["another_visit"][bone] = {
                **_average(own, ("another_visit_psnr_db",), seed),
                "comparisons": len(own),
                **_count(own),
                "methods": {
                    method.name: _average(
                        [r for r in seen if r["method"] == method.name], ("psnr_db",), seed
                    )["psnr_db"]
                    for method in methods
                },
            }
    return summary


def _summarise_real(records: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    keys = (
        "reconstruction_mse",
        "reconstruction_psnr_db",
        "reconstruction_ssim",
        "soft_tissue",
        "supervisor_dice",
        "supervisor_real",
    )
    result: dict[str, Any] = _average([r for r in records if r["kind"] == "image"], keys, seed)
    for bone in BONES:
        chosen = [r for r in records if r.get("bone") == bone]
        if chosen:
            result[bone] = {
                **_average(chosen, ("psnr_db", "mse"), seed),
                "comparisons": len(chosen),
                **_count(chosen),
            }
    if all(bone in result for bone in BONES):
        both = [[r for r in records if r.get("bone") == bone] for bone in BONES]
        result["mean_psnr_db"] = bootstrap_balanced_mean(
            [([r["psnr_db"] for r in one], [r["joint"] for r in one]) for one in both], seed=seed
        ).as_dict()
    return result


def describe_images(images: Sequence[JointImage]) -> dict[str, int]:
    """How many images and joints a split holds."""
    return {"images": len(images), "joints": len(joints_of(images))}
