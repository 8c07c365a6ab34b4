"""The protocol's figures: errors by overlap size, and where in a joint the error lies.

matplotlib is an extra: it is imported when a figure is drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blsgan.data.layout import JointImage, read_joint
from blsgan.data.truths import cached_visit_truths
from blsgan.data.visits import VisitTruth
from blsgan.errors import BackendError
from blsgan.evaluation.compare import Comparison
from blsgan.evaluation.methods import Answer, Method, Overlap
from blsgan.evaluation.metrics import BUCKETS, bucket_name, psnr_db, region_mse
from blsgan.evaluation.protocol import Part
from blsgan.evaluation.results import (
    BY_SIZE_NAME,
    PANEL_NAME,
    REAL_PANEL_NAME,
    SPECTRUM_NAME,
    Evaluation,
)
from blsgan.io.atomic import atomic_path
from blsgan.io.masks import BONES
from blsgan.joint.geometry import bounding_box
from blsgan.synthesis.overlap import as_unit, protocol_overlap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METRICS = (
    ("overlap_mse", "MSE"),
    ("overlap_psnr_db", "PSNR (dB)"),
    ("overlap_ssim", "SSIM"),
)
_MARGIN_PX = 12
_TYPICAL = (0.75, 0.5, 0.25)  # quantiles of the PSNR that the real panel shows
# The method that is judged, and colours behind which it is seen first.
_OURS = "#c2261e"
_MUTED = ("#7d8b9c", "#b39b6d", "#86a886", "#a58fb5", "#6fa3b5", "#bf9a9a", "#9c9c9c")


def draw_all(
    evaluation: Evaluation, images: Sequence[JointImage], model: Method | None, folder: Path
) -> list[Path]:
    """Draws every figure that the evaluation has figures for; returns their paths.

    Raises:
        BackendError: matplotlib is not installed.
        InputError: a file is missing or damaged.
        OutputError: ``folder`` cannot be written.
    """
    drawn = []
    ours = None if model is None else model.name
    if evaluation.synthetic is not None:
        drawn += [folder / BY_SIZE_NAME, folder / SPECTRUM_NAME]
        draw_by_size(evaluation.synthetic, drawn[0], ours)
        draw_spectrum(evaluation.synthetic, drawn[1], ours)
        if model is not None:
            drawn.append(folder / PANEL_NAME)
            draw_error_panel(
                images,
                typical_images(evaluation.synthetic, model.name),
                model,
                drawn[-1],
                seed=evaluation.seed,
            )
    if evaluation.real is not None and model is not None:
        truths = typical_truths(evaluation.real, model.name, cached_visit_truths(images, folder))
        if truths:
            drawn.append(folder / REAL_PANEL_NAME)
            draw_real_panel(images, truths, model, drawn[-1])
    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; BackendError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            "figures need matplotlib, which is not installed; pip install 'blsgan[figures]'"
        ) from error
    # Not pyplot: no global state, no display, nothing to close.
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, completely or not at all; OutputError where that fails."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def _style(methods: Iterable[str], ours: str | None) -> dict[str, dict[str, Any]]:
    """How the curve of each method looks: the one that is judged stands out."""
    muted = itertools.cycle(_MUTED)
    return {
        method: {"color": _OURS, "linewidth": 2.6, "zorder": 5}
        if method == ours
        else {"color": next(muted), "linewidth": 1.1, "zorder": 2}
        for method in methods
    }


def draw_by_size(part: Part, path: Path, ours: str | None = None) -> None:
    """MSE, PSNR and SSIM over the overlap against its size, with 95 % intervals, as a PNG.

    ``ours`` is the method that is judged; it is drawn heavier than the others.

    Raises:
        BackendError: matplotlib is not installed.
        OutputError: ``path`` cannot be written.
    """
    figure = new_figure(12, 3.8)
    names = [bucket_name(bucket) for bucket in BUCKETS]
    axes = figure.subplots(1, len(_METRICS))
    methods = part.summary["methods"]
    spread = np.linspace(-0.22, 0.22, len(methods))
    styles = _style(methods, ours)
    for axis, (key, label) in zip(axes, _METRICS, strict=True):
        for offset, (method, summary) in zip(spread, methods.items(), strict=True):
            present = [i for i, name in enumerate(names) if name in summary["buckets"]]
            values = [summary["buckets"][names[i]][key] for i in present]
            mean = np.array([v["mean"] for v in values])
            below = mean - np.array([v["low"] for v in values])
            above = np.array([v["high"] for v in values]) - mean
            axis.errorbar(
                np.array(present) + offset,
                mean,
                (below.clip(0), above.clip(0)),
                marker="o",
                markersize=6 if method == ours else 3.5,
                capsize=2,
                label=method,
                **styles[method],
            )
        axis.set_xticks(range(len(names)), names)
        axis.set_xlabel("overlap (px)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    save_figure(figure, path)


def typical_images(part: Part, method: str) -> list[str]:
    """For each size class the name of the image with the method's median PSNR."""
    chosen = []
    for bucket in map(bucket_name, BUCKETS):
        records = [r for r in part.records if r["method"] == method and r["bucket"] == bucket]
        if records:
            records.sort(key=lambda r: (r["overlap_psnr_db"], r["image"]))
            chosen.append(records[len(records) // 2]["image"])
    return chosen


def draw_error_panel(
    images: Sequence[JointImage], names: Sequence[str], method: Method, path: Path, *, seed: int
) -> None:
    """One row for each named synthetic overlap: input, true and separated layers, squared error.

    Args:
        images: entries that contain the named ones.
        names: ``JOINT/HASH``, typically of :func:`typical_images`.
        method: what separates.
        path: the PNG.
        seed: of the protocol's shifts.

    Raises:
        BackendError: matplotlib is not installed.
        InputError: a file is missing or damaged.
        OutputError: ``path`` cannot be written.
    """
    listed = {image.name: image for image in images}
    figure = new_figure(13, 0.85 * len(names) + 0.9)
    titles = ("input", "true upper", "upper", "true lower", "lower", "upper error²", "lower error²")
    grid = figure.subplots(len(names), len(titles), squeeze=False)
    shown: Any = None
    for row, name in zip(grid, names, strict=True):
        arrays = read_joint(listed[name])
        if arrays.background is None:
            raise ValueError(f"{name} has no background and cannot have been evaluated")
        pair = protocol_overlap(name, arrays.image, arrays.masks, arrays.background, seed=seed)
        if pair is None:
            raise ValueError(f"{name} has no overlap at seed {seed}")
        answer: Answer = method(Overlap(pair.image, pair.masks, pair.layers, pair.soft_tissue))
        error = (answer.layers.astype(np.float64) - pair.layers) ** 2
        window = _around(pair.overlap)
        pictures = (pair.image, pair.layers[0], answer.layers[0], pair.layers[1], answer.layers[1])
        for axis, picture in zip(row, pictures, strict=False):
            axis.imshow(picture[window], cmap="gray", vmin=0, vmax=1)
        for axis, squared in zip(row[len(pictures) :], error, strict=True):
            shown = axis.imshow(squared[window], cmap="inferno", vmin=0, vmax=0.01)
        quality = psnr_db(region_mse(answer.layers, pair.layers, pair.overlap))
        row[0].set_ylabel(f"{int(pair.overlap.sum())} px\n{quality:.1f} dB", fontsize=8)
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in grid.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=grid[:, -1], shrink=0.8, extend="max")
    figure.suptitle(f"{method.name}: typical synthetic overlap of each size", fontsize=10)
    save_figure(figure, path)


def draw_spectrum(part: Part, path: Path, ours: str | None = None) -> None:
    """The mean squared error over the overlap by spatial frequency, as a PNG.

    ``ours`` is the method that is judged; it is drawn heavier than the others.

    Raises:
        BackendError: matplotlib is not installed.
        OutputError: ``path`` cannot be written.
    """
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    spectrum = part.summary["spectrum"]
    edges = np.array(spectrum["cycles_per_px"])
    styles = _style(spectrum["mse"], ours)
    for method, bands in spectrum["mse"].items():
        # Density: bands are of one width, and what lies below a curve is the method's MSE.
        axis.step(
            (edges[1:] + edges[:-1]) / 2,
            np.array(bands) / np.diff(edges),
            where="mid",
            label=f"{method} ({sum(bands):.5f})",
            **styles[method],
        )
    axis.set_yscale("log")
    axis.set_xlim(0, edges[-1])
    axis.set_xlabel("spatial frequency (cycles per px)")
    axis.set_ylabel("MSE per cycle per px")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def typical_truths(part: Part, method: str, truths: Sequence[VisitTruth]) -> list[VisitTruth]:
    """For each bone the comparisons at the upper quartile, median, lower quartile of the PSNR."""
    chosen = []
    for bone, name in enumerate(BONES):
        psnr = {
            (r["image"], r["other"]): r["psnr_db"]
            for r in part.records
            if r["kind"] == "layer" and r["method"] == method and r["bone"] == name
        }
        found = [t for t in truths if t.bone == bone and (t.image, t.other) in psnr]
        found.sort(key=lambda t: (psnr[t.image, t.other], t.image, t.other))
        for share in _TYPICAL if found else ():
            truth = found[round(share * (len(found) - 1))]
            if truth not in chosen:
                chosen.append(truth)
    return chosen


def draw_real_panel(
    images: Sequence[JointImage], truths: Sequence[VisitTruth], method: Method, path: Path
) -> None:
    """One row for each truth: radiograph, both layers, the other visit's bone, squared error.

    Args:
        images: entries that contain the truths' images.
        truths: typically of :func:`typical_truths`.
        method: what separates.
        path: the PNG.

    Raises:
        BackendError: matplotlib is not installed.
        InputError: a file is missing or damaged.
        OutputError: ``path`` cannot be written.
    """
    listed = {image.name: image for image in images}
    figure = new_figure(11, 0.85 * len(truths) + 0.9)
    titles = ("radiograph", "upper", "lower", "other visit's bone", "error²")
    grid = figure.subplots(len(truths), len(titles), squeeze=False)
    shown: Any = None
    for row, truth in zip(grid, truths, strict=True):
        arrays = read_joint(listed[truth.image])
        answer = method(Overlap(as_unit(arrays.image), arrays.masks))
        window = _around(arrays.masks[0] & arrays.masks[1])
        layer = answer.layers[truth.bone]
        squared = np.where(truth.valid, (layer.astype(np.float64) - truth.truth) ** 2, np.nan)
        known = np.where(truth.valid | truth.guide, truth.truth, 0)
        pictures = (as_unit(arrays.image), *answer.layers, known)
        for axis, picture in zip(row, pictures, strict=False):
            axis.imshow(picture[window], cmap="gray", vmin=0, vmax=1)
        shown = row[-1].imshow(squared[window], cmap="inferno", vmin=0, vmax=0.01)
        quality = psnr_db(region_mse(layer, truth.truth, truth.valid))
        row[0].set_ylabel(f"{BONES[truth.bone]}\n{quality:.1f} dB", fontsize=8)
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in grid.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=grid[:, -1], shrink=0.8, extend="max")
    figure.suptitle(f"{method.name}: real overlaps at the quartiles of the error", fontsize=10)
    save_figure(figure, path)


