"""What readers' answers say: accuracy against chance, agreement between readers, grades.

Accuracy has Wilson's interval (Wilson, JASA 1927) and the exact binomial test against 1/2; over all
readers also an interval by bootstrap over the pictures, for answers to one picture are not
independent. Agreement is Fleiss' kappa (Fleiss, Psychological Bulletin 1971).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import InputError
from blsgan.io.files import read_file
from blsgan.io.masks import BONES
from blsgan.records.reader_study import KeyRecord, ScoreRecord
from blsgan.report.study import GENERATED, REAL

CHANCE = 0.5
_COLUMNS = ("study", "reader", "group", "item", "answer", "realism")
_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Key:
    """The truth of a study: item number -> what it is, and which bone."""

    study: str
    truth: dict[int, str]
    bone: dict[int, str]


@dataclass(frozen=True)
class Answer:
    """One reader's answer; ``realism`` is 1..5."""

    answer: str
    realism: int


@dataclass(frozen=True)
class Reading:
    """One reader's file: the answered items; ``items`` counts those of the study."""

    reader: str
    group: str
    answers: dict[int, Answer]
    items: int

    @property
    def missing(self) -> int:
        """Items without a complete answer."""
        return self.items - len(self.answers)


@dataclass(frozen=True)
class Rate:
    """A share of ``hits`` among ``count`` with its 95 % Wilson interval; None without any."""

    hits: int
    count: int
    share: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Accuracy:
    """How well answers hit the truth.

    Attributes:
        correct: answers that hit it.
        sensitivity: generated pictures that were called generated.
        specificity: real pictures that were called real.
        p_chance: two-sided exact binomial test of ``correct`` against 1/2.
    """

    correct: Rate
    sensitivity: Rate
    specificity: Rate
    p_chance: float | None


@dataclass(frozen=True)
class Grades:
    """Realism grades of the pictures of one truth and bone."""

    truth: str
    bone: str
    count: int
    mean: float | None
    sd: float | None
    median: float | None


@dataclass(frozen=True)
class Agreement:
    """Fleiss' kappa over the ``items`` that every reader answered, with its bootstrap interval."""

    kappa: float | None
    low: float | None
    high: float | None
    items: int
    readers: int


@dataclass(frozen=True)
class Score:
    """Everything about a study's answers."""

    study: str
    readers: dict[str, Accuracy]
    groups: dict[str, Accuracy]
    pooled: Accuracy
    pooled_by_picture: tuple[float, float] | None
    agreement: Agreement
    grades: list[Grades]
    missing: dict[str, int]

    def record(self) -> ScoreRecord:
        """For JSON."""
        fields = asdict(self)
        if self.pooled_by_picture is not None:
            fields["pooled_by_picture"] = list(self.pooled_by_picture)
        return ScoreRecord(schema=1, **fields)


def read_key(path: Path) -> Key:
    """Read a key file; raises :class:`InputError` where it is none."""
    file = read_file(path, what="key")
    try:
        key = KeyRecord.parse(json.loads(file.data))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no key of a reader study ({error}); give the STUDY-key.json "
            "that was written beside the page."
        ) from error
    truth = {item.item: str(item.truth) for item in key.items}
    if len(truth) != len(key.items):
        raise InputError(f"{path} is a damaged key: its items repeat; build again.")
    return Key(key.study, truth, {item.item: item.bone for item in key.items})


