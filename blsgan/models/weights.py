"""Weights' files: safetensors for torch, ONNX for everything else, and a card that binds them.

A set of weights ``NAME`` is ``NAME.safetensors`` (its metadata rebuild the network; a wheel is
without it, as it is made from the graph: :func:`safetensors_of_graph`), ``NAME.onnx``
and ``NAME.json``, the card: name, architecture, the SHA-256 of both files and how they were
trained. The graph of a generator has the inputs ``image``, ``masks``, the outputs ``share_logits``,
``soft_tissue``, and free batch, height and width; those of a segmenter and a locator map ``image``,
on a grid of one size, to ``mask_logits`` and ``landmark_logits``. ``blsgan.tasks`` reads them
without torch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from blsgan.errors import WeightsError
from blsgan.io.atomic import atomic_paths
from blsgan.joint.geometry import GRID_PX, LOOK_PX
from blsgan.models import OPSET
from blsgan.models.generator import Generator
from blsgan.models.locator import LocatorNetwork
from blsgan.models.priors import onnx_translations
from blsgan.models.registry import build_generator
from blsgan.models.segmenter import FoldedUNet, SegmenterNetwork
from blsgan.runtimes.onnx_model import PREFIX

OnGrid = TypeVar("OnGrid", SegmenterNetwork, LocatorNetwork)
Grid = TypeVar("Grid", bound=FoldedUNet)
_GRIDS: dict[str, tuple[type[FoldedUNet], str, int, str]] = {
    kind.architecture: (kind, task, side, output)
    for kind, task, side, output in (
        (SegmenterNetwork, "segmentation", GRID_PX, "mask_logits"),
        (LocatorNetwork, "location", LOOK_PX, "landmark_logits"),
    )
}
"""Networks of one picture on a grid of one size: their task, the grid's side, their output."""
_DIGITS = 12
"""Binary digits of those networks' weights that are kept."""


def load_generator(path: str | Path, data: bytes | None = None) -> Generator:
    """Rebuilds a generator from a ``.safetensors`` file, in evaluation mode, on the CPU.

    Args:
        path: the file.
        data: its content, where that was read (and its hash taken) already.

    Raises:
        WeightsError: the file is missing, damaged, not a generator's, or its tensors do not fit
            the architecture that its metadata name.
    """
    network = _load(Path(path), data, build_generator)
    assert isinstance(network, Generator)
    return network


def load_segmenter(path: str | Path, data: bytes | None = None) -> SegmenterNetwork:
    """As :func:`load_generator`, a mask segmenter."""
    return _load_on_grid(SegmenterNetwork, path, data)


def load_locator(path: str | Path, data: bytes | None = None) -> LocatorNetwork:
    """As :func:`load_generator`, a joint locator."""
    return _load_on_grid(LocatorNetwork, path, data)


def _load_on_grid(kind: type[OnGrid], path: str | Path, data: bytes | None) -> OnGrid:
    name = kind.architecture

    def build(architecture: str, configuration: Mapping[str, Any]) -> OnGrid:
        if architecture != name:
            raise WeightsError(
                f"is of the architecture '{architecture}', not a {name}; give weights that "
                f"`blsgan train --preset {name}` wrote"
            )
        return _build_on_grid(kind, configuration)

    network = _load(Path(path), data, build)
    assert isinstance(network, kind)
    return network


def _build_on_grid(kind: type[Grid], configuration: Mapping[str, Any]) -> Grid:
    try:
        return kind(**configuration)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"its metadata describe no {kind.architecture} ({error})") from error


def _load(
    path: Path, data: bytes | None, build: Callable[[str, Mapping[str, Any]], torch.nn.Module]
) -> torch.nn.Module:
    try:
        data = path.read_bytes() if data is None else data
        tensors = load_tensors(data)
        metadata = split_safetensors(data)[0].get("__metadata__") or {}
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is not a readable safetensors file ({error})") from error
    try:
        architecture = metadata["architecture"]
        configuration = json.loads(metadata["configuration"])
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: its metadata name no blsgan architecture; give weights that "
            "`blsgan train` wrote"
        ) from error
    if not isinstance(configuration, dict):
        raise WeightsError(f"{path}: its metadata give no configuration of '{architecture}'")
    try:
        network = build(architecture, configuration)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: its tensors are not those of the architecture "
            f"'{architecture}' that its metadata name"
        ) from error
    return network.eval()


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's JSON header, whose length its first 8 bytes hold, and what follows."""
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:end])
    return header, data[end:]