def _around(region: np.ndarray) -> tuple[slice, slice]:
    top, left, bottom, right = bounding_box(region)
    return (
        slice(max(top - _MARGIN_PX, 0), bottom + _MARGIN_PX),
        slice(max(left - _MARGIN_PX, 0), right + _MARGIN_PX),
    )


def draw_differences(comparison: Comparison, path: Path) -> None:
    """Paired differences to the first row with 95 % intervals, one axis for each metric, as a PNG.

    Raises:
        BackendError: matplotlib is not installed.
        OutputError: ``path`` cannot be written.
    """
    metrics, labels = comparison.metrics, list(comparison.differences)
    columns = min(len(metrics), 4)
    lines = -(-len(metrics) // columns)
    figure = new_figure(3.2 * columns, lines * (1.0 + 0.26 * len(labels)) + 0.4)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, metric in zip(grid.flat, metrics, strict=False):
        axis.axvline(0, color="black", linewidth=0.8)
        for place, label in enumerate(labels):
            found = comparison.differences[label].get(metric.key)
            if found is None:
                continue
            better = metric.better * found["mean"] > 0
            axis.errorbar(
                found["mean"],
                place,
                xerr=[
                    [max(found["mean"] - found["low"], 0)],
                    [max(found["high"] - found["mean"], 0)],
                ],
                marker="o",
                markersize=4,
                capsize=2,
                color="tab:green" if better else "tab:red",
            )
        axis.set_title(metric.title, fontsize=9)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="x", alpha=0.3)
    for axis in list(grid.flat)[len(metrics) :]:
        axis.set_visible(False)
    grid[0, 0].invert_yaxis()
    figure.suptitle(f"Difference to {comparison.reference} (green: better)", fontsize=10)
    save_figure(figure, path)
