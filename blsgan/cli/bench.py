"""``blsgan bench``: time the kernels and the runtimes on this machine."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blsgan.cli import options
from blsgan.cli.group import Group
from blsgan.cli.terminal import Progress
from blsgan.errors import BackendError, UsageError
from blsgan.io.atomic import atomic_path

if TYPE_CHECKING:
    from blsgan.ops.benchmark import OpTiming

_DTYPES = ("float64", "float32", "bfloat16", "float16")
_QUICK = {"training": (2, 2, 128, 128), "large": (4, 2, 256, 256)}


@click.group(cls=Group, epilog="Example: blsgan bench ops --quick")
def command() -> None:
    """Time the kernels and the runtimes on this machine."""


@command.command(epilog="Example: blsgan bench ops --op compose_layers --quick")
@options.several("--op", "names", "Ops to time.")
@options.several("--size", "sizes", "12x2x256x256 or 64x2x512x512.", choices=("training", "large"))
@options.several(
    "--dtype", "dtypes", "Of the tensors.", choices=_DTYPES, default="float32,bfloat16,float16"
)
@options.device
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: as torch has them.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.01),
    default=2.0,
    show_default=True,
    help="Measuring time for each op, size, dtype and phase.",
)
@options.several(
    "--without", "excluded", "Baselines to leave out.", choices=("eager", "compile"), default="none"
)
@click.option(
    "--all-baselines",
    is_flag=True,
    help="Run the baselines in every dtype, not in the first alone.",
)
@click.option("--quick", is_flag=True, help="Small tensors and few runs: that it works, no more.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Also write a CSV file; beside it a table (.md) and a roofline for each size (.png).",
)
def ops(
    names: Sequence[str],
    sizes: Sequence[str],
    dtypes: Sequence[str],
    device: str,
    threads: int | None,
    seconds: float,
    excluded: Sequence[str],
    all_baselines: bool,
    quick: bool,
    output: Path | None,
) -> None:
    """Time every fused op beside eager PyTorch and torch.compile of the same formula.

    Forward, backward and both, as a user calls them, all variants in turns; the roof is this
    machine's own copy bandwidth. Ratios from a busy machine are noise: the load is printed. All
    ops at both sizes take about ten minutes on two cores.
    """
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            "blsgan bench ops times the PyTorch ops, and torch is not installed; "
            "pip install 'blsgan[train]'"
        ) from error

    from blsgan.ops import benchmark
    from blsgan.ops.cases import BY_NAME

    wanted = tuple(names) or tuple(name for name in BY_NAME if "-" not in name)
    for name in wanted:
        if name not in BY_NAME:
            raise UsageError(f"there is no op {name}; choose from {', '.join(BY_NAME)}")
    _check_device(device, torch)
    if output is not None and output.suffix != ".csv":
        raise UsageError(
            f"{output} must end in .csv; the table and the plot go to the same name "
            "with .md and .png"
        )
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    dtypes = tuple(dtypes) or ("float32", "bfloat16", "float16")
    variants = tuple(v for v in benchmark.VARIANTS if v not in excluded)
    plan = [
        (name, size, dtype, variants if all_baselines or dtype == dtypes[0] else ("blsgan",))
        for size in (sizes or ("training", "large"))
        for name in wanted
        for dtype in dtypes
    ]
    facts = benchmark.machine(device)
    try:
        rows = _run(plan, device, 0.05 if quick else seconds, quick)
    finally:
        torch.set_num_threads(before)
    _print_table(rows, facts)
    if output is not None:
        _write_rows(benchmark.OpTiming.columns(), [row.values() for row in rows], facts, output)
        click.echo(f"wrote {output}")
        table = output.with_suffix(".md")
        with atomic_path(table) as temporary:
            temporary.write_text(_markdown(rows, facts), encoding="utf-8")
        click.echo(f"wrote {table}")
        from blsgan.ops.roofline import draw_rooflines

        for plot in draw_rooflines(rows, facts, output.with_suffix(".png")):
            click.echo(f"wrote {plot}")


def _check_device(device: str, torch: Any) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"there is no device {device}; write cpu, cuda or cuda:N") from error
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"the ops run on cpu and cuda, not on {device}")
    if kind == "cuda":
        from blsgan.ops.fused._library import build_info

        if not torch.cuda.is_available():
            raise BackendError(
                "no CUDA device can be used here (torch.cuda.is_available() is "
                "False); leave --device away to time the CPU kernels"
            )
        if build_info()["cuda"] != "yes":
            raise BackendError(
                "blsgan was built without CUDA kernels; rebuild it with "
                "BLSGAN_CUDA=1 pip install . (blsgan doctor says why)"
            )


def _run(
    plan: Sequence[tuple[str, str, str, tuple[str, ...]]],
    device: str,
    seconds: float,
    quick: bool,
) -> list[OpTiming]:
    import torch

    from blsgan.ops import benchmark
    from blsgan.ops.cases import BY_NAME

    rows: list[OpTiming] = []
    with Progress() as progress, progress.bar("", len(plan)) as bar:
        for done, (name, size, dtype, variants) in enumerate(plan):
            bar.show(f"{name} {size} {dtype}", done, len(plan))
            rows += benchmark.measure(
                BY_NAME[name],
                size,
                getattr(torch, dtype),
                device,
                shape=_QUICK[size] if quick else None,
                variants=variants,
                seconds=seconds,
            )
    return rows


def _print_table(rows: Sequence[OpTiming], facts: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Median times; x = how much slower than blsgan")
    for heading in ("op", "size", "dtype", "phase"):
        table.add_column(heading)
    for heading in ("blsgan ms", "eager", "compile", "GB/s", "of copy"):
        table.add_column(heading, justify="right")
    slower = _slower(rows)
    for row in rows:
        if row.variant != "blsgan":
            continue
        key = (row.op, row.size, row.dtype, row.phase)

        def ratio(variant: str, key: tuple[str, str, str, str] = key) -> str:
            ratio = slower.get((*key, variant))
            return f"{ratio:.1f}x" if ratio else "-"

        table.add_row(
            *key,
            f"{row.p50_ms:.3f}",
            ratio("eager"),
            ratio("compile"),
            f"{row.gb_per_s:.1f}",
            f"{100 * row.roofline:.0f} %",
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    console.print(table)
    console.print("; ".join(f"{name} {value}" for name, value in facts.items()))


def _slower(rows: Sequence[OpTiming]) -> dict[tuple[str, str, str, str, str], float]:
    """Times slower than blsgan, by op, size, dtype, phase and variant.

    A dtype whose baselines were not run is compared with those of the first dtype.
    """
    times = {(r.op, r.size, r.dtype, r.phase, r.variant): r.p50_ms for r in rows}
    first = {(r.op, r.size, r.phase, r.variant): r.p50_ms for r in reversed(rows)}
    slower = {}
    for op, size, dtype, phase, _ in times:
        own = times.get((op, size, dtype, phase, "blsgan"))
        for variant in ("eager", "compile"):
            other = times.get(
                (op, size, dtype, phase, variant), first.get((op, size, phase, variant))
            )
            if own and other:
                slower[op, size, dtype, phase, variant] = other / own
    return slower


def _markdown(rows: Sequence[OpTiming], facts: dict[str, str]) -> str:
    """Forward and backward together, a row for each op and dtype: the table of docs/results.md."""
    full = {(r.op, r.dtype, r.size): r for r in rows if r.phase == "full" and r.variant == "blsgan"}
    sizes = list(dict.fromkeys(row.size for row in rows))
    slower = _slower(rows)
    heads, rule = ["op", "dtype"], ["---", "---"]
    for size in sizes:
        shape = next(row.shape for row in rows if row.size == size)
        heads += [
            f"{shape}: ms",
            "eager",
            "torch.compile",
            "of copy",
            "arithmetic alone",
            "kernel ms",
        ]
        rule += ["---:"] * 6

    def cells(op: str, dtype: str, size: str) -> list[str]:
        row = full.get((op, dtype, size))
        if row is None:
            return ["-"] * 6
        ratios = [slower.get((op, size, dtype, "full", name)) for name in ("eager", "compile")]
        copy_ms = row.bytes_moved / row.copy_gb_per_s / 1e6
        return [
            f"{row.p50_ms:.2f}",
            *(f"{ratio:.1f}x" if ratio else "-" for ratio in ratios),
            f"{100 * row.roofline:.0f} %",
            f"{100 * copy_ms / row.cached_ms:.0f} %" if row.cached_ms else "-",
            f"{row.kernel_ms:.1f}" if row.kernel_ms is not None else "-",
        ]

    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(rule) + "|"]
    for op, dtype in dict.fromkeys((row.op, row.dtype) for row in rows):
        line = [f"`{op}`", dtype]
        for size in sizes:
            line += cells(op, dtype, size)
        lines.append("| " + " | ".join(line) + " |")
    lines += [
        "",
        "Median times of forward and backward together; eager and torch.compile: how many times "
        "longer the same formula takes in PyTorch (in the first dtype, where it was not run in the "
        'row\'s own). "of copy": the bytes that must move (each input read once and each output '
        "written once, in each direction), over the time, as a share of this machine's copy "
        'bandwidth. "arithmetic alone": the share that the op would reach if memory cost nothing '
        "(the same pixels, from the cache); where it is below 100 %, arithmetic is the limit. "
        '"kernel ms": processor time that the operating system takes to hand out and clear the '
        "results' pages, which a copy into memory it has does not pay.",
        "",
        "; ".join(f"{name} {value}" for name, value in facts.items()),
        "",
    ]
    return "\n".join(lines)


def _write_rows(
    columns: Sequence[str], rows: Sequence[Sequence[object]], facts: dict[str, str], path: Path
) -> None:
    from blsgan import __version__

    facts = {"blsgan": __version__, **facts}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *facts])
    for row in rows:
        writer.writerow([*row, *facts.values()])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


_RUNTIMES = ("torch", "torch.compile", "onnxruntime", "openvino")


@command.command(epilog="Example: blsgan bench inference --runtime onnxruntime --batch 1")
@options.several(
    "--model",
    "models",
    "Names or files of weights, or transunet: the published generator.",
    default="lite",
)
@options.several(
    "--runtime", "runtimes", "Beside torch.", choices=_RUNTIMES, default="all that are installed"
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also this engine of `blsgan build-engine` (repeatable).",
)
@options.several(
    "--batch", "batches", "Joints in one call.", type=click.IntRange(1), default="1,32"
)
@click.option(
    "--size",
    "size_px",
    type=click.IntRange(64),
    default=256,
    show_default=True,
    help="Height and width in pixels, a multiple of 32.",
)
@click.option("--threads", type=click.IntRange(1), help="Default: the usable cores, at most 8.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.01),
    default=10.0,
    show_default=True,
    help="Measuring time for each line, at least 5 calls.",
)
@click.option("--without-int8", is_flag=True, help="Leave out int8, whose calibration takes long.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Also write a CSV file; beside it the table as .md.",
)
def inference(
    models: Sequence[str],
    runtimes: Sequence[str],
    engines: Sequence[Path],
    batches: Sequence[int],
    size_px: int,
    threads: int | None,
    seconds: float,
    without_int8: bool,
    output: Path | None,
) -> None:
    """Time the whole separation in every runtime, and compare what they answer.

    Each line is measured in a process of its own: latency, throughput, peak memory, and PSNR
    against float32 torch over the overlap of phantoms. Ratios from a busy machine are noise: the
    load is printed.
    """
    import tempfile

    from blsgan.deploy import benchmark
    from blsgan.runtimes.session import usable_cores

    if output is not None and output.suffix != ".csv":
        raise UsageError(f"{output} must end in .csv; the table goes to the same name with .md")
    if size_px % 32:
        raise UsageError(f"--size is {size_px}; give a multiple of 32")
    chosen = [
        variant
        for variant in benchmark.VARIANTS
        if (not runtimes or variant.runtime.replace(" ", "").lower() in runtimes)
        and not (without_int8 and variant.precision == "int8")
    ]
    chosen += [benchmark.engine_variant(path) for path in engines]
    count = len({benchmark.VARIANTS[0], *chosen}) * len(batches or benchmark.BATCHES)
    facts = benchmark.machine()
    rows: list[benchmark.InferenceTiming] = []
    with Progress() as progress:
        for model in models or ("lite",):
            progress.step(f"{model}: exporting")
            with tempfile.TemporaryDirectory() as folder:
                prepared = benchmark.prepare(
                    model,
                    Path(folder),
                    size_px=size_px,
                    int8=any(variant.precision == "int8" for variant in chosen),
                )
                measured = benchmark.measure(
                    prepared,
                    chosen,
                    batches or benchmark.BATCHES,
                    Path(folder),
                    threads=threads or usable_cores(),
                    seconds=seconds,
                    size_px=size_px,
                )
                rows += progress.track(measured, f"{model}: measuring", count)
    table = benchmark.markdown(rows)
    click.echo(table)
    click.echo("; ".join(f"{name} {value}" for name, value in facts.items()))
    if output is not None:
        _write_rows(
            benchmark.InferenceTiming.columns(), [row.values() for row in rows], facts, output
        )
        with atomic_path(output.with_suffix(".md")) as temporary:
            temporary.write_text(table, encoding="utf-8")
        click.echo(f"wrote {output}, {output.with_suffix('.md')}")
