"""Weights to one ONNX model of the whole separation, compared with torch before it is kept.

The model takes ``image`` and ``masks`` and gives ``layers``, ``reconstruction``, ``soft_tissue``
(k) and ``share_logits``. The first three are the separation itself: the Beer-Lambert split and its
composition are plain ONNX operators, traced from ``blsgan.ops.reference``. ``share_logits`` is what
``Separator`` asks of a network, so the same file serves it; the weights' own ``NAME.onnx`` gives
only ``share_logits`` and ``soft_tissue``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blsgan import __version__
from blsgan.deploy import parity
from blsgan.deploy.lowering import Listener, lower, samples_for
from blsgan.deploy.model import parse_exported
from blsgan.deploy.precision import layer_precisions
from blsgan.deploy.samples import Sample, phantom_sample, random_sample
from blsgan.errors import BackendError, ParityError, UsageError, WeightsError
from blsgan.io.atomic import atomic_paths
from blsgan.io.files import FileBytes
from blsgan.models import OPSET
from blsgan.records.parity import ParityRecord, report_path
from blsgan.records.record import Weights
from blsgan.runtimes.onnx_model import PREFIX
from blsgan.tasks.task import WeightsFile, find_weights

OUTPUTS = ("layers", "reconstruction", "soft_tissue", "share_logits")
OPSETS = (18, 22)  # later ones emit Attention, which engine builders parse and then fail on

PORTS = {
    "image": "float32 [B,1,H,W] in [0,1], the radiograph, white = dense",
    "masks": "float32 [B,2,H,W] in {0,1}, upper and lower bone",
    "layers": "float32 [B,2,H,W] in [0,1], upper and lower, 0 outside their masks and the zone",
    "reconstruction": "float32 [B,1,H,W] in [0,1], the layers composed, 0 outside bones and zone",
    "soft_tissue": "float32 [B,1,H,W] in [0,0.95], of soft tissue alone, meaningful in the zone",
    "share_logits": "float32 [B,2,H,W], meaningful in the zone",
}

_BATCHES = (1, 2, 5)
_PARITY_SIZES = {"random": (64, 96), "phantoms": (96, 160)}  # multiples of 32: of every network's


@dataclass(frozen=True)
class Exported:
    """What was written: the model, the report beside it, and the report's content."""

    model: Path
    report_path: Path
    report: ParityRecord


