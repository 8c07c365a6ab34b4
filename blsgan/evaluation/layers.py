"""Real overlaps judged by several visits: outline, corrected error, texture; with other masks, too.

One record for each truth, pair of truths and bone, whose estimators are those of
``blsgan.evaluation.hidden`` and ``texture``. Whatever masks a method was given, it is judged on the
drawn ones' regions: a pixel that its masks miss is black in that bone's layer, and that counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from blsgan.data.layout import MIN_OVERLAP_PX, JointImage, overlap_px, read_joint
from blsgan.data.visits import PROTOCOL, TRAINING, VisitTruth
from blsgan.evaluation.hidden import (
    OUTLINE_EDGES_PX,
    border_distance_px,
    corrected_error,
    error_db,
    one_radiograph_error,
    outline_bias,
    pooled_db,
    ring_of,
)
from blsgan.evaluation.methods import Method, Sample
from blsgan.evaluation.metrics import bootstrap_mean, region_mse
from blsgan.evaluation.protocol import NothingToMeasureError, Part
from blsgan.evaluation.realism import classifier_auc, laid_over, realism_features
from blsgan.evaluation.texture import texture_ratio
from blsgan.io.masks import BONES
from blsgan.progress import Track, silent
from blsgan.synthesis.overlap import as_unit, image_rng

DRAWN, CLOSER, APART, PREDICTED = "drawn", "1 px closer", "1 px apart", "predicted"
"""Masks that a method is given: those of the dataset, with the upper bone's moved by a row towards
the lower bone or away from it, and those of the shipped segmenter."""

ANOTHER_VISIT = "another visit"
"""Name of a truth that stands in a method's place."""

CLEAR_PX = 4
"""How far another bone's blurred edge reaches beyond its mask, at most."""

THRESHOLDS = {"protocol": PROTOCOL, "looser": TRAINING}
_FREE = "free bone"
_PASTED_SHARE = 0.8  # of the overlap that another visit must show to be pasted in
Predict = Callable[[np.ndarray], np.ndarray | None]  # image [H,W] -> masks [2,H,W], or no joint
Record = dict[str, Any]


def evaluate_layers(
    images: Sequence[JointImage],
    truths: Sequence[VisitTruth],
    methods: Sequence[Method],
    *,
    with_other_masks: Sequence[Method] = (),
    predict: Predict | None = None,
    seed: int = 0,
    progress: Track = silent,
) -> Part:
    """Judges layers of real overlaps by what other visits show.

    Args:
        images: entries of the dataset; those with an overlap of >= 30 px are separated.
        truths: what :func:`blsgan.data.visits.visit_truths` finds among ``images`` with the
            thresholds ``TRAINING``; those that meet ``PROTOCOL`` are summarised by themselves, too.
        methods: what to judge, each with its gain over every other one.
        with_other_masks: methods that are also given moved and predicted masks.
        predict: a segmenter; without one masks are moved alone.
        seed: of the bootstrap.
        progress: wraps the loop over the images.

    Returns:
        Records of ``kind`` "truth" (plain error, ring, outline), "pair" (corrected error) and
        "texture", each with ``method``, ``masks``, ``joint``, ``image`` and ``bone``; the summary
        of :func:`summarise_layers` with ``realism`` (AUC of each method and bone).

    Raises:
        InputError: a listed file is missing or damaged.
        NothingToMeasureError: no image has such an overlap.
    """
    wanted: dict[str, list[VisitTruth]] = defaultdict(list)
    for truth in truths:
        wanted[truth.image].append(truth)
    part = Part(left_out={"overlap below 30 px": 0, "no joint found": 0})
    realism = _Realism(seed)
    for joint in progress(images, "hidden bones", len(images)):
        arrays = read_joint(joint)
        size = overlap_px(arrays.masks)
        if size < MIN_OVERLAP_PX:
            realism.free.append(joint)
        if size < TRAINING.overlap_px:
            part.left_out["overlap below 30 px"] += 1
            continue
        image = as_unit(arrays.image)
        judge = _Judge(joint, image, arrays.masks, wanted[joint.name], size)
        part.records += judge.another_visit()
        realism.add_overlap(joint.joint, image, arrays.masks, wanted[joint.name])
        given = {DRAWN: arrays.masks}
        if with_other_masks:
            given |= {CLOSER: _moved(arrays.masks, 1), APART: _moved(arrays.masks, -1)}
            predicted = predict(image) if predict is not None else None
            if predicted is not None:
                given[PREDICTED] = predicted
            else:
                part.left_out["no joint found"] += predict is not None
        for kind, masks in given.items():
            for method in methods if kind == DRAWN else with_other_masks:
                layers = method(Sample(image, masks)).layers
                part.records += judge(method.name, kind, layers)
                if kind == DRAWN:
                    realism.add_layers(method.name, joint.joint, layers, masks)
    if not part.records:
        raise NothingToMeasureError(
            f"none of the {len(images)} images has an overlap of {TRAINING.overlap_px} px or more; "
            "give a split with overlapped joints"
        )
    part.summary = summarise_layers(part.records, seed=seed)
    part.summary["left_out"] = part.left_out
    realism.add_free_bones(progress)
    part.summary["realism"] = realism.summary()
    return part


