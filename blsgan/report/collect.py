"""What a report shows: results of ``blsgan separate`` and ``blsgan jsn``, sorted by joint.

Files are recognised by what they hold, not by their names. Visits of one joint find each other
through the measurements between them: by the inputs' SHA-256 (``jsn.json``), or by the names of
folder and file (``jsn.csv``). Names reach a report only where the records kept them: what came from
DICOM files is numbered.
"""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blsgan.errors import InputError
from blsgan.io.raster import SUFFIXES as RASTER_SUFFIXES
from blsgan.io.stored import StoredResult, as_result, walk
from blsgan.records.narrowing import NarrowingRecord, SpaceWidth
from blsgan.records.record import read_json

ALERT, WARNING, NOTE = "alert", "warning", "note"

MAX_RECONSTRUCTION_MSE = 1e-6
"""Layers that miss the radiograph by more do not recompose: an exact split stays below 1e-12."""

MAX_DISAGREEMENT_PX = 0.5
"""Pairs of three visits that add up worse than this are pointed out."""

_JSN_COLUMNS = {"joint", "baseline", "followup", "mismatch"}

Key = tuple[str, ...]


@dataclass(frozen=True)
class Flag:
    """Something the reader must know; ``level`` is ``alert``, ``warning`` or ``note``.

    ``kind`` is what flags are counted by: the text without figures of one visit or pair. It is the
    text where it is not given.
    """

    level: str
    text: str
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or self.text)


@dataclass(frozen=True)
class Pair:
    """A measurement between two visits; ``narrowing_px`` is None where there is none.

    ``disagreement_px`` is how far measuring there and back are apart.
    """

    baseline: Key
    followup: Key
    narrowing_px: float | None
    narrowing_mm: float | None
    mismatch: bool
    quality: float | None
    disagreement_px: float | None
    problems: str
    notes: tuple[str, ...]
    widths: tuple[SpaceWidth | None, SpaceWidth | None]
    record: NarrowingRecord | None = None
    picture: Path | None = None

    @property
    def valid(self) -> bool:
        """Whether the narrowing is a measurement."""
        return self.narrowing_px is not None and not self.mismatch


@dataclass
class Visit:
    """One radiograph of a joint, with its separation where there is one."""

    key: Key
    result: StoredResult | None = None
    label: str = ""
    flags: list[Flag] = field(default_factory=list)
    usable: bool = False
    """Whether the result's files are the ones that its record describes."""


@dataclass(frozen=True)
class Curve:
    """Narrowing of each visit against the joint's first one, in ``unit``.

    ``values`` has None for a visit that no valid measurement reaches, ``summed`` says which values
    are sums of several pairs. ``disagreement_px`` is how far the pairs are from adding up (None:
    nothing to compare).
    """

    unit: str
    values: list[float | None]
    summed: list[bool]
    disagreement_px: float | None
    px: float | None = None
    """Size of one pixel in ``unit``; None where no measurement tells it."""

    @property
    def is_measured(self) -> bool:
        """Whether any visit has a value besides the first, which is 0 by definition."""
        return any(value is not None for value in self.values[1:])


@dataclass
class Joint:
    """The visits of one joint in their order, and the measurements between them."""

    label: str
    visits: list[Visit]
    pairs: list[Pair]
    curve: Curve | None
    flags: list[Flag] = field(default_factory=list)

    @property
    def level(self) -> str:
        """The gravest level of the joint's and its visits' flags, "" without any."""
        every = {flag.level for flag in self.flags}
        every |= {flag.level for visit in self.visits for flag in visit.flags}
        return next((level for level in (ALERT, WARNING, NOTE) if level in every), "")


def collect(roots: Sequence[Path]) -> list[Joint]:
    """Everything below ``roots`` that can be reported, joint by joint.

    Raises:
        InputError: a root does not exist, holds nothing to report, or a table is damaged.
    """
    visits: dict[Key, Visit] = {}
    names: dict[Key, Key] = {}
    pairs: list[Pair] = []
    titles: dict[Key, str] = {}
    tables: list[Path] = []
    seen: set[str] = set()
    for root in roots:
        base = root if root.is_dir() else root.parent
        for path in walk(root, (".json", ".csv")):
            real = os.path.realpath(path)  # unlike Path.resolve it takes links in a circle
            if real in seen:
                continue
            seen.add(real)
            if path.suffix.lower() == ".csv":
                tables.append(path)
                continue
            content = read_json(path)
            if content is None:
                continue
            place = path.relative_to(base).with_suffix("")
            result = as_result(path, place, content)
            if result is not None:
                _add_result(result, visits, names)
            elif (record := NarrowingRecord.of(content)) is not None:
                pair = _pair_of_record(path, record)
                pairs.append(pair)
                for key, side in (
                    (pair.baseline, record.baseline),
                    (pair.followup, record.followup),
                ):
                    _name(visits.setdefault(key, Visit(key)), side.file)
    for path in tables:
        _add_table(path, visits, names, pairs, titles)
    if not visits:
        raise InputError(
            f"{', '.join(map(str, roots))} holds nothing to report; give the output folder of "
            "blsgan separate or blsgan jsn."
        )
    return _by_joint(visits, pairs, titles)


