"""ONNX Runtime on the CPU: up and through in the least time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from blsgan.runtimes.onnx_model import refuse_external_data
from blsgan.runtimes.session import Float32, Ports, imported, unloadable, usable_cores


class OnnxSession:
    """An ONNX model.

    Args:
        data: the file's content.
        what: its name, for messages.
        threads: default: the usable cores.
        as_written: without the optimiser, so that every node runs as the graph has it. (Version
            1.32 fuses float8 Q/DQ pairs into something else: 10 dB instead of 53.)

    Raises:
        BackendError: ONNX Runtime is not installed.
        WeightsError: it cannot load the model, or the model reads other files.
    """

    def __init__(
        self, data: bytes, what: str, *, threads: int | None = None, as_written: bool = False
    ) -> None:
        refuse_external_data(what, data)
        onnxruntime = imported("onnx")
        self.version = str(onnxruntime.__version__)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                data,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # it tries the same once more, and prints that it does
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise unloadable(what, error) from error
        self.inputs: Ports = {port.name: _shape(port) for port in self._session.get_inputs()}
        self.outputs: Ports = {port.name: _shape(port) for port in self._session.get_outputs()}

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, self._session.run(None, dict(inputs)), strict=True))


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in port.shape)
