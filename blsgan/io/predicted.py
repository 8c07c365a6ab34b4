"""Predicted masks as files: two pictures, an overlay to look at, and the record beside them.

They are named as the public dataset names masks, so ``blsgan separate`` finds them; the record says
that nobody drew them. Whether a pair of mask files is such a prediction is told by that record and
the files' hashes, wherever they are moved together.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blsgan.io.atomic import atomic_paths, output_error
from blsgan.io.files import FileBytes
from blsgan.io.masks import BONES
from blsgan.io.results import write_record
from blsgan.records.masks import MasksRecord

if TYPE_CHECKING:
    from PIL import Image


def predicted_names(name: str) -> list[str]:
    """Names of the files of one prediction; the JSON record is last."""
    masks = [f"{name}_mask_{bone}.png" for bone in BONES]
    return [*masks, f"{name}_mask_overlay.png", f"{name}_mask.json"]


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """The file of one mask bool [H,W]: PNG, 8 bit, 0 and 255."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(stream, format="PNG")
    return stream.getvalue()


def write_predicted(
    folder: Path,
    name: str,
    masks: NDArray[np.bool_],
    overlay: Image.Image,
    record: MasksRecord,
) -> list[Path]:
    """Write masks bool [2,H,W] (as 0 and 255), overlay and record into ``folder``, or nothing.

    Raises :class:`blsgan.errors.OutputError`.
    """
    targets = [folder / file for file in predicted_names(name)]
    with atomic_paths(targets) as temporaries:
        current = targets[0]
        try:
            *pictures, overlay_path, record_path = temporaries
            for mask, target, path in zip(masks, targets, pictures, strict=False):
                current = target
                path.write_bytes(encode_mask(mask))
            current = targets[-2]
            overlay.save(overlay_path, format="PNG", compress_level=4)
            current = targets[-1]
            write_record(record_path, record, targets[:-1], temporaries[:-1])
        except OSError as error:
            raise output_error(current, error) from error
    return targets


def prediction_notes(prediction: MasksRecord | None) -> list[str]:
    """What a result that rests on predicted masks says of them."""
    if prediction is None:
        return []
    doubts = [f"doubtful masks: {why}" for why in prediction.doubts]
    return ["the masks were predicted, nobody drew them", *doubts]


def prediction_of(upper: FileBytes, lower: FileBytes) -> MasksRecord | None:
    """The record of the prediction that wrote these two mask files, or None: they were given."""
    name = upper.path.name.removesuffix("_mask_upper.png")
    if [upper.path.name, lower.path.name] != predicted_names(name)[:2]:
        return None
    if upper.path.parent != lower.path.parent:
        return None
    record = MasksRecord.read(upper.path.with_name(f"{name}_mask.json"))
    hashes = {file.path.name: file.sha256 for file in (upper, lower)}
    return record if record is not None and hashes.items() <= record.outputs.items() else None
