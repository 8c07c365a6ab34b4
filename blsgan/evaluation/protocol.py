"""The evaluation protocol: synthetic overlaps with a known truth, real ones with another visit's.

Reads the public dataset's layout, runs every method on the same samples, and returns plain data:
one record for each image (or comparison) and method, and a summary with bootstrap intervals over
joints. Nothing is written here (``blsgan.evaluation.results`` does that).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blsgan.data.layout import MIN_OVERLAP_PX, JointImage, joints_of, overlap_px, read_joint
from blsgan.data.visits import VisitTruth
from blsgan.errors import InputError
from blsgan.evaluation.methods import (
    Method,
    Sample,
    real_baselines,
    synthetic_baselines,
    synthetic_limit,
)
from blsgan.evaluation.metrics import (
    BUCKETS,
    bootstrap_mean,
    bucket_name,
    bucket_of,
    psnr_db,
    region_mse,
    score_regions,
)
from blsgan.synthesis.overlap import as_unit, compose_image, protocol_overlap

BONES = ("upper", "lower")
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


def _silent(items: Iterable[Any], label: str, total: int) -> Iterable[Any]:
    return items


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
            interval = bootstrap_mean([r[key] for r in having], [r["joint"] for r in having],
                                      seed=seed)
            averages[key] = interval.as_dict()
    return averages


def _count(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {"images": len({r["image"] for r in records}),
            "joints": len({r["joint"] for r in records})}


def evaluate_synthetic(
    images: Sequence[JointImage],
    model: Method | None,
    *,
    seed: int = 0,
    progress: Progress = _silent,
) -> Part:
    """Scores the protocol's synthetic overlaps of the joints without overlap among ``images``.

    Args:
        images: entries of the dataset; those with an overlap of >= 20 px have no known layers and
            are left out, as are composites whose bones meet in fewer than 20 px.
        model: the separator, or None for the closed forms alone.
        seed: of the shifts and of the bootstrap.
        progress: wraps the loop over the images.

    Raises:
        InputError: a listed file is missing or damaged.
        NothingToMeasureError: no image gives a composite.
    """
    methods = [*synthetic_baselines(), *([model] if model else []), synthetic_limit()]
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
        sample = Sample(pair.image, pair.masks, pair.layers, pair.soft_tissue)
        regions = {"overlap": pair.overlap, "union": pair.union}
        size = int(pair.overlap.sum())
        for method in methods:
            started = time.perf_counter()
            answer = method(sample)
            elapsed_ms = 1000 * (time.perf_counter() - started)
            record: dict[str, Any] = {
                "method": method.name, "joint": joint.joint, "image": joint.name,
                "overlap_px": size, "bucket": bucket_of(size), "time_ms": elapsed_ms,
            }
            for region, score in score_regions(answer.layers, pair.layers, regions).items():
                record |= {f"{region}_mse": score.mse, f"{region}_psnr_db": score.psnr_db,
                           f"{region}_ssim": score.ssim}
            if answer.soft_tissue is not None:
                composed = compose_image(answer.layers, sample.masks, answer.soft_tissue)
                record["reconstruction_mse"] = region_mse(composed, sample.image, regions["union"])
                record["soft_tissue"] = answer.soft_tissue
                record["soft_tissue_error"] = abs(answer.soft_tissue - pair.soft_tissue)
            part.records.append(record)
    if not part.records:
        raise NothingToMeasureError(f"none of the {len(images)} images gives a synthetic overlap "
                                    f"({_reasons(part.left_out)}); give a split with joints "
                                    "without overlap")
    part.summary = {**_count(part.records), "left_out": part.left_out,
                    "methods": _by_method(part.records, methods, seed, _summarise_synthetic)}
    return part


_SYNTHETIC_KEYS = (
    "overlap_mse", "overlap_psnr_db", "overlap_ssim", "union_mse", "union_psnr_db", "union_ssim",
    "reconstruction_mse", "soft_tissue", "soft_tissue_error", "time_ms",
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
            keys = ("overlap_mse", "overlap_psnr_db", "overlap_ssim")
            buckets[bucket] = {**_count(chosen), **_average(chosen, keys, seed)}
    return {**_average(records, _SYNTHETIC_KEYS, seed), "buckets": buckets}


def evaluate_real(
    images: Sequence[JointImage],
    truths: Sequence[VisitTruth],
    model: Method | None,
    *,
    seed: int = 0,
    progress: Progress = _silent,
) -> Part:
    """Scores real overlaps: hidden bones against another visit, recomposition against the image.

    Args:
        images: entries of the dataset; those with an overlap of >= 20 px are separated.
        truths: what :func:`blsgan.data.visits.visit_truths` finds among ``images``.
        model: the separator, or None for the closed forms alone.
        seed: of the bootstrap.
        progress: wraps the loop over the images.

    Returns:
        Records of two kinds: ``kind`` "layer" (one for each truth and method: ``psnr_db``,
        ``mse``, and the ``floor_psnr_db`` of its registration) and "image" (one for each image and
        method that states its k: reconstruction over the union).

    Raises:
        InputError: a listed file is missing or damaged.
        NothingToMeasureError: no image has an overlap.
    """
    methods = [*real_baselines(), *([model] if model else [])]
    wanted: dict[str, list[VisitTruth]] = defaultdict(list)
    for truth in truths:
        wanted[truth.image].append(truth)
    part = Part(left_out={"no overlap": 0})
    for joint in progress(images, "real overlaps", len(images)):
        arrays = read_joint(joint)
        size = overlap_px(arrays.masks)
        if size < MIN_OVERLAP_PX:
            part.left_out["no overlap"] += 1
            continue
        union = np.logical_or(arrays.masks[0], arrays.masks[1])
        sample = Sample(as_unit(arrays.image), arrays.masks)
        inside = sample.image * union
        for method in methods:
            answer = method(sample)
            base = {"method": method.name, "joint": joint.joint, "image": joint.name,
                    "overlap_px": size, "bucket": bucket_of(size)}
            record: dict[str, Any] = {**base, "kind": "image", "soft_tissue": answer.soft_tissue}
            if answer.soft_tissue is not None:
                composed = compose_image(answer.layers, sample.masks, answer.soft_tissue)
                score = score_regions(composed[None], inside[None], {"union": union})["union"]
                record |= {"reconstruction_mse": score.mse,
                           "reconstruction_psnr_db": score.psnr_db,
                           "reconstruction_ssim": score.ssim}
            part.records.append(record)
            for truth in wanted[joint.name]:
                mse = region_mse(answer.layers[truth.bone], truth.truth, truth.valid)
                part.records.append({
                    **base, "kind": "layer", "other": truth.other, "bone": BONES[truth.bone],
                    "mse": mse, "psnr_db": psnr_db(mse), "correlation": truth.correlation,
                    "floor_psnr_db": psnr_db(truth.floor_mse), "pixels": int(truth.valid.sum()),
                })
    if not part.records:
        raise NothingToMeasureError(f"none of the {len(images)} images has an overlap of "
                                    f"{MIN_OVERLAP_PX} px or more; give a split with overlapped "
                                    "joints")
    part.summary = _real_summary(part, methods, seed)
    return part


def _real_summary(part: Part, methods: Sequence[Method], seed: int) -> dict[str, Any]:
    layer = [r for r in part.records if r["kind"] == "layer"]
    first = [r for r in layer if r["method"] == methods[0].name]
    summary: dict[str, Any] = {
        **_count(part.records), "left_out": part.left_out,
        "methods": _by_method(part.records, methods, seed, _summarise_real),
        "comparisons": {bone: len([r for r in first if r["bone"] == bone]) for bone in BONES},
        "floor": {},
    }
    for bone in BONES:
        chosen = [r for r in first if r["bone"] == bone]
        if chosen:
            floor = _average(chosen, ("floor_psnr_db",), seed)
            summary["floor"][bone] = floor["floor_psnr_db"] | _count(chosen)
    return summary


def _summarise_real(records: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    keys = ("reconstruction_mse", "reconstruction_psnr_db", "reconstruction_ssim", "soft_tissue")
    result: dict[str, Any] = _average([r for r in records if r["kind"] == "image"], keys, seed)
    for bone in BONES:
        chosen = [r for r in records if r.get("bone") == bone]
        if chosen:
            result[bone] = {**_average(chosen, ("psnr_db", "mse"), seed),
                            "comparisons": len(chosen), **_count(chosen)}
    if all(bone in result for bone in BONES):
        result["mean_psnr_db"] = float(np.mean([result[b]["psnr_db"]["mean"] for b in BONES]))
    return result


def describe_images(images: Sequence[JointImage]) -> dict[str, int]:
    """How many images and joints a split holds."""
    return {"images": len(images), "joints": len(joints_of(images))}
