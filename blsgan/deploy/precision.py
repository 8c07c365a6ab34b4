"""A model with a lower precision written into its graph, so that every engine builder agrees.

What is converted is the network's body: convolutions and matrix products, and what lies between
them without a reduction. The physics (logarithms, exponentials, divisions, the sigmoid), softmax,
normalisations, means and what is computed once for each image (k) stay float32, as do the
model's inputs and outputs.

- ``fp16``, ``bf16``: casts around the body; its weights are stored in that type.
- ``int8``, ``fp8``: QuantizeLinear / DequantizeLinear before every convolution and matrix product
  but the first and the last ones; weights are stored in that type, one scale for each channel;
  activations have one symmetric scale, from calibration. The rest is float32.

NVIDIA ModelOpt converts where it is installed (AutoCast and its Q/DQ quantizer; fp8 only on
request). Otherwise the casts and fp8 are written here and int8 by ONNX Runtime's quantizer: its
half-precision converter knows no bfloat16, and the scales of its fp8 calibration left 31 dB of PSNR
on phantoms where the largest magnitudes leave 53.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsgan.deploy.samples import Sample
from blsgan.errors import BackendError, UsageError

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
CONVERTERS = ("auto", "modelopt", "builtin")
CALIBRATED = ("int8", "fp8")

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul"})
"""What a lower precision makes faster."""

_BETWEEN = frozenset(
    {"Relu", "LeakyRelu", "Add", "MaxPool", "Concat", "Resize", "Reshape", "Transpose", "Slice"}
)
"""Kept in the body's type where all they read comes from it."""

_BF16_OPSET = 22  # the first whose convolutions and pools may be bfloat16
_FP8_MAX = 448.0  # the largest finite float8e4m3fn
_PERCENTILE = 99.999  # of the activations; what lies beyond is clipped (MinMax lost 0.1 dB more)


@dataclass(frozen=True)
class Converted:
    """A converted model and how it came about.

    Attributes:
        model: the ``ModelProto``.
        precision: one of :data:`PRECISIONS`.
        converter: what converted it, with its version.
        calibration: what activations were measured on, or None.
    """

    model: Any
    precision: str
    converter: str
    calibration: str | None = None

    def data(self) -> bytes:
        """The model as a file's content."""
        content: bytes = self.model.SerializeToString(deterministic=True)
        return content


def convert(
    model: Any, precision: str, calibration: Sequence[Sample] = (), converter: str = "auto"
) -> Converted:
    """``model`` (a float32 ``ModelProto``, left as it is) in another precision.

    Args:
        model: what :func:`blsgan.deploy.export.export` wrote.
        precision: one of :data:`PRECISIONS`.
        calibration: batches the activations are measured on, for int8 and fp8.
        converter: "modelopt", "builtin", or "auto": ModelOpt where it is installed, but for fp8.

    Raises:
        UsageError: an unknown precision or converter, no calibration where it is needed, or a model
            that is not float32.
        BackendError: ModelOpt was asked for and is not installed, or fails, or nothing was
            converted.
    """
    import onnx

    if precision not in PRECISIONS:
        raise UsageError(f"no precision is called {precision!r}; take {', '.join(PRECISIONS)}.")
    if converter not in CONVERTERS:
        raise UsageError(f"no converter is called {converter!r}; take {', '.join(CONVERTERS)}.")
    if precision in CALIBRATED and not calibration:
        raise UsageError(f"{precision} needs calibration data; give at least one batch.")
    was = {entry.key: entry.value for entry in model.metadata_props}.get("blsgan.precision", "fp32")
    if was != "fp32" or _low_types(model):
        raise UsageError(f"the model is {was} already; convert the float32 model.")
    model = onnx.shape_inference.infer_shapes(model)
    if precision == "fp32":
        return Converted(model, precision, "none")
    if converter == "auto":
        # ModelOpt's fp8 mode knows no transposed convolutions and leaves narrow ones out.
        there = modelopt_missing() is None and precision != "fp8"
        converter = "modelopt" if there else "builtin"
    used = ", ".join(dict.fromkeys(sample.name for sample in calibration))
    measured = f"{sum(len(sample.image) for sample in calibration)} crops of {used}"
    if converter == "modelopt":
        converted, name = _by_modelopt(model, precision, calibration)
    elif precision == "int8":
        converted, name = _int8(model, calibration)
    elif precision == "fp8":
        converted, name = _fp8(model, calibration)
    else:
        converted, name = _cast(model, precision)
    if precision not in layer_precisions(converted).values():
        raise BackendError(
            f"{name} left every layer of the model in float32; use another --converter."
        )
    _carry_over(model, converted, precision)
    onnx.checker.check_model(converted, full_check=True)
    return Converted(converted, precision, name, measured if precision in CALIBRATED else None)


