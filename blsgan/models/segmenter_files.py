"""A segmenter's weights: the files of ``blsgan.models.weights``, for one input and a fixed grid.

``NAME.onnx`` maps ``image`` float32 [B,1,256,256] to ``mask_logits`` float32 [B,2,256,256]; the
batch is free. The card's ``task`` is ``segmentation``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from blsgan.errors import WeightsError
from blsgan.io.atomic import atomic_paths
from blsgan.joint.geometry import GRID_PX
from blsgan.models.segmenter import SegmenterNetwork
from blsgan.models.weights import safetensors_bytes, split_safetensors, traced


def load_segmenter(path: str | Path, data: bytes | None = None) -> SegmenterNetwork:
    """Rebuilds a segmenter from a ``.safetensors`` file, in evaluation mode, on the CPU.

    Args:
        path: the file.
        data: its content, where that was read (and its hash taken) already.

    Raises:
        WeightsError: the file is missing, damaged or not a segmenter's.
    """
    path = Path(path)
    try:
        data = path.read_bytes() if data is None else data
        tensors = load_tensors(data)
        metadata = split_safetensors(data)[0].get("__metadata__") or {}
        configuration = json.loads(metadata.get("configuration", "{}"))
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is not a readable safetensors file ({error})") from error
    if metadata.get("architecture") != SegmenterNetwork.architecture:
        raise WeightsError(
            f"{path}: is of the architecture '{metadata.get('architecture')}', not "
            "a segmenter; give weights that `blsgan train-segmenter` wrote"
        )
    try:
        network = SegmenterNetwork(**configuration)
        network.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path}: its tensors are not those of the segmenter that its metadata "
            f"describe ({reason})"
        ) from error
    return network.eval()


def export_segmenter(network: SegmenterNetwork, path: Path) -> None:
    """Writes the network as ONNX with a free batch.

    Raises:
        WeightsError: the exporter's packages are not installed.
    """
    model = traced(
        network.eval(),
        {"image": torch.rand(2, 1, GRID_PX, GRID_PX)},
        ["mask_logits"],
        {"image": {0: torch.export.Dim("batch", min=1)}},
    )
    path.write_bytes(model.SerializeToString(deterministic=True))


def save_segmenter(
    network: SegmenterNetwork, folder: str | Path, name: str, card: Mapping[str, Any]
) -> Path:
    """Writes ``NAME.safetensors``, ``NAME.onnx`` and ``NAME.json``: all three or none.

    Args:
        network: with the weights to keep.
        folder: made when missing.
        name: the weights' name.
        card: what to say about them besides name, architecture and hashes.

    Returns:
        The card's path, which ``Segmenter.from_pretrained`` takes.

    Raises:
        WeightsError: the exporter is not installed.
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    targets = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".onnx", ".json")]
    with atomic_paths(targets) as (tensors, graph, text):
        tensors.write_bytes(safetensors_bytes(network))
        export_segmenter(network, graph)
        fields = {
            "name": name,
            "task": "segmentation",
            "architecture": network.architecture,
            "configuration": network.configuration(),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "sha256": {
                target.name: hashlib.sha256(written.read_bytes()).hexdigest()
                for target, written in zip(targets[:2], (tensors, graph), strict=True)
            },
            **card,
        }
        text.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return targets[2]
