"""Runtimes for the networks: ONNX Runtime, OpenVINO, torch or an engine behind one interface.

There are two tasks. Separation maps ``image`` float32 [B,1,H,W] in [0,1] and ``masks`` float32
[B,2,H,W] in {0,1} to ``share_logits`` float32 [B,2,H,W] and ``soft_tissue`` float32 [B]; the
network halves H and W three times, so they must be multiples of 8. Segmentation maps ``image``
float32 [B,1,256,256] to ``mask_logits`` float32 [B,2,256,256]. Which weights a backend runs is
settled first (:func:`find_weights`), by hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import BackendError, BlsganError, UsageError, WeightsError
from blsgan.joint.geometry import GRID_PX
from blsgan.onnx_model import refuse_external_data

Float32 = NDArray[np.float32]

WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"
DEFAULT_WEIGHTS = "lite"


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


SEPARATION = Task(
    "separation", DEFAULT_WEIGHTS, {"image": 1, "masks": 2}, ("share_logits", "soft_tissue")
)
SEGMENTATION = Task("segmentation", "segmenter", {"image": 1}, ("mask_logits",), GRID_PX)


class Backend(Protocol):
    """What :class:`blsgan.Separator` and :class:`blsgan.Segmenter` need of a runtime."""

    name: str
    version: str
    weights: WeightsFile

    def run(self, *inputs: Float32) -> tuple[Float32, ...]:
        """The task's outputs for a batch of its inputs, each in the order of its names."""
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
    """Where a set of weights lies: any of the files, and the card that gives their hashes."""

    name: str
    architecture: str | None
    onnx: Path | None
    safetensors: Path | None
    hashes: dict[str, str]
    engine: Path | None = None

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
            known = sorted(card.stem for card in WEIGHTS_FOLDER.glob("*.json"))
            raise WeightsError(
                f"there are no weights called {text!r}; known names: {', '.join(known) or 'none'}, "
                "or give the path of an .onnx or .safetensors file."
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
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; check the path of the weights.")
    if path.suffix == ".engine":
        from blsgan.engines.manifest import read_manifest

        model = read_manifest(path).model
        return Weights(model.weights, model.architecture, None, None, {}, engine=path)
    card = path.with_suffix(".json")
    fields = _read_card(card) if card.is_file() else {}
    onnx, safetensors = path.with_suffix(".onnx"), path.with_suffix(".safetensors")
    engine = path.with_suffix(".engine")
    return Weights(
        name=str(fields.get("name", path.stem)),
        architecture=fields.get("architecture"),
        onnx=onnx if onnx.is_file() else None,
        safetensors=safetensors if safetensors.is_file() else None,
        hashes=_hashes(card, fields),
        engine=engine if engine.is_file() else None,
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

    def __init__(
        self, weights: Weights, threads: int | None = None, task: Task = SEPARATION
    ) -> None:
        self._task = task
        self.weights = _load_onnx(weights)
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
            task,
            self.weights,
            {port.name: list(port.shape) for port in self._session.get_inputs()},
            {port.name: list(port.shape) for port in self._session.get_outputs()},
        )

    def run(self, *inputs: Float32) -> tuple[Float32, ...]:
        named = dict(zip(self._task.inputs, inputs, strict=True))
        return tuple(self._session.run(list(self._task.outputs), named))


class OpenVinoBackend:
    """OpenVINO on the CPU, held to float32 (it would take bfloat16 where the processor has it)."""

    name = "openvino"

    def __init__(
        self, weights: Weights, threads: int | None = None, task: Task = SEPARATION
    ) -> None:
        self._task = task
        self.weights = _load_onnx(weights)
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
                task,
                self.weights,
                {port.any_name: _openvino_shape(port) for port in model.inputs},
                {port.any_name: _openvino_shape(port) for port in model.outputs},
            )
            self._model = core.compile_model(model, "CPU", settings)
        except WeightsError:
            raise
        except Exception as error:
            raise _unloadable(self.weights, error) from error

    def run(self, *inputs: Float32) -> tuple[Float32, ...]:
        outputs = self._model(dict(zip(self._task.inputs, inputs, strict=True)))
        # Copies: the runtime reuses its output memory in the next call.
        return tuple(np.array(outputs[name]) for name in self._task.outputs)


