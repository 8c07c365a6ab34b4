"""PNG with one fixed filter: Pillow tries all five on every row, which takes most of its time.

A panel of 1616x552 px takes 12 ms in place of 45, and as many bytes. zlib does the work.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # each byte minus the one above it
_LEVEL = 3
_BLOCK_BYTES = 2**16  # of filtered rows: they stay in the cache, and their memory is had again


def write_png(
    path: Path,
    pixels: NDArray[Any],
    *,
    encode: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray,
    pixel_mm: tuple[float, float] | None = None,
) -> None:
    """Write uint8 or uint16 [H,W] (grey), or uint8 [H,W,3] (RGB).

    ``encode`` makes them of rows of ``pixels``, a few at a time; ``pixel_mm`` are the width and the
    height of a pixel, written as pixels per metre (pHYs).
    """
    height, width = pixels.shape[:2]
    depth, colour = 8 * encode(pixels[:1]).dtype.itemsize, 2 if pixels.ndim == 3 else 0
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    if pixel_mm is not None:
        across, down = (round(1000 / side) for side in pixel_mm)
        chunks.append((b"pHYs", struct.pack(">IIB", across, down, 1)))
    with path.open("wb") as stream:
        stream.write(_SIGNATURE)
        for kind, data in [*chunks, (b"IDAT", _deflated(pixels, encode)), (b"IEND", b"")]:
            stream.write(struct.pack(">I", len(data)) + kind + data)
            stream.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _deflated(pixels: NDArray[Any], encode: Callable[[NDArray[Any]], NDArray[Any]]) -> bytes:
    """The filtered rows, block by block: a large picture is not copied whole."""
    first = encode(pixels[:1])
    big_endian = first.dtype.newbyteorder(">")
    # Bytes of 16-bit pixels recur in runs or not at all: not to look further takes half of the time
    # and gives fewer bytes.
    runs = zlib.Z_RLE if first.dtype.itemsize > 1 else zlib.Z_DEFAULT_STRATEGY
    deflate = zlib.compressobj(_LEVEL, strategy=runs)
    parts, above = [], np.zeros(1, np.uint8)
    step = max(1, _BLOCK_BYTES // max(1, first.nbytes))
    for top in range(0, len(pixels), step):
        block = np.ascontiguousarray(encode(pixels[top : top + step]), big_endian)
        rows = block.reshape(len(block), -1).view(np.uint8)
        filtered = np.full((len(rows), 1 + rows.shape[1]), _UP, np.uint8)
        np.subtract(rows[0], above, out=filtered[0, 1:])
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
        parts.append(deflate.compress(filtered.data))
        above = rows[-1]
    return b"".join([*parts, deflate.flush()])
