"""``blsgan.hand`` and ``blsgan.hand_visits``: what the command ``blsgan hand`` does, in Python."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.anatomy import Side
from blsgan.errors import InputError, UsageError
from blsgan.hands.chain import Hand, HandSeparator
from blsgan.io.atomic import check_writable_folder
from blsgan.io.radiograph import read_radiograph
from blsgan.pipeline.hand import HandResult, hand_items, separate_hands
from blsgan.pipeline.hand_visits import Compared, compare_visits, write_page
from blsgan.pipeline.worklist import told
from blsgan.records.hand import HandOptions

Name = os.PathLike[str] | str


def hand(
    source: Name | NDArray[Any],
    *,
    output: Name | None = None,
    overwrite: bool = False,
    side: Side | None = None,
    separator: HandSeparator | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing: float | None = None,
) -> list[Hand]:
    """Find every joint of a whole hand and take it apart, as the command ``blsgan hand`` does.

    >>> (hand,) = blsgan.hand("hand.png")
    >>> hand.side, hand["mcp3"].status, hand["mcp3"].separation.upper.dtype
    ('right', 'ok', dtype('float32'))

    Args:
        source: a file, or an array [H,W] (floating point in [0,1], uint8 or uint16), of one or two
            hands turned by any angle.
        output: a folder to write what the command writes for one picture, without the page.
        overwrite: write again what is finished there.
        side: of the hand, where that is known better than by DICOM header or thumb.
        separator: networks that were loaded before; default: the shipped ones.
        backend, device, threads: of the shipped networks, see :func:`blsgan.separate`.
        bit_depth, invert, pixel_spacing: of files, see :func:`blsgan.read`.

    Returns:
        A hand for each in the picture, from left to right: ``side``, ``notes`` and ``joints``, each
        with ``status`` ("ok", "doubtful", "refused"), ``reasons``, ``crop``, ``segmentation`` and
        ``separation`` (None where it is refused).

    Raises:
        NoHandError: there is none. InputError, UsageError, OutputError: as said.
    """
    networks = separator or _shipped(backend, device, threads)
    if isinstance(source, np.ndarray):
        if output is not None:
            raise UsageError("an array has no name to write a hand by; leave out output.")
        return networks(source, side=side)
    options = HandOptions(
        bit_depth=bit_depth, invert=invert, pixel_spacing_mm=pixel_spacing, side=side
    )
    if output is not None:
        check_writable_folder(Path(output))
        (item,) = hand_items([Path(source)], Path(output))
        done = separate_hands(networks, item, Path(output), options, overwrite=overwrite)
        made = [one.hand for one in done if one.hand is not None]
        if len(made) == len(done):
            return made
    spacing = None if pixel_spacing is None else (pixel_spacing, pixel_spacing)
    radiograph = read_radiograph(
        source, bit_depth=bit_depth, invert=invert, pixel_spacing_mm=spacing
    )
    try:
        return networks(radiograph.pixels, side=side)
    except InputError as error:
        raise type(error)(f"{source}: {error}") from error


def hand_visits(
    sources: Sequence[Name],
    output: Name,
    *,
    overwrite: bool = False,
    side: Side | None = None,
    separator: HandSeparator | None = None,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    bit_depth: int | None = None,
    invert: bool = False,
    pixel_spacing: float | None = None,
) -> Compared:
    """Follow every joint of a patient's hands, as ``blsgan hand VISIT1 VISIT2 ...`` does.

    >>> found = blsgan.hand_visits(["hand.png", "hand.png"], "out")
    >>> {interval.verdict for interval in found.record.intervals if interval.status == "ok"}
    {'not detectable'}

    Args:
        sources: files and folders, the visits of one patient.
        output: the folder to write into.
        overwrite, side, separator, backend, device, threads: see :func:`hand`.
        bit_depth, invert, pixel_spacing: of files, see :func:`blsgan.read`.

    Returns:
        ``record`` is the content of ``visits.json``: ``visits``, ``intervals`` (narrowing, standard
        error, smallest detectable difference, verdict, flags) and ``notes``.

    Raises:
        InputError: visits that cannot be used; the others are finished first, and the message
            counts those that failed. UsageError, OutputError: as said.
    """
    networks = separator or _shipped(backend, device, threads)
    folder = Path(output)
    check_writable_folder(folder)
    options = HandOptions(
        bit_depth=bit_depth, invert=invert, pixel_spacing_mm=pixel_spacing, side=side
    )
    items = hand_items([Path(source) for source in sources], folder)
    results: list[list[HandResult]] = []
    failures: list[str] = []
    for item in items:
        work = functools.partial(
            separate_hands, networks, item, folder, options, overwrite=overwrite
        )
        hands, failure = told(work, item.image)
        if hands is None:
            failures.append(str(failure))
        else:
            results.append(hands)
    compared = compare_visits(networks.separator, results, folder)
    write_page(compared, folder)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(items)} visits failed, the others are in {folder}: "
            f"{failures[0]}"
        )
    return compared


@functools.lru_cache(maxsize=4)
def _shipped(backend: str, device: str | None, threads: int | None) -> HandSeparator:
    return HandSeparator.from_pretrained(backend, device=device, threads=threads)