def modelopt_missing() -> str | None:
    """Why ModelOpt cannot convert here, or None. Imports nothing."""
    for module in ("modelopt", "onnx_graphsurgeon", "onnxslim"):
        if find_spec(module) is None:
            return f"{module} is not installed; pip install 'nvidia-modelopt[onnx]'"
    return None


def body(graph: Any, precision: str = "fp16") -> list[Any]:
    """The nodes that fp16 or bf16 converts, in the graph's order.

    TensorRT-RTX 1.7 has no bfloat16 transposed convolution, so in bf16 that stays float32.
    """
    products = PRODUCTS - {"ConvTranspose"} if precision == "bf16" else PRODUCTS
    constants = _constants(graph)
    low: set[str] = set()
    chosen = []
    floats = _types(graph)
    for node in graph.node:
        read = [
            name
            for name in node.input
            if name and name not in constants and floats.get(name) == _FLOAT
        ]
        if node.op_type in products or (
            node.op_type in _BETWEEN and read and all(name in low for name in read)
        ):
            chosen.append(node)
            low.update(node.output)
    return chosen


def quantized_products(graph: Any) -> list[Any]:
    """The products that int8 and fp8 convert: all with weights but the first and the last ones.

    The first ones see the radiograph and its attenuation, whose range is wide; what the last ones
    give are the logits. Both are narrow, so that little time is lost.
    """
    constants = _constants(graph)
    products = [
        node
        for node in graph.node
        if node.op_type in PRODUCTS and len(node.input) > 1 and node.input[1] in constants
    ]
    after = _reached(graph.node, products)
    before = _reached(list(reversed(graph.node)), products, backwards=True)
    return [node for node in products if node.output[0] in after and node.output[0] in before]


def _reached(nodes: Iterable[Any], sources: Sequence[Any], *, backwards: bool = False) -> set[str]:
    """First outputs of the nodes that depend on one of ``sources`` (or that one of them reads)."""
    is_source = {node.output[0] for node in sources}
    tensors: set[str] = set()
    reached: set[str] = set()
    for node in nodes:
        read, written = (node.output, node.input) if backwards else (node.input, node.output)
        if any(name in tensors for name in read):
            reached.add(node.output[0])
        if node.output[0] in reached or node.output[0] in is_source:
            tensors.update(name for name in written if name)
    return reached


