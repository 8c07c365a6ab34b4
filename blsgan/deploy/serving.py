"""Whole radiographs inside NVIDIA Triton: what ``model.py`` of its Python backend imports.

A request holds one joint as ``Separator`` takes it, at any scale. Cutting out the overlap, the
split and pasting are done here, on the CPU; the network is the server's own model, which puts the
crops of many requests into one batch. :func:`blsgan.deploy.triton.write_repository` writes the
file; Triton's Python needs blsgan.

No Triton server was there when this was written: tests run the class against a stand-in for
``triton_python_backend_utils``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan import __version__
from blsgan.errors import BackendError, BlsganError
from blsgan.runtimes.session import Float32, Ports
from blsgan.tasks.backend import Backend
from blsgan.tasks.separation import Separation, Separator
from blsgan.tasks.task import SEPARATION, WeightsFile

INPUTS = {"image": ("float32", 1), "masks": ("bool", 2)}
OUTPUTS = ("upper", "lower", "reconstruction", "residual", "soft_tissue", "zone")
NETWORK, BATCH = "blsgan.network", "blsgan.batch"


class TritonPythonModel:
    """``image`` float32 [H,W] in [0,1] and ``masks`` bool [2,H,W] -> planes [H,W].

    The outputs are those of :class:`blsgan.Separation`. A request that cannot be separated is
    answered with its sentence; the others of its batch are not touched.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called once by Triton, with the configuration that was written beside ``model.py``."""
        self._triton = import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"])["parameters"]
        facts = {name: value["string_value"] for name, value in parameters.items()}
        session = _TritonSession(self._triton, facts[NETWORK], int(facts[BATCH]))
        weights = WeightsFile(
            facts.get("blsgan.weights", facts[NETWORK]),
            facts.get("blsgan.architecture", "unknown"),
            Path(facts[NETWORK]),
            facts["blsgan.model_sha256"],
            b"",
        ).separating({name.removeprefix("blsgan."): value for name, value in facts.items()})
        self._separator = Separator(Backend("triton", weights, SEPARATION, session))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One answer for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        triton = self._triton
        image, masks = (
            triton.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS
        )
        try:
            separation = self._separator(image, masks)
        except BlsganError as error:
            return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(str(error)))
        return triton.InferenceResponse(
            output_tensors=[triton.Tensor(name, plane(separation, name)) for name in OUTPUTS]
        )


def plane(separation: Separation, name: str) -> NDArray[Any]:
    """One output, contiguous."""
    return np.ascontiguousarray(getattr(separation, name))


class _TritonSession:
    """The network as the server runs it."""

    def __init__(self, triton: Any, network: str, batch: int) -> None:
        self._triton, self._network, self._batch = triton, network, batch
        self.version = __version__
        self.inputs: Ports = dict.fromkeys(SEPARATION.inputs)
        self.outputs: Ports = dict.fromkeys(SEPARATION.outputs)

    def run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        count = len(inputs["image"])
        parts = [
            self._run({name: array[at : at + self._batch] for name, array in inputs.items()})
            for at in range(0, count, self._batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run(self, inputs: Mapping[str, Float32]) -> dict[str, NDArray[Any]]:
        triton = self._triton
        answer = triton.InferenceRequest(
            model_name=self._network,
            requested_output_names=list(self.outputs),
            inputs=[triton.Tensor(name, array) for name, array in inputs.items()],
            # An engine's answer would stay on the GPU, where NumPy cannot read it.
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if answer.has_error():
            raise BackendError(f"Triton's model {self._network}: {answer.error().message()}")
        return {
            name: triton.get_output_tensor_by_name(answer, name).as_numpy() for name in self.outputs
        }
