"""Quantization of a float `.tflite` to integers, with calibration.

The graph is edited as a file, before and after litert-quantizer, so that the
quantizer needs no access to the converter.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from litert_quantizer import qtyping, quantizer

from keras_aspp.export.equalize import channel_ranges, equalize
from keras_aspp.litert.edit import add_constant, add_tensor, operator_code
from keras_aspp.litert.graph import Graph, operator_names, packed, unpacked
from keras_aspp.utils.exceptions import InputError

_ALL = qtyping.TFLOperationName.ALL_SUPPORTED
_INPUT = qtyping.TFLOperationName.INPUT
_OUTPUT = qtyping.TFLOperationName.OUTPUT
_EXACT = quantizer.AlgorithmName.NO_QUANTIZE
_BITS = {"tflite_int8": 8, "tflite_int16x8": 16}
# Positions of input, kernel and bias, and the axis of the kernel's filters.
_WITH_BIAS = {
    "CONV_2D": (0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": (0, 1, 2, 3),
    "FULLY_CONNECTED": (0, 1, 2, 0),
    "TRANSPOSE_CONV": (2, 1, 3, 0),
}
QUANTIZED = tuple(_BITS)


def quantize(
    content: bytes,
    name: str,
    images: Sequence[np.ndarray],
    pixels: bool,
    in_float: Iterable[str] = (),
) -> bytes:
    """Returns a `.tflite` that computes with integers.

    Args:
        content: bytes of a float32 `.tflite` of one size.
        name: `"tflite_int8"` (weights and activations of 8 bits) or
            `"tflite_int16x8"` (activations of 16 bits).
        images: float32 `[1, H, W, C]` that calibrate the ranges.
        pixels: bool. The file takes uint8 instead of float32.
        in_float: output tensors of operators that stay in float.

    Raises:
        ValueError: no operator has an output of that name.
    """
    content, ranges = prepare(content, name, images)
    return quantize_prepared(content, name, ranges, pixels, in_float)


def prepare(
    content: bytes, name: str, images: Sequence[np.ndarray]
) -> tuple[bytes, dict[str, np.ndarray]]:
    """Makes a float `.tflite` of the same function that quantizes better.

    Returns:
        `(content, ranges)`: its bytes and what `channel_ranges` returns for
        it.
    """
    if name == "tflite_int16x8":
        content = _spell_out_hard_swish(content)
    return equalize(content, channel_ranges(content, images))


def quantize_prepared(
    content: bytes,
    name: str,
    ranges: Mapping[str, np.ndarray],
    pixels: bool,
    in_float: Iterable[str] = (),
) -> bytes:
    """Quantizes the result of `prepare`.

    Args:
        content: bytes of a float32 `.tflite`.
        name: see `quantize`.
        ranges: result of `channel_ranges`.
        pixels: see `quantize`.
        in_float: see `quantize`.
    """
    worker = quantizer.Quantizer(content)
    worker.add_static_config(".*", _ALL, _BITS[name], 8)
    unknown = {*in_float} - {*tensor_names(content).values()}
    if unknown:
        raise InputError(
            "`in_float` must hold tensors that operators of the file compute. "
            f"Received: {sorted(unknown)}"
        )
    for tensor in in_float:
        scope = f"^{re.escape(tensor)};?$"
        worker.update_quantization_recipe(scope, _ALL, algorithm_key=_EXACT)
    if pixels:
        worker.update_quantization_recipe(".*", _INPUT, _of_pixels())
    else:
        worker.update_quantization_recipe(".*", _INPUT, algorithm_key=_EXACT)
    worker.update_quantization_recipe(".*", _OUTPUT, algorithm_key=_EXACT)
    extremes = {
        tensor: {"min": ends.min(), "max": ends.max()}
        for tensor, ends in ranges.items()
    }
    if pixels:
        # A scale of 1, so that pixels are read as they are stored.
        (graph,) = unpacked(content).subgraphs
        source = graph.tensors[int(graph.inputs[0])].name.decode()
        extremes[source] = {"min": np.float32(0), "max": np.float32(255)}
    extremes |= _kernel_ranges(content, extremes, _BITS[name])
    # Its progress bar belongs to no phase of ours.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*preserve_all_tensors.*")
        found = worker.quantize(extremes, enable_progress_report=False)
    return _finished(bytes(found.quantized_model))


def tensor_names(content: bytes) -> dict[int, str]:
    """Returns tensor index -> name of the first output of each operator."""
    (graph,) = unpacked(content).subgraphs
    outputs = [int(operator.outputs[0]) for operator in graph.operators]
    return {i: graph.tensors[i].name.decode() for i in outputs}


def _kernel_ranges(content, ranges, bits):
    """Returns the ranges of kernels with filters that are tiny or zero.

    A bias has the scale of the input times that of its filter, and 32 bits. A
    filter's scale must be large enough for them, as in TensorFlow's converter.
    """
    graph = Graph(content)
    tensors, buffers = graph.graph.tensors, graph.model.buffers
    found = {}
    for operator in graph.operators:
        places = _WITH_BIAS.get(operator.name)
        if places is None or len(operator.inputs) <= places[2]:
            continue
        source, kernel, bias = (operator.inputs[i] for i in places[:3])
        source, name = (tensors[i].name.decode() for i in (source, kernel))
        if bias < 0 or source not in ranges:
            continue
        if any(buffers[tensors[i].buffer].data is None for i in (kernel, bias)):
            continue  # kernels that the network computes
        low, high = (float(ranges[source][end]) for end in ("min", "max"))
        low, high = min(low, 0.0), max(high, 0.0)
        # The quantizer's scale of the input is this one or larger.
        scale = max(high - low, 1e-9) / 255
        if bits == 16:
            scale = max(high, -low, 1e-9) / 32767
        values = graph.array(kernel)
        others = tuple(i for i in range(values.ndim) if i != places[3])
        reach = np.abs(values).max(others, keepdims=True)
        least = 127 * np.abs(graph.array(bias)) / (scale * 2**30)
        least = least.reshape(reach.shape)
        if (reach < least).any():
            # Operators that share a kernel share its scale.
            largest = np.maximum(reach, least).astype("float32")
            largest = np.maximum(largest, found.get(name, {}).get("max", 0.0))
            found[name] = {"min": -largest, "max": largest}
    return found


def _of_pixels():
    """Returns the configuration of an input of uint8."""
    return qtyping.OpQuantizationConfig(
        activation_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=False, dtype=qtyping.TensorDataType.UINT
        ),
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8,
            symmetric=True,
            granularity=qtyping.QuantGranularity.CHANNELWISE,
        ),
        compute_precision=qtyping.ComputePrecision.INTEGER,
    )


def _finished(content):
    """Edits the quantizer's result.

    The argmax takes int8 instead of floats, which order the same. The
    signature names the outputs of the graph, which the quantizer leaves
    behind (0.11.0).
    """
    model = unpacked(content)
    (graph,) = model.subgraphs
    names = operator_names(model)
    source = {
        int(o.outputs[0]): int(o.inputs[0])
        for o in graph.operators
        if names[o.opcodeIndex] == "DEQUANTIZE"
    }
    outputs = {int(i) for i in graph.outputs}
    floats = {source[i]: i for i in outputs & {*source}}
    for signature in model.signatureDefs or []:
        for end in signature.outputs:
            if end.tensorIndex not in outputs:
                end.tensorIndex = floats[int(end.tensorIndex)]
    for operator in graph.operators:
        first = source.get(int(operator.inputs[0]))
        if (
            names[operator.opcodeIndex] == "ARG_MAX"
            and first is not None
            # LiteRT's kernel takes no int16 (2.3.0).
            and graph.tensors[first].type == schema.TensorType.INT8
        ):
            operator.inputs = [first, *map(int, operator.inputs[1:])]
    used = outputs | {int(i) for o in graph.operators for i in o.inputs}
    graph.operators = [
        o
        for o in graph.operators
        if int(o.outputs[0]) not in source or int(o.outputs[0]) in used
    ]
    return packed(model)


def _spell_out_hard_swish(content):
    """Writes hard swish as `x * relu6(x + 3) / 6`.

    LiteRT's kernel of hard swish takes no int16 (2.3.0).
    """
    model: Any = unpacked(content)
    (graph,) = model.subgraphs
    names = operator_names(model)
    operators = []
    for operator in graph.operators:
        if names[operator.opcodeIndex] != "HARD_SWISH":
            operators.append(operator)
            continue
        (x,), (result,) = operator.inputs, operator.outputs
        # The quantizer wants a name of its own for each tensor.
        name = graph.tensors[result].name
        three, sixth = (
            add_constant(model, graph, np.float32([value]), name + end)
            for value, end in ((3, b"/three"), (1 / 6, b"/sixth"))
        )
        clipped, product = (
            add_tensor(graph, name + end, graph.tensors[x])
            for end in (b"/clipped", b"/product")
        )
        operators += [
            _binary(model, "ADD", int(x), three, clipped, relu6=True),
            _binary(model, "MUL", int(x), clipped, product),
            _binary(model, "MUL", product, sixth, int(result)),
        ]
    graph.operators = operators
    return packed(model)


def _binary(model, name, left, right, result, relu6=False):
    """Returns an operator of two tensors."""
    operator: Any = schema.OperatorT()
    operator.opcodeIndex = operator_code(model, name)
    operator.inputs, operator.outputs = [left, right], [result]
    options = {"ADD": "AddOptions", "MUL": "MulOptions"}[name]
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    operator.builtinOptions = getattr(schema, f"{options}T")()
    if relu6:
        activation = schema.ActivationFunctionType.RELU6
        operator.builtinOptions.fusedActivationFunction = activation
    return operator