def layer_precisions(model: Any) -> dict[str, str]:
    """Node name -> precision of every convolution and matrix product of a ``ModelProto``."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    types = _types(graph)
    quantized = {
        node.output[0]: types.get(node.input[0])
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    names = {**_NAMES, _FLOAT: "fp32", _INT8: "int8", _FLOAT8: "fp8"}
    return {
        node.name: names.get(quantized.get(node.input[0]) or types.get(node.input[0], 0), "unknown")
        for node in graph.node
        if node.op_type in PRODUCTS
    }


# ---- what a graph holds ----

_FLOAT = 1  # onnx.TensorProto.FLOAT and below the types that are not float32
_INT8, _FLOAT16, _BFLOAT16, _FLOAT8 = 3, 10, 16, 17
_NAMES = {_FLOAT16: "fp16", _BFLOAT16: "bf16"}
_CODES = {name: code for code, name in _NAMES.items()}


def _types(graph: Any) -> dict[str, int]:
    """Element type of every tensor that is known: inputs, outputs, initializers, value_info."""
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for port in (*graph.input, *graph.output, *graph.value_info):
        known[port.name] = port.type.tensor_type.elem_type
    return known


def _constants(graph: Any) -> set[str]:
    computed = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return {tensor.name for tensor in graph.initializer} | computed


def _low_types(model: Any) -> set[str]:
    """Names of the types below float32 that a model's weights or casts have."""
    found = {tensor.data_type for tensor in model.graph.initializer}
    found |= {
        attribute.i
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    names = {**_NAMES, _FLOAT8: "fp8", _INT8: "int8"}
    return {names[code] for code in found if code in names}


def _carry_over(source: Any, target: Any, precision: str) -> None:
    """Give the converted model the metadata of its source, with the new precision."""
    entries = {entry.key: entry.value for entry in source.metadata_props}
    entries["blsgan.precision"] = precision
    del target.metadata_props[:]
    for key, value in sorted(entries.items()):
        entry = target.metadata_props.add()
        entry.key, entry.value = key, value
    target.producer_name, target.producer_version = source.producer_name, source.producer_version


# ---- fp16, bf16 ----


def _low_tensor(tensor: Any, code: int, name: str) -> Any:
    """An initializer in another floating-point type; values beyond its range become infinite."""
    import ml_dtypes
    from onnx import helper, numpy_helper

    dtype = np.float16 if code == _FLOAT16 else ml_dtypes.bfloat16
    with np.errstate(over="ignore"):
        values = numpy_helper.to_array(tensor).astype(dtype)
    return helper.make_tensor(name, code, tensor.dims, values.tobytes(), raw=True)


def _castable(node: Any) -> range:
    """Which inputs have the body's type: the scales of a Resize are always float32."""
    return range(1) if node.op_type == "Resize" else range(len(node.input))


def _cast(source: Any, precision: str) -> tuple[Any, str]:
    """Casts around the body, weights stored in the lower type."""
    import onnx
    from onnx import helper

    code = _CODES[precision]
    if precision == "bf16" and source.opset_import[0].version < _BF16_OPSET:
        source = onnx.version_converter.convert_version(source, _BF16_OPSET)
        source = onnx.shape_inference.infer_shapes(source)
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = model.graph
    floats = _types(graph)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    chosen = {node.output[0] for node in body(graph, precision)}
    low = {name for node in graph.node if node.output[0] in chosen for name in node.output}
    suffix = f".{precision}"
    wanted_high = {port.name for port in graph.output}
    for node in graph.node:
        if node.output[0] not in chosen:
            wanted_high.update(node.input)
        else:
            wanted_high.update(
                name for index, name in enumerate(node.input) if index not in _castable(node)
            )

    nodes: list[Any] = []
    made: set[str] = set()
    for node in list(graph.node):
        if node.output[0] not in chosen:
            nodes.append(node)
            continue
        for index in _castable(node):
            name = node.input[index]
            if not name or floats.get(name) != _FLOAT:
                continue
            node.input[index] = name + suffix
            if name in low or name + suffix in made:
                continue
            made.add(name + suffix)
            if name in initializers:
                graph.initializer.append(_low_tensor(initializers[name], code, name + suffix))
            else:
                nodes.append(
                    helper.make_node(
                        "Cast", [name], [name + suffix], f"{name}.to_{precision}", to=code
                    )
                )
        nodes.append(node)
        for index, name in enumerate(node.output):
            node.output[index] = name + suffix
            if name in wanted_high:
                nodes.append(
                    helper.make_node("Cast", [name + suffix], [name], f"{name}.to_fp32", to=_FLOAT)
                )
    _replace_nodes(model, nodes)
    from blsgan import __version__

    return model, f"blsgan {__version__}"


def _replace_nodes(model: Any, nodes: Sequence[Any]) -> None:
    """Set the graph's nodes; drop weights nobody reads any more and types that are out of date."""
    import onnx

    graph = model.graph
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    read |= {port.name for port in graph.output}
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    initializers = [onnx.TensorProto.FromString(t.SerializeToString()) for t in initializers]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    del graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model)
    graph.value_info.extend(inferred.graph.value_info)


# ---- int8, fp8 ----


def _feeds(samples: Sequence[Sample]) -> Iterator[dict[str, NDArray[Any]]]:
    for sample in samples:
        yield {"image": sample.image, "masks": sample.masks}


