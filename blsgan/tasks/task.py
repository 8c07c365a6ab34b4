"""What a network is for, and which weights it runs with: found once, by name or path, and by hash.

There are three tasks. Separation maps ``image`` float32 [B,1,H,W] in [0,1] and ``masks`` float32
[B,2,H,W] in {0,1} to ``share_logits`` float32 [B,2,H,W] and ``soft_tissue`` float32 [B,1,H,W]; H
and W are multiples of the network's own, 8 by default. Segmentation maps ``image`` float32
[B,1,256,256] to ``mask_logits`` float32 [B,2,256,256]. Location maps ``image`` float32
[B,1,192,192] to ``landmark_logits`` float32 [B,L,96,96].
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blsgan.errors import WeightsError
from blsgan.joint.geometry import GRID_PX, LOOK_PX

WEIGHTS_FOLDER = Path(__file__).resolve().parents[1] / "weights"
SIZE_MULTIPLE = 8
"""Sides of a window are multiples of it: the default network halves its grid three times."""

MAX_SIZE_MULTIPLE = 256
MAX_REACH_PX = 16
LAW_RANGE = (1.0, 20.0)
"""Of ``blsgan.ops``: the exponential law's exponent; 0 is the paper's law."""


@dataclass(frozen=True)
class Task:
    """What a network is for.

    Attributes:
        name: as weights' cards say it.
        weights: name of the ones that ship for it.
        inputs: channels of each input [B,C,H,W].
        outputs: names.
        grid_px: H and W of the inputs, None where they are free.
    """

    name: str
    weights: str
    inputs: Mapping[str, int]
    outputs: tuple[str, ...]
    grid_px: int | None = None

    def describe(self) -> str:
        """What such a network maps to what, for messages."""
        size = f"{self.grid_px},{self.grid_px}" if self.grid_px else "H,W"
        inputs = ", ".join(f"{name} [B,{count},{size}]" for name, count in self.inputs.items())
        return f"{inputs} to {', '.join(self.outputs)}"


SEPARATION = Task("separation", "lite", {"image": 1, "masks": 2}, ("share_logits", "soft_tissue"))
SEGMENTATION = Task("segmentation", "segmenter", {"image": 1}, ("mask_logits",), GRID_PX)
LOCATION = Task("location", "locator", {"image": 1}, ("landmark_logits",), LOOK_PX)


@dataclass(frozen=True)
class WeightsFile:
    """One verified weights file: its content, so that what was hashed is what runs.

    Attributes:
        size_multiple: H and W of a separation's inputs must be multiples of it.
        law: of ``blsgan.ops``, by which a separation's layers compose.
        reach_px: how far a bone's picture reaches beyond its mask, in pixels that the network sees.
    """

    name: str
    architecture: str
    path: Path
    sha256: str
    data: bytes
    size_multiple: int = SIZE_MULTIPLE
    law: float = 0.0
    reach_px: int = 0

    def separating(self, described: Mapping[str, str]) -> WeightsFile:
        """This file, with what the model says of the separation it is for (``to_onnx``).

        Raises :class:`WeightsError` where it says nothing: models of before 0.2.
        """
        try:
            size_multiple = int(described["size_multiple"])
            law, reach_px = float(described["law"]), int(described["reach_px"])
        except (KeyError, ValueError) as error:
            raise WeightsError(
                f"{self.path} was written by an earlier blsgan, whose shares meant something else; "
                "train it again, export it again from its weights, or use the shipped ones."
            ) from error
        if not (
            1 <= size_multiple <= MAX_SIZE_MULTIPLE
            and (law == 0 or LAW_RANGE[0] <= law <= LAW_RANGE[1])
            and 0 <= reach_px <= MAX_REACH_PX
        ):
            raise WeightsError(
                f"{self.path} says size_multiple {size_multiple}, law {law:g}, reach_px "
                f"{reach_px}: not what a separation can use; give other weights."
            )
        return replace(self, size_multiple=size_multiple, law=law, reach_px=reach_px)


@dataclass(frozen=True)
class Weights:
    """Where a set of weights lies: any of the files, and what the card beside them says.

    ``safetensors`` may be a file that is not there, but that :meth:`load` makes from ``onnx``.
    """

    name: str
    onnx: Path | None
    safetensors: Path | None
    engine: Path | None
    card: Mapping[str, Any]

    @property
    def architecture(self) -> str | None:
        """None where there is no card."""
        return self.card.get("architecture")

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file, by its name; empty where there is no card."""
        return self.card.get("sha256", {})

    def load(self, path: Path) -> WeightsFile:
        """Read one of the files; raises :class:`WeightsError` when it is missing or damaged.

        A wheel holds each network once, as a graph: a ``.safetensors`` that is not there is made
        from that, byte for byte, which takes torch and onnx.
        """
        try:
            made = path == self.safetensors and self.onnx is not None and not path.is_file()
            data = self._from_graph() if made else path.read_bytes()
        except OSError as error:
            raise WeightsError(
                f"{path} cannot be read ({error.strerror}); reinstall blsgan or name another "
                "weights file."
            ) from error
        sha256 = hashlib.sha256(data).hexdigest()
        expected = self.hashes.get(path.name)
        if expected is not None and sha256 != expected:
            raise WeightsError(
                f"{path} is damaged: its SHA-256 is {sha256[:12]}..., its card says "
                f"{expected[:12]}...; reinstall blsgan or copy the file again."
            )
        return WeightsFile(
            self.name,
            self.architecture or "unknown",
            path,
            sha256,
            data,
        )

    def _from_graph(self) -> bytes:
        """The ``.safetensors`` that belongs to the graph; :meth:`load` holds it to its hash."""
        from blsgan.models.weights import safetensors_of_graph
        from blsgan.runtimes.onnx_model import refuse_external_data

        assert self.onnx is not None
        graph = self.load(self.onnx)
        refuse_external_data(graph.path, graph.data)
        return safetensors_of_graph(graph.path, graph.data, self.card)