def safetensors_bytes(network: Generator | FoldedUNet) -> bytes:
    """The network as one safetensors file; the same weights give the same bytes."""
    metadata = {
        "configuration": json.dumps(network.configuration(), sort_keys=True),
        "architecture": network.architecture,
    }
    tensors = {
        key: value.detach().float().cpu().contiguous()
        for key, value in network.state_dict().items()
    }
    # The library writes metadata in an order that differs from call to call, so they go in here.
    header, content = split_safetensors(save_tensors(tensors))
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors on a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content


def _rounded(network: FoldedUNet) -> FoldedUNet:
    """A copy whose weights have :data:`_DIGITS` binary digits."""
    network, scale = copy.deepcopy(network), 2.0**_DIGITS
    for tensor in network.state_dict().values():
        mantissa, exponent = torch.frexp(tensor.float())
        tensor.copy_(torch.ldexp((mantissa * scale).round() / scale, exponent))
    return network


def safetensors_of_graph(path: Path, data: bytes, card: Mapping[str, Any]) -> bytes:
    """The ``.safetensors`` that a network had when its graph was written, from that graph.

    The exporter keeps every tensor of a network under its own name, but for biases of zeros, and
    adds constants of its own; the architecture tells them apart. A graph whose tensors it has
    changed is refused, by name or by shape here and by the card's hash in the end.

    Args:
        path: of the graph, for messages.
        data: its content.
        card: gives ``architecture`` and ``configuration``.

    Raises:
        WeightsError: onnx is not installed, the card describes no network, or the graph is not its.
    """
    if find_spec("onnx") is None:
        raise WeightsError(f"{path}: to read it in torch needs onnx; pip install 'blsgan[train]'")
    import onnx
    from google.protobuf.message import DecodeError

    architecture, configuration = card.get("architecture"), card.get("configuration")
    if not isinstance(architecture, str) or not isinstance(configuration, dict):
        raise WeightsError(f"{path}: its card gives no architecture and configuration")
    network: Generator | FoldedUNet
    try:
        if architecture in _GRIDS:
            network = _build_on_grid(_GRIDS[architecture][0], configuration)
        else:
            network = build_generator(architecture, configuration)
        graph = onnx.load_model_from_string(data).graph
        held = {tensor.name: tensor for tensor in graph.initializer}
        exported = _exported(network)
        tensors = {
            name: torch.zeros_like(tensor)
            if name.endswith("bias") and name not in held
            else torch.from_numpy(onnx.numpy_helper.to_array(held[name]).copy())
            for name, tensor in exported.state_dict().items()
        }
        exported.load_state_dict(tensors)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (KeyError, RuntimeError, TypeError, ValueError, DecodeError) as error:
        raise WeightsError(
            f"{path}: its tensors are not those of the architecture '{architecture}' of its card"
        ) from error
    return safetensors_bytes(network)


def _exported(network: Generator | FoldedUNet) -> torch.nn.Module:
    """What the graph of ``network`` is made of."""
    return network.eval() if isinstance(network, FoldedUNet) else network.answers()