def _reader(samples: Sequence[Sample]) -> Any:
    """ONNX Runtime's interface to calibration data."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = _feeds(samples)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._feeds, None)

        def rewind(self) -> None:
            self._feeds = _feeds(samples)

        def get_first(self) -> dict[str, NDArray[Any]]:
            return next(_feeds(samples))

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters report on standard output and through the root logger."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def _int8(model: Any, calibration: Sequence[Sample]) -> tuple[Any, str]:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    wanted = {node.name for node in quantized_products(model.graph)}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, before)
        quantize_static(
            before,
            after,
            _reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(PRODUCTS),
            nodes_to_quantize=sorted(wanted),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                # Engine builders take no zero points, and biases in float32 alone.
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "CalibPercentile": _PERCENTILE,
                # Only what a product reads: its answer stays float32 for what follows.
                "OpTypesToExcludeOutputQuantization": sorted(PRODUCTS),
            },
        )
        return onnx.load(after), f"ONNX Runtime {onnxruntime.__version__}"


def _fp8(source: Any, calibration: Sequence[Sample]) -> tuple[Any, str]:
    import ml_dtypes
    import onnx
    from onnx import helper, numpy_helper

    from blsgan import __version__

    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = model.graph
    chosen = {node.output[0] for node in quantized_products(graph)}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    names = sorted({node.input[0] for node in graph.node if node.output[0] in chosen})
    amax = _largest(source, names, calibration)
    zero = "blsgan.fp8_zero"
    graph.initializer.append(helper.make_tensor(zero, _FLOAT8, [], b"\0", raw=True))

    def scale(name: str, values: Any) -> str:
        array = np.maximum(np.asarray(values, np.float32) / _FP8_MAX, np.float32(2.0**-40))
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    nodes: list[Any] = []
    made: set[str] = set()
    for node in list(graph.node):
        if node.output[0] in chosen:
            activation, weight = node.input[0], node.input[1]
            if activation not in made:
                made.add(activation)
                name = scale(f"{activation}.scale", amax[activation])
                nodes.append(
                    helper.make_node(
                        "QuantizeLinear",
                        [activation, name, zero],
                        [f"{activation}.q"],
                        f"{activation}.quantize",
                    )
                )
                nodes.append(
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{activation}.q", name, zero],
                        [f"{activation}.dq"],
                        f"{activation}.dequantize",
                    )
                )
            if weight not in made:
                made.add(weight)
                values = numpy_helper.to_array(initializers[weight])
                axis = _channel_axis(node, values.ndim)
                others = tuple(i for i in range(values.ndim) if i != axis)
                largest = np.abs(values).max(axis=others)
                name = scale(f"{weight}.scale", largest)
                shape = [-1 if i == axis else 1 for i in range(values.ndim)]
                steps = numpy_helper.to_array(graph.initializer[-1]).reshape(shape)
                low = (values / steps).astype(ml_dtypes.float8_e4m3fn)
                graph.initializer.append(
                    helper.make_tensor(
                        f"{weight}.q", _FLOAT8, values.shape, low.tobytes(), raw=True
                    )
                )
                zeros = f"{weight}.zero"
                graph.initializer.append(
                    helper.make_tensor(
                        zeros, _FLOAT8, [len(largest)], bytes(len(largest)), raw=True
                    )
                )
                nodes.append(
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{weight}.q", name, zeros],
                        [f"{weight}.dq"],
                        f"{weight}.dequantize",
                        axis=axis,
                    )
                )
            node.input[0], node.input[1] = f"{activation}.dq", f"{weight}.dq"
        nodes.append(node)
    _replace_nodes(model, nodes)
    return model, f"blsgan {__version__}"


def _channel_axis(node: Any, rank: int) -> int:
    """The axis of a product's weights that counts its output channels (one group)."""
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


def _largest(model: Any, names: Sequence[str], samples: Sequence[Sample]) -> dict[str, float]:
    """Largest magnitude of each tensor over the samples, by ONNX Runtime in float32."""
    import onnx
    from onnx import helper

    from blsgan.deploy.parity import OnnxRuntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.node.append(helper.make_node("Abs", [name], [f"{name}.abs"]))
        watched.graph.node.append(
            helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.amax"], keepdims=0)
        )
        watched.graph.output.append(helper.make_tensor_value_info(f"{name}.amax", _FLOAT, []))
    runtime = OnnxRuntime(watched.SerializeToString(), "the model to be calibrated")
    largest = dict.fromkeys(names, 0.0)
    for sample in samples:
        answers = runtime.run(sample)
        for name in names:
            largest[name] = max(largest[name], float(answers[f"{name}.amax"]))
    return largest


