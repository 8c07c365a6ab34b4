"""The figure of ``blsgan bench ops``: how close each op comes to what the memory can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blsgan.errors import BackendError
from blsgan.io.atomic import atomic_path
from blsgan.ops.benchmark import OpTiming

_STYLES = {
    "blsgan": ("o", "#14598f", 9),
    "eager": ("x", "#9a8f83", 6),
    "compile": ("^", "#c2703d", 6),
}


def draw_rooflines(rows: Sequence[OpTiming], facts: dict[str, str], path: Path) -> list[Path]:
    """A PNG for each size: bandwidth that every op achieves, forward and backward together.

    The ops do a handful of operations for each byte, so memory is the only roof in reach: the line
    is this machine's own copy. Files are ``NAME-SIZE.png``, or ``path`` where there is one size.

    Raises:
        BackendError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError as error:
        raise BackendError(
            f"the plot {path} needs matplotlib, which is not installed; pip install "
            "'blsgan[figures]'"
        ) from error
    full = [row for row in rows if row.phase == "full"]
    sizes = list(dict.fromkeys(row.size for row in full))
    written = []
    for size in sizes:
        ops = list(dict.fromkeys(row.op for row in full if row.size == size))
        dtypes = list(dict.fromkeys(row.dtype for row in full if row.size == size))
        figure = Figure(figsize=(1.6 + 3.6 * len(dtypes), 1.5 + 0.42 * len(ops)))
        figure.set_layout_engine("constrained")
        axes = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
        for axis, dtype in zip(axes, dtypes, strict=True):
            chosen = [row for row in full if (row.size, row.dtype) == (size, dtype)]
            roof = max(row.copy_gb_per_s for row in chosen)
            axis.axvline(roof, color="black", linewidth=1.2)
            axis.annotate(
                f"copy {roof:.0f}",
                (roof, -0.55),
                xytext=(-3, 0),
                textcoords="offset points",
                fontsize=8,
                ha="right",
            )
            for row in chosen:
                marker, colour, points = _STYLES[row.variant]
                axis.plot(row.gb_per_s, ops.index(row.op), marker, color=colour, markersize=points)
            axis.set_xscale("log")
            reached = [row.gb_per_s for row in chosen]
            axis.set_xlim(min(reached) / 1.6, max(*reached, roof) * 1.35)
            axis.set_xticks([10.0**power * part for power in range(-3, 5) for part in (1, 3)])
            axis.set_xlim(min(reached) / 1.6, max(*reached, roof) * 1.35)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_ylim(len(ops) - 0.4, -0.8)
            axis.set_yticks(range(len(ops)), ops)
            axis.set_xlabel("GB/s, logarithmic")
            axis.set_title(dtype, fontsize=10)
            axis.grid(axis="x", linewidth=0.3)
        handles = [
            axes[0].plot([], [], marker, color=colour, markersize=points, label=label)[0]
            for label, (marker, colour, points) in _STYLES.items()
            if any(row.variant == label for row in full)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        shape = next(row.shape for row in full if row.size == size)
        figure.suptitle(
            f"{shape}, forward and backward, {facts.get('gpu', facts['cpu'])}", fontsize=10
        )
        target = path if len(sizes) == 1 else path.with_name(f"{path.stem}-{size}.png")
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
        written.append(target)
    return written
