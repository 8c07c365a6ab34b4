"""How alike the answers of two networks are, and the ONNX Runtime that gives one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.deploy.samples import Sample
from blsgan.errors import InputError
from blsgan.evaluation.metrics import psnr_db, region_mse
from blsgan.runtimes.onnx import OnnxSession

Outputs = Mapping[str, NDArray[Any]]

PARITY_TOLERANCE = 1e-4
"""Largest difference, relative to the output's largest value where that exceeds 1, between two
runtimes of one float32 network; 16-bit pictures have steps of 1.5e-5."""


class OnnxRuntime:
    """A model of the whole separation by ONNX Runtime; arguments and errors are the session's."""

    def __init__(self, model: bytes, what: str, **options: Any) -> None:
        self._session = OnnxSession(model, what, **options)
        self._what = what

    def run(self, sample: Sample) -> dict[str, NDArray[Any]]:
        """Outputs by name; raises :class:`InputError` for a batch that it does not take."""
        try:
            return self._session.run({"image": sample.image, "masks": sample.masks})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = (str(error).splitlines() or [""])[0][:160]
            raise InputError(
                f"{self._what} does not run on a batch of {list(sample.masks.shape)}: {reason}."
            ) from error


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


def _shares(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def compare(answer: Outputs, reference: Outputs, sample: Sample) -> dict[str, Any]:
    """One entry of a parity report: every output's largest difference and its limit.

    Logits are compared as the shares that they stand for, weighed by what is shared: where the
    image is as bright as its soft tissue, any shares give the same layers.
    ``passed`` is False where one is exceeded or a value is not finite.
    """
    outputs = {}
    for name, expected in reference.items():
        given = np.asarray(answer[name], np.float64)
        if name == "share_logits":
            shared = np.abs(sample.image - np.float64(reference["soft_tissue"]))
            given, expected = shared * _shares(given), shared * _shares(expected)
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
