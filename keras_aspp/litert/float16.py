"""Simulation of a GPU that computes in float16.

The GPUs of phones reduce in float16 whatever the type of a tensor, so the sum
of a large map overflows before it is divided into a mean.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_aspp.litert.graph import operator_names, unpacked

LARGEST = 65504.0  # of float16
_ACTIVATIONS = {
    schema.ActivationFunctionType.NONE: lambda x: x,
    schema.ActivationFunctionType.RELU: tf.nn.relu,
    schema.ActivationFunctionType.RELU_N1_TO_1: lambda x: np.clip(x, -1, 1),
    schema.ActivationFunctionType.RELU6: tf.nn.relu6,
}


class NotSimulatedError(Exception):
    """A graph has an operator or a type that is not simulated."""


@dataclasses.dataclass(frozen=True)
class Float16Run:
    """Result of `run_in_float16`.

    Attributes:
        output: float32 array, the first output of the graph.
        largest_sum: float, the largest absolute sum behind a mean, whether or
            not float16 can hold it.
    """

    output: np.ndarray
    largest_sum: float


def run_in_float16(content: bytes, image: np.ndarray) -> Float16Run:
    """Runs a float `.tflite` as a GPU with float16 arithmetic would.

    Weights and every result are rounded to float16. Means add pairs of values,
    then pairs of sums, in float16. Convolutions add in float32.

    Args:
        content: bytes of a `.tflite` of float32 of one size.
        image: float32 `[1, H, W, C]`.

    Returns:
        `Float16Run`.

    Raises:
        NotSimulatedError: the graph has an operator that is not simulated.
    """
    model = unpacked(content)
    (graph,) = model.subgraphs
    names = operator_names(model)
    values = {int(graph.inputs[0]): _rounded(image)}
    largest = 0.0

    def value(index):
        if index not in values:
            values[index] = _constant(model, graph.tensors[index])
        return values[index]

    for operator in graph.operators:
        name = names[operator.opcodeIndex]
        if name not in _KERNELS:
            raise NotSimulatedError(f"{name} is not simulated in float16")
        inputs = [value(int(i)) for i in operator.inputs if i >= 0]
        if name == "MEAN":
            largest = max(largest, _largest_sum(*inputs))
        # A sum beyond 65504 is the infinity that a GPU computes.
        with np.errstate(over="ignore", invalid="ignore"):
            found = _KERNELS[name](operator.builtinOptions, *inputs)
        (output,) = operator.outputs
        values[int(output)] = _rounded(found)
    return Float16Run(values[int(graph.outputs[0])], largest)


def _rounded(x):
    with np.errstate(over="ignore"):
        return np.asarray(x, "float16").astype("float32")


def _constant(model, tensor):
    data = np.asarray(model.buffers[tensor.buffer].data, "uint8")
    dtypes = {
        schema.TensorType.FLOAT32: "float32",
        schema.TensorType.INT32: "int32",
    }
    if tensor.type not in dtypes:
        raise NotSimulatedError(
            f"constants of type {tensor.type} are not simulated in float16"
        )
    array = data.view(dtypes[tensor.type]).reshape(tensor.shape)
    return _rounded(array) if array.dtype == "float32" else array


def _activated(options, x):
    code = options.fusedActivationFunction
    if code not in _ACTIVATIONS:
        raise NotSimulatedError(
            f"fused activation {code} is not simulated in float16"
        )
    return _ACTIVATIONS[code](x)


def _padding(options):
    same = options.padding == schema.Padding.SAME
    return "SAME" if same else "VALID"


def _convolution(options, x, kernel, bias=None):
    # TFLite stores (filters, height, width, channels).
    y = tf.nn.conv2d(
        x,
        kernel.transpose(1, 2, 3, 0),
        (options.strideH, options.strideW),
        _padding(options),
        dilations=(options.dilationHFactor, options.dilationWFactor),
    )
    return _activated(options, y if bias is None else y + bias)


def _depthwise(options, x, kernel, bias=None):
    channels = x.shape[-1]
    kernel = kernel.reshape(*kernel.shape[1:3], channels, -1)
    strides = (options.strideH, options.strideW)
    rates = (options.dilationHFactor, options.dilationWFactor)
    y = tf.nn.depthwise_conv2d(
        x, kernel, (1, *strides, 1), _padding(options), dilations=rates
    )
    return _activated(options, y if bias is None else y + bias)


def _mean(options, x, axes):
    moved = np.moveaxis(x, np.ravel(axes), range(axes.size))
    flat = moved.reshape(-1, *moved.shape[axes.size :]).astype("float16")
    total = flat
    while len(total) > 1:
        if len(total) % 2:
            total = np.concatenate([total, np.zeros_like(total[:1])])
        total = total[::2] + total[1::2]
    mean = total[0].astype("float32") / len(flat)
    if options.keepDims:
        mean = np.expand_dims(mean, tuple(int(a) for a in np.ravel(axes)))
    return mean


def _largest_sum(x, axes):
    total = x.astype("float64").sum(tuple(int(a) for a in np.ravel(axes)))
    return float(np.abs(total).max())


def _pool(function):
    def run(options, x):
        window = (options.filterHeight, options.filterWidth)
        strides = (options.strideH, options.strideW)
        return _activated(
            options, function(x, window, strides, _padding(options))
        )

    return run


def _resize(options, x, size):
    return tf.raw_ops.ResizeBilinear(
        images=x,
        size=size,
        align_corners=options.alignCorners,
        half_pixel_centers=options.halfPixelCenters,
    )


# By name, functions of the operator's options and inputs.
_KERNELS = {
    "ADD": lambda options, x, y: _activated(options, x + y),
    "AVERAGE_POOL_2D": _pool(tf.nn.avg_pool2d),
    "CONCATENATION": lambda options, *parts: np.concatenate(
        parts, options.axis
    ),
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "HARD_SWISH": lambda options, x: x * tf.nn.relu6(x + 3) / 6,
    "LOGISTIC": lambda options, x: tf.sigmoid(x),
    "MAX_POOL_2D": _pool(tf.nn.max_pool2d),
    "MAXIMUM": lambda options, x, y: np.maximum(x, y),
    "MEAN": _mean,
    "MINIMUM": lambda options, x, y: np.minimum(x, y),
    "MUL": lambda options, x, y: _activated(options, x * y),
    "PAD": lambda options, x, pads: np.pad(x, pads),
    "PADV2": lambda options, x, pads, value: np.pad(
        x, pads, constant_values=np.ravel(value)[0]
    ),
    "RELU": lambda options, x: tf.nn.relu(x),
    "RELU6": lambda options, x: tf.nn.relu6(x),
    "RELU_N1_TO_1": lambda options, x: np.clip(x, -1, 1),
    "RESHAPE": lambda options, x, shape: x.reshape(shape),
    "RESIZE_BILINEAR": _resize,
    "SUB": lambda options, x, y: _activated(options, x - y),
    "TANH": lambda options, x: np.tanh(x),
}
