"""An engine that runs: no PyTorch, buffers by CUDA's own bindings.

Inputs are copied through pinned host memory, on a stream of their own; a shape that comes again is
replayed as a CUDA graph; :meth:`Engine.stream` keeps two batches in flight, so that the host
prepares one while the GPU computes the other. What lies on the GPU already (a torch or CuPy tensor,
by ``__cuda_array_interface__``) is read where it lies.

No engine was executed when this was written: tests run it against a fake of CUDA and of TensorRT.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import BackendError, InputError, OutputError
from blsgan.io.atomic import atomic_path
from blsgan.runtimes.gpu import checked, cuda_runtime
from blsgan.runtimes.libraries import load
from blsgan.runtimes.manifest import (
    Manifest,
    check_fits,
    read_manifest,
    read_plan,
    runtime_cache_path,
)
from blsgan.runtimes.session import Float32, Ports

_LOG = logging.getLogger(__name__)

INPUTS = ("image", "masks")
_SLOTS = 2  # batches in flight
_ITEM = 4  # bytes of a float32, the type of every input and output


@dataclass
class _Slot:
    """What one batch in flight needs: device and pinned host memory by name, a stream, a graph."""

    stream: Any
    context: Any
    done: Any
    device: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    graph: Any = None
    capturable: bool = True
    shape: tuple[int, ...] | None = None  # of the masks that a graph may be recorded for
    compiles: bool = False  # this run may have compiled a kernel


@dataclass(frozen=True)
class DeviceArray:
    """A float32 array on the GPU that an engine wrote, valid until its next run.

    ``torch.as_tensor`` and ``cupy.asarray`` take it without a copy.
    """

    pointer: int
    shape: tuple[int, ...]
    stream: int

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "typestr": "<f4",
            "shape": self.shape,
            "strides": None,
            "data": (self.pointer, False),
            "stream": self.stream,
        }


class Engine:
    """A loaded engine: ``engine.run(image, masks)`` gives its outputs by name.

    Args:
        path: ``model.engine``; its manifest lies beside it.
        device: number of the GPU.

    Raises:
        WeightsError: plan or manifest is missing or damaged, or they do not belong together.
        BackendError: the engine cannot run here, which the manifest told before the plan was
            touched; or TensorRT refuses it.
    """

    def __init__(self, path: os.PathLike[str] | str, device: int = 0) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        plan = read_plan(self.path, self.manifest)
        self.gpu = check_fits(self.path, self.manifest, device=device)
        self._cuda = cuda_runtime()
        self._call(self._cuda.cudaSetDevice(device))
        self._library = load(self.manifest.backend)
        trt = self._library.module
        self._runtime = trt.Runtime(self._library.logger)
        if self.manifest.version_compatible:  # it brings a part of its TensorRT along
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"{self.path} fits this machine by its manifest, but {self.manifest.backend} "
                f"refuses it ({self._library.last_error()}); build it again."
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = trt.TensorIOMode.INPUT
        self.outputs = tuple(n for n in names if self._engine.get_tensor_mode(n) != is_input)
        if set(names) - set(self.outputs) != set(INPUTS):
            raise BackendError(f"{self.path} takes {', '.join(names)}, not image and masks.")
        self._slots: list[_Slot] = []
        self._compiled, self._config = self._runtime_cache()
        self._kept = b""

    def run(self, image: Any, masks: Any) -> dict[str, Float32]:
        """Outputs of one batch as NumPy arrays.

        Args:
            image: float32 [B,1,H,W] in [0,1], a NumPy array or one on the GPU.
            masks: float32 [B,2,H,W] in {0,1}.

        Raises:
            InputError: shapes or a dtype that do not fit.
            BackendError: a shape outside the engine's profile, or CUDA fails.
        """
        slot = self._slot(0)
        self._enqueue(slot, image, masks, to_host=True)
        return self._collect(slot)

    def run_on_device(self, image: Any, masks: Any) -> dict[str, DeviceArray]:
        """Outputs of one batch left on the GPU, valid until the next run; arguments as in `run`."""
        slot = self._slot(0)
        self._enqueue(slot, image, masks, to_host=False)
        self._call(self._cuda.cudaStreamSynchronize(slot.stream))
        return {
            name: DeviceArray(
                slot.device[name],
                tuple(slot.context.get_tensor_shape(name)),
                int(slot.stream),
            )
            for name in self.outputs
        }

    def stream(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[dict[str, Float32]]:
        """Outputs of every (image, masks) in turn, with two of them in flight."""
        waiting: deque[_Slot] = deque()
        for index, (image, masks) in enumerate(batches):
            if len(waiting) == _SLOTS:
                yield self._collect(waiting.popleft())
            slot = self._slot(index % _SLOTS)
            self._enqueue(slot, image, masks, to_host=True)
            waiting.append(slot)
        while waiting:
            yield self._collect(waiting.popleft())

    def close(self) -> None:
        """Give all memory of the GPU back; the engine cannot be used afterwards."""
        cuda = self._cuda
        for slot in self._slots:
            # At the end of a process the driver may be gone already; there is nothing to save.
            with contextlib.suppress(Exception):
                cuda.cudaStreamSynchronize(slot.stream)
                if slot.graph is not None:
                    cuda.cudaGraphExecDestroy(slot.graph)
                for pointer in slot.device.values():
                    cuda.cudaFree(pointer)
                for pointer in slot.host.values():
                    cuda.cudaFreeHost(pointer)
                cuda.cudaEventDestroy(slot.done)
                cuda.cudaStreamDestroy(slot.stream)
        self._slots = []

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _call(self, answer: tuple[Any, ...]) -> Any:
        return checked(self._cuda, answer)

    def _runtime_cache(self) -> tuple[Any, Any]:
        """TensorRT-RTX compiles where it runs: what an earlier process compiled, and the
        configuration that uses it. None and None for TensorRT, which compiled when it built."""
        create = getattr(self._engine, "create_runtime_config", None)
        config = None if create is None else create()
        if config is None or not hasattr(config, "create_runtime_cache"):
            return None, None
        cache = config.create_runtime_cache()
        path = runtime_cache_path(self.path)
        # One of another GPU or driver is refused by the library, and made anew.
        with contextlib.suppress(OSError):
            if not cache.deserialize(path.read_bytes()):
                _LOG.info("%s is of another machine or version: it is made anew", path)
        config.set_runtime_cache(cache)
        return cache, config

    def _keep_compiled(self) -> None:
        """Leave what was compiled to the next process, where the engine's folder can be written."""
        if self._compiled is None:
            return
        content = bytes(self._compiled.serialize())
        if content == self._kept:
            return
        try:
            with atomic_path(runtime_cache_path(self.path)) as temporary:
                temporary.write_bytes(content)
        except OutputError as error:
            _LOG.warning("%s The engine compiles its kernels again at each start.", error)
            self._compiled = None
        self._kept = content

    def _slot(self, index: int) -> _Slot:
        cuda = self._cuda
        while len(self._slots) <= index:
            with_cache = () if self._config is None else (self._config,)
            context = self._engine.create_execution_context(*with_cache)
            if context is None:
                raise BackendError(
                    f"{self.path} cannot be run: {self._library.last_error()}; free memory of the "
                    "GPU or build it with a smaller --batch."
                )
            self._slots.append(
                _Slot(
                    stream=self._call(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)),
                    context=context,
                    done=self._call(cuda.cudaEventCreateWithFlags(cuda.cudaEventDisableTiming)),
                )
            )
        return self._slots[index]

    def _check(self, image: Any, masks: Any) -> None:
        for name, array, channels in (("image", image, 1), ("masks", masks, 2)):
            wanted = (image.shape[0], channels, *masks.shape[-2:])
            if len(array.shape) != 4 or tuple(array.shape) != wanted:
                raise InputError(
                    f"image has shape {list(image.shape)} and masks {list(masks.shape)}; give "
                    "[B,1,H,W] and [B,2,H,W]."
                )
            profile = self.manifest.profile[name]  # type: ignore[index]
            if not profile.takes(tuple(array.shape)):
                raise BackendError(
                    f"{self.path} takes {name} from {list(profile.min)} to {list(profile.max)}, "
                    f"not {list(array.shape)}; build it for that with --batch, --height, --width."
                )

    def _enqueue(self, slot: _Slot, image: Any, masks: Any, *, to_host: bool) -> None:
        """Start one batch on the slot's stream; returns before it is done."""
        given = {"image": _readable(image), "masks": _readable(masks)}
        self._check(given["image"], given["masks"])
        cuda = self._cuda
        on_device = [array for array in given.values() if _on_device(array)]
        for array in on_device:
            self._wait_for(slot, array)
        for name, array in given.items():
            self._bind_input(slot, name, array)
        for name in self.outputs:
            self._bind_output(slot, name)
        shape = given["masks"].shape
        # Only what lies at addresses of our own can be replayed, and only from the second run of a
        # shape on: the first one allocates and compiles, which a graph must not record.
        if to_host and not on_device and slot.shape == shape:
            if slot.graph is None and slot.capturable:
                self._capture(slot, given)
        else:
            self._forget_graph(slot)
            slot.shape = shape if to_host and not on_device else None
            slot.compiles = True
        if slot.graph is not None:
            self._call(cuda.cudaGraphLaunch(slot.graph, slot.stream))
        else:
            self._issue(slot, given, to_host)
        self._call(cuda.cudaEventRecord(slot.done, slot.stream))

    def _wait_for(self, slot: _Slot, array: Any) -> None:
        """Let the slot's stream begin after whoever writes an array on the GPU."""
        cuda = self._cuda
        stream = array.__cuda_array_interface__.get("stream")
        if stream is None:  # it does not say which
            self._call(cuda.cudaDeviceSynchronize())
            return
        self._call(cuda.cudaEventRecord(slot.done, stream))
        self._call(cuda.cudaStreamWaitEvent(slot.stream, slot.done, 0))

    def _bind_input(self, slot: _Slot, name: str, array: Any) -> None:
        shape = tuple(array.shape)
        if not slot.context.set_input_shape(name, shape):
            raise BackendError(
                f"{self.path} refuses {name} of shape {list(shape)} ({self._library.last_error()})."
            )
        if _on_device(array):
            pointer = array.__cuda_array_interface__["data"][0]
            slot.context.set_tensor_address(name, int(pointer))
            return
        self._reserve(slot, name, math.prod(shape) * _ITEM)
        slot.context.set_tensor_address(name, slot.device[name])
        _view(slot.host[name], shape)[...] = array

    def _bind_output(self, slot: _Slot, name: str) -> None:
        shape = tuple(slot.context.get_tensor_shape(name))
        self._reserve(slot, name, math.prod(shape) * _ITEM)
        slot.context.set_tensor_address(name, slot.device[name])

    def _reserve(self, slot: _Slot, name: str, size: int) -> None:
        """Make sure that the slot has ``size`` bytes for a tensor, on the GPU and pinned."""
        if slot.capacity.get(name, 0) >= size:
            return
        cuda = self._cuda
        self._forget_graph(slot)
        slot.capacity.pop(name, None)  # a failure below must not leave the old size
        if name in slot.device:
            self._call(cuda.cudaFree(slot.device.pop(name)))
        if name in slot.host:
            self._call(cuda.cudaFreeHost(slot.host.pop(name)))
        slot.device[name] = int(self._call(cuda.cudaMalloc(size)))
        slot.host[name] = int(self._call(cuda.cudaMallocHost(size)))
        slot.capacity[name] = size

    def _issue(self, slot: _Slot, given: dict[str, Any], to_host: bool) -> None:
        """Copies to the GPU, the network, copies back: what a graph records."""
        cuda = self._cuda
        kinds = cuda.cudaMemcpyKind
        for name, array in given.items():
            if not _on_device(array):
                self._call(
                    cuda.cudaMemcpyAsync(
                        slot.device[name],
                        slot.host[name],
                        math.prod(array.shape) * _ITEM,
                        kinds.cudaMemcpyHostToDevice,
                        slot.stream,
                    )
                )
        if not slot.context.execute_async_v3(int(slot.stream)):
            raise BackendError(f"{self.path} failed while running: {self._library.last_error()}.")
        if to_host:
            for name in self.outputs:
                size = math.prod(slot.context.get_tensor_shape(name)) * _ITEM
                self._call(
                    cuda.cudaMemcpyAsync(
                        slot.host[name],
                        slot.device[name],
                        size,
                        kinds.cudaMemcpyDeviceToHost,
                        slot.stream,
                    )
                )

    def _capture(self, slot: _Slot, given: dict[str, Any]) -> None:
        """Record the batch as a CUDA graph; without one where that cannot be."""
        cuda = self._cuda
        # TensorRT-RTX tells; the others can since the first run of the shape.
        tells = getattr(slot.context, "is_stream_capturable", None)
        if tells is not None and not tells(int(slot.stream)):
            slot.capturable = False
            return
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(cuda.cudaStreamBeginCapture(slot.stream, mode))
        recorded = False
        try:
            self._issue(slot, given, True)
            recorded = True
        except BackendError:  # what cannot be recorded may still be run
            pass
        finally:  # a stream must never stay in capture
            status, graph = cuda.cudaStreamEndCapture(slot.stream)
        if not recorded or int(status) != 0:
            if int(status) == 0:
                self._call(cuda.cudaGraphDestroy(graph))
            slot.capturable = False
            return
        slot.graph = self._call(cuda.cudaGraphInstantiate(graph, 0))
        self._call(cuda.cudaGraphDestroy(graph))

    def _forget_graph(self, slot: _Slot) -> None:
        if slot.graph is not None:
            self._call(self._cuda.cudaGraphExecDestroy(slot.graph))
            slot.graph = None

    def _collect(self, slot: _Slot) -> dict[str, Float32]:
        self._call(self._cuda.cudaEventSynchronize(slot.done))
        if slot.compiles:
            slot.compiles = False
            self._keep_compiled()
        return {
            name: _view(slot.host[name], tuple(slot.context.get_tensor_shape(name))).copy()
            for name in self.outputs
        }


