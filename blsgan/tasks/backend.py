"""A task's weights in the runtime that suits this machine best."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blsgan.errors import BackendError, BlsganError, UsageError, WeightsError
from blsgan.records.parity import ParityRecord, report_path
from blsgan.runtimes import session as runtimes
from blsgan.runtimes.device import CPU, Device, parse_device
from blsgan.runtimes.manifest import DEFAULT_BATCH, DEFAULT_HEIGHT, DEFAULT_WIDTH, Profile
from blsgan.runtimes.onnx_model import metadata, refuse_external_data
from blsgan.runtimes.session import ENGINES, NAMES, Float32, Ports, Session, first_line
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

AGREEMENT = 1e-3
AGREEMENT_LOWERED = 2e-2
"""By how much a GPU may differ from the CPU on the joint that is tried when weights are loaded:
relative to the output's largest value where that exceeds 1. It finds what is wrong, not what is
rough; how good a precision is was judged before, on many joints (``blsgan.deploy.gate``)."""


@dataclass(frozen=True)
class Backend:
    """What :class:`blsgan.Separator` and :class:`blsgan.Segmenter` need of a runtime.

    Attributes:
        name: of the runtime.
        weights: in use.
        task: what they are for.
        session: what runs.
        threads: of the runtime, None: its default.
        device: where it runs.
    """

    name: str
    weights: WeightsFile
    task: Task
    session: Session
    threads: int | None = None
    device: Device = CPU

    def __reduce__(self) -> tuple[Callable[..., Backend], tuple[Any, ...]]:
        # Another process loads the same file: a session cannot travel.
        path, sha256 = self.weights.path, self.weights.sha256
        asked = (self.name, path, sha256, self.threads, self.task.name, str(self.device))
        return _load_again, asked

    def __str__(self) -> str:
        return f"{self.weights.name}, {self.name} on {self.device}"

    def facts(self) -> dict[str, str]:
        """What a record says of it."""
        return {"name": self.name, "version": self.version, "device": str(self.device)}

    @property
    def version(self) -> str:
        """The runtime's."""
        return self.session.version

    def run(self, *inputs: Float32) -> tuple[Float32, ...]:
        """The task's outputs for a batch of its inputs, each in the order of its names."""
        outputs = self.session.run(dict(zip(self.task.inputs, inputs, strict=True)))
        return tuple(outputs[name] for name in self.task.outputs)


_LOG = logging.getLogger(__name__)


def beside(found: Backend, asked: str) -> tuple[str, str]:
    """Backend and device of the network that predicts masks for a separator that runs on ``found``
    and was asked for by the backend's name ``asked``: engines are built for separation alone."""
    return ("auto", "cpu") if found.name in ENGINES else (asked, str(found.device))


def create(
    name: str = "auto",
    path_or_name: os.PathLike[str] | str | None = None,
    threads: int | None = None,
    task: Task = SEPARATION,
    device: str | None = None,
) -> Backend:
    """Load a task's weights into a backend: one of :data:`CHOICES`.

    "auto" takes the fastest that can run here: an engine beside the weights that was built for this
    machine, else ONNX Runtime, OpenVINO, torch. An engine's own path takes that engine.

    ``device`` is a word of :mod:`blsgan.runtimes.device`; it is where the network runs, or an
    error. None is the CPU for all but engines.

    Raises :class:`UsageError` for an unknown name, :class:`BackendError` when it cannot run here,
    :class:`WeightsError` when the weights cannot be used, :class:`OutputError` when a GPU's cache
    folder cannot be written.
    """
    asked = None if device is None else parse_device(device)
    backend = _create(name, path_or_name, threads, task, asked)
    file = backend.weights
    _LOG.info(
        "%s, SHA-256 %s, on %s %s, %s",
        *(file.path, file.sha256, backend.name, backend.version, backend.device),
    )
    return backend


def _create(
    name: str,
    path_or_name: os.PathLike[str] | str | None,
    threads: int | None,
    task: Task,
    device: Device | None,
) -> Backend:
    if name not in CHOICES:
        raise UsageError(f"backend {name!r} is unknown; choose one of {', '.join(CHOICES)}.")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads is {threads!r}; give a whole number from 1 on.")
    threads = runtimes.thread_count(threads)
    weights = find_weights(path_or_name, task)
    if name in ENGINES and device is not None and device.kind != "gpu":
        raise UsageError(f"an engine runs on device gpu, not on {device}; leave out one of both.")
    of_providers = device is not None and device.kind not in ("cpu", "gpu")
    index = 0 if device is None else device.index
    if name in ENGINES or (
        name == "auto" and device != CPU and not of_providers and _takes_engine(weights, index)
    ):
        backend = _engine(weights, task, index)
        if name not in ("auto", backend.name):
            raise WeightsError(f"{weights.engine} is an engine of {backend.name}, not of {name}.")
        return backend
    if device is not None and device != CPU:
        if name not in ("auto", "onnx"):
            raise UsageError(
                f"backend {name!r} runs on the CPU, not on {device}; take --backend onnx."
            )
        return _on_gpu(weights, threads, task, device)
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


def _load_again(
    name: str, path: Path, sha256: str, threads: int | None, task_name: str, device: str
) -> Backend:
    """A backend that was pickled."""
    task = next(task for task in (SEPARATION, SEGMENTATION, LOCATION) if task.name == task_name)
    backend = create(name, path, threads, task, device)
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
    file = weights.load(_onnx_file(weights))
    refuse_external_data(file.path, file.data)
    session = session_of(file.data, str(file.path), threads=threads)
    _check_signature(task, file, session)
    described = metadata(file.data)
    if described.get("precision", "fp32") != "fp32":
        _check_gate(file, described["precision"])
    if task is SEPARATION:
        file = file.separating(described)
    return Backend(name, file, task, session, threads)


