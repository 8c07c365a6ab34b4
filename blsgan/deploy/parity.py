"""How alike the answers of two networks are, and the ONNX Runtime that gives one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.deploy.samples import Sample
from blsgan.errors import BackendError, InputError
from blsgan.evaluation.metrics import psnr_db, region_mse
from blsgan.onnx_model import refuse_external_data

Outputs = Mapping[str, NDArray[Any]]

PARITY_TOLERANCE = 1e-4
"""Largest difference, relative to the output's largest value where that exceeds 1, between two
runtimes of one float32 network; 16-bit pictures have steps of 1.5e-5."""


class OnnxRuntime:
    """An ONNX model on the CPU by ONNX Runtime: ``run(sample)`` gives its outputs by name.

    ``as_written`` turns the optimiser off: every node then runs as the graph has it. (Version 1.32
    fuses float8 Q/DQ pairs into something else: 10 dB instead of 53.)
    """

    def __init__(
        self, model: bytes, what: str, *, as_written: bool = False, threads: int | None = None
    ) -> None:
        import onnxruntime

        from blsgan.backends import usable_cores

        refuse_external_data(what, model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = (str(error).splitlines() or [""])[0][:160]
            raise BackendError(f"ONNX Runtime cannot load {what}: {reason}.") from error
        self._what = what
        self.outputs = [port.name for port in self._session.get_outputs()]

    def run(self, sample: Sample) -> dict[str, NDArray[Any]]:
        try:
            answers = self._session.run(None, {"image": sample.image, "masks": sample.masks})
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:160]
            raise InputError(
                f"{self._what} does not run on a batch of {list(sample.masks.shape)}: {reason}."
            ) from error
        return dict(zip(self.outputs, answers, strict=True))


def overlap_psnr_db(
    layers: NDArray[Any], reference: NDArray[Any], overlap: NDArray[np.bool_]
) -> list[float]:
    """PSNR over the overlap for each joint of a batch that has one, both layers together.

    Args:
        layers, reference: [B,2,H,W] in [0,1].
        overlap: bool [B,H,W].
    """
    return [
        psnr_db(region_mse(mine, other, region))
        if np.isfinite(mine[:, region]).all()
        else float("nan")
        for mine, other, region in zip(layers, reference, overlap, strict=True)
        if region.any()
    ]


def compare(answer: Outputs, reference: Outputs, sample: Sample) -> dict[str, Any]:
    """One entry of a parity report: every output's largest difference and its limit.

    ``passed`` is False where one is exceeded or a value is not finite.
    """
    outputs = {}
    for name, expected in reference.items():
        given = np.asarray(answer[name], np.float64)
        difference = np.abs(given - expected)
        error = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        limit = PARITY_TOLERANCE * max(1.0, float(np.abs(expected).max()))
        outputs[name] = {"max_abs_error": error, "limit": limit, "passed": error <= limit}
    psnr = overlap_psnr_db(answer["layers"], reference["layers"], sample.overlap)
    return {
        "inputs": sample.name,
        "batch": sample.image.shape[0],
        "size": list(sample.image.shape[2:]),
        "outputs": outputs,
        "overlap_psnr_db": float(np.mean(psnr)) if psnr else None,
        "passed": all(entry["passed"] for entry in outputs.values()),
    }