def read_answers(path: Path, key: Key) -> Reading:
    """Read one reader's CSV.

    Raises:
        InputError: a file of another study, of several readers, with unknown or repeated items, or
            with values that are no answers.
    """
    file = read_file(path, what="file of answers")
    try:
        # utf-8-sig and any delimiter's quoting: the file may have gone through a spreadsheet.
        rows = list(csv.DictReader(io.StringIO(file.data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file of answers; save it from the page.") from error
    if not rows or not set(_COLUMNS) <= set(rows[0]):
        raise InputError(
            f"{path} lacks the columns {', '.join(_COLUMNS)} or has no answers; save it from the "
            "page."
        )
    studies = {row["study"] for row in rows}
    if studies != {key.study}:
        other = ", ".join(sorted(str(study) for study in studies - {key.study}))
        raise InputError(f"{path} answers the study {other}, not {key.study}; give its own key.")
    readers = {(row["reader"], row["group"]) for row in rows}
    if len(readers) > 1 or not rows[0]["reader"]:
        raise InputError(f"{path} names {len(readers)} readers or none; give one file for each.")
    answers: dict[int, Answer] = {}
    seen: set[int] = set()
    for line, row in enumerate(rows, start=2):
        item = _number(row["item"])
        if item not in key.truth:
            raise InputError(
                f"{path}, line {line}: the study has no item {row['item']}; save it from the page."
            )
        if item in seen:
            raise InputError(f"{path}, line {line}: item {item} is answered twice; keep one line.")
        seen.add(item)
        answer, realism = row["answer"] or "", _number(row["realism"])
        if answer not in ("", REAL, GENERATED) or (
            row["realism"] and realism not in (1, 2, 3, 4, 5)
        ):
            raise InputError(
                f"{path}, line {line}: {answer or 'no answer'} with realism {row['realism']} is no "
                f"answer; it is {REAL} or {GENERATED}, and 1 to 5."
            )
        if answer and realism is not None:
            answers[item] = Answer(answer, realism)
    return Reading(rows[0]["reader"], rows[0]["group"] or "", answers, len(key.truth))


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def score(key: Key, readings: Sequence[Reading], seed: int = 0) -> Score:
    """Judge the answers; ``seed`` is of the bootstrap.

    Raises:
        InputError: a reader twice, or not one complete answer.
    """
    names = [reading.reader for reading in readings]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"reader {name} answered in {names.count(name)} files; give one file for each "
                "reader."
            )
    if not any(reading.answers for reading in readings):
        raise InputError("no picture was answered; give the files that readers saved.")
    groups: dict[str, list[Reading]] = {}
    for reading in readings:
        if reading.group:
            groups.setdefault(reading.group, []).append(reading)
    return Score(
        key.study,
        {reading.reader: _accuracy(key, [reading]) for reading in readings},
        {group: _accuracy(key, members) for group, members in sorted(groups.items())},
        _accuracy(key, readings),
        _by_picture(key, readings, seed),
        _agreement(key, readings, seed),
        [_grades(key, readings, truth, bone) for truth in (REAL, GENERATED) for bone in BONES],
        {reading.reader: reading.missing for reading in readings if reading.missing},
    )


def wilson(hits: int, count: int) -> Rate:
    """A share with its 95 % interval by Wilson's score."""
    from scipy.stats import binomtest

    if count == 0:
        return Rate(0, 0, None, None, None)
    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return Rate(hits, count, hits / count, float(interval.low), float(interval.high))


def _accuracy(key: Key, readings: Sequence[Reading]) -> Accuracy:
    from scipy.stats import binomtest

    hits = {REAL: [0, 0], GENERATED: [0, 0]}
    for reading in readings:
        for item, answer in reading.answers.items():
            truth = key.truth[item]
            hits[truth][0] += answer.answer == truth
            hits[truth][1] += 1
    correct = wilson(hits[REAL][0] + hits[GENERATED][0], hits[REAL][1] + hits[GENERATED][1])
    p = None
    if correct.count and len(readings) == 1:  # several answers to one picture are not independent
        p = float(binomtest(correct.hits, correct.count, CHANCE).pvalue)
    return Accuracy(correct, wilson(*hits[GENERATED]), wilson(*hits[REAL]), p)


def _by_picture(key: Key, readings: Sequence[Reading], seed: int) -> tuple[float, float] | None:
    """95 % interval of the pooled accuracy when pictures are drawn again."""
    counts = np.array(
        [
            [
                sum(r.answers[item].answer == truth for r in readings if item in r.answers),
                sum(item in r.answers for r in readings),
            ]
            for item, truth in key.truth.items()
        ],
        np.float64,
    )
    counts = counts[counts[:, 1] > 0]
    if len(counts) < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = counts[rng.integers(0, len(counts), (_BOOTSTRAP, len(counts)))].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(low), float(high)


def _agreement(key: Key, readings: Sequence[Reading], seed: int) -> Agreement:
    common = [item for item in key.truth if all(item in r.answers for r in readings)]
    if len(readings) < 2 or not common:
        return Agreement(None, None, None, len(common), len(readings))
    table = np.array(
        [
            [sum(r.answers[item].answer == kind for r in readings) for kind in (REAL, GENERATED)]
            for item in common
        ]
    )
    kappa = fleiss_kappa(table)
    if kappa is None or len(common) < 2:
        return Agreement(kappa, None, None, len(common), len(readings))
    rng = np.random.default_rng(seed)
    drawn = [
        fleiss_kappa(table[rng.integers(0, len(table), len(table))]) for _ in range(_BOOTSTRAP)
    ]
    low, high = np.percentile([value for value in drawn if value is not None], [2.5, 97.5])
    return Agreement(kappa, float(low), float(high), len(common), len(readings))


def fleiss_kappa(table: NDArray[Any]) -> float | None:
    """Fleiss' kappa of [items,categories] counts of ratings, as many for each item.

    Fleiss, Psychological Bulletin 76 (1971), 378-382. None where all ratings fall into one
    category, which leaves nothing that chance could miss.

    Raises:
        ValueError: fewer than two ratings an item, or not as many for each.
    """
    ratings = table.sum(axis=1)
    if len(table) == 0 or ratings[0] < 2 or (ratings != ratings[0]).any():
        raise ValueError("every item needs the same number of ratings, two or more")
    count = float(ratings[0])
    shares = table.sum(axis=0) / table.sum()
    agreed = ((np.square(table, dtype=np.float64)).sum(axis=1) - count) / (count * (count - 1))
    by_chance = float(np.square(shares).sum())
    if by_chance >= 1.0:
        return None
    return float((agreed.mean() - by_chance) / (1 - by_chance))


def _grades(key: Key, readings: Sequence[Reading], truth: str, bone: str) -> Grades:
    values = np.array(
        [
            answer.realism
            for reading in readings
            for item, answer in reading.answers.items()
            if key.truth[item] == truth and key.bone[item] == bone
        ],
        np.float64,
    )
    if not len(values):
        return Grades(truth, bone, 0, None, None, None)
    return Grades(
        truth,
        bone,
        len(values),
        float(values.mean()),
        float(values.std(ddof=1)) if len(values) > 1 else None,
        float(np.median(values)),
    )


def markdown(found: Score) -> str:
    """The score as GitHub markdown tables."""
    lines = [
        f"Reader study {found.study}",
        "",
        "| reader | correct | accuracy [95 % CI] | p against chance | sensitivity | specificity |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    named: list[tuple[str, Accuracy]] = [*found.readers.items()]
    named += [(f"group {group}", accuracy) for group, accuracy in found.groups.items()]
    named.append(("all", found.pooled))
    for name, accuracy in named:
        correct = accuracy.correct
        p = "–" if accuracy.p_chance is None else f"{accuracy.p_chance:.3g}"
        lines.append(
            f"| {name} | {correct.hits}/{correct.count} | {_rate(correct)} | {p} | "
            f"{_rate(accuracy.sensitivity)} | {_rate(accuracy.specificity)} |"
        )
    if found.pooled_by_picture:
        low, high = found.pooled_by_picture
        lines += ["", f"All readers, 95 % interval by bootstrap over pictures: {_span(low, high)}."]
    agreement = found.agreement
    if agreement.kappa is None:
        if agreement.readers < 2:
            why = "one reader"
        else:
            why = "one answer throughout" if agreement.items else "no picture that all answered"
        lines += ["", f"Fleiss' kappa: not defined ({why})."]
    else:
        span = ""
        if agreement.low is not None and agreement.high is not None:
            span = f" [{agreement.low:.3f}, {agreement.high:.3f}]"
        lines += [
            "",
            f"Fleiss' kappa {agreement.kappa:.3f}{span}, {agreement.readers} readers, "
            f"{agreement.items} pictures that all answered.",
        ]
    lines += ["", "| realism 1-5 | bone | grades | mean | SD | median |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    lines += [
        f"| {row.truth} | {row.bone} | {row.count} | {_cell(row.mean)} | {_cell(row.sd)} | "
        f"{_cell(row.median)} |"
        for row in found.grades
    ]
    return "\n".join(lines) + "\n"


def _rate(rate: Rate) -> str:
    if rate.share is None or rate.low is None or rate.high is None:
        return "–"
    return f"{100 * rate.share:.1f} % {_span(rate.low, rate.high)}"


def _span(low: float, high: float) -> str:
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def incomplete(missing: Mapping[str, int], items: int) -> list[str]:
    """A sentence for every reader who left pictures out."""
    return [
        f"reader {reader} answered {items - count} of {items} pictures"
        for reader, count in missing.items()
    ]
