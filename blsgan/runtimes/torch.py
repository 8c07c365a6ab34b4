"""PyTorch on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from blsgan.runtimes.session import Float32, Ports, imported


class TorchSession:
    """A network, or any function of tensors.

    Args:
        network: maps the inputs, in the order of ``inputs``, to a tensor or a tuple of them.
        inputs, outputs: names.
        threads: PyTorch's own default where left out.

    Raises:
        BackendError: PyTorch is not installed.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        threads: int | None = None,
    ) -> None:
        self._torch = imported("torch")
        self.version = str(self._torch.__version__)
        self.inputs: Ports = dict.fromkeys(inputs)
        self.outputs: Ports = dict.fromkeys(outputs)
        self._network = network
        if threads is not None:
            self._torch.set_num_threads(threads)

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        torch = self._torch
        with torch.inference_mode():
            outputs = self._network(*(torch.from_numpy(inputs[name]) for name in self.inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        values = (output.float().numpy() for output in outputs)
        return dict(zip(self.outputs, values, strict=True))