def _add_result(result: StoredResult, visits: dict[Key, Visit], names: dict[Key, Key]) -> None:
    key = _hash_key(result.inputs)
    visits.setdefault(key, Visit(key)).result = result
    visits[key].label = result.label
    file = result.record.image.file
    if file is not None:
        names[("name", result.path.absolute().parent.name, file)] = key


def _name(visit: Visit, file: str | None) -> None:
    visit.label = visit.label or file or ""


def _hash_key(inputs: dict[str, str]) -> Key:
    return ("hash", *(inputs.get(role, "") for role in ("image", "upper_mask", "lower_mask")))


def _pair_of_record(path: Path, record: NarrowingRecord) -> Pair:
    picture = path.with_name("jsn.png")
    spaces = record.joint_space_width
    return Pair(
        _hash_key(record.baseline.sha256),
        _hash_key(record.followup.sha256),
        record.narrowing_px,
        record.narrowing_mm,
        record.mismatch,
        record.quality,
        record.disagreement_px,
        "; ".join(record.problems),
        tuple(record.notes),
        (spaces.baseline, spaces.followup),
        record,
        picture if path.name == "jsn.json" and picture.is_file() else None,
    )


def _width(row: dict[str, str], side: str) -> SpaceWidth | None:
    figures = {
        name: _figure(row.get(f"jsw_{side}_{name}"))
        for name in ("mean_px", "minimum_px", "mean_mm", "minimum_mm")
    }
    if figures["mean_px"] is None or figures["minimum_px"] is None:
        return None
    return SpaceWidth.model_validate(figures)


def _figure(value: str | None) -> float | None:
    """A number, None for an empty cell; ValueError for anything else."""
    if not value:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def _add_table(
    path: Path,
    visits: dict[Key, Visit],
    names: dict[Key, Key],
    pairs: list[Pair],
    titles: dict[Key, str],
) -> None:
    """Add the pairs of a ``jsn.csv``; other tables are passed over."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if not set(reader.fieldnames or ()) >= _JSN_COLUMNS:
                return
            for row in reader:
                pair, labels = _pair_of_row(row, names)
                pairs.append(pair)
                for key, label in labels.items():
                    _name(visits.setdefault(key, Visit(key)), label)
                    if not _is_private(row):
                        titles[key] = row["joint"]
    except (OSError, ValueError, csv.Error, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is a damaged table of blsgan jsn ({type(error).__name__}); measure again."
        ) from error


def _is_private(row: dict[str, str]) -> bool:
    """Whether the row's names may tell a patient: DICOM files have any ending, or none."""
    return any(
        Path(row[side]).suffix.lower() not in RASTER_SUFFIXES for side in ("baseline", "followup")
    )


def _pair_of_row(row: dict[str, str], names: dict[Key, Key]) -> tuple[Pair, dict[Key, str]]:
    keys, labels = [], {}
    for side in ("baseline", "followup"):
        key: Key = ("name", row["joint"], row[side])
        key = names.get(key, key)
        keys.append(key)
        labels[key] = "" if _is_private(row) else row[side]
    narrowing = _figure(row.get("narrowing_px"))
    # The reason why a file could not be read names its path, which is nobody's business here.
    problems = row.get("problems") or ""
    if narrowing is None:
        problems = "the pair could not be read or measured; the table of blsgan jsn says why"
    pair = Pair(
        keys[0],
        keys[1],
        narrowing,
        _figure(row.get("narrowing_mm")),
        row["mismatch"].strip().lower() != "false",
        _figure(row.get("quality")),
        _figure(row.get("disagreement_px")),
        problems,
        tuple(filter(None, (row.get("notes") or "").split("; "))),
        (_width(row, "baseline"), _width(row, "followup")),
    )
    return pair, labels


def _by_joint(visits: dict[Key, Visit], pairs: list[Pair], titles: dict[Key, str]) -> list[Joint]:
    """Visits that measurements connect are one joint."""
    root = {key: key for key in visits}

    def top(key: Key) -> Key:
        while root[key] != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for pair in pairs:
        root[top(pair.followup)] = top(pair.baseline)
    members: defaultdict[Key, list[Key]] = defaultdict(list)
    for key in visits:
        members[top(key)].append(key)
    between: defaultdict[Key, list[Pair]] = defaultdict(list)
    for pair in pairs:
        between[top(pair.baseline)].append(pair)
    joints = []
    for number, (key, keys) in enumerate(members.items(), start=1):
        ordered = in_order(keys, between[key])
        shown = [visits[visit] for visit in ordered]
        for index, visit in enumerate(shown, start=1):
            visit.label = visit.label or f"visit {index}"
            visit.flags = _judge(visit)
        label = next((titles[visit] for visit in ordered if titles.get(visit)), "")
        joint = Joint(
            label or (shown[0].label if shown[0].result else "") or f"joint {number}",
            shown,
            between[key],
            curve(ordered, between[key]),
        )
        joint.flags = _joint_flags(joint)
        joints.append(joint)
    return joints


