"""How accurate JSN is: known sub-pixel displacements on real joints, and three real visits.

A joint without overlap is taken apart; its bones are put together again as two visits, with an
overlap or without, the lower bone moved between them by a known amount. Everything else that tells
two visits apart is varied too: where the joint lies and how it is turned, exposure, noise, grey
levels; the magnification only where registration is asked to fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from scipy import ndimage

from blsgan import __version__
from blsgan.data.layout import (
    MIN_OVERLAP_PX,
    JointArrays,
    JointImage,
    by_joint,
    overlap_px,
    read_joint,
)
from blsgan.errors import InputError
from blsgan.evaluation.methods import COPY, Method, Overlap
from blsgan.evaluation.results import Table
from blsgan.io.atomic import ESCAPED, atomic_paths
from blsgan.io.tables import write_csv
from blsgan.joint.geometry import joint_axis
from blsgan.jsn.agreement import MISMATCH_PX, Agreement, agreement, bland_altman
from blsgan.jsn.quantification import (
    Visit,
    joint_space,
    measure,
    reference_point,
    relative_movement,
    shared_frame,
)
from blsgan.jsn.registration import RigidTransform
from blsgan.ops import K_MAX
from blsgan.progress import Track, silent
from blsgan.records.narrowing import NarrowingStudyRecord
from blsgan.synthesis.overlap import (
    PROTOCOL_SHIFT_PX,
    as_unit,
    compose_image,
    dilate_by_one,
    image_rng,
    rim_of,
)

T = TypeVar("T")

STUDY_FILES = ("accuracy.csv", "consistency.csv", "study.md", "study.json")
BLAND_ALTMAN_NAME = "bland_altman.png"
PARTS = ACCURACY, CONSISTENCY = ("accuracy", "consistency")
OVERLAP, NO_OVERLAP = "overlap", "no overlap"
ALL = "all"
NOTHING_TO_SEPARATE = "nothing to separate"
WITHOUT = "without separation"
LEFT_OUT = "without separation, overlap left out"

NARROWING_PX = 1.5  # the known displacement is drawn from -1.5..1.5 px along the axis
SIDEWAYS_PX = 0.5
TILT_DEG = 1.0  # of the lower bone against the upper one
POSITION_PX = 3.0  # of the whole joint, each visit
ROTATION_DEG = 2.0
MAGNIFICATION = 0.01  # each visit, with fit_scale
GAIN = 0.1  # exposure: intensities times 0.9..1.1,
OFFSET = 0.03  # plus up to 0.03 either way,
NOISE = 0.01  # and Gaussian noise of this standard deviation
BORDER_PX = 18  # rows and columns at the border that a movement may leave empty
APART_PX = 2.0  # how far each bone moves away from the other where none may overlap
_ATTEMPTS = 8


@dataclass(frozen=True)
class KnownPair:
    """Two visits of a joint whose change is known.

    Attributes:
        baseline, followup: the radiographs, with the true layers for oracles.
        narrowing_px: true narrowing, as :class:`Measurement` defines it.
        overlap_px: pixels of the baseline's overlap.
    """

    baseline: Overlap
    followup: Overlap
    narrowing_px: float
    overlap_px: int


def known_pair(
    name: str, joint: JointArrays, *, overlap: bool, seed: int = 0, magnify: bool = False
) -> KnownPair | None:
    """Two visits with a known change, from one joint without overlap.

    Everything is drawn from ``name`` and ``seed`` alone. With ``overlap`` each bone moves towards
    the other by 2..8 px, as in the protocol's synthetic overlaps, else 2 px away. With ``magnify``
    the visits differ in magnification, by up to 1 % either way each.

    Returns:
        The visits, or None where, after several draws, the bones still meet in fewer than 20 px
        (with ``overlap``) or in more (without), or where the joint has no background to take the
        soft tissue from.
    """
    if joint.background is None:
        return None
    rng = image_rng(name, seed)
    for _ in range(_ATTEMPTS):
        placed = _draw_places(joint, overlap, magnify, rng)
        baseline, followup = (_compose(joint, bones, rng) for bones in placed)
        sizes = [overlap_px(visit.masks) for visit in (baseline, followup)]
        if (min(sizes) >= MIN_OVERLAP_PX) if overlap else (max(sizes) < MIN_OVERLAP_PX):
            break
    else:
        return None
    # From the baseline's picture to the follow-up's, as a registration would find it.
    upper, lower = (after.after(before.inverse()) for before, after in zip(*placed, strict=True))
    axes = [joint_axis(visit.masks) for visit in (baseline, followup)]
    references = [
        reference_point(visit.masks, axis, joint_space(visit.masks, axis))
        for visit, axis in zip((baseline, followup), axes, strict=True)
    ]
    axis, reference = shared_frame(axes, references, upper, lower)
    true = -float((relative_movement(upper, lower, reference) * axis).sum())
    return KnownPair(baseline, followup, true, sizes[0])


def _draw_places(
    joint: JointArrays, overlap: bool, magnify: bool, rng: np.random.Generator
) -> list[list[RigidTransform]]:
    """For each visit, where its picture shows each bone of the joint."""
    axis = joint_axis(joint.masks)
    across = np.array([-axis[1], axis[0]])
    centre = np.argwhere(joint.masks[0] | joint.masks[1]).mean(axis=0)
    towards = rng.uniform(*PROTOCOL_SHIFT_PX, 2) if overlap else np.full(2, -APART_PX)
    upper, lower = (
        RigidTransform.about(centre, shift * axis) for shift in (towards[0], -towards[1])
    )
    narrowing, sideways = rng.uniform(-NARROWING_PX, NARROWING_PX), rng.uniform(-1, 1) * SIDEWAYS_PX
    change = RigidTransform.about(
        centre,
        sideways * across - narrowing * axis,
        np.radians(rng.uniform(-TILT_DEG, TILT_DEG)),
    )
    places = []
    for bones in ((upper, lower), (upper, change.after(lower))):
        position = RigidTransform.about(
            centre,
            rng.uniform(-POSITION_PX, POSITION_PX, 2) - BORDER_PX,
            np.radians(rng.uniform(-ROTATION_DEG, ROTATION_DEG)),
            1 + (rng.uniform(-MAGNIFICATION, MAGNIFICATION) if magnify else 0.0),
        )
        places.append([position.after(bone) for bone in bones])
    return places


def _compose(
    joint: JointArrays, places: Sequence[RigidTransform], rng: np.random.Generator
) -> Overlap:
    """A radiograph of the joint's bones at ``places``, with an exposure and noise of its own."""
    assert joint.background is not None, "asked for before"
    size = tuple(length - 2 * BORDER_PX for length in joint.image.shape)
    grey = as_unit(joint.image).astype(np.float64)
    masks = np.stack(
        [
            _moved(dilate_by_one(mask).astype(np.float64), place, size, order=1) >= 0.5
            for mask, place in zip(joint.masks, places, strict=True)
        ]
    )
    layers = np.stack([_moved(grey, place, size, order=3) for place in places])
    layers = (np.clip(layers, 0, 1) * masks).astype(np.float32)
    overlap = masks[0] & masks[1]
    tissue = as_unit(joint.background)[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    k = min(float(tissue[overlap].mean()), K_MAX) if overlap.any() else 0.0
    image = compose_image(layers, masks, k)
    image = np.where(rim_of(overlap), cv2.GaussianBlur(image, (3, 3), 0), image)
    gain, offset = 1 + rng.uniform(-GAIN, GAIN), rng.uniform(-OFFSET, OFFSET)
    image = gain * image + offset + rng.normal(0, NOISE, image.shape)
    grey_levels = np.rint(np.clip(image, 0, 1) * 255)
    return Overlap((grey_levels / 255).astype(np.float32), masks, layers, k)


def _moved(
    picture: np.ndarray, place: RigidTransform, size: tuple[int, ...], *, order: int
) -> np.ndarray:
    back = place.inverse()
    moved = ndimage.affine_transform(
        picture, back.matrix, back.shift, output_shape=size, order=order, mode="nearest"
    )
    return np.asarray(moved)


@dataclass
class Study:
    """What a study found: one record for each measurement, and what was left out and why.

    Attributes:
        split, seed, images, joints: what it was run on; ``images`` and ``joints`` gave a pair of
            known displacement (or, without that part, three visits).
        model: what identifies the weights (methods.from_separator).
        fit_scale: whether the magnification was varied and fitted.
        accuracy: records of known displacements.
        consistency: records of real visits A, B, C: (A to B) + (B to C) - (A to C).
        left_out: reason -> number of images.
    """

    split: str
    seed: int
    images: int
    joints: int
    model: dict[str, Any]
    fit_scale: bool
    accuracy: list[dict[str, Any]] = field(default_factory=list)
    consistency: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def heading(self) -> str:
        """One line that says what every figure below belongs to."""
        scale = "fitted" if self.fit_scale else "not fitted"
        return (
            f"split {self.split}: {self.images} images of {self.joints} joints; seed {self.seed}; "
            f"scale {scale}; weights {self.model['weights']} "
            f"(sha256 {self.model['sha256'][:12]}), backend {self.model['backend']} "
            f"{self.model['backend_version']}; blsgan {__version__}"
        )

    def agreements(self) -> dict[tuple[str, str], Agreement]:
        """(condition, method) -> agreement of measured and known displacements."""
        return {
            key: agreement(
                [r["measured_px"] for r in records],
                [r["true_px"] for r in records],
                [r["flagged"] for r in records],
            )
            for key, records in self.accuracy_by_method().items()
        }

    def accuracy_by_method(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """(condition, method) -> its records of known displacements."""
        return _grouped(self.accuracy)

    def consistencies(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(condition, method) -> number of joints, flagged ones, and how far the sums are off.

        ``narrowing_px`` is the mean size of what was measured: what holds the bones together in
        registration makes it smaller, and with it how far the sums are off. The condition "all"
        joins the joints with an overlap, by that method, and those without. The median's interval
        is a 95 % percentile bootstrap over joints. ``difference_px`` is the mean of how much
        farther off a sum is than without separation, over the joints that neither flags, with its
        interval.
        """
        groups = _grouped(self.consistency)
        free = groups.get((NO_OVERLAP, NOTHING_TO_SEPARATE), [])
        overlapped = {key[1]: records for key, records in groups.items() if key[0] == OVERLAP}
        if free and overlapped:
            groups |= {(ALL, method): [*records, *free] for method, records in overlapped.items()}
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for key, records in groups.items():
            off = [abs(r["difference_px"]) for r in records if not r["flagged"]]
            low, high = _interval(off, self.seed, np.median) if len(off) > 1 else (None, None)
            measured = [
                [abs(r[pair]) for pair in ("ab_px", "bc_px", "ac_px")]
                for r in records
                if not r["flagged"]
            ]
            found[key] = {
                "joints": len(records),
                "flagged": len(records) - len(off),
                "median_px": float(np.median(off)) if off else None,
                "median_low_px": low,
                "median_high_px": high,
                "p90_px": float(np.percentile(off, 90)) if off else None,
                "p95_px": float(np.percentile(off, 95)) if off else None,
                "narrowing_px": float(np.mean(measured)) if measured else None,
                **_against(records, groups.get((key[0], WITHOUT), []), self.seed),
            }
        return found

    def tables(self) -> list[Table]:
        """The tables, ready to print."""
        return [
            *([_accuracy_table(self)] if self.accuracy else []),
            *([_consistency_table(self)] if self.consistency else []),
        ]

    def record(self) -> NarrowingStudyRecord:
        """The JSON file's content: figures without their single records."""
        return NarrowingStudyRecord(
            schema=1,
            blsgan=__version__,
            split=self.split,
            seed=self.seed,
            images=self.images,
            joints=self.joints,
            model=self.model,
            fit_scale=self.fit_scale,
            left_out=self.left_out,
            accuracy=[
                {
                    "condition": condition,
                    "method": method,
                    **result.as_dict(),
                    "bland_altman": self._limits(condition, method),
                }
                for (condition, method), result in self.agreements().items()
            ],
            consistency=[
                {"condition": condition, "method": method, **result}
                for (condition, method), result in self.consistencies().items()
            ],
        )

    def _limits(self, condition: str, method: str) -> dict[str, float] | None:
        chosen = [
            r
            for r in self.accuracy
            if not r["flagged"]
            and abs(r["error_px"]) <= MISMATCH_PX
            and (r["condition"], r["method"]) == (condition, method)
        ]
        limits = bland_altman([r["measured_px"] for r in chosen], [r["true_px"] for r in chosen])
        return None if limits is None else asdict(limits)

    def write(self, folder: Path) -> list[Path]:
        """Write JSON, markdown and the parts' CSV into ``folder``: all of them, or none.

        A part that was not measured has no file.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        parts = zip(STUDY_FILES, (self.accuracy, self.consistency), strict=False)
        tables = {name: rows for name, rows in parts if rows}
        paths = [folder / name for name in (*tables, *STUDY_FILES[2:])]
        with atomic_paths(paths) as (*csv_files, markdown, record):
            for file, rows in zip(csv_files, tables.values(), strict=True):
                write_csv(file, rows)
            text = f"# Accuracy of joint space narrowing\n\n{self.heading()}\n\n"
            text += "\n".join(table.markdown() for table in self.tables())
            markdown.write_text(text, encoding="utf-8", errors=ESCAPED)
            record.write_text(self.record().text(indent=1), encoding="utf-8")
        return paths


def run_study(
    images: Sequence[JointImage],
    model: Method,
    *,
    split: str,
    seed: int = 0,
    limit: int | None = None,
    fit_scale: bool = False,
    parts: Sequence[str] = PARTS,
    progress: Track = silent,
) -> Study:
    """Measure known displacements on the joints without overlap, and real visits in threes.

    Args:
        images: entries of the public dataset.
        model: the separator (methods.from_separator).
        split: its name, for the record.
        seed: of everything that is drawn.
        limit: of the images that could give a pair, and of the joints with three visits, at most
            this many are used, spread evenly.
        fit_scale: let registration fit the magnification, and vary it between the known visits.
        parts: ``accuracy`` (known displacements), ``consistency`` (real visits), or both.
        progress: wraps the loops.

    Raises:
        InputError: a listed file is missing or damaged, or no image gives what a part measures.
    """
    study = Study(split, seed, 0, 0, model.description, fit_scale)
    if CONSISTENCY in parts:
        threes = _spread([v[:3] for v in by_joint(images).values() if len(v) >= 3], limit)
        for visits in progress(threes, "real visits in threes", len(threes)):
            study.consistency += _measure_threes(visits, model, fit_scale)
        study.images, study.joints = 3 * len(threes), len(threes)
    if ACCURACY in parts:
        _measure_accuracy(study, images, model, limit, progress)
    if not study.accuracy and not study.consistency:
        raise InputError(
            f"none of the {len(images)} images belongs to a joint with three visits; give a split "
            "with such joints, or measure the part accuracy."
        )
    return study


def _measure_accuracy(
    study: Study, images: Sequence[JointImage], model: Method, limit: int | None, progress: Track
) -> None:
    study.left_out = dict.fromkeys(("real overlap", "no background", "no such pair"), 0)
    usable: list[JointImage] = []
    for image in images:
        arrays = read_joint(image)
        if overlap_px(arrays.masks) >= MIN_OVERLAP_PX:
            study.left_out["real overlap"] += 1
        elif arrays.background is None:
            study.left_out["no background"] += 1
        else:
            usable.append(image)
    chosen = _spread(usable, limit)
    for image in progress(chosen, "known displacements", len(chosen)):
        records = _measure_known(image, model, study.seed, study.fit_scale)
        study.left_out["no such pair"] += not records
        study.accuracy += records
    if not study.accuracy:
        raise InputError(
            f"none of the {len(images)} images gives two visits with a known displacement; give a "
            "split with joints without overlap."
        )
    study.images = len({r["image"] for r in study.accuracy})
    study.joints = len({r["joint"] for r in study.accuracy})


def _spread(items: Sequence[T], limit: int | None) -> list[T]:
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def _measure_known(
    image: JointImage, model: Method, seed: int, fit_scale: bool
) -> list[dict[str, Any]]:
    joint = read_joint(image)
    records = []
    for condition in (NO_OVERLAP, OVERLAP):
        overlap = condition == OVERLAP
        pair = known_pair(image.name, joint, overlap=overlap, seed=seed, magnify=fit_scale)
        if pair is None:
            continue
        for method, visits in _visits((pair.baseline, pair.followup), model).items():
            found = measure(*visits, fit_scale=fit_scale)
            records.append(
                {
                    "joint": image.joint,
                    "image": image.name,
                    "condition": condition,
                    "method": method,
                    "overlap_px": pair.overlap_px,
                    "true_px": pair.narrowing_px,
                    "measured_px": found.narrowing_px,
                    "error_px": found.narrowing_px - pair.narrowing_px,
                    "flagged": found.mismatch,
                    "quality": found.quality,
                    "disagreement_px": found.disagreement_px,
                    "upper_correlation": found.upper.correlation,
                    "lower_correlation": found.lower.correlation,
                    "problems": "; ".join(found.problems),
                }
            )
    return records


def _visits(
    samples: Sequence[Overlap], model: Method, *, trusts: bool = True
) -> dict[str, list[Visit]]:
    """Method -> the visits it makes; the image alone where no bones overlap.

    With ``trusts`` also the layers with their overlap in full, and the image without its overlap.
    """
    copies = [COPY(sample).layers for sample in samples]
    masks = [sample.masks for sample in samples]

    def visits(layers: list[np.ndarray], trust: float | None) -> list[Visit]:
        return [Visit(*pair, trust) for pair in zip(layers, masks, strict=True)]

    if max(overlap_px(sample.masks) for sample in samples) < MIN_OVERLAP_PX:
        return {NOTHING_TO_SEPARATE: visits(copies, 1.0)}
    layers = [model(sample).layers for sample in samples]
    found = {model.name: visits(layers, None), WITHOUT: visits(copies, 1.0)}
    if trusts:
        found[f"{model.name}, overlap in full"] = visits(layers, 1.0)
        found[LEFT_OUT] = visits(copies, 0.0)
    return found


def _measure_threes(
    visits: Sequence[JointImage], model: Method, fit_scale: bool
) -> list[dict[str, Any]]:
    arrays = [read_joint(visit) for visit in visits]
    samples = [Overlap(as_unit(a.image), a.masks) for a in arrays]
    overlapped = sum(overlap_px(a.masks) >= MIN_OVERLAP_PX for a in arrays)
    records = []
    for method, (a, b, c) in _visits(samples, model, trusts=False).items():
        steps = [measure(*pair, fit_scale=fit_scale) for pair in ((a, b), (b, c), (a, c))]
        ab, bc, ac = (step.narrowing_px for step in steps)
        records.append(
            {
                "joint": visits[0].joint,
                "condition": OVERLAP if overlapped else NO_OVERLAP,
                "method": method,
                "overlapped_visits": overlapped,
                "tilt_deg": max(abs(step.tilt_deg) for step in steps),
                "ab_px": ab,
                "bc_px": bc,
                "ac_px": ac,
                "difference_px": ab + bc - ac,
                "flagged": any(step.mismatch for step in steps),
                "quality": min(step.quality for step in steps),
                "disagreement_px": max(step.disagreement_px for step in steps),
                "problems": "; ".join(problem for step in steps for problem in step.problems),
            }
        )
    return records


def _grouped(records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["condition"], record["method"]), []).append(record)
    return dict(sorted(groups.items(), key=lambda item: item[0][0] != NO_OVERLAP))


def _against(
    records: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], seed: int
) -> dict[str, Any]:
    """How much farther off ``records``' sums are than those of ``others``, joint by joint."""
    known = {r["joint"]: abs(r["difference_px"]) for r in others if not r["flagged"]}
    more = [
        abs(r["difference_px"]) - known[r["joint"]]
        for r in records
        if not r["flagged"] and r["joint"] in known
    ]
    if not more or records == others:
        return {}
    found = {"compared": len(more), "difference_px": float(np.mean(more))}
    if len(more) > 1:
        found["difference_low_px"], found["difference_high_px"] = _interval(more, seed, np.mean)
    return found


def _interval(
    values: Sequence[float], seed: int, average: Callable[..., Any]
) -> tuple[float, float]:
    """95 % of a bootstrap. One value for each joint, so resampling values is resampling joints."""
    draws = np.random.default_rng(seed).choice(values, (2000, len(values)))
    low, high = np.percentile(average(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _figure(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def _accuracy_table(study: Study) -> Table:
    header = [
        "condition, method",
        "N",
        "mean error px",
        "SD px",
        "SDD px",
        "mismatch",
        "of them flagged",
        "ICC(2,1)",
    ]
    rows = [
        [
            f"{condition}, {method}",
            str(a.count),
            _figure(a.mean_error_px, "+.3f"),
            _figure(a.sd_px),
            _figure(a.sdd_px),
            f"{a.mismatch_rate:.2%}",
            str(a.flagged),
            _figure(a.icc, ".4f"),
        ]
        for (condition, method), a in study.agreements().items()
    ]
    left = ", ".join(f"{count} {reason}" for reason, count in study.left_out.items() if count)
    notes = [
        "Mismatch: the registration failed (flagged) or the error exceeds 1 px; the other "
        "figures are over the rest. SDD = 1.96 sqrt(2) SD."
        + (f" Left out: {left}." if left else "")
    ]
    return Table(
        f"Known displacements: {study.images} images of {study.joints} joints", header, rows, notes
    )


def _consistency_table(study: Study) -> Table:
    header = [
        "condition, method",
        "joints",
        "flagged",
        "median px [95 %]",
        "90th",
        "95th percentile",
        "mean narrowing px",
        "mean, against without separation [95 %]",
    ]
    rows = [
        [
            f"{condition}, {method}",
            str(c["joints"]),
            str(c["flagged"]),
            _figure(c["median_px"])
            + (
                ""
                if c["median_low_px"] is None
                else f" [{c['median_low_px']:.3f}, {c['median_high_px']:.3f}]"
            ),
            _figure(c["p90_px"]),
            _figure(c["p95_px"]),
            _figure(c["narrowing_px"]),
            _figure(c.get("difference_px"), "+.3f")
            + (
                f" [{c['difference_low_px']:+.3f}, {c['difference_high_px']:+.3f}] "
                f"({c['compared']})"
                if "difference_low_px" in c
                else ""
            ),
        ]
        for (condition, method), c in study.consistencies().items()
    ]
    notes = [
        "|(A to B) + (B to C) - (A to C)| on three real visits of a joint, where none was "
        "flagged; overlap: at least one of the three has one; all: these by their method, and "
        "those without overlap; intervals: bootstrap over joints. Against without separation: "
        "paired, over the joints (their number) that neither flags."
    ]
    return Table("Real visits: consistency", header, rows, notes)
