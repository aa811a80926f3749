"""equalize: every channel of a map made to use all of its 8 bits.

An int8 map has one scale for all of its channels, and a channel of small
values little resolution. But what a convolution writes larger, the ones that
read it can weigh less, and the network computes what it did. So a channel is
written by a factor larger and read by it smaller.

Source: Nagel et al., 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1; here with the values that
occur instead of weights, for kernels have a scale per channel.
"""

import numpy as np

from keras_aspp.litert.graph import CONV, Graph, packed

_LIMIT = 64.0


def equalize(content, pictures):
    """A float `.tflite` that loses less when it is quantized.

    Args:
        content: bytes of a `.tflite`, everything float32.
        pictures: iterable of float32 `[1, H, W, 3]`, of the file's size, that
            show which values occur.

    Returns:
        bytes of a `.tflite` that computes the same on them, but for rounding.
    """
    graph = Graph(content)
    reach = _largest_values(content, pictures)
    factors = {}
    for maps in graph.maps_that_share_channels(reach):
        readers = [op for op in graph.convolutions if op.inputs[0] in maps]
        factor = _factor(
            np.maximum.reduce([reach[m] for m in maps]),
            [graph.array(op.inputs[1]) for op in readers if op.name == CONV],
            any(m in graph.clipped_at_6 for m in maps),
        )
        factors |= dict.fromkeys(maps, factor)
    for op in graph.convolutions:
        kernel, bias = (graph.array(tensor) for tensor in op.inputs[1:3])
        kernel = kernel / factors.get(op.inputs[0], 1.0)
        if op.output in factors:
            factor = factors[op.output]
            bias = bias * factor
            # TFLite has filters first, and channels last where depthwise.
            by_filter = factor[:, None, None, None]
            kernel = kernel * (by_filter if op.name == CONV else factor)
        graph.assign(op.inputs[1], kernel)
        graph.assign(op.inputs[2], bias)
    return packed(graph.model)


def _factor(reach, kernels, clipped_at_6):
    """What the channels of a map are to be multiplied by, float (C,).

    Args:
        reach: float (C,), largest absolute value of each.
        kernels: float (F, h, w, C) that read them and have one scale for each
            filter; depthwise ones, with one for each channel, lose nothing.
        clipped_at_6: bool. Whether the map is one of ReLU6.
    """
    if not reach.max() > 0:
        return np.ones_like(reach)  # a map that is 0 everywhere
    reach = np.maximum(reach, 1e-4 * reach.max())
    factor = 1 / reach
    if kernels:
        # A channel made larger has smaller weights, which round too.
        weight = np.maximum.reduce([_shares(kernel) for kernel in kernels])
        least = 1e-3 * max(weight.max(), 1e-12)
        factor = np.sqrt(np.maximum(weight, least) / reach)
    factor = factor * (reach.max() / (factor * reach).max())
    factor = np.clip(factor, 1 / _LIMIT, _LIMIT)
    if clipped_at_6:
        # What is clipped stays where it is, and nothing is newly clipped.
        factor = np.clip(factor, 1.0, np.maximum(6 / reach, 1.0))
    return factor


def _shares(kernel):
    """Largest weight for each channel, in [0, 1] of its filter's largest."""
    size = np.abs(kernel)
    whole = np.maximum(size.max((1, 2, 3), keepdims=True), 1e-12)
    return (size / whole).max((0, 1, 2))


def _largest_values(content, pictures):
    """Map -> float (C,), the largest absolute value of each channel."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=(
            OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    interpreter.allocate_tensors()
    (door,) = interpreter.get_input_details()
    found = {}
    for picture in pictures:
        interpreter.set_tensor(door["index"], picture)
        interpreter.invoke()
        for operator in interpreter._get_ops_details():
            tensor = operator["outputs"][0]
            values = interpreter.get_tensor(tensor)
            if values.ndim == 4 and values.dtype == np.float32:
                largest = np.abs(values).max((0, 1, 2))
                found[tensor] = np.maximum(found.get(tensor, 0.0), largest)
    return found