def check_exporter() -> None:
    """Asks for the packages that write ONNX, before hours of training and not after them.

    Raises:
        WeightsError: one of them is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise WeightsError(
            f"writing weights needs {' and '.join(missing)}; pip install 'blsgan[train]'"
        )


def to_onnx(
    network: torch.nn.Module,
    outputs: Sequence[str],
    *,
    size_multiple: int,
    opset: int = OPSET,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
) -> Any:
    """A network of ``image`` [B,1,H,W] and ``masks`` [B,2,H,W] as an ONNX model (``ModelProto``).

    Args:
        network: maps the two tensors to a tuple; in evaluation mode.
        outputs: names of what it returns.
        size_multiple: H and W are multiples of it.
        opset: of the ONNX standard; newer ones than 22 emit operators that engine builders parse
            and then fail on.
        batch: B, or None where it shall stay free.
        size: H and W, or None where they shall stay free.

    Returns:
        The checked model; the same network gives the same bytes, and nothing in it tells on which
        machine it was written.

    Raises:
        WeightsError: the exporter's packages are not installed.
    """
    shapes: dict[int, Any] = {}
    if batch is None:
        shapes[0] = torch.export.Dim("batch", min=1)
    if size is None:
        rows = torch.export.Dim(f"rows_{size_multiple}", min=2)
        columns = torch.export.Dim(f"columns_{size_multiple}", min=2)
        shapes |= {2: size_multiple * rows, 3: size_multiple * columns}
    # Traced with sizes that differ from each other and from 1, so that none is taken for another.
    height, width = size or (6 * size_multiple, 8 * size_multiple)
    example = (
        torch.rand(batch or 2, 1, height, width),
        (torch.rand(batch or 2, 2, height, width) > 0.5).float(),
    )
    shapes_of = {"image": shapes, "masks": shapes} if shapes else None
    return traced(
        network,
        dict(zip(("image", "masks"), example, strict=True)),
        outputs,
        shapes_of,
        opset=opset,
    )


def traced(
    network: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    shapes: dict[str, Any] | None,
    *,
    opset: int = OPSET,
) -> Any:
    """The network as a checked ``ModelProto`` without a trace of this machine.

    Args:
        network: in evaluation mode.
        inputs: an example of each input, by its name, in the network's order.
        outputs: names of what it returns.
        shapes: the free dimensions of each input as ``torch.export`` takes them, or None.
        opset: of the ONNX standard.

    Raises:
        WeightsError: the exporter's packages are not installed.
    """
    check_exporter()
    import onnx

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                custom_translation_table=onnx_translations(),
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    # The exporter notes source lines and paths of this machine on every node: not for shipping.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def export_onnx(network: Generator | FoldedUNet, path: Path) -> None:
    """Writes the network as ONNX: free batch, and a generator's free height and width.

    Raises:
        WeightsError: the exporter's packages are not installed.
    """
    if isinstance(network, FoldedUNet):
        _, _, side, output = _GRIDS[network.architecture]
        image = torch.rand(2, 1, side, side)
        free = {"image": {0: torch.export.Dim("batch", min=1)}}
        model = traced(network.eval(), {"image": image}, [output], free)
    else:
        outputs = ("share_logits", "soft_tissue")
        model = to_onnx(network.answers(), outputs, size_multiple=network.size_multiple)
        for key, value in network.described().items():
            entry = model.metadata_props.add()
            entry.key, entry.value = PREFIX + key, value
    path.write_bytes(model.SerializeToString(deterministic=True))


def save_weights(
    network: Generator | FoldedUNet, folder: str | Path, name: str, card: Mapping[str, Any]
) -> Path:
    """Writes ``NAME.safetensors``, ``NAME.onnx`` and ``NAME.json``: all of them or none.

    A generator that :attr:`~blsgan.models.generator.Generator.exports` no graph has no ``.onnx``.
    Networks that answer with masks and places, not with grey values, keep 12 binary digits of each
    weight: the rest is a third of their bytes in a wheel and moves a landmark by 0.005 px at most.

    Args:
        network: with the weights to keep.
        folder: made when missing.
        name: the weights' name.
        card: what to say about them besides name, architecture and hashes.

    Returns:
        The card's path, which ``from_pretrained`` of ``Separator`` or ``Segmenter`` takes.

    Raises:
        WeightsError: the exporter is not installed.
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    own: dict[str, Any] = {}
    if isinstance(network, FoldedUNet):
        own = {"task": _GRIDS[network.architecture][1]}
        network = _rounded(network)
    graphs = (".onnx",) if network.exports else ()
    targets = [folder / f"{name}{suffix}" for suffix in (".safetensors", *graphs, ".json")]
    with atomic_paths(targets) as (*files, text):
        files[0].write_bytes(safetensors_bytes(network))
        for graph in files[1:]:
            export_onnx(network, graph)
        fields = {
            "name": name,
            **own,
            "architecture": network.architecture,
            "configuration": network.configuration(),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "sha256": {
                target.name: hashlib.sha256(written.read_bytes()).hexdigest()
                for target, written in zip(targets[:-1], files, strict=True)
            },
            **card,
        }
        text.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return targets[-1]
