"""Cross-layer equalization of a float `.tflite` before quantization.

An int8 map has one scale for all channels, so channels of small values have
little resolution. This scales the producer of such a channel up and its
consumers down by the same factor; the network computes the same function.

Source: Nagel et al., 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1; here with activations
instead of weights, since kernels have one scale per channel.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from keras_aspp.litert.graph import CONV, Graph, packed
from keras_aspp.litert.values import run_with_values

_LIMIT = 64.0


def equalize(content: bytes, images: Iterable[np.ndarray]) -> bytes:
    """Returns a `.tflite` of the same function that quantizes better.

    Args:
        content: bytes of a `.tflite`, everything float32.
        images: iterable of float32 `[1, H, W, 3]`, of the file's size, that
            calibrate the ranges of the channels.

    Returns:
        bytes of a `.tflite` that computes the same on them, up to rounding.
    """
    graph = Graph(content)
    reach = _largest_values(content, images)
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
            # TFLite kernels have filters first; depthwise ones channels last.
            by_filter = factor[:, None, None, None]
            kernel = kernel * (by_filter if op.name == CONV else factor)
        graph.assign(op.inputs[1], kernel)
        graph.assign(op.inputs[2], bias)
    return packed(graph.model)


def _factor(reach, kernels, clipped_at_6):
    """Returns the factors of the channels of a map, float (C,).

    Args:
        reach: float (C,), largest absolute value of each.
        kernels: float (F, h, w, C) that read them and have one scale for each
            filter; depthwise ones have one for each channel and are exact.
        clipped_at_6: bool. The map is the output of a ReLU6.
    """
    if not reach.max() > 0:
        return np.ones_like(reach)  # a map that is 0 everywhere
    reach = np.maximum(reach, 1e-4 * reach.max())
    factor = 1 / reach
    if kernels:
        # Scaling a channel up makes the weights that read it smaller, and
        # these are rounded too.
        weight = np.maximum.reduce([_shares(kernel) for kernel in kernels])
        least = 1e-3 * max(weight.max(), 1e-12)
        factor = np.sqrt(np.maximum(weight, least) / reach)
    factor = factor * (reach.max() / (factor * reach).max())
    factor = np.clip(factor, 1 / _LIMIT, _LIMIT)
    if clipped_at_6:
        # Clipped values stay as they are, and no others are clipped.
        factor = np.clip(factor, 1.0, np.maximum(6 / reach, 1.0))
    return factor


def _shares(kernel):
    """Returns each channel's largest weight, relative to its filter's."""
    size = np.abs(kernel)
    whole = np.maximum(size.max((1, 2, 3), keepdims=True), 1e-12)
    return (size / whole).max((0, 1, 2))


def _largest_values(content, images):
    """Returns map -> float (C,), largest absolute value of each channel."""
    found = {}
    for tensors in run_with_values(content, images):
        for tensor, values in tensors:
            if values.ndim == 4 and values.dtype == np.float32:
                largest = np.abs(values).max((0, 1, 2))
                found[tensor] = np.maximum(found.get(tensor, 0.0), largest)
    return found
