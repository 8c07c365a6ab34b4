"""Plots of a report as coordinates; the template writes the SVG from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blsgan.io.tables import signed
from blsgan.report.collect import Curve

_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 18.0, 14.0, 34.0
_INSET = 30.0  # of the first and last visit, for half a label
_SIDE = 18.0  # left and right of a histogram, for half a label
_FEWEST = 8  # values that a histogram is drawn of


@dataclass(frozen=True)
class Tick:
    """A position along an axis and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """A visit's value in the plot; ``hollow`` where it is a sum of several measurements."""

    x: float
    y: float
    text: str
    hollow: bool


@dataclass(frozen=True)
class CurvePlot:
    """A curve on a canvas of ``width`` x ``height``; ``zero`` is the height of its zero line.

    ``band`` is top and height of what is not told from zero.
    """

    width: float
    height: float
    left: float
    right: float
    bottom: float
    zero: float
    ticks: list[Tick]
    visits: list[Tick]
    points: list[Point]
    band: tuple[float, float] | None
    line: str
    unit: str
    description: str


@dataclass(frozen=True)
class IntervalPoint:
    """A value with its interval: heights of the value and of both ends; ``kind`` says how sure."""

    x: float
    y: float
    top: float
    bottom: float
    kind: str
    title: str


@dataclass(frozen=True)
class IntervalPlot:
    """Values with intervals over visits, on a canvas of ``width`` x ``height``."""

    width: float
    height: float
    left: float
    right: float
    bottom: float
    zero: float
    ticks: list[Tick]
    visits: list[Tick]
    points: list[IntervalPoint]
    unit: str
    description: str


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """Counts of a quantity over equal intervals."""

    title: str
    width: float
    height: float
    bottom: float
    bars: list[Bar]
    ticks: list[Tick]
    most: int
    description: str


def plot_curve(
    curve: Curve, sdd_px: float | None = None, width: float = 460, height: float = 200
) -> CurvePlot:
    """Narrowing over visits; visits stand at equal distances, for their dates are not known.

    ``sdd_px`` is the smallest detectable difference, drawn as a band around zero.
    """
    reach = 0.0 if sdd_px is None or curve.px is None else sdd_px * curve.px
    known = [*(value for value in curve.values if value is not None), -reach, reach]
    low, high, step = _axis(min(known), max(known))
    right, bottom = width - _RIGHT, height - _BOTTOM

    def y(value: float) -> float:
        return round(bottom - (value - low) / (high - low) * (bottom - _TOP), 2)

    inner = right - _LEFT
    distance = inner / len(curve.values)
    xs = [round(_LEFT + (index + 0.5) * distance, 2) for index in range(len(curve.values))]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    places = 3 if curve.unit == "mm" else 2
    points = [
        Point(x, y(value), signed(value, places), hollow)
        for x, value, hollow in zip(xs, curve.values, curve.summed, strict=True)
        if value is not None
    ]
    said = ", ".join(
        f"visit {index}: " + ("not measured" if value is None else signed(value, places))
        for index, value in enumerate(curve.values, start=1)
    )
    count = round((high - low) / step)
    every = max(1, math.ceil(len(xs) / 12))
    return CurvePlot(
        width,
        height,
        _LEFT,
        right,
        bottom,
        y(0.0),
        [
            Tick(y(low + index * step), _text(low + index * step, decimals))
            for index in range(count + 1)
        ],
        [Tick(x, str(index + 1)) for index, x in enumerate(xs) if index % every == 0],
        points,
        (y(reach), round(y(-reach) - y(reach), 2)) if reach else None,
        " ".join(f"{point.x:g},{point.y:g}" for point in points),
        curve.unit,
        f"Narrowing in {curve.unit} against the first visit: {said}."
        + (f" Less than {reach:.{places}f} is within the error of measurement." if reach else ""),
    )