def in_order(keys: Sequence[Key], pairs: Iterable[Pair]) -> list[Key]:
    """``keys`` with every baseline before its follow-ups; otherwise, and in circles, as given."""
    earlier: dict[Key, set[Key]] = {key: set() for key in keys}
    for pair in pairs:
        if pair.baseline != pair.followup:
            earlier[pair.followup].add(pair.baseline)
    ordered: list[Key] = []
    left = list(keys)
    while left:
        ready = next((key for key in left if not earlier[key] - set(ordered)), left[0])
        ordered.append(ready)
        left.remove(ready)
    return ordered


def curve(keys: Sequence[Key], pairs: Sequence[Pair]) -> Curve | None:
    """Narrowing over the visits ``keys`` against the first; None without any measurement.

    A visit's value is the measured pair with the first visit where there is one, else the sum along
    the fewest pairs. Mismatches carry nothing.
    """
    valid = [pair for pair in pairs if pair.valid]
    if not pairs or len(keys) < 2:
        return None
    unit = "mm" if valid and all(pair.narrowing_mm is not None for pair in valid) else "px"
    steps: dict[Key, list[tuple[Key, float, float]]] = {key: [] for key in keys}
    for pair in valid:
        px = pair.narrowing_px or 0.0
        shown = (pair.narrowing_mm or 0.0) if unit == "mm" else px
        steps[pair.baseline].append((pair.followup, shown, px))
        steps[pair.followup].append((pair.baseline, -shown, -px))
    first = keys[0]
    reached: dict[Key, tuple[float, float, int]] = {first: (0.0, 0.0, 0)}
    front = [first]
    while front:
        following = []
        for key in front:
            shown, px, count = reached[key]
            for other, step, step_px in steps[key]:
                if other not in reached:
                    reached[other] = (shown + step, px + step_px, count + 1)
                    following.append(other)
        front = following
    used = len(reached) - 1
    ends = [
        (abs(reached[pair.followup][1] - reached[pair.baseline][1] - (pair.narrowing_px or 0.0)))
        for pair in valid
        if pair.baseline in reached
    ]
    return Curve(
        unit,
        [reached[key][0] if key in reached else None for key in keys],
        [key in reached and reached[key][2] > 1 for key in keys],
        max(ends) if len(ends) > used else None,
        _pixel_mm(valid) if unit == "mm" else 1.0,
    )


def _pixel_mm(pairs: Sequence[Pair]) -> float | None:
    """Side of a pixel, from the pair that moved most; None where nothing moved."""
    most = max(pairs, key=lambda pair: abs(pair.narrowing_px or 0.0))
    if not most.narrowing_px or most.narrowing_mm is None:
        return None
    return most.narrowing_mm / most.narrowing_px


def _flag(level: str, kind: str, more: str) -> Flag:
    return Flag(level, kind + more, kind)


def _judge(visit: Visit) -> list[Flag]:
    """Flags of a visit; also tells whether its files can be shown."""
    result = visit.result
    if result is None:
        return []
    record = result.record
    flags = []
    problem = result.problem()
    visit.usable = problem is None
    if problem:
        flags.append(Flag(ALERT, f"{problem}: no pictures are shown; separate the image again"))
    error = record.reconstruction_error.mse
    if not error <= MAX_RECONSTRUCTION_MSE:
        flags.append(
            _flag(ALERT, "the layers do not recompose to the radiograph", f" (MSE {error:.1e})")
        )
    flags += _mask_flags(result)
    for note in record.notes:
        doubt = note.endswith("?")  # how the separation words doubts about masks
        flags.append(Flag(WARNING if doubt else NOTE, note))
    return flags


def _mask_flags(result: StoredResult) -> list[Flag]:
    """Says that masks were predicted, and whether they are in doubt."""
    prediction = result.record.prediction
    if prediction is None:
        return []
    confidence = prediction.confidence
    said = "" if confidence is None else f", confidence {confidence.score:.2f}"
    if prediction.doubtful:
        why = "; ".join(prediction.doubts)
        return [
            _flag(
                ALERT,
                "the bone masks were predicted and are doubtful",
                f"{said}: {why or 'look at them'}",
            )
        ]
    return [_flag(WARNING, "the bone masks were predicted, not drawn", said)]


def _joint_flags(joint: Joint) -> list[Flag]:
    flags = []
    number = {visit.key: index for index, visit in enumerate(joint.visits, start=1)}
    for pair in joint.pairs:
        where = f"visit {number[pair.baseline]} to {number[pair.followup]}"
        if not pair.valid:
            problem = f"no measurement ({pair.problems or 'mismatch'})"
            flags.append(Flag(ALERT, f"{where}: {problem}", problem))
        flags += [Flag(NOTE, f"{where}: {note}") for note in pair.notes]
    off = joint.curve and joint.curve.disagreement_px
    if off and off > MAX_DISAGREEMENT_PX:
        flags.append(_flag(WARNING, "the pairs do not add up", f": they disagree by {off:.2f} px"))
    if joint.curve and joint.curve.is_measured and joint.curve.unit == "px":
        flags.append(Flag(NOTE, "no pixel spacing: narrowing in px only"))
    return flags
