"""An exported model as a file: read once, hashed, and asked what it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blsgan.deploy.samples import Sample, dataset_samples, phantom_sample
from blsgan.errors import BackendError, InputError
from blsgan.io.files import FileBytes, read_file
from blsgan.runtimes.onnx_model import refuse_external_data

FREE_SIZE_PX = (96, 192)
"""Rows and columns of the crops a model of free size is calibrated and judged on: most overlaps of
the public dataset with their context fit in."""


@dataclass(frozen=True)
class ExportedModel:
    """What ``blsgan export`` wrote.

    Attributes:
        path: the file.
        sha256: of its content.
        proto: the ``ModelProto``.
        metadata: its entries without the prefix ``blsgan.``.
        batch: B, or None where it is free.
        size: H and W, or None where they are free.
        size_multiple: H and W are multiples of it.
        law, reach_px: of the separation, see :class:`blsgan.models.generator.Generator`.
    """

    path: Path
    sha256: str
    data: bytes
    proto: Any
    metadata: dict[str, str]
    batch: int | None
    size: tuple[int, int] | None
    size_multiple: int
    law: float
    reach_px: int

    @property
    def precision(self) -> str:
        """``fp32`` unless a lower one was written into the graph."""
        return self.metadata["precision"]

    def samples(
        self, count: int, *, seed: int, root: Path | None = None, split: str = "train"
    ) -> list[Sample]:
        """At least ``count`` crops this model takes, in batches it takes.

        Phantoms of the seeds from ``seed`` on, or synthetic overlaps of the public dataset under
        ``root``. Raises :class:`InputError` where that gives none.
        """
        height, width = self.size or FREE_SIZE_PX
        batch = self.batch or 1
        if root is None:
            return [
                phantom_sample(batch, height, width, seed + start)
                for start in range(0, count, batch)
            ]
        found = dataset_samples(root, split, height, width, limit=count, batch=batch)
        whole = [sample for sample in found if len(sample.image) == batch]
        if not whole:
            raise InputError(
                f"{root} gives fewer than {batch} synthetic overlaps of the split {split}, one "
                f"batch of {self.path}; leave --calibration-data out to use phantoms."
            )
        return whole


def load_exported(path: os.PathLike[str] | str) -> ExportedModel:
    """Read a model that ``blsgan export`` wrote.

    Raises:
        BackendError: the package onnx is not installed.
        InputError: the file is missing, is no ONNX model, or another one.
    """
    return parse_exported(read_file(path, what="model"))


def parse_exported(file: FileBytes) -> ExportedModel:
    """As :func:`load_exported`, of a file whose content is there."""
    try:
        import onnx
    except ImportError as error:
        raise BackendError("onnx is not installed; pip install 'blsgan[engine]'.") from error
    try:
        proto = onnx.load_model_from_string(file.data)
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf's and onnx's exceptions share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"{file.path} is not an ONNX model ({reason}); give what `blsgan export` wrote."
        ) from error
    refuse_external_data(file.path, file.data)
    metadata = {
        entry.key.removeprefix("blsgan."): entry.value
        for entry in proto.metadata_props
        if entry.key.startswith("blsgan.")
    }
    if metadata.get("signature") != "separation":
        raise InputError(
            f"{file.path} is not a model of the whole separation; write one with `blsgan export`."
        )
    try:
        image = {port.name: port for port in proto.graph.input}["image"]
        batch, _, height, width = (_fixed(dim) for dim in image.type.tensor_type.shape.dim)
        size_multiple = int(metadata["size_multiple"])
        law, reach_px = float(metadata["law"]), int(metadata["reach_px"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{file.path} calls itself a model of the whole separation and lacks its input image "
            "[B,1,H,W], its size_multiple, law or reach_px; write it again with `blsgan export`."
        ) from error
    return ExportedModel(
        path=file.path,
        sha256=file.sha256,
        data=file.data,
        proto=proto,
        metadata=metadata,
        batch=batch,
        size=(height, width) if height is not None and width is not None else None,
        size_multiple=size_multiple,
        law=law,
        reach_px=reach_px,
    )


def _fixed(dim: Any) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") else None
