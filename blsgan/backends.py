"""Runtimes for the generator: ONNX Runtime, OpenVINO or torch behind one small interface.

A backend maps ``image`` float32 [B,1,H,W] in [0,1] and ``masks`` float32 [B,2,H,W] in {0,1} to
``share_logits`` float32 [B,2,H,W] and ``soft_tissue`` float32 [B]. The network halves H and W three
times, so they must be multiples of 8. Which weights a backend runs is settled first
(:func:`find_weights`), by hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import BackendError, UsageError, WeightsError

Float32 = NDArray[np.float32]

WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"
DEFAULT_WEIGHTS = "lite"
INPUTS = ("image", "masks")
OUTPUTS = ("share_logits", "soft_tissue")


class Backend(Protocol):
    """What :class:`blsgan.separation.Separator` needs of a runtime."""

    name: str
    version: str
    weights: WeightsFile

    def run(self, image: Float32, masks: Float32) -> tuple[Float32, Float32]:
        """Share logits [B,2,H,W] and soft tissue [B] for a batch of crops."""
        ...


@dataclass(frozen=True)
class WeightsFile:
    """One verified weights file: its content, so that what was hashed is what runs."""

    name: str
    architecture: str
    path: Path
    sha256: str
    data: bytes


@dataclass(frozen=True)
class Weights:
    """Where a set of weights lies: any of the two files, and the card that gives their hashes."""

    name: str
    architecture: str | None
    onnx: Path | None
    safetensors: Path | None
    hashes: dict[str, str]

    def load(self, path: Path) -> WeightsFile:
        """Read one of the files; raises :class:`WeightsError` when it is missing or damaged."""
        try:
            data = path.read_bytes()
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
        return WeightsFile(self.name, self.architecture or "unknown", path, sha256, data)


def find_weights(path_or_name: os.PathLike[str] | str | None = None) -> Weights:
    """Find weights by name ("lite", shipped with the package) or by path.

    A path may be the card (``NAME.json``), ``NAME.onnx`` or ``NAME.safetensors``; its neighbours of
    the same stem are found with it, and hashes are checked where there is a card. Raises
    :class:`WeightsError`.
    """
    text = os.fspath(path_or_name) if path_or_name is not None else DEFAULT_WEIGHTS
    path = Path(text)
    if path_or_name is None or (path.name == text and not path.suffix and not path.exists()):
        path = WEIGHTS_FOLDER / f"{text}.json"
        if not path.is_file():
            known = sorted(card.stem for card in WEIGHTS_FOLDER.glob("*.json"))
            raise WeightsError(
                f"there are no weights called {text!r}; known names: {', '.join(known) or 'none'}, "
                "or give the path of an .onnx or .safetensors file."
            )
    if path.is_dir():
        cards = sorted(path.glob("*.json"))
        cards = [card for card in cards if card.with_suffix(".onnx").exists()] or cards
        if len(cards) != 1:
            raise WeightsError(
                f"{path} holds {len(cards)} weights cards (*.json); name the weights file itself."
            )
        path = cards[0]
    if path.suffix not in (".json", ".onnx", ".safetensors"):
        raise WeightsError(
            f"{path} is not a weights file; give .onnx, .safetensors or its .json card."
        )
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; check the path of the weights.")
    card = path.with_suffix(".json")
    fields = _read_card(card) if card.is_file() else {}
    onnx, safetensors = path.with_suffix(".onnx"), path.with_suffix(".safetensors")
    return Weights(
        name=str(fields.get("name", path.stem)),
        architecture=fields.get("architecture"),
        onnx=onnx if onnx.is_file() else None,
        safetensors=safetensors if safetensors.is_file() else None,
        hashes=_hashes(card, fields),
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
    return fields


def _hashes(card: Path, fields: dict[str, Any]) -> dict[str, str]:
    hashes = fields.get("sha256", {})
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise WeightsError(f"{card} gives no SHA-256 for each weights file; reinstall blsgan.")
    return hashes


class OnnxBackend:
    """ONNX Runtime on the CPU: the default, because it is up and through in the least time."""

    name = "onnx"

    def __init__(self, weights: Weights, threads: int | None = None) -> None:
        self.weights = weights.load(_onnx_file(weights))
        onnxruntime = _import("onnxruntime", self.name)
        self.version = str(onnxruntime.__version__)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                self.weights.data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise _unloadable(self.weights, error) from error
        _check_signature(
            self.weights,
            {port.name: list(port.shape) for port in self._session.get_inputs()},
            {port.name: list(port.shape) for port in self._session.get_outputs()},
        )

    def run(self, image: Float32, masks: Float32) -> tuple[Float32, Float32]:
        logits, soft_tissue = self._session.run(list(OUTPUTS), {"image": image, "masks": masks})
        return logits, soft_tissue


class OpenVinoBackend:
    """OpenVINO on the CPU, held to float32 (it would take bfloat16 where the processor has it)."""

    name = "openvino"

    def __init__(self, weights: Weights, threads: int | None = None) -> None:
        self.weights = weights.load(_onnx_file(weights))
        openvino = _import("openvino", self.name)
        self.version = str(openvino.__version__).split("-", maxsplit=1)[0]
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
        }
        try:
            model = core.read_model(self.weights.data, b"")
            _check_signature(
                self.weights,
                {port.any_name: _openvino_shape(port) for port in model.inputs},
                {port.any_name: _openvino_shape(port) for port in model.outputs},
            )
            self._model = core.compile_model(model, "CPU", settings)
        except WeightsError:
            raise
        except Exception as error:
            raise _unloadable(self.weights, error) from error

    def run(self, image: Float32, masks: Float32) -> tuple[Float32, Float32]:
        outputs = self._model({"image": image, "masks": masks})
        # Copies: the runtime reuses its output memory in the next call.
        return np.array(outputs["share_logits"]), np.array(outputs["soft_tissue"])


class TorchBackend:
    """PyTorch, from the safetensors file, through the model registry."""

    name = "torch"

    def __init__(self, weights: Weights, threads: int | None = None) -> None:
        if weights.safetensors is None:
            raise WeightsError(
                f"weights {weights.name!r} have no .safetensors file, which the torch backend "
                "needs; use --backend onnx or openvino."
            )
        torch = _import("torch", self.name)
        self.weights = weights.load(weights.safetensors)
        self.version = str(torch.__version__)
        from blsgan.models import load_generator

        if threads is not None:
            torch.set_num_threads(threads)
        self._torch = torch
        self._generator = load_generator(weights.safetensors, self.weights.data)
        if self._generator.head != "exact" or self._generator.layers != 2:
            raise WeightsError(
                f"{weights.safetensors} is a generator of {self._generator.layers} layers with the "
                f"{self._generator.head} head; separation needs two layers and the exact head."
            )

    def run(self, image: Float32, masks: Float32) -> tuple[Float32, Float32]:
        torch = self._torch
        with torch.inference_mode():
            logits, soft_tissue = self._generator(torch.from_numpy(image), torch.from_numpy(masks))
        return logits.float().numpy(), soft_tissue.float().numpy()


_BACKENDS: dict[str, tuple[str, Callable[[Weights, int | None], Backend]]] = {
    # In the order "auto" tries them: ONNX Runtime is up in half of OpenVINO's time (which is a
    # little faster once warm), torch takes seconds.
    "onnx": ("onnxruntime", OnnxBackend),
    "openvino": ("openvino", OpenVinoBackend),
    "torch": ("torch", TorchBackend),
}
NAMES = ("auto", *_BACKENDS)


def available() -> dict[str, str | None]:
    """For each backend the reason why it cannot run here, or None when it can. Imports nothing."""
    return {
        name: None
        if find_spec(module)
        else f"{module} is not installed; pip install {_PACKAGES[name]}"
        for name, (module, _) in _BACKENDS.items()
    }


_PACKAGES = {"onnx": "onnxruntime", "openvino": "'blsgan[openvino]'", "torch": "'blsgan[train]'"}


def create(
    name: str = "auto",
    path_or_name: os.PathLike[str] | str | None = None,
    threads: int | None = None,
) -> Backend:
    """Load weights into the backend ``name`` ("auto", "onnx", "openvino", "torch").

    Raises :class:`UsageError` for an unknown name, :class:`BackendError` when it cannot run here,
    :class:`WeightsError` when the weights cannot be used.
    """
    if name not in NAMES:
        raise UsageError(f"backend {name!r} is unknown; choose one of {', '.join(NAMES)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; give a whole number from 1 on.")
    weights = find_weights(path_or_name)
    if name != "auto":
        return _BACKENDS[name][1](weights, threads)
    reasons = available()
    for candidate, (_, factory) in _BACKENDS.items():
        file = weights.safetensors if candidate == "torch" else weights.onnx
        if reasons[candidate] is None and file is not None:
            return factory(weights, threads)
    raise BackendError(
        "no backend can run here: "
        + "; ".join(reason for reason in reasons.values() if reason)
        + "."
        if any(reasons.values())
        else f"weights {weights.name!r} have neither an .onnx nor a .safetensors file."
    )


def usable_cores() -> int:
    """Cores this process may use, at most 8: the network is too small to feed more."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(count, 8)


