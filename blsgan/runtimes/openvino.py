"""OpenVINO on the CPU, held to float32 unless told otherwise (it would take bfloat16 itself)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.errors import BackendError
from blsgan.runtimes.onnx_model import refuse_external_data
from blsgan.runtimes.session import Float32, Ports, imported, unloadable, usable_cores


class OpenVinoSession:
    """An ONNX model.

    Args:
        data: the file's content.
        what: its name, for messages.
        threads: default: the usable cores.
        precision: ``f32`` or ``bf16``.
        shapes: of the inputs, where they shall be fixed.

    Raises:
        BackendError: OpenVINO is not installed, or the processor lacks the precision.
        WeightsError: it cannot load the model, or the model reads other files.
    """

    def __init__(
        self,
        data: bytes,
        what: str,
        *,
        threads: int | None = None,
        precision: str = "f32",
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        refuse_external_data(what, data)
        openvino = imported("openvino")
        self.version = str(openvino.__version__).split("-", maxsplit=1)[0]
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise BackendError("this processor has no bfloat16 arithmetic")
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
        }
        try:
            model = core.read_model(data, b"")
            if shapes:
                model.reshape({name: list(shape) for name, shape in shapes.items()})
            self.inputs: Ports = {port.any_name: _shape(port) for port in model.inputs}
            self.outputs: Ports = {port.any_name: _shape(port) for port in model.outputs}
            self._model = core.compile_model(model, "CPU", settings)
        except Exception as error:  # OpenVINO's exceptions share no base class
            raise unloadable(what, error) from error

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        outputs = self._model(dict(inputs))
        # Copies: the runtime reuses its output memory in the next call.
        return {name: np.array(outputs[name]) for name in self.outputs}


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(
        None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()
    )