class EngineSession:
    """An engine as every other runtime is used: NumPy in, NumPy out, batches of any size."""

    def __init__(self, path: os.PathLike[str] | str, device: int = 0) -> None:
        self.engine = Engine(path, device)
        self.version = self.engine.manifest.backend_version
        self.inputs: Ports = dict.fromkeys(INPUTS)
        self.outputs: Ports = dict.fromkeys(self.engine.outputs)

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        image, masks = (inputs[name] for name in INPUTS)
        most = self.engine.manifest.profile["image"].max[0]
        parts = list(
            self.engine.stream(
                (image[start : start + most], masks[start : start + most])
                for start in range(0, len(image), most)
            )
        )
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}


def _on_device(array: Any) -> bool:
    return hasattr(array, "__cuda_array_interface__")


def _readable(array: Any) -> Any:
    """A float32 array in host memory (as NumPy) or a contiguous one on the GPU (as it is).

    Raises :class:`InputError` for anything else.
    """
    if not _on_device(array):
        if not isinstance(array, np.ndarray):
            if not hasattr(array, "__dlpack__"):
                raise InputError(
                    f"{type(array).__name__} is neither a NumPy array nor a tensor; give float32 "
                    "[B,C,H,W]."
                )
            array = np.from_dlpack(array)
        if array.dtype != np.float32:
            raise InputError(f"an input has type {array.dtype}; give float32.")
        return array
    interface = array.__cuda_array_interface__
    if interface["typestr"] != "<f4":
        raise InputError(f"an input on the GPU has type {interface['typestr']}; give float32.")
    strides = interface.get("strides")
    shape = interface["shape"]
    dense = tuple(math.prod(shape[axis + 1 :]) * _ITEM for axis in range(len(shape)))
    if strides is not None and tuple(strides) != dense:
        raise InputError("an input on the GPU is not contiguous; give tensor.contiguous().")
    return array


def _view(pointer: int, shape: tuple[int, ...]) -> Float32:
    """Host memory at ``pointer`` as float32 of ``shape``."""
    buffer = (ctypes.c_float * math.prod(shape)).from_address(pointer)
    return np.ctypeslib.as_array(buffer).reshape(shape)
