"""A task's weights in the runtime that suits this machine best."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blsgan.errors import BackendError, BlsganError, UsageError, WeightsError
from blsgan.runtimes import session as runtimes
from blsgan.runtimes.session import ENGINES, NAMES, Float32, Ports, Session
from blsgan.tasks.task import (
    LOCATION,
    SEGMENTATION,
    SEPARATION,
    Task,
    Weights,
    WeightsFile,
    find_weights,
)

CHOICES = ("auto", *NAMES)


@dataclass(frozen=True)
class Backend:
    """What :class:`blsgan.Separator` and :class:`blsgan.Segmenter` need of a runtime.

    Attributes:
        name: of the runtime.
        weights: in use.
        task: what they are for.
        session: what runs.
        threads: of the runtime, None: its default.
    """

    name: str
    weights: WeightsFile
    task: Task
    session: Session
    threads: int | None = None

    def __reduce__(self) -> tuple[Callable[..., Backend], tuple[Any, ...]]:
        # Another process loads the same file: a session cannot travel.
        path, sha256 = self.weights.path, self.weights.sha256
        return _load_again, (self.name, path, sha256, self.threads, self.task.name)

    @property
    def version(self) -> str:
        """The runtime's."""
        return self.session.version

    def run(self, *inputs: Float32) -> tuple[Float32, ...]:
        """The task's outputs for a batch of its inputs, each in the order of its names."""
        outputs = self.session.run(dict(zip(self.task.inputs, inputs, strict=True)))
        return tuple(outputs[name] for name in self.task.outputs)


_LOG = logging.getLogger(__name__)


def create(
    name: str = "auto",
    path_or_name: os.PathLike[str] | str | None = None,
    threads: int | None = None,
    task: Task = SEPARATION,
) -> Backend:
    """Load a task's weights into a backend: one of :data:`CHOICES`.

    "auto" takes the fastest that can run here: an engine beside the weights that was built for this
    machine, else ONNX Runtime, OpenVINO, torch. An engine's own path takes that engine.

    Raises :class:`UsageError` for an unknown name, :class:`BackendError` when it cannot run here,
    :class:`WeightsError` when the weights cannot be used.
    """
    backend = _create(name, path_or_name, threads, task)
    file = backend.weights
    _LOG.info("%s, SHA-256 %s, on %s %s", file.path, file.sha256, backend.name, backend.version)
    return backend


def _create(
    name: str, path_or_name: os.PathLike[str] | str | None, threads: int | None, task: Task
) -> Backend:
    if name not in CHOICES:
        raise UsageError(f"backend {name!r} is unknown; choose one of {', '.join(CHOICES)}.")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads is {threads!r}; give a whole number from 1 on.")
    threads = runtimes.thread_count(threads)
    weights = find_weights(path_or_name, task)
    if name in ENGINES or (name == "auto" and _takes_engine(weights)):
        backend = _engine(weights, task)
        if name not in ("auto", backend.name):
            raise WeightsError(f"{weights.engine} is an engine of {backend.name}, not of {name}.")
        return backend
    if name != "auto":
        return _LOADERS[name](weights, threads, task)
    reasons = runtimes.available()
    for candidate, load in _LOADERS.items():
        file = weights.safetensors if candidate == "torch" else weights.onnx
        if reasons[candidate] is None and file is not None:
            return load(weights, threads, task)
    cannot = [reason for name in _LOADERS if (reason := reasons[name]) is not None]
    raise BackendError(
        f"no backend can run here: {'; '.join(cannot)}."
        if cannot
        else f"weights {weights.name!r} have neither an .onnx nor a .safetensors file."
    )


def _load_again(name: str, path: Path, sha256: str, threads: int | None, task_name: str) -> Backend:
    """A backend that was pickled."""
    task = next(task for task in (SEPARATION, SEGMENTATION, LOCATION) if task.name == task_name)
    backend = create(name, path, threads, task)
    if backend.weights.sha256 != sha256:
        raise WeightsError(
            f"{path} is not the file that was loaded (SHA-256 {backend.weights.sha256[:12]}... in "
            f"place of {sha256[:12]}...); load it anew."
        )
    return backend


def _onnx(weights: Weights, threads: int | None, task: Task) -> Backend:
    from blsgan.runtimes.onnx import OnnxSession

    return _of_onnx_file("onnx", OnnxSession, weights, threads, task)


def _openvino(weights: Weights, threads: int | None, task: Task) -> Backend:
    from blsgan.runtimes.openvino import OpenVinoSession

    return _of_onnx_file("openvino", OpenVinoSession, weights, threads, task)