def _import(module: str, name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        reason = available()[name] or f"{module} is installed but does not load ({error})"
        raise BackendError(f"backend {name!r} cannot run here: {reason}.") from error


def _onnx_file(weights: Weights) -> Path:
    if weights.onnx is None:
        raise WeightsError(
            f"weights {weights.name!r} have no .onnx file; use --backend torch or export them "
            "first."
        )
    return weights.onnx


def _unloadable(weights: WeightsFile, error: Exception) -> WeightsError:
    reason = (str(error).splitlines() or [""])[0][:120]
    return WeightsError(
        f"{weights.path} is not a network that can be run ({reason}); give another one."
    )


def _openvino_shape(port: Any) -> list[int | None]:
    return [None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]


def _check_signature(
    weights: WeightsFile, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]
) -> None:
    """Refuse a network of another architecture before it computes what only looks like layers."""
    fits = (
        set(inputs) == set(INPUTS)
        and set(outputs) >= set(OUTPUTS)
        and len(inputs["image"]) == 4
        and len(inputs["masks"]) == 4
        and inputs["image"][1] == 1
        and inputs["masks"][1] == 2
        and not any(isinstance(size, int) for size in inputs["image"][2:])
    )
    if not fits:
        raise WeightsError(
            f"{weights.path} is of another architecture: it maps {_ports(inputs)} to "
            f"{_ports(outputs)}, not image [B,1,H,W], masks [B,2,H,W] to share_logits, "
            "soft_tissue; give weights of a separation network."
        )


def _ports(ports: dict[str, list[Any]]) -> str:
    return ", ".join(
        f"{name} [{','.join(str(size) if isinstance(size, int) else '*' for size in shape)}]"
        for name, shape in ports.items()
    )