def _moved(masks: np.ndarray, rows: int) -> np.ndarray:
    """``masks`` [2,H,W] with the upper one moved down by ``rows``; its first row fills in."""
    upper = np.roll(masks[0], rows, axis=0)
    if rows > 0:
        upper[:rows] = masks[0][0]
    else:
        upper[rows:] = masks[0][-1]
    return np.stack((upper, masks[1]))


class _Realism:
    """Features of layers, of bones with another visit's pixels pasted in, and of free bones."""

    def __init__(self, seed: int) -> None:
        self.free: list[JointImage] = []
        self._seed = seed
        self._donors: list[tuple[str, np.ndarray]] = []
        self._found: dict[tuple[str, int], list[tuple[str, np.ndarray]]] = defaultdict(list)

    def add_overlap(
        self, joint: str, image: np.ndarray, masks: np.ndarray, truths: Sequence[VisitTruth]
    ) -> None:
        """An image with an overlap: its outlines for free bones, and other visits' bones."""
        self._donors.append((joint, masks))
        overlap = masks[0] & masks[1]
        for bone in range(2):
            shown = [truth for truth in truths if truth.bone == bone]
            if not shown:
                continue
            truth = max(shown, key=lambda t: int(t.valid.sum()))
            if truth.valid.sum() >= _PASTED_SHARE * overlap.sum():
                pasted = np.where(truth.clear_px > 0, truth.truth, image)
                known = masks[bone] & ~(overlap & ~truth.valid)
                self._add(ANOTHER_VISIT, joint, bone, pasted, known, truth.valid)

    def add_layers(self, method: str, joint: str, layers: np.ndarray, masks: np.ndarray) -> None:
        for bone, layer in enumerate(layers):
            self._add(method, joint, bone, layer, masks[bone], masks[0] & masks[1])

    def add_free_bones(self, progress: Track) -> None:
        """The bones of images without overlap, under the outline of another joint's bone."""
        for joint in progress(self.free, "free bones", len(self.free)):
            donors = [masks for name, masks in self._donors if name != joint.joint]
            if not donors:
                continue
            arrays = read_joint(joint)
            donor = donors[image_rng(joint.name, self._seed).integers(len(donors))]
            image = as_unit(arrays.image)
            for bone, mask in enumerate(arrays.masks):
                region = laid_over(arrays.masks, donor, bone)
                self._add(_FREE, joint.joint, bone, image, mask, region)

    def summary(self) -> dict[str, Any]:
        """For each method and bone: ``auc`` with its interval, and how many bones it rests on."""
        found: dict[str, Any] = {}
        for (method, bone), layers in self._found.items():
            free = self._found.get((_FREE, bone), [])
            if method == _FREE or min(len({name for name, _ in s}) for s in (layers, free)) < 2:
                continue
            (names, features), (free_names, free_features) = (
                zip(*samples, strict=True) for samples in (layers, free)
            )
            value = classifier_auc(
                np.stack(features), names, np.stack(free_features), free_names, seed=self._seed
            )
            found.setdefault(method, {})[BONES[bone]] = {
                "auc": value.as_dict(),
                "layers": len(layers),
                "free_bones": len(free),
            }
        return found

    def _add(
        self,
        method: str,
        joint: str,
        bone: int,
        layer: np.ndarray,
        mask: np.ndarray,
        region: np.ndarray,
    ) -> None:
        features = realism_features(layer, mask, region & mask)
        if features is not None:
            self._found[method, bone].append((joint, features))