def _check_gate(file: WeightsFile, precision: str) -> None:
    """Refuse a lower precision whose gate nobody can show.

    One that failed and was forced is told, as engines are: who names it gets it.
    """
    record = ParityRecord.read(report_path(file.path))
    gate = None if record is None else (record.lowered or {}).get("gate")
    if (
        record is None
        or record.onnx.get("sha256") != file.sha256
        or not isinstance(gate, dict)
        or type(gate.get("passed")) is not bool
    ):
        raise WeightsError(
            f"{file.path} is {precision}, and {report_path(file.path).name}, which says how it did "
            "at its gate, is missing or of another model; copy both, or export it again with "
            f"--precision {precision}."
        )
    if not gate["passed"]:
        _LOG.warning("%s is %s and failed its gate; it was written by force", file.path, precision)


def _on_gpu(weights: Weights, threads: int | None, task: Task, device: Device) -> Backend:
    """ONNX Runtime on a GPU, where it computes what it computes on the CPU."""
    from blsgan.runtimes.providers import AS_GPU, missing

    on_cpu = _onnx(weights, threads, task)
    if device.kind != "gpu":
        return _with_provider(on_cpu, device)
    reasons = {kind: missing(kind) for kind in AS_GPU}
    for kind, reason in reasons.items():
        if reason is None:  # what is installed runs, or its own error is the user's
            return _with_provider(on_cpu, Device(kind, device.index))
    raise BackendError(
        f"no GPU can be used: {'; '.join(f'{kind}: {reasons[kind]}' for kind in AS_GPU)}; and no "
        "engine that fits lies beside the weights (`blsgan build-engine`)."
    )


def _with_provider(on_cpu: Backend, device: Device) -> Backend:
    """The same backend on ``device``.

    A first run compiles what there is to compile, and shows a device that loads and cannot run.
    """
    from blsgan.runtimes.onnx import OnnxSession

    file, task = on_cpu.weights, on_cpu.task
    session = OnnxSession(
        file.data,
        str(file.path),
        threads=on_cpu.threads,
        device=device,
        profile=_profile(task),
    )
    found = replace(on_cpu, session=session, device=device)
    tried = _tried(task)
    try:
        answers = found.run(*tried)
    except Exception as error:  # a runtime's own error types share no base class
        raise BackendError(
            f"device {device} loads {file.path} and fails at the first run ({first_line(error)}); "
            "take another device."
        ) from error
    float32 = metadata(file.data).get("precision", "fp32") == "fp32"
    limit = AGREEMENT if float32 else AGREEMENT_LOWERED
    for name, answer, expected in zip(task.outputs, answers, on_cpu.run(*tried), strict=True):
        off = _difference(name, answer, expected, tried)
        if not off <= limit:  # NaN, too
            raise BackendError(
                f"device {device} does not compute what the CPU does: {name} of {file.path} "
                f"differs by {off:.1e}, more than {limit:.0e}; take another device."
            )
    return found


def _profile(task: Task) -> dict[str, Profile]:
    """Shapes of a task's inputs that a GPU's runtime compiles for."""
    sides = [(task.grid_px,) * 3] * 2 if task.grid_px else [DEFAULT_HEIGHT, DEFAULT_WIDTH]
    return {
        name: Profile(
            **{
                place: (DEFAULT_BATCH[index], channels, sides[0][index], sides[1][index])
                for index, place in enumerate(("min", "opt", "max"))
            }
        )
        for name, channels in task.inputs.items()
    }


def _tried(task: Task) -> tuple[Float32, ...]:
    """A batch of one, of what a task sees: two bright bones on a gradient; they overlap."""
    height, width = (task.grid_px, task.grid_px) if task.grid_px else (96, 192)
    rows = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    columns = np.linspace(0.0, 1.0, width, dtype=np.float32)[None]
    across = np.abs(columns - 0.5) < 0.3
    masks = np.stack([across & (rows < 0.6), across & (rows > 0.4)]).astype(np.float32)
    image = 0.1 + 0.2 * columns + masks[0] * (0.2 + 0.1 * rows) + masks[1] * (0.3 - 0.1 * columns)
    arrays = {"image": image[None, None].astype(np.float32), "masks": masks[None]}
    return tuple(arrays[name] for name in task.inputs)


def _difference(name: str, answer: Float32, expected: Float32, tried: Sequence[Float32]) -> float:
    """The largest one, relative to the largest value where that exceeds 1.

    A separation counts where both bones are, and logits as the share that they stand for.
    """
    given, wanted = np.float64(answer), np.float64(expected)
    if given.shape != wanted.shape:
        return float("inf")
    if name == "share_logits":
        given, wanted = (1 / (1 + np.exp(x[:, 1:] - x[:, :1])) for x in (given, wanted))
    if len(tried) == 2:
        both = tried[1].all(axis=1, keepdims=True)
        given, wanted = given[both], wanted[both]
    return float(np.abs(given - wanted).max() / max(1.0, float(np.abs(wanted).max())))


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


def _engine(weights: Weights, task: Task, index: int) -> Backend:
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

    session = EngineSession(weights.engine, index)
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
    return Backend(manifest.backend, file, task, session, device=Device("gpu", index))


def _takes_engine(weights: Weights, index: int) -> bool:
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
        check_fits(weights.engine, manifest, device=index)
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