def export(
    path_or_name: os.PathLike[str] | str | None,
    output: Path,
    *,
    opset: int = OPSET,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    converter: str = "auto",
    calibration_data: Path | None = None,
    force: bool = False,
    progress: Listener | None = None,
) -> Exported:
    """Write the whole separation by ``path_or_name``'s weights as ONNX, and its parity report.

    Args:
        path_or_name: weights that have a ``.safetensors`` file; None: the shipped ones.
        output: the model's path, ``.onnx``; the report is written beside it.
        opset: 18 to 22.
        batch: B, or None where it shall stay free.
        size: H and W, or None where they shall stay free (multiples of the network's step).
        precision: one of :data:`blsgan.deploy.precision.PRECISIONS`; a lower one is written into
            the graph after float32 was compared with torch, and must pass its gate
            (:mod:`blsgan.deploy.gate`).
        converter: see :func:`blsgan.deploy.precision.convert`.
        calibration_data: the public dataset to calibrate and judge on; None: phantoms.
        force: write also what fails its gate, marked in the report.
        progress: told what is being done.

    Raises:
        UsageError: an argument outside its range, or an output that belongs to a set of weights.
        WeightsError: the weights cannot be used, or lack the file that torch reads.
        BackendError: torch is not installed.
        InputError: ``calibration_data`` cannot be used.
        ParityError: ONNX Runtime does not compute what torch does, or the precision fails its gate;
            nothing is written.
        OutputError: a file cannot be written.
    """
    _check_arguments(output, opset, batch)
    weights = find_weights(path_or_name)
    if weights.safetensors is None:
        raise WeightsError(
            f"weights {weights.name!r} have no .safetensors file, which export reads; "
            "`blsgan train` writes it beside the .onnx file."
        )
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            "exporting needs PyTorch, which is not installed; pip install 'blsgan[train]'."
        ) from error
    from blsgan.models import load_generator
    from blsgan.models.weights import to_onnx

    file = weights.load(weights.safetensors)
    generator = load_generator(weights.safetensors, file.data)
    # What Separator runs has two layers of the exact head.
    if not generator.exports:
        raise WeightsError(
            f"{file.path} has another head than the exact one, or more than two layers; only a "
            "generator that Separator can run is exported."
        )
    _check_size(size, generator.size_multiple, file)
    network = _whole_separation(generator)
    model = to_onnx(
        network, OUTPUTS, size_multiple=generator.size_multiple, opset=opset, batch=batch, size=size
    )
    _spell_out_gemm(model)
    _describe(model, file, generator)
    data: bytes = model.SerializeToString(deterministic=True)

    runtime = parity.OnnxRuntime(data, str(output))
    cases = []
    for sample in _samples(batch, size):
        with torch.inference_mode():
            answer = network(torch.from_numpy(sample.image), torch.from_numpy(sample.masks))
        reference = {name: np.asarray(value) for name, value in zip(OUTPUTS, answer, strict=True)}
        cases.append(parity.compare(runtime.run(sample), reference, sample))
    facts = {
        "file": output.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "opset": opset,
        "batch": batch or "dynamic",
        "size": list(size) if size else "dynamic",
        "size_multiple": generator.size_multiple,
    }
    if not all(case["passed"] for case in cases):
        raise ParityError(f"{output} is not written: {_worst(cases)}; please report this.")
    lowered: dict[str, Any] = {}
    if precision != "fp32":
        data, told = _lowered(data, output, precision, converter, calibration_data, force, progress)
        facts["sha256"] = hashlib.sha256(data).hexdigest()
        lowered = {"lowered": told}
    report = ParityRecord(
        schema=1,
        blsgan=__version__,
        onnx=facts,
        weights=Weights(
            name=file.name,
            architecture=generator.architecture,
            file=file.path.name,
            sha256=file.sha256,
        ),
        ports=PORTS,
        versions=_versions("torch", "onnx", "onnxruntime"),
        cases=cases,
        passed=True,
        **lowered,
    )
    target = report_path(output)
    with atomic_paths([output, target]) as (graph, text):
        graph.write_bytes(data)
        text.write_text(report.text(), encoding="utf-8")
    return Exported(output, target, report)


def _lowered(
    data: bytes,
    output: Path,
    precision: str,
    converter: str,
    calibration_data: Path | None,
    force: bool,
    progress: Listener | None,
) -> tuple[bytes, dict[str, Any]]:
    """The float32 model ``data`` in a lower precision, and what the report says about it."""
    model = parse_exported(FileBytes(output, data, hashlib.sha256(data).hexdigest()))
    converted, verdict = lower(
        model,
        precision,
        samples_for(model, precision, calibration_data),
        output,
        converter=converter,
        force=force,
        progress=progress,
    )
    gone_through = {
        "precision": precision,
        "float32_sha256": model.sha256,
        "converter": converted.converter,
        "calibration": converted.calibration,
        "layers": layer_precisions(converted.model),
        "gate": verdict.as_dict(),
        "forced": not verdict.passed,
    }
    return converted.data(), gone_through


def _check_arguments(output: Path, opset: int, batch: int | None) -> None:
    if output.suffix != ".onnx":
        raise UsageError(f"{output} does not end in .onnx; name the model like that.")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise UsageError(f"opset {opset} is outside {OPSETS[0]} to {OPSETS[1]}; leave it at 20.")
    if batch is not None and batch < 1:
        raise UsageError(f"batch is {batch}; give a whole number from 1 on, or dynamic.")
    card = output.with_suffix(".json")
    if card.is_file() and output.name in find_weights(card).hashes:
        raise UsageError(
            f"{output} is one of the files whose hash {card} gives; choose another name."
        )


def _check_size(size: tuple[int, int] | None, multiple: int, file: WeightsFile) -> None:
    if size is None:
        return
    if min(size) < 2 * multiple or any(side % multiple for side in size):
        raise UsageError(
            f"size {size[0]} x {size[1]} does not suit {file.name} ({file.architecture}); give "
            f"multiples of {multiple} from {2 * multiple} on."
        )


