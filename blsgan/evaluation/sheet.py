"""Pages to look at: random real overlaps at four times their size, each beside its two layers.

What no figure says (a line, a step, a blur) is seen here. The pages show patients' radiographs;
they carry no name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from blsgan.data.layout import MIN_OVERLAP_PX, JointImage, overlap_px, read_joint
from blsgan.evaluation.methods import Method, Overlap
from blsgan.io.atomic import atomic_paths
from blsgan.joint.geometry import around, bounding_box, cut
from blsgan.progress import Track, silent
from blsgan.synthesis.overlap import as_unit

COUNT, ROWS_PER_PAGE = 40, 10
SCALE = 4
_WINDOW_PX = (80, 144)  # rows and columns of the radiograph
_GAP_PX = 8


def draw_sheet(
    images: Sequence[JointImage],
    method: Method,
    folder: Path,
    *,
    count: int = COUNT,
    seed: int = 0,
    progress: Track = silent,
) -> list[Path]:
    """Writes ``sheet_1.png`` and so on: a row for each overlap, input, upper and lower layer.

    Args:
        images: entries of the dataset; ``count`` of those with an overlap are drawn from them.
        method: what separates.
        folder: where the pages go.
        count: overlaps; all of them where there are fewer.
        seed: of the draw.
        progress: wraps the loop over the overlaps.

    Returns:
        The pages' paths; none where no image has an overlap.

    Raises:
        InputError: a listed file is missing or damaged.
        OutputError: the folder is not writable or the disk is full.
    """
    rows: list[np.ndarray] = []
    order = np.random.default_rng(seed).permutation(len(images))
    for index in progress([int(i) for i in order], "sheet", len(images)):
        arrays = read_joint(images[index])
        if len(rows) == count or overlap_px(arrays.masks) < MIN_OVERLAP_PX:
            continue
        image = as_unit(arrays.image)
        layers = method(Overlap(image, arrays.masks)).layers
        top, left, bottom, right = bounding_box(arrays.masks[0] & arrays.masks[1])
        centre = ((top + bottom) / 2, (left + right) / 2)
        size = tuple(
            max(least, extent + 2 * _GAP_PX)
            for least, extent in zip(_WINDOW_PX, (bottom - top, right - left), strict=True)
        )
        box = around(centre, (size[0], size[1]), image.shape)
        rows.append(_row([cut(plane, box) for plane in (image, *layers)]))
    pages = [rows[start : start + ROWS_PER_PAGE] for start in range(0, len(rows), ROWS_PER_PAGE)]
    paths = [folder / f"sheet_{number}.png" for number in range(1, len(pages) + 1)]
    with atomic_paths(paths) as temporaries:
        for temporary, page in zip(temporaries, pages, strict=True):
            Image.fromarray(_stacked(page)).save(temporary, format="png")
    return paths


def _row(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Planes side by side at four times their size, uint8; bicubic, so that no pixel grid shows."""
    pictures = []
    for plane in planes:
        picture = Image.fromarray(np.round(255 * np.clip(plane, 0, 1)).astype(np.uint8))
        size = (SCALE * picture.width, SCALE * picture.height)
        pictures.append(np.pad(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)), _GAP_PX))
    return np.concatenate(pictures, axis=1)


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]))) for r in rows])
