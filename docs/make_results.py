"""Write tables of measured figures from benchmarks/results: ``python docs/make_results.py``.

A table stands between ``<!-- made: NAME -->`` and ``<!-- end -->``; all else is written by hand.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

PAGES = [Path(__file__).parent / name for name in ("results.md", "explanation/evaluation.md")]
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def results(page: str) -> str:
    """The page with every marked table made anew."""
    made = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return made.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


def _read(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def _ops() -> str:
    """Forward and backward in float32: what the same formula takes in PyTorch."""
    rows = [row for row in _read("ops") if (row["phase"], row["dtype"]) == ("full", "float32")]
    found = {(row["op"], row["size"], row["variant"]): row for row in rows}
    shapes = {row["size"]: row["shape"] for row in rows}

    def slower(op: str, size: str, variant: str) -> str:
        return f"{float(found[op, size, variant]['slower_than_blsgan']):.1f}x"

    sizes = ("training", "large")
    header = ["op, forward + backward, float32"]
    header += [f"{shapes[size]}: {name}" for size in sizes for name in ("eager", "torch.compile")]
    body = [
        [
            f"`{op}`",
            *(slower(op, size, variant) for size in sizes for variant in ("eager", "compile")),
            f"{100 * float(found[op, 'large', 'blsgan']['roofline']):.0f} %",
        ]
        for op in dict.fromkeys(row["op"] for row in rows)
    ]
    return _table([*header, "share of copy bandwidth, large"], body)


def _cross_validation() -> str:
    """Every joint by a network that never saw it, and the closed forms that come nearest."""
    rows = [row for row in _read("cross_validation") if row["thresholds"] == "protocol"]
    found = {(row["method"], row["bone"]): row for row in rows}

    def cell(method: str, bone: str) -> str:
        row = found[method, bone]
        mean, low, high = (float(row[f"corrected_db_{part}"]) for part in ("mean", "low", "high"))
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]"

    def other(method: str, key: str, form: str) -> str:
        cells = [found[method, bone][key] for bone in ("upper", "lower")]
        return " / ".join(format(float(value), form) if value else "-" for value in cells)

    body = [
        [
            method,
            *(cell(method, bone) for bone in ("upper", "lower")),
            other(method, "plain_db_mean", ".1f"),
            other(method, "outline_worst", "+.3f"),
            other(method, "ring_plain_db_mean", ".1f"),
            other(method, "texture_median", ".2f"),
        ]
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    header = ["upper / lower bone", "corrected dB, upper", "corrected dB, lower", "plain dB"]
    return _table([*header, "outline, worst", "ring, plain dB", "texture"], body)


def _edges() -> str:
    """What the other bone's blurred edge adds to a bone beside it, and what truths keep of it."""
    body = [
        [
            f"{row['bone']}, {row['px']} px",
            row["joints"],
            f"{float(row['with_edge']):+.3f}",
            _between(row, "without", "+.3f"),
        ]
        for row in _read("edges")
    ]
    header = ["bone, px from the other bone's mask", "joints", "edge's light"]
    return _table([*header, "left in truths"], body)


def _laws() -> str:
    """Laws between display and attenuation."""
    body = [
        [
            row["law"],
            _between(row, "rmse", ".3f"),
            _between(row, "ratio", ".2f"),
            _between(row, "parameter", ".2f"),
        ]
        for row in _read("laws")
    ]
    return _table(["law", "RMSE", "ratio to the paper's", "parameter"], body)


def _between(row: dict[str, str], key: str, form: str) -> str:
    """A figure with its interval."""
    mean, low, high = (format(float(row[k]), form) for k in (key, f"{key}_low", f"{key}_high"))
    return f"{mean} [{low}, {high}]"


def _separation() -> str:
    """One joint through the network, and the command from the cold."""
    body = [
        [
            row["measurement"],
            f"{float(row['p50_ms']):.1f}",
            f"{float(row['published_over_this']):.0f}x" if row["published_over_this"] else "",
            f"{row['peak_mb']} MB" if row["peak_mb"] else "",
        ]
        for row in _read("separation")
    ]
    return _table(["one joint of 256x256 px", "ms", "times the published", "memory"], body)


def _archive() -> str:
    """``blsgan separate`` of many joints and of large pictures."""
    body = [
        [
            row["what"],
            f"{row['side_px']}x{row['side_px']}",
            row["jobs"],
            f"{float(row['joints_per_s']):.1f}",
            f"{1000 * float(row['cpu_seconds']) / int(row['joints']):.0f}",
            f"{float(row['peak_mib']):.0f} MiB",
            row["load_before"],
        ]
        for row in _read("archive")
    ]
    header = [
        "`blsgan separate`",
        "px",
        "`--jobs`",
        "joints/s",
        "processor ms a joint",
        "largest process",
    ]
    return _table([*header, "load before"], body)


TABLES = {
    "archive": _archive,
    "cross_validation": _cross_validation,
    "edges": _edges,
    "laws": _laws,
    "ops": _ops,
    "separation": _separation,
}

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(results(page.read_text(encoding="utf-8")), encoding="utf-8")
