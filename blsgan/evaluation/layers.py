"""Real overlaps judged by several visits: outline, corrected error, texture; with other masks, too.

One record for each truth, pair of truths and bone, whose estimators are those of
``blsgan.evaluation.hidden`` and ``texture``. Whatever masks a method was given, it is judged on the
drawn ones' regions: a pixel that its masks miss is black in that bone's layer, and that counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from blsgan.data.layout import JointImage, overlap_px, read_joint
from blsgan.data.visits import PROTOCOL, TRAINING, VisitTruth
from blsgan.evaluation.hidden import (
    OUTLINE_EDGES_PX,
    corrected_error,
    error_db,
    one_radiograph_error,
    outline_bias,
    outline_error,
    pooled_db,
    ring_of,
)
from blsgan.evaluation.methods import Method, Overlap
from blsgan.evaluation.metrics import bootstrap_mean, region_mse
from blsgan.evaluation.protocol import NothingToMeasureError, Part
from blsgan.evaluation.realism import (
    BESIDE_PX,
    classifier_auc,
    free_bone,
    read_once,
    realism_features,
)
from blsgan.evaluation.texture import texture_ratio
from blsgan.io.masks import BONES
from blsgan.joint.distance import border_distance_px
from blsgan.joint.geometry import bounding_box
from blsgan.joint.zone import PREDICTED_MARGIN_PX, REACH_PX
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
NOTHING_HIDDEN = "nothing hidden"
"""Name of an image's own free part in a layer's place, against the same part of another visit."""

_FREE, _FREE_BESIDE = "free bone", "free bone beside"
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
        if size < TRAINING.overlap_px:
            part.left_out["overlap below 30 px"] += 1
            continue
        image = as_unit(arrays.image)
        judge = _Judge(joint, image, arrays.masks, wanted[joint.name], size)
        part.records += judge.another_visit()
        add_layers = realism.add_image(joint.joint, image, arrays.masks, wanted[joint.name])
        given = {DRAWN: arrays.masks}
        if with_other_masks:
            given |= {CLOSER: _moved(arrays.masks, 1), APART: _moved(arrays.masks, -1)}
            predicted = predict(image) if predict is not None else None
            if predicted is not None:
                given[PREDICTED] = predicted
            else:
                part.left_out["no joint found"] += predict is not None
        for kind, masks in given.items():
            margin_px = PREDICTED_MARGIN_PX if kind == PREDICTED else 0
            for method in methods if kind == DRAWN else with_other_masks:
                layers = method(Overlap(image, masks, margin_px=margin_px)).layers
                part.records += judge(method.name, kind, layers)
                if kind == DRAWN:
                    add_layers(method.name, layers)
    if not part.records:
        raise NothingToMeasureError(
            f"none of the {len(images)} images has an overlap of {TRAINING.overlap_px} px or more; "
            "give a split with overlapped joints"
        )
    part.summary = summarise_layers(part.records, seed=seed)
    part.summary["left_out"] = part.left_out
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
    """Features of layers and of what they are compared with, wherever another visit shows a bone.

    A sample is a truth, so that layer and free bone are of one joint, place and size.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._found: dict[tuple[str, int], list[tuple[str, np.ndarray]]] = defaultdict(list)

    def add_image(
        self, joint: str, image: np.ndarray, masks: np.ndarray, truths: Sequence[VisitTruth]
    ) -> Callable[[str, np.ndarray], None]:
        """An image's free bones and controls; what is returned adds a method's layers [2,H,W]."""
        places = [_Place.of(masks, truth, self._seed) for truth in truths]
        for place in places:
            self._add(_FREE, joint, place, place.free)
            self._add(ANOTHER_VISIT, joint, place, place.pasted(image))
            self._add(NOTHING_HIDDEN, joint, beside := place.moved_away(), beside.read(image))
            self._add(_FREE_BESIDE, joint, beside, beside.free)

        def add_layers(method: str, layers: np.ndarray) -> None:
            for place in places:
                self._add(method, joint, place, place.read(layers[place.bone]))

        return add_layers

    def summary(self) -> dict[str, Any]:
        """For each method and bone: ``auc`` with its interval, and how many bones it rests on."""
        found: dict[str, Any] = {}
        for (method, bone), layers in self._found.items():
            free = self._found[_FREE_BESIDE if method == NOTHING_HIDDEN else _FREE, bone]
            if method in (_FREE, _FREE_BESIDE):
                continue
            if min(len({name for name, _ in s}) for s in (layers, free)) < 2:
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
                "joints": len(set(names)),
            }
        return found

    def _add(self, method: str, joint: str, place: _Place, picture: np.ndarray) -> None:
        features = realism_features(picture, place.mask, place.support, place.distance_px)
        if features is not None:
            self._found[method, place.bone].append((joint, features))