class _Judge:
    """Everything about one image that does not depend on the layers."""

    def __init__(
        self,
        joint: JointImage,
        image: np.ndarray,
        masks: np.ndarray,
        truths: Sequence[VisitTruth],
        size: int,
    ) -> None:
        self._image, self._masks, self._truths = image, masks, truths
        self._base: Record = {"joint": joint.joint, "image": joint.name, "overlap_px": size}
        self._overlap = masks[0] & masks[1]
        self._distance = [border_distance_px(masks, bone) for bone in range(2)]
        self._ring = [ring_of(masks, bone) for bone in range(2)]

    def __call__(self, method: str, masks: str, layers: np.ndarray) -> list[Record]:
        named = {"method": method, "masks": masks, **self._base}
        found = []
        for truth in self._truths:
            layer = layers[truth.bone]
            ring = self._ring[truth.bone] & (truth.clear_px > 0)
            record = {
                **named,
                "kind": "truth",
                "bone": BONES[truth.bone],
                "other": truth.other,
                "protocol": int(truth.meets(PROTOCOL)),
                "pixels": int(truth.valid.sum()),
                "mse": region_mse(layer, truth.truth, truth.valid),
                "ring_mse": region_mse(layer, truth.truth, ring) if ring.any() else None,
                "ring_bias": float(np.mean(layer[ring] - truth.truth[ring]))
                if ring.any()
                else None,
            }
            bias = outline_bias(layer, truth.truth, self._distance[truth.bone], truth.clear_px > 0)
            record |= {
                key: None if np.isnan(value) else float(value)
                for key, value in zip(OUTLINE_KEYS, bias, strict=True)
            }
            found.append(record)
        for first, second, hidden, ring in self._pairs():
            layer = layers[first.bone]
            found.append(
                {
                    **named,
                    **self._pair(first, second, hidden),
                    "error": corrected_error(layer, first.truth, second.truth, hidden),
                    "ring_error": corrected_error(layer, first.truth, second.truth, ring)
                    if ring.any()
                    else None,
                }
            )
        for bone, layer in enumerate(layers):
            ratio = texture_ratio(layer, self._masks, bone)
            if ratio is not None:
                found.append({**named, "kind": "texture", "bone": BONES[bone], "texture": ratio})
        return found

    def another_visit(self) -> list[Record]:
        """Records of the truths themselves in a method's place."""
        named = {"method": ANOTHER_VISIT, "masks": DRAWN, **self._base}
        found: list[Record] = []
        for first, second, hidden, ring in self._pairs():
            record = {**named, **self._pair(first, second, hidden), "ring_error": None}
            record["error"] = one_radiograph_error(first.truth, second.truth, hidden)
            if ring.any():
                record["ring_error"] = one_radiograph_error(first.truth, second.truth, ring)
            found.append(record)
        for truth in self._truths:
            # Nearer to the other bone at that visit its blurred edge would count as texture.
            clear = truth.clear_px > CLEAR_PX
            pasted = np.where(clear, truth.truth, self._image)
            ratio = texture_ratio(pasted, self._masks, truth.bone, clear)
            if ratio is not None:
                found.append(
                    {**named, "kind": "texture", "bone": BONES[truth.bone], "texture": ratio}
                )
        return found

    def _pairs(self) -> list[tuple[VisitTruth, VisitTruth, np.ndarray, np.ndarray]]:
        """Two truths of one bone, where both hold in the overlap, and in the ring beside it."""
        found = []
        for first, second in combinations(self._truths, 2):
            hidden = first.valid & second.valid
            if first.bone == second.bone and hidden.sum() >= TRAINING.truth_px:
                ring = self._ring[first.bone] & (first.clear_px > 0) & (second.clear_px > 0)
                found.append((first, second, hidden, ring))
        return found

    def _pair(self, first: VisitTruth, second: VisitTruth, hidden: np.ndarray) -> Record:
        pixels = int(hidden.sum())
        both = first.meets(PROTOCOL) and second.meets(PROTOCOL)
        return {
            "kind": "pair",
            "bone": BONES[first.bone],
            "other": first.other,
            "third": second.other,
            "protocol": int(both and pixels >= PROTOCOL.truth_px),
            "pixels": pixels,
        }


OUTLINE_KEYS = tuple(f"bias_{low:+.0f}_{high:+.0f}" for low, high in pairwise(OUTLINE_EDGES_PX))
_JUDGED_KEYS = OUTLINE_KEYS[1:]  # the bar's: -3 to +4


