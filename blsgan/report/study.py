"""The paper's visual Turing test as a page: can a reader tell separated bones from real ones?

Both kinds come from one run of ``blsgan separate``, so that they went through the same files: a
layer of a radiograph without overlap is the radiograph itself inside its mask, that is a real bone;
a layer of one with overlap was generated where the bones overlap. All are cut out by the same
rule, which knows the bone's mask alone, end at the same distance from the joint, are resampled to
one size and stored uncompressed, so that neither crop nor size nor file tells which is which. The
truth is in a file of its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.errors import InputError, UsageError
from blsgan.io.atomic import ESCAPED, atomic_paths
from blsgan.io.masks import BONES
from blsgan.io.stored import StoredResult, find_results
from blsgan.joint.geometry import bounding_box, cut
from blsgan.progress import Track, silent
from blsgan.records.reader_study import Item, KeyRecord, Truth
from blsgan.report.templating import render

REAL: Final = "real"
GENERATED: Final = "generated"
LEAST_OVERLAP_PX = 150
"""A layer is shown as generated where at least so many of its pixels were."""

_VIEW_PX = 320
_MARGIN_PX = 4  # of the edge that a bone keeps from its crop's border where the picture allows
_MIN_WIDTH_PX = 24
_SURFACE = 0.75  # of the window, from the shaft's side: where the joint surface lies
_MIN_REACH = 0.45  # of the window that a bone must fill along its axis to be shown


@dataclass(frozen=True)
class Study:
    """A study that was written."""

    page: Path
    key: Path
    study: str
    items: list[Item]


@dataclass(frozen=True)
class _Candidate:
    result: StoredResult
    bone: int
    truth: Truth


@dataclass(frozen=True)
class _Cut:
    """A bone's end in its window, float32 [S,S], as far as the picture has it.

    ``reach`` is the share of the window, from the joint surface towards the shaft, that it fills.
    """

    candidate: _Candidate
    window: NDArray[np.float32]
    reach: float


def build_study(
    root: Path,
    output: Path,
    *,
    count: int = 60,
    seed: int = 0,
    min_overlap_px: int = LEAST_OVERLAP_PX,
    track: Track = silent,
) -> Study:
    """Write a study of ``count`` pictures, half of them real, and its key beside it.

    Upper and lower bones are as frequent among real as among generated ones, no result shows the
    same bone twice, and the order comes from ``seed``. Each picture is 8-bit grey, 320 x 320
    pixels, as bright as the others.

    Raises:
        UsageError: a ``count`` that is no multiple of 4, an ``output`` that is no HTML file, or one
            beside which the key of another study lies.
        InputError: too few results of either kind, or a damaged one.
        OutputError: a file could not be written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{output} does not end in .html; name the page, such as study.html.")
    if count % 4:
        raise UsageError(
            f"{count} pictures cannot be half real and half generated with as many upper as lower "
            "bones; give a multiple of 4."
        )
    cuts = _choose(find_results(root), count, seed, min_overlap_px, root, track)
    reach = min(cut.reach for cut in cuts)
    pictures = [_encode(_draw(cut, reach)) for cut in cuts]
    items = [_item(number, cut.candidate) for number, cut in enumerate(cuts, start=1)]
    study = hashlib.sha256("".join(pictures).encode()).hexdigest()[:16]
    key = output.with_name(f"{output.stem}-key.json")
    truth = KeyRecord(
        schema=1,
        blsgan=__version__,
        study=study,
        seed=seed,
        min_overlap_px=min_overlap_px,
        items=items,
    )
    if key.exists() and KeyRecord.read(key) != truth:
        raise UsageError(
            f"{key} holds the truth of another study, without which its answers are lost; choose "
            "another name for this one, or move the key."
        )
    page = render(
        "study.html", ("study.css", "study.js"), study=study, pictures=pictures, side=_VIEW_PX
    )
    with atomic_paths([output, key]) as (page_path, key_path):
        page_path.write_text(page, encoding="utf-8", errors=ESCAPED)
        key_path.write_text(truth.text(), encoding="utf-8")
    return Study(output, key, study, items)