@dataclass(frozen=True)
class _Place:
    """Where another visit shows a hidden bone free: a window, what is known in it, the free bone.

    All arrays are windows; ``distance_px`` is that of ``border_distance_px``.
    """

    bone: int
    part: tuple[slice, slice]
    mask: np.ndarray
    support: np.ndarray
    distance_px: np.ndarray
    free: np.ndarray
    random: np.random.Generator

    @classmethod
    def of(cls, masks: np.ndarray, truth: VisitTruth, seed: int) -> _Place:
        mask = masks[truth.bone]
        known = mask & ((truth.clear_px > 0) | truth.guide)
        top, left, bottom, right = bounding_box(known)
        part = np.s_[top:bottom, left:right]
        distance_px = border_distance_px(masks, truth.bone)
        random = image_rng(f"{truth.image} {truth.other} {truth.bone}", seed)
        free = free_bone(truth)
        return cls(truth.bone, part, mask[part], known[part], distance_px[part], free[part], random)

    def read(self, picture: np.ndarray) -> np.ndarray:
        """A picture [H,W] in the window, read once as the free bone was."""
        return read_once(picture[self.part], self.random)

    def pasted(self, image: np.ndarray) -> np.ndarray:
        """The image with the free bone in the overlap and as far beside it as a zone reaches."""
        with np.errstate(invalid="ignore"):
            near = self.support & (self.distance_px <= REACH_PX)
        return np.where(near, self.free, self.read(image))

    def moved_away(self) -> _Place:
        """The same region laid on the bone's free part, off the joint."""
        rows = np.flatnonzero((self.distance_px < 0).any(axis=1))
        up = (1 if self.bone == 0 else -1) * (int(np.ptp(rows)) + 1 + round(BESIDE_PX[0]))
        moved = np.full_like(self.distance_px, np.nan)
        if up > 0:
            moved[:-up] = self.distance_px[up:]
        else:
            moved[-up:] = self.distance_px[:up]
        free = self.support & (self.distance_px > BESIDE_PX[0])
        return replace(self, support=free, distance_px=moved)


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
                "floor_mse": truth.floor_mse,
                "ring_mse": region_mse(layer, truth.truth, ring) if ring.any() else None,
                "ring_bias": float(np.mean(layer[ring] - truth.truth[ring]))
                if ring.any()
                else None,
            }
            shown = truth.truth, self._distance[truth.bone], truth.clear_px > 0
            for keys, values in (
                (OUTLINE_KEYS, outline_bias(layer, *shown)),
                (ERROR_KEYS, outline_error(layer, *shown)),
            ):
                record |= {
                    key: None if np.isnan(value) else float(value)
                    for key, value in zip(keys, values, strict=True)
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
ERROR_KEYS = tuple(key.replace("bias", "mse") for key in OUTLINE_KEYS)
_JUDGED_KEYS = OUTLINE_KEYS[1:]  # the bar's: -3 to +4


def summarise_layers(records: Sequence[Record], *, seed: int = 0) -> dict[str, Any]:
    """Figures of :func:`evaluate_layers`' records.

    Returns:
        ``images``, ``joints`` and, for each of :data:`THRESHOLDS`, kind of masks, method and bone:
        ``outline`` (mean and interval of every bin), ``outline_worst`` (the largest mean bias of
        the bins from -3 to +4), ``trust`` (by bin: error of registered visits where nothing is
        hidden, over the layer's), ``plain_db``, ``ring_bias``, ``ring_plain_db``,
        ``corrected_db``, ``ring_corrected_db``, their ``gain_db`` over every other method,
        ``texture``'s median and the counts.
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
    trust = {
        key: value
        for key in ERROR_KEYS
        if (value := _trust([r for r in records if r.get(key) is not None], key, seed))
    }
    if trust:
        figures["trust"] = trust
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


def _trust(records: Sequence[Record], key: str, seed: int) -> dict[str, float] | None:
    """How much a layer's pixels tell a registration beside those of a picture that nothing hides.

    Both are errors against another registered visit, so the weight is that of a least squares fit:
    the variance where nothing is hidden, over the same plus what separation adds.
    """
    if not records:
        return None
    joints = [r["joint"] for r in records]
    ratio = pooled_db(
        [r[key] for r in records], joints, minus=[r["floor_mse"] for r in records], seed=seed
    )
    return {name: 10 ** (value / 10) for name, value in ratio.as_dict().items()}


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