def _whole_separation(generator: Any) -> Any:
    """The generator with the split and its composition after it, as one module."""
    from torch import Tensor, nn

    from blsgan import ops

    class WholeSeparation(nn.Module):
        """Image and masks -> layers, reconstruction, soft tissue and share logits."""

        def __init__(self) -> None:
            super().__init__()
            self.answers = generator.answers()

        def forward(self, image: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
            share_logits, soft_tissue = self.answers(image, masks)
            supports, law = generator.supports(masks), generator.law
            layers = ops.split_attenuation(share_logits, image, supports, soft_tissue, law=law)
            reconstruction = ops.compose_layers(layers, supports, soft_tissue, law=law)
            return layers, reconstruction, soft_tissue, share_logits

    return WholeSeparation().eval()


def _spell_out_gemm(model: Any) -> None:
    """Write ``Gemm`` with constant weights as a product and a sum.

    It occurs once for each image, in what gives k, and is small; TensorRT-RTX 1.7 has no float32
    matrix product for compute capability 7.5. Inputs are summed along the second of three axes:
    along the third OpenVINO 2026.4 adds a wrong offset for batches of two and more.
    """
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = (
            node.op_type == "Gemm"
            and len(node.input) == 3
            and node.input[1] in weights
            and options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
            and not options.get("transA", 0)
        )
        if not plain:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        matrix = numpy_helper.to_array(weights[node.input[1]])
        columns = matrix.T if options.get("transB", 0) else matrix
        (answer,) = node.output
        named = {part: f"{answer}.{part}" for part in ("weights", "row", "column", "wide", "each")}
        graph.initializer.extend(
            numpy_helper.from_array(value, named[part])
            for part, value in (
                ("weights", np.ascontiguousarray(columns[None])),
                ("row", np.array([1], np.int64)),
                ("column", np.array([2], np.int64)),
            )
        )
        steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
            ("Unsqueeze", [node.input[0], named["column"]], named["wide"], {}),
            ("Mul", [named["wide"], named["weights"]], named["each"], {}),
            ("ReduceSum", [named["each"], named["row"]], f"{answer}.sum", {"keepdims": 0}),
            ("Add", [f"{answer}.sum", node.input[2]], answer, {}),
        )
        nodes += [
            helper.make_node(kind, read, [written], f"{node.name}.{kind}", **more)
            for kind, read, written, more in steps
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unused:
        graph.initializer.remove(tensor)
    onnx.checker.check_model(model, full_check=True)


def _describe(model: Any, file: WeightsFile, generator: Any) -> None:
    """Write into the model what it is; sorted, so that the same model gives the same bytes."""
    model.producer_name, model.producer_version = "blsgan", __version__
    entries = {
        "blsgan.signature": "separation",
        "blsgan.precision": "fp32",
        "blsgan.weights": file.name,
        "blsgan.weights_sha256": file.sha256,
        "blsgan.architecture": generator.architecture,
        **{f"{PREFIX}{key}": value for key, value in generator.described().items()},
        "blsgan.ports": json.dumps(PORTS, sort_keys=True),
    }
    del model.metadata_props[:]
    for key, value in sorted(entries.items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    # The exporter's notes on its own tracing.
    for port in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del port.metadata_props[:]


def _samples(batch: int | None, size: tuple[int, int] | None) -> Iterator[Sample]:
    makers = {"random": random_sample, "phantoms": phantom_sample}
    for name, make in makers.items():
        for count in _BATCHES if batch is None else (batch,):
            yield make(count, *(size or _PARITY_SIZES[name]), seed=7)


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}


def _worst(cases: Sequence[dict[str, Any]]) -> str:
    failed = (
        (
            output["max_abs_error"] / output["limit"],
            f"{name} of {case['batch']} {case['inputs']} differs from torch by "
            f"{output['max_abs_error']:.1e}, more than {output['limit']:.1e}",
        )
        for case in cases
        for name, output in case["outputs"].items()
        if not output["passed"]
    )
    return max(failed)[1]