def _of_onnx_file(
    name: str, session_of: Callable[..., Session], weights: Weights, threads: int | None, task: Task
) -> Backend:
    from blsgan.runtimes.onnx_model import metadata, refuse_external_data

    file = weights.load(_onnx_file(weights))
    refuse_external_data(file.path, file.data)
    session = session_of(file.data, str(file.path), threads=threads)
    _check_signature(task, file, session)
    if task is SEPARATION:
        file = file.separating(metadata(file.data))
    return Backend(name, file, task, session, threads)


def _torch(weights: Weights, threads: int | None, task: Task) -> Backend:
    if weights.safetensors is None:
        raise WeightsError(
            f"weights {weights.name!r} have no .safetensors file, which the torch backend "
            "needs; use --backend onnx or openvino."
        )
    runtimes.imported("torch")
    from blsgan.models import load_generator, load_locator, load_segmenter
    from blsgan.runtimes.torch import TorchSession

    file = weights.load(weights.safetensors)
    network: Any
    if task is SEPARATION:
        network = load_generator(file.path, file.data)
        if network.head != "exact" or network.layers != 2:
            raise WeightsError(
                f"{file.path} is a generator of {network.layers} layers with the {network.head} "
                "head; separation needs two layers and the exact head."
            )
        file = file.separating(network.described())
        network = network.answers()
    else:
        load = load_locator if task is LOCATION else load_segmenter
        network = load(file.path, file.data)
    session = TorchSession(network, list(task.inputs), task.outputs, threads=threads)
    return Backend("torch", file, task, session, threads)


_LOADERS: dict[str, Callable[[Weights, int | None, Task], Backend]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torch": _torch,
}
"""In the order "auto" tries them, see :data:`NAMES`."""


def _engine(weights: Weights, task: Task) -> Backend:
    """A TensorRT or TensorRT-RTX engine of a separation on a GPU, without torch.

    Its manifest is compared with this machine before the plan is touched.
    """
    if task is not SEPARATION:
        raise WeightsError(f"engines are built for separation, not for {task.name}.")
    if weights.engine is None:
        raise WeightsError(
            f"weights {weights.name!r} have no .engine file; build one with `blsgan build-engine`."
        )
    from blsgan.runtimes.engine import EngineSession

    session = EngineSession(weights.engine)
    manifest = session.engine.manifest
    file = WeightsFile(
        weights.name,
        manifest.model.architecture,
        weights.engine,
        manifest.sha256,
        b"",
        manifest.model.size_multiple,
        manifest.model.law,
        manifest.model.reach_px,
    )
    return Backend(manifest.backend, file, task, session)


def _takes_engine(weights: Weights) -> bool:
    """Whether "auto" takes an engine: it is all there is, or lies beside ``weights``, is theirs and
    can run here."""
    if weights.engine is None:
        return False
    if weights.onnx is None and weights.safetensors is None:
        return True
    if all(runtimes.available()[name] for name in ENGINES):
        return False
    from blsgan.runtimes.manifest import check_fits, read_manifest

    try:
        manifest = read_manifest(weights.engine)
        check_fits(weights.engine, manifest)
    except BlsganError:
        return False
    if manifest.forced:  # it failed its gate: only who names it gets it
        return False
    known = [value for name, value in weights.hashes.items() if name.endswith(".safetensors")]
    return not known or manifest.model.weights_sha256 in known


def _onnx_file(weights: Weights) -> Path:
    if weights.onnx is None:
        raise WeightsError(
            f"weights {weights.name!r} have no .onnx file; use --backend torch or export them "
            "first."
        )
    return weights.onnx


def _check_signature(task: Task, weights: WeightsFile, session: Session) -> None:
    """Refuse a network of another architecture before it computes what only looks like a result."""
    fits = set(session.inputs) == set(task.inputs) and set(session.outputs) >= set(task.outputs)
    for name, channels in task.inputs.items() if fits else ():
        shape = session.inputs[name] or ()
        fits &= len(shape) == 4 and shape[1] == channels and shape[2:] == (task.grid_px,) * 2
    if not fits:
        raise WeightsError(
            f"{weights.path} is of another architecture: it maps {_ports(session.inputs)} to "
            f"{_ports(session.outputs)}, not {task.describe()}; give weights of a {task.name} "
            "network."
        )


def _ports(ports: Ports) -> str:
    return ", ".join(
        f"{name} [{','.join('*' if size is None else str(size) for size in shape or ())}]"
        for name, shape in ports.items()
    )