def find_weights(
    path_or_name: os.PathLike[str] | str | None = None, task: Task = SEPARATION
) -> Weights:
    """Find weights by name ("lite", shipped with the package) or by path; the task's by default.

    A path may be the card (``NAME.json``), ``NAME.onnx`` or ``NAME.safetensors``; its neighbours of
    the same stem are found with it, and hashes are checked where there is a card. In a folder the
    only card counts, or the only one of ``task``. An engine (``NAME.engine``) stands alone with its
    manifest. Raises :class:`WeightsError`.
    """
    text = os.fspath(path_or_name) if path_or_name is not None else task.weights
    path = Path(text)
    if path_or_name is None or (path.name == text and not path.suffix and not path.exists()):
        path = WEIGHTS_FOLDER / f"{text}.json"
        if not path.is_file():
            cards = sorted(WEIGHTS_FOLDER.glob("*.json"))
            known = [
                card.stem
                for card in cards
                if _read_card(card).get("task", SEPARATION.name) == task.name
            ]
            raise WeightsError(
                f"there are no weights for {task.name} called {text!r}; known names: "
                f"{', '.join(known) or 'none'}, or give the path of an .onnx or .safetensors file."
            )
    if path.is_dir():
        cards = sorted(path.glob("*.json"))
        cards = [card for card in cards if card.with_suffix(".onnx").exists()] or cards
        if len(cards) > 1:
            named = [(card, _read_card(card).get("task", SEPARATION.name)) for card in cards]
            cards = [card for card, name in named if name == task.name] or cards
        if len(cards) != 1:
            raise WeightsError(
                f"{path} holds {len(cards)} weights cards (*.json); name the weights file itself."
            )
        path = cards[0]
    if path.suffix not in (".json", ".onnx", ".safetensors", ".engine"):
        raise WeightsError(
            f"{path} is not a weights file; give .onnx, .safetensors, its .json card or an .engine."
        )
    if path.suffix == ".safetensors" and not path.is_file() and path.with_suffix(".json").is_file():
        path = path.with_suffix(".json")  # its graph may stand for it
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; check the path of the weights.")
    if path.suffix == ".engine":
        from blsgan.runtimes.manifest import read_manifest

        model = read_manifest(path).model
        return Weights(model.weights, None, None, path, {"architecture": model.architecture})
    card = path.with_suffix(".json")
    fields = _read_card(card) if card.is_file() else {}
    onnx, safetensors = path.with_suffix(".onnx"), path.with_suffix(".safetensors")
    engine = path.with_suffix(".engine")
    # A graph whose card has the hash of its tensors stands for both files.
    stands = onnx.is_file() and safetensors.name in fields.get("sha256", {})
    return Weights(
        name=str(fields.get("name", path.stem)),
        onnx=onnx if onnx.is_file() else None,
        safetensors=safetensors if stands or safetensors.is_file() else None,
        engine=engine if engine.is_file() else None,
        card=fields,
    )


def _read_card(card: Path) -> dict[str, Any]:
    try:
        fields = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{card} is not a readable weights card; reinstall blsgan.") from error
    if not isinstance(fields, dict):
        raise WeightsError(f"{card} is not a weights card (a JSON object); reinstall blsgan.")
    if not isinstance(fields.get("architecture", ""), str):
        raise WeightsError(f"{card} names no architecture; reinstall blsgan.")
    hashes = fields.get("sha256", {})
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise WeightsError(f"{card} gives no SHA-256 for each weights file; reinstall blsgan.")
    return fields