# ---- ModelOpt ----


def _by_modelopt(model: Any, precision: str, calibration: Sequence[Sample]) -> tuple[Any, str]:
    if missing := modelopt_missing():
        raise BackendError(f"ModelOpt cannot convert here: {missing}.")
    import onnx

    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            before, after = Path(folder, "fp32.onnx"), Path(folder, "converted.onnx")
            onnx.save(model, before)
            if precision in CALIBRATED:
                from modelopt.onnx.quantization import quantize

                types = PRODUCTS - {"ConvTranspose"} if precision == "fp8" else PRODUCTS
                wanted = [
                    node.name for node in quantized_products(model.graph) if node.op_type in types
                ]
                quantize(
                    str(before),
                    quantize_mode=precision,
                    calibration_data_reader=_reader(calibration),
                    calibration_method="max" if precision == "fp8" else "entropy",
                    calibration_eps=["cpu"],
                    op_types_to_quantize=sorted(types),
                    nodes_to_quantize=wanted,
                    high_precision_dtype="fp32",
                    output_path=str(after),
                    log_level="ERROR",
                )
                converted = onnx.load(after)
            else:
                from modelopt.onnx.autocast import convert_to_mixed_precision

                low = {node.name for node in body(model.graph, precision)}
                converted = convert_to_mixed_precision(
                    str(before),
                    low_precision_type=precision,
                    nodes_to_exclude=[
                        f"^{_escaped(node.name)}$"
                        for node in model.graph.node
                        if node.name not in low
                    ],
                    data_max=float("inf"),
                    init_max=float("inf"),
                    keep_io_types=True,
                )
    except Exception as error:  # any of a dozen libraries may refuse the graph
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise BackendError(
            f"ModelOpt could not write {precision} into the model ({reason}); use --converter "
            "builtin."
        ) from error
    from importlib.metadata import PackageNotFoundError, version

    try:
        return converted, f"ModelOpt {version('nvidia-modelopt')}"
    except PackageNotFoundError:
        return converted, "ModelOpt"


def _escaped(name: str) -> str:
    import re

    return re.escape(name)


# ---- running half precision where no kernel has it ----


def in_float32(model: Any) -> Any:
    """The same arithmetic for a runtime without half precision: float32, rounded after every step.

    Every tensor of type float16 or bfloat16 becomes a float32 one that was cast to that type and
    back, so that it holds exactly the values the type can hold; sums inside one operator are
    float32, as in tensor cores. ONNX Runtime's CPU has no bfloat16 convolution, and leaves the
    rounding between float16 ones out.

    Raises:
        UsageError: the model holds a constant of such a type inside a node.
    """
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    graph = copy.graph
    types = _types(graph)
    nodes: list[Any] = []
    for tensor in graph.initializer:
        if tensor.data_type in _NAMES:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in list(graph.node):
        low = [name for name in node.output if types.get(name) in _NAMES]
        if low and node.op_type == "Constant":
            raise UsageError("the model holds a half-precision Constant node; export it again.")
        if not low:
            nodes.append(node)
            continue
        code = types[low[0]]
        if node.op_type == "Cast":
            _round_trip(nodes, node.input[0], node.output[0], code)
            continue
        for index, name in enumerate(node.output):
            if name in low:
                node.output[index] = f"{name}.exact"
        nodes.append(node)
        for name in low:
            _round_trip(nodes, f"{name}.exact", name, code)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy)


def _round_trip(nodes: list[Any], source: str, target: str, code: int) -> None:
    from onnx import helper

    middle = f"{target}.rounded"
    nodes.append(helper.make_node("Cast", [source], [middle], f"{target}.round", to=code))
    nodes.append(helper.make_node("Cast", [middle], [target], f"{target}.widen", to=_FLOAT))