def _choose(
    results: list[StoredResult],
    count: int,
    seed: int,
    min_overlap_px: int,
    root: Path,
    track: Track,
) -> list[_Cut]:
    """``count`` cuts in the order of the study; bones too small or too short are passed over."""
    rng = random.Random(seed)
    groups: dict[tuple[Truth, int], list[_Candidate]] = {
        (truth, bone): [] for truth in (REAL, GENERATED) for bone in (0, 1)
    }
    for result in results:
        area = result.record.overlap.area_px
        truth: Truth | None = REAL if area == 0 else GENERATED if area >= min_overlap_px else None
        if truth is not None:
            for bone in (0, 1):
                groups[truth, bone].append(_Candidate(result, bone, truth))
    each = count // 4
    waiting = {}
    for name, group in groups.items():
        rng.shuffle(group)
        waiting[name] = iter(group)
    chosen: list[_Cut] = []
    for name in track([name for name in groups for _ in range(each)], "cutting", count):
        cut = next(filter(None, map(_cut_bone, waiting[name])), None)
        if cut is None:
            found = {truth: len(groups[truth, 0]) for truth in (REAL, GENERATED)}
            raise InputError(
                f"{root} has {found[REAL]} results without overlap and {found[GENERATED]} with at "
                f"least {min_overlap_px} px, and {count} pictures need {each} of each with both "
                "bones large enough to judge; separate more radiographs or give a smaller --count."
            )
        chosen.append(cut)
    rng.shuffle(chosen)
    return chosen


def _item(number: int, candidate: _Candidate) -> Item:
    result = candidate.result
    return Item(
        item=number,
        truth=candidate.truth,
        bone=BONES[candidate.bone],
        overlap_px=result.record.overlap.area_px,
        source=str(result.place),
        record_sha256=hashlib.sha256(result.path.read_bytes()).hexdigest(),
    )


def _cut_bone(candidate: _Candidate) -> _Cut | None:
    """The bone's end at the joint, or None where too little of it is there.

    The window is a square as wide as the bone and a little more, with the joint surface a quarter
    of it from its edge; what lies outside the picture is black, as is what lies outside the mask.
    """
    layer = candidate.result.planes()[BONES[candidate.bone]]
    mask = layer > 0
    if not mask.any():
        return None
    top, left, bottom, right = bounding_box(mask)
    side = right - left + 2 * _MARGIN_PX
    reach = min((bottom - top) / side, _SURFACE)
    if right - left < _MIN_WIDTH_PX or reach < _MIN_REACH:
        return None
    # The lower bone upside down: from here on its shaft is up, as the upper one's.
    if candidate.bone == 1:
        layer, bottom = layer[::-1], layer.shape[0] - top
    first_row, column = bottom - round(_SURFACE * side), left - _MARGIN_PX
    window = cut(layer, (first_row, column, first_row + side, column + side))
    return _Cut(candidate, window, reach)


def _draw(cut: _Cut, reach: float) -> NDArray[np.uint8]:
    """A cut as it is shown, uint8 [320,320], black beyond ``reach`` from the joint surface."""
    from PIL import Image

    side = len(cut.window)
    window = cut.window.copy()
    window[: round((_SURFACE - reach) * side)] = 0
    if cut.candidate.bone == 1:
        window = window[::-1]
    size = (_VIEW_PX, _VIEW_PX)
    grey = np.asarray(Image.fromarray(window).resize(size, Image.Resampling.BICUBIC))
    # As bright for all: the bone's 99th percentile is white, which neither kind decides.
    white = max(float(np.percentile(grey[grey > 0], 99)), 1e-6)
    return np.rint(np.clip(grey / white, 0, 1) * 255).astype(np.uint8)


def _encode(picture: NDArray[np.uint8]) -> str:
    """Base64 of an uncompressed PNG: its length depends on the picture's size alone."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=0)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
