"""ONNX Runtime: on the CPU, up and through in the least time; on a GPU by one of its providers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import BackendError, BlsganError
from blsgan.runtimes.device import CPU, Device
from blsgan.runtimes.manifest import Profile
from blsgan.runtimes.onnx_model import refuse_external_data
from blsgan.runtimes.session import (
    Float32,
    Ports,
    first_line,
    imported,
    unloadable,
    usable_cores,
)


class OnnxSession:
    """An ONNX model.

    Args:
        data: the file's content.
        what: its name, for messages.
        threads: default: the usable cores.
        as_written: without the optimiser, so that every node runs as the graph has it. (Version
            1.32 fuses float8 Q/DQ pairs into something else: 10 dB instead of 53.)
        device: where it runs; see :mod:`blsgan.runtimes.providers` for GPUs.
        profile: shapes that a GPU's runtime may compile for; larger batches are divided.

    Raises:
        BackendError: ONNX Runtime is not installed, or the device cannot be used.
        WeightsError: it cannot load the model, or the model reads other files.
        OutputError: the cache folder of a GPU cannot be written.
    """

    def __init__(
        self,
        data: bytes,
        what: str,
        *,
        threads: int | None = None,
        as_written: bool = False,
        device: Device = CPU,
        profile: Mapping[str, Profile] | None = None,
    ) -> None:
        refuse_external_data(what, data)
        onnxruntime = imported("onnx")
        self.version = str(onnxruntime.__version__)
        self._what, self._device = what, device
        self._profile: Mapping[str, Profile] = {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # It would keep 140 MiB of the largest picture for the next one, and saves no time.
        options.enable_cpu_mem_arena = False
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            if device == CPU:
                self._session = onnxruntime.InferenceSession(
                    data,
                    options,
                    providers=["CPUExecutionProvider"],
                    enable_fallback=0,  # it tries the same once more, and prints that it does
                )
            else:
                from blsgan.runtimes.providers import open_session

                if device.kind != "cuda":
                    self._profile = profile or {}
                sha256 = hashlib.sha256(data).hexdigest()
                self._session = open_session(
                    onnxruntime, data, options, device, sha256=sha256, profile=self._profile
                )
        except BlsganError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if device != CPU:
                raise BackendError(
                    f"device {device} cannot run {what} ({first_line(error)}); take another device."
                ) from error
            raise unloadable(what, error) from error
        self.inputs: Ports = {port.name: _shape(port) for port in self._session.get_inputs()}
        self.outputs: Ports = {port.name: _shape(port) for port in self._session.get_outputs()}

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        most = min((shapes.max[0] for shapes in self._profile.values()), default=None)
        count = len(next(iter(inputs.values())))
        if most is None or count <= most:
            return self._run(inputs)
        parts = [
            self._run({name: array[start : start + most] for name, array in inputs.items()})
            for start in range(0, count, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        for name, shapes in self._profile.items():
            if not shapes.takes(inputs[name].shape):
                raise BackendError(
                    f"device {self._device} runs {self._what} on {name} from {list(shapes.min)} to "
                    f"{list(shapes.max)}, not {list(inputs[name].shape)}; take --device cuda."
                )
        return dict(zip(self.outputs, self._session.run(None, dict(inputs)), strict=True))


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in port.shape)
