"""The study's figure: measured against known displacements, as Bland and Altman draw it.

matplotlib is an extra: it is imported when the figure is drawn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blsgan.errors import InputError
from blsgan.evaluation.figures import new_figure, save_figure
from blsgan.jsn.agreement import MISMATCH_PX, bland_altman
from blsgan.jsn.study import Study


def draw_bland_altman(study: Study, path: Path) -> None:
    """Error against the mean of measured and known narrowing, one panel for each method, as a PNG.

    Each panel has its bias (line) and 95 % limits of agreement (dashed). Flagged measurements are
    left out, errors beyond 1 px are drawn at the edge as triangles; the title counts both.

    Raises:
        BackendError: matplotlib is not installed.
        InputError: the study has no known displacements.
        OutputError: ``path`` cannot be written.
    """
    groups = study.accuracy_by_method()
    if not groups:
        raise InputError("the study has no known displacements to draw; run its part accuracy.")
    figure = new_figure(3.3 * len(groups), 3.4)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for panel, ((condition, method), records) in zip(panels, groups.items(), strict=True):
        kept = [r for r in records if not r["flagged"]]
        measured = np.array([r["measured_px"] for r in kept])
        true = np.array([r["true_px"] for r in kept])
        error = measured - true
        far = np.abs(error) > MISMATCH_PX
        mean = (measured + true) / 2
        panel.plot(mean[~far], error[~far], "o", markersize=3, alpha=0.6, markeredgewidth=0)
        panel.plot(mean[far], np.clip(error[far], -MISMATCH_PX, MISMATCH_PX), "r^", markersize=5)
        if (limits := bland_altman(list(measured[~far]), list(true[~far]))) is not None:
            panel.axhline(limits.bias, color="black", linewidth=1)
            for edge in (limits.low, limits.high):
                panel.axhline(edge, color="black", linewidth=1, linestyle="--")
        panel.set_title(
            f"{condition}, {method}\nN = {len(records)}, {len(records) - len(kept)} flagged, "
            f"{int(far.sum())} beyond {MISMATCH_PX:g} px",
            fontsize=8,
        )
        panel.set_xlabel("mean of measured and known (px)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("measured minus known (px)")
    save_figure(figure, path)
