"""What separating one joint gives: its layers, and all that its files say about them."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import UsageError
from blsgan.io import results
from blsgan.io.panel import draw_panel
from blsgan.io.radiograph import Radiograph
from blsgan.pipeline.segment import PredictedMasks
from blsgan.records.separation import Format, SeparationRecord
from blsgan.tasks.separation import Separation

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Joint(Separation):
    """One separated joint: a :class:`blsgan.Separation` that knows where it comes from.

    Attributes:
        radiograph: the image as it was read, ``pixels`` float32 [H,W] in [0,1].
        masks: bool [2,H,W], upper and lower bone.
        record: what ``NAME.json`` says; without the hashes of files that are not written yet.
        predicted: the masks' prediction, where they are one and not in files; they are saved too.
        sources: files that it was read from; they are never written over.
    """

    radiograph: Radiograph
    masks: NDArray[np.bool_]
    record: SeparationRecord
    predicted: PredictedMasks | None = None
    sources: tuple[Path, ...] = ()

    def save(
        self,
        folder: os.PathLike[str] | str,
        *,
        name: str | None = None,
        format: Format | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the files that ``blsgan separate`` writes, all of them or none.

        Args:
            folder: where to; it is made where it does not exist.
            name: of the files; default: the image's, for DICOM one made of hashes.
            format: of the layers, "png", "tiff" or "npz"; default: what was asked for.
            overwrite: a result of predicted masks may replace one of drawn masks.

        Returns:
            The files; the record ``NAME.json`` is the last one.

        Raises:
            OutputError: they cannot be written.
            UsageError: an input, a mask that somebody drew, or what was made with such masks, would
                be written over; a format that is not known.
        """
        folder = Path(folder)
        if self.predicted is not None:
            if not overwrite:
                protect_drawn(folder, name or str(self.record.name))
            self.predicted.write(folder)
        record = self.write(folder, name=name, format=format, overwrite=overwrite)
        return [folder / file for file in _names(record)]

    def write(
        self,
        folder: Path,
        *,
        name: str | None = None,
        format: Format | None = None,
        overwrite: bool = False,
    ) -> SeparationRecord:
        """:meth:`save` without predicted masks; the record as it was written."""
        started = time.perf_counter()
        panel = self.panel() if self.record.options.panels else None
        options = self.record.options
        if format is not None:
            check_format(format)
            options = options.model_copy(update={"format": format})
        times = {**self.record.times_ms, "draw": milliseconds(started, time.perf_counter())}
        record = self.record.model_copy(
            update={
                "name": name or self.record.name,
                "options": options,
                "residual_encoding": residual_encoding(options.format),
                "times_ms": times,
            }
        )
        assert record.name is not None, "every joint has a name"
        files = [folder / file for file in _names(record)]
        _protect_inputs(files, self.sources)
        if record.prediction is not None and not overwrite:
            protect_drawn(folder, record.name)
        results.write_result(
            folder,
            record.name,
            {plane: getattr(self, plane) for plane in results.PLANES},
            panel,
            record,
            file_format=options.format,
            arrays=self._arrays() if options.format == "npz" else None,
            pixel_spacing=self.radiograph.pixel_spacing,
        )
        return record

    def panel(self) -> Image.Image:
        """The picture to look at: input, layers, reconstruction and residual side by side."""
        spacing = self.radiograph.pixel_spacing
        return draw_panel(
            self.radiograph.pixels,
            self.masks,
            self.upper,
            self.lower,
            self.reconstruction,
            self.residual,
            zone=self.zone,
            pixel_mm=None if spacing is None else spacing.column_mm,
            caption=self._caption(),
        )

    def _repr_png_(self) -> bytes:
        """The panel, for Jupyter."""
        stream = io.BytesIO()
        self.panel().save(stream, format="PNG")
        return stream.getvalue()

    def __repr__(self) -> str:
        height, width = self.overlap.shape
        area = self.record.overlap.area_px
        k = self.record.soft_tissue
        tissue = "" if k is None else f", soft tissue {k:.3f}"
        return f"<Joint {self.record.name}: {width}x{height} px, overlap {area} px{tissue}>"

    def _arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {
            "overlap": self.overlap,
            "zone": self.zone,
            "soft_tissue": results.Scattered(self.zone, self.tissue),
        }
        spacing = self.radiograph.pixel_spacing
        if spacing is not None:
            arrays["pixel_spacing_mm"] = np.array([spacing.row_mm, spacing.column_mm])
        return arrays

    def _caption(self) -> str:
        overlap, prediction = self.record.overlap, self.record.prediction
        if not overlap.area_px:
            said = ["no overlap: each layer is the image inside its mask"]
        else:
            area = "" if overlap.area_mm2 is None else f" = {overlap.area_mm2:.2f} sq mm"
            said = [
                f"overlap {overlap.area_px} px{area}",
                f"soft tissue {self.record.soft_tissue:.3f}",
                f"reconstruction MSE {self.record.reconstruction_error.mse:.1e}",
            ]
        if prediction is not None:
            said.append(f"{'DOUBTFUL ' if prediction.doubtful else ''}PREDICTED MASKS")
        return "     ".join(said)


def _names(record: SeparationRecord) -> list[str]:
    assert record.name is not None, "every joint has a name"
    options = record.options
    return results.result_names(record.name, options.format, panel=options.panels)


def protect_drawn(folder: Path, name: str) -> None:
    """Refuse to replace a result that was made with drawn masks by one of predicted masks."""
    path = folder / f"{name}.json"
    earlier = SeparationRecord.read(path)
    if earlier is not None and earlier.prediction is None:
        raise UsageError(
            f"{path} was made with drawn masks, and now there are only predicted ones; give the "
            "drawn masks or another output folder (--overwrite replaces it)."
        )


def _protect_inputs(files: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write a result over one of its own inputs (a mask called NAME_upper.png)."""
    targets = {os.path.realpath(file) for file in files}
    for path in inputs:
        if os.path.realpath(path) in targets:
            raise UsageError(
                f"{path} is an input and would be overwritten by a result of that name; choose "
                "another output folder."
            )


def residual_encoding(file_format: Format) -> str | None:
    """What a record says about the residual's file."""
    return None if file_format == "npz" else results.RESIDUAL_ENCODING


def check_format(name: str) -> None:
    """Raises :class:`UsageError` for a format of layers' files that is not known."""
    if name not in get_args(Format):
        raise UsageError(
            f"format {name!r} is unknown; choose one of {', '.join(get_args(Format))}."
        )


def milliseconds(start: float, stop: float) -> float:
    """Between two times in seconds."""
    return round(1000 * (stop - start), 1)