def summarise_layers(records: Sequence[Record], *, seed: int = 0) -> dict[str, Any]:
    """Figures of :func:`evaluate_layers`' records.

    Returns:
        ``images``, ``joints`` and, for each of :data:`THRESHOLDS`, kind of masks, method and bone:
        ``outline`` (mean and interval of every bin), ``outline_worst`` (the largest mean bias of
        the bins from -3 to +4), ``plain_db``, ``ring_bias``, ``ring_plain_db``, ``corrected_db``,
        ``ring_corrected_db``, their ``gain_db`` over every other method, ``texture``'s median and
        the counts.
    """
    summary: dict[str, Any] = {
        "images": len({r["image"] for r in records}),
        "joints": len({r["joint"] for r in records}),
        "thresholds": {},
    }
    for name in THRESHOLDS:
        chosen = [
            r for r in records if name != "protocol" or r["kind"] == "texture" or r["protocol"]
        ]
        summary["thresholds"][name] = _by_masks(chosen, seed)
    return summary


def _by_masks(records: Sequence[Record], seed: int) -> dict[str, Any]:
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["masks"], record["method"], record["bone"]].append(record)
    found: dict[str, Any] = {}
    for (masks, method, bone), own in groups.items():
        figures = _figures(own, seed)
        # Gains: over what each method, and this one with the drawn masks, scores on the same pairs.
        others = {key[1]: rows for key, rows in groups.items() if key[::2] == (masks, bone)}
        if masks != DRAWN:
            others = {f"{DRAWN} masks": groups[DRAWN, method, bone]}
        figures["gains"] = {
            other: gains
            for other, rows in others.items()
            if other != method and (gains := _gains(own, rows, seed))
        }
        found.setdefault(masks, {}).setdefault(method, {})[bone] = figures
    return found


def _values(records: Sequence[Record], kind: str, key: str) -> tuple[list[float], list[str]]:
    having = [r for r in records if r["kind"] == kind and r.get(key) is not None]
    return [r[key] for r in having], [r["joint"] for r in having]


def _figures(records: Sequence[Record], seed: int) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "comparisons": sum(r["kind"] == "truth" for r in records),
        "pairs": sum(r["kind"] == "pair" for r in records),
        "joints_of_pairs": len({r["joint"] for r in records if r["kind"] == "pair"}),
    }
    outline = {}
    for key in OUTLINE_KEYS:
        values, joints = _values(records, "truth", key)
        if values:
            outline[key] = bootstrap_mean(values, joints, seed=seed).as_dict()
    if outline:
        figures["outline"] = outline
        figures["outline_worst"] = max(
            (outline[key]["mean"] for key in _JUDGED_KEYS if key in outline), key=abs, default=None
        )
    values, joints = _values(records, "truth", "ring_bias")
    if values:
        figures["ring_bias"] = bootstrap_mean(values, joints, seed=seed).as_dict()
    values, joints = _values(records, "truth", "mse")
    if values:
        decibels = [error_db(value) for value in values]
        figures["plain_db"] = bootstrap_mean(decibels, joints, seed=seed).as_dict()
    for name, kind, key in (
        ("ring_plain_db", "truth", "ring_mse"),
        ("corrected_db", "pair", "error"),
        ("ring_corrected_db", "pair", "ring_error"),
    ):
        values, joints = _values(records, kind, key)
        if values:
            figures[name] = pooled_db(values, joints, seed=seed).as_dict()
    values, joints = _values(records, "texture", "texture")
    if values:
        figures["texture"] = {
            "median": float(np.median(values)),
            "low": float(np.percentile(values, 25)),
            "high": float(np.percentile(values, 75)),
            "images": len(values),
        }
    return figures


def _gains(own: Sequence[Record], other: Sequence[Record], seed: int) -> dict[str, Any]:
    found = {}
    for name, kind, key in (
        ("plain_db", "truth", "mse"),
        ("ring_plain_db", "truth", "ring_mse"),
        ("corrected_db", "pair", "error"),
        ("ring_corrected_db", "pair", "ring_error"),
    ):
        theirs = {_sample(r): r[key] for r in other if r["kind"] == kind and r[key] is not None}
        both = [r for r in own if r["kind"] == kind and r[key] is not None]
        both = [r for r in both if _sample(r) in theirs]
        if not both:
            continue
        joints = [r["joint"] for r in both]
        first, second = [r[key] for r in both], [theirs[_sample(r)] for r in both]
        if name == "plain_db":
            decibels = [error_db(a) - error_db(b) for a, b in zip(first, second, strict=True)]
            found[name] = bootstrap_mean(decibels, joints, seed=seed).as_dict()
        else:
            found[name] = pooled_db(first, joints, minus=second, seed=seed).as_dict()
    return found


def _sample(record: Record) -> tuple[str, ...]:
    return record["image"], record["bone"], record["other"], record.get("third", "")