class TorchBackend:
    """PyTorch, from the safetensors file, through the model registry."""

    name = "torch"

    def __init__(
        self, weights: Weights, threads: int | None = None, task: Task = SEPARATION
    ) -> None:
        if weights.safetensors is None:
            raise WeightsError(
                f"weights {weights.name!r} have no .safetensors file, which the torch backend "
                "needs; use --backend onnx or openvino."
            )
        torch = _import("torch", self.name)
        self.weights = weights.load(weights.safetensors)
        self.version = str(torch.__version__)
        from blsgan.models import load_generator, load_segmenter

        load = load_segmenter if task is SEGMENTATION else load_generator
        if threads is not None:
            torch.set_num_threads(threads)
        self._torch = torch
        network = load(weights.safetensors, self.weights.data)
        if task is SEPARATION and (network.head != "exact" or network.layers != 2):
            raise WeightsError(
                f"{weights.safetensors} is a generator of {network.layers} layers with the "
                f"{network.head} head; separation needs two layers and the exact head."
            )
        self._network = network

    def run(self, *inputs: Float32) -> tuple[Float32, ...]:
        torch = self._torch
        with torch.inference_mode():
            outputs = self._network(*(torch.from_numpy(plane) for plane in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(output.float().numpy() for output in outputs)


class EngineBackend:
    """A TensorRT or TensorRT-RTX engine of a separation on a GPU, without torch.

    Its manifest is compared with this machine before the plan is touched.
    """

    def __init__(
        self, weights: Weights, threads: int | None = None, task: Task = SEPARATION
    ) -> None:
        if task is not SEPARATION:
            raise WeightsError(f"engines are built for separation, not for {task.name}.")
        if weights.engine is None:
            raise WeightsError(
                f"weights {weights.name!r} have no .engine file; build one with `blsgan "
                "build-engine`."
            )
        from blsgan.engines.runtime import Engine

        self._engine = Engine(weights.engine)
        manifest = self._engine.manifest
        self.name: str = manifest.backend
        self.version = manifest.backend_version
        self.weights = WeightsFile(
            weights.name, manifest.model.architecture, weights.engine, manifest.sha256, b""
        )

    def run(self, *inputs: Float32) -> tuple[Float32, ...]:
        image, masks = inputs
        most = self._engine.manifest.profile["image"].max[0]
        parts = list(
            self._engine.stream(
                (image[start : start + most], masks[start : start + most])
                for start in range(0, len(image), most)
            )
        )
        return tuple(np.concatenate([part[name] for part in parts]) for name in SEPARATION.outputs)


_BACKENDS: dict[str, tuple[str, Callable[[Weights, int | None, Task], Backend]]] = {
    # In the order "auto" tries them: an engine where there is one that fits; ONNX Runtime is up in
    # half of OpenVINO's time (which is a little faster once warm), torch takes seconds.
    "tensorrt": ("tensorrt", EngineBackend),
    "tensorrt-rtx": ("tensorrt_rtx", EngineBackend),
    "onnx": ("onnxruntime", OnnxBackend),
    "openvino": ("openvino", OpenVinoBackend),
    "torch": ("torch", TorchBackend),
}
NAMES = ("auto", *_BACKENDS)
ENGINES = ("tensorrt", "tensorrt-rtx")

_PACKAGES = {"onnx": "onnxruntime", "openvino": "'blsgan[openvino]'", "torch": "'blsgan[train]'"}
# What the drivers of desktops and servers, of WSL and of Jetson make.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvgpu", "/dev/nvhost-gpu")


def available() -> dict[str, str | None]:
    """For each backend the reason why it cannot run here, or None when it can. Imports nothing.

    An engine must also have been built for this machine, which its manifest says.
    """
    reasons: dict[str, str | None] = {}
    for name, (module, _) in _BACKENDS.items():
        if name in ENGINES:
            reasons[name] = _engines_missing(name)
        elif find_spec(module) is None:
            reasons[name] = f"{module} is not installed; pip install {_PACKAGES[name]}"
        else:
            reasons[name] = None
    return reasons


def _engines_missing(name: str) -> str | None:
    from blsgan.engines import libraries

    if reason := libraries.missing(name):
        return reason
    if find_spec("cuda") is None:
        return "cuda-bindings is not installed; pip install 'blsgan[engine]'"
    if not any(os.path.exists(device) for device in _GPU_DEVICES):
        return f"there is no NVIDIA GPU (none of {', '.join(_GPU_DEVICES)})"
    return None


def _fitting_engine(weights: Weights) -> str | None:
    """The backend of the engine beside ``weights`` if it is theirs and can run here, else None."""
    if weights.engine is None or all(available()[name] for name in ENGINES):
        return None
    from blsgan.engines.manifest import check_fits, read_manifest

    try:
        manifest = read_manifest(weights.engine)
        check_fits(weights.engine, manifest)
    except BlsganError:
        return None
    if manifest.forced:  # it failed its gate: only who names it gets it
        return None
    known = [weights.hashes[name] for name in weights.hashes if name.endswith(".safetensors")]
    return manifest.backend if not known or manifest.model.weights_sha256 in known else None


def create(
    name: str = "auto",
    path_or_name: os.PathLike[str] | str | None = None,
    threads: int | None = None,
    task: Task = SEPARATION,
) -> Backend:
    """Load a task's weights into a backend: one of :data:`NAMES`.

    "auto" takes the fastest that can run here: an engine beside the weights that was built for this
    machine, else ONNX Runtime, OpenVINO, torch. An engine's own path takes that engine.

    Raises :class:`UsageError` for an unknown name, :class:`BackendError` when it cannot run here,
    :class:`WeightsError` when the weights cannot be used.
    """
    if name not in NAMES:
        raise UsageError(f"backend {name!r} is unknown; choose one of {', '.join(NAMES)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; give a whole number from 1 on.")
    weights = find_weights(path_or_name, task)
    if name != "auto":
        backend = _BACKENDS[name][1](weights, threads, task)
        if backend.name != name:
            raise WeightsError(f"{weights.engine} is an engine of {backend.name}, not of {name}.")
        return backend
    alone = weights.onnx is None and weights.safetensors is None
    if weights.engine is not None and (alone or _fitting_engine(weights)):
        return EngineBackend(weights, threads, task)
    reasons = available()
    for candidate, (_, factory) in _BACKENDS.items():
        file = weights.safetensors if candidate == "torch" else weights.onnx
        if reasons[candidate] is None and file is not None and candidate not in ENGINES:
            return factory(weights, threads, task)
    cannot = [reasons[name] for name in _BACKENDS if name not in ENGINES and reasons[name]]
    raise BackendError(
        f"no backend can run here: {'; '.join(map(str, cannot))}."
        if cannot
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


def _load_onnx(weights: Weights) -> WeightsFile:
    if weights.onnx is None:
        raise WeightsError(
            f"weights {weights.name!r} have no .onnx file; use --backend torch or export them "
            "first."
        )
    file = weights.load(weights.onnx)
    refuse_external_data(file.path, file.data)
    return file


def _unloadable(weights: WeightsFile, error: Exception) -> WeightsError:
    reason = (str(error).splitlines() or [""])[0][:120]
    return WeightsError(
        f"{weights.path} is not a network that can be run ({reason}); give another one."
    )


def _openvino_shape(port: Any) -> list[int | None]:
    return [None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]


def _check_signature(
    task: Task,
    weights: WeightsFile,
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
) -> None:
    """Refuse a network of another architecture before it computes what only looks like a result."""
    fits = set(inputs) == set(task.inputs) and set(outputs) >= set(task.outputs)
    for name, channels in task.inputs.items() if fits else ():
        shape = inputs[name]
        sizes = [size if isinstance(size, int) else None for size in shape[2:]]
        fits &= len(shape) == 4 and shape[1] == channels and sizes == [task.grid_px] * 2
    if not fits:
        raise WeightsError(
            f"{weights.path} is of another architecture: it maps {_ports(inputs)} to "
            f"{_ports(outputs)}, not {task.describe()}; give weights of a {task.name} network."
        )


def _ports(ports: dict[str, list[Any]]) -> str:
    return ", ".join(
        f"{name} [{','.join(str(size) if isinstance(size, int) else '*' for size in shape)}]"
        for name, shape in ports.items()
    )