def plot_intervals(
    values: Sequence[tuple[float, float, str] | None],
    days: Sequence[int | None],
    unit: str,
    width: float = 420,
    height: float = 190,
) -> IntervalPlot:
    """Narrowing of each visit against the first, with its interval.

    Args:
        values: of each visit: narrowing, half its interval, verdict; None where there is none.
        days: of each visit, after the first; where one is not known, or two are one, visits stand
            at equal distances.
        unit: of the narrowing.
    """
    known = [value for value in values if value is not None]
    ends = [0.0, *(v - half for v, half, _ in known), *(v + half for v, half, _ in known)]
    low, high, step = _axis(min(ends), max(ends))
    right, bottom = width - _RIGHT, height - _BOTTOM
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))

    def y(value: float) -> float:
        return round(bottom - (value - low) / (high - low) * (bottom - _TOP), 2)

    dated = [day for day in days if day is not None]
    if len(set(dated)) == len(days) > 1:
        names = [f"day {day}" for day in dated]
        places = [(day - dated[0]) / (dated[-1] - dated[0]) for day in dated]
    else:
        names = [f"visit {number}" for number in range(1, len(days) + 1)]
        places = [number / max(len(days) - 1, 1) for number in range(len(days))]
    inner = right - _LEFT - 2 * _INSET
    xs = [round(_LEFT + _INSET + place * inner, 2) for place in places]
    points = [
        IntervalPoint(
            x, y(value[0]), y(value[0] + value[1]), y(value[0] - value[1]), value[2],
            f"{name}: {signed(value[0], 3)} ± {value[1]:.3f} {unit}, {value[2]}",
        )
        for x, name, value in zip(xs, names, values, strict=True)
        if value is not None
    ]  # fmt: skip
    shown, last = [], -math.inf
    for x, name in zip(xs, names, strict=True):
        if x - last >= 6.5 * len(name) + 8:  # else it would be written over the one before
            shown.append(Tick(x, name))
            last = x
    count = round((high - low) / step)
    heights = [low + index * step for index in range(count + 1)]
    return IntervalPlot(
        width, height, _LEFT, right, bottom, y(0.0),
        [Tick(y(value), _text(value, decimals)) for value in heights],
        shown, points, unit,
        f"Narrowing in {unit} against the first visit. " + "; ".join(p.title for p in points) + ".",
    )  # fmt: skip


def plot_histogram(
    title: str, values: Sequence[float], unit: str, width: float = 340, height: float = 120
) -> Histogram | None:
    """Counts of ``values``; None for fewer than eight, which need no picture."""
    if len(values) < _FEWEST:
        return None
    low, high, step = _axis(min(values), max(values), about=10)
    count = max(1, round((high - low) / step))
    counts = [0] * count
    for value in values:
        counts[min(int((value - low) / step + 1e-9), count - 1)] += 1
    most = max(counts)
    bottom, top, left, right = height - 22, 8.0, _SIDE, width - _SIDE
    bar = (right - left) / count
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    edges = [low + index * step for index in range(count + 1)]
    bars = [
        Bar(
            round(left + index * bar + 0.75, 2),
            round(bottom - number / most * (bottom - top), 2),
            round(bar - 1.5, 2),
            round(number / most * (bottom - top), 2),
            f"{_text(edges[index], decimals)} to {_text(edges[index + 1], decimals)} {unit}: "
            f"{number}",
        )
        for index, number in enumerate(counts)
    ]
    every = max(1, math.ceil(count / 5))
    ticks = [
        Tick(round(left + index * bar, 2), _text(edges[index], decimals))
        for index in range(0, count + 1, every)
    ]
    return Histogram(
        f"{title}, {unit}", width, height, bottom, bars, ticks, most,
        f"{title}: {len(values)} values from {min(values):.{decimals + 1}f} to "
        f"{max(values):.{decimals + 1}f} {unit}.",
    )  # fmt: skip


def _text(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no minus before a zero


def _axis(low: float, high: float, about: int = 4) -> tuple[float, float, float]:
    """Ends and step of an axis over low..high: steps of 1, 2 or 5 times a power of ten."""
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        spread = max(abs(low), abs(high)) * 0.1 or 0.1
        low, high = low - spread, high + spread
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step
