"""Cross-layer equalization of a float `.tflite` before quantization.

An int8 map has one scale for all channels, so channels of small values have
little resolution. This scales the producer of such a channel up and its
consumers down by the same factor; the network computes the same function.

Source: Nagel et al., 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1; here with activations
instead of weights, since kernels have one scale per channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from keras_aspp.litert.graph import CONV, Graph, packed, unpacked
from keras_aspp.litert.values import run_with_values

_LIMIT = 64.0
# Channels that vary by less than this share of their map's largest value keep
# their scale before a ReLU6: other images may make them far larger.
_SILENT = 1e-3
# Values of other images may be larger by this factor before ReLU6 clips them.
_HEADROOM = 1.5


def equalize(
    content: bytes, ranges: Mapping[str, np.ndarray]
) -> tuple[bytes, dict[str, np.ndarray]]:
    """Rewrites a `.tflite` so that it loses less in 8 bits.

    Args:
        content: bytes of a `.tflite`, everything float32.
        ranges: result of `channel_ranges`.

    Returns:
        `(content, ranges)` of a `.tflite` that computes the same up to
        rounding: on the images that calibrated, and on others whose channels
        stay within `_HEADROOM` times the largest values there.
    """
    graph = Graph(content)
    names = [tensor.name.decode() for tensor in graph.graph.tensors]
    ends = {
        o.output: ranges[names[o.output]]
        for o in graph.operators
        if names[o.output] in ranges
        and len(graph.graph.tensors[o.output].shape) == 4
    }
    factors = {}
    for maps in graph.maps_that_share_channels(ends):
        readers = [op for op in graph.convolutions if op.inputs[0] in maps]
        factor = _factor(
            np.maximum.reduce([np.abs(ends[m]).max(0) for m in maps]),
            [graph.array(op.inputs[1]) for op in readers if op.name == CONV],
            [np.ptp(ends[m], 0) for m in maps if m in graph.clipped_at_6],
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
    scaled = {
        names[m]: ranges[names[m]] * factor for m, factor in factors.items()
    }
    return packed(graph.model), {**ranges, **scaled}


def channel_ranges(
    content: bytes, images: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Measures the range of each channel of each float tensor.

    Args:
        content: bytes of a `.tflite` of one size.
        images: float32 `[1, H, W, C]` that calibrate the ranges.

    Returns:
        dict: name -> `(2, C)`, the least and the largest values.
    """
    (graph,) = unpacked(content).subgraphs
    (source,) = (int(i) for i in graph.inputs)
    found: dict[int, np.ndarray] = {}
    for image, tensors in zip(
        images, run_with_values(content, images), strict=True
    ):
        for tensor, values in itertools.chain([(source, image)], tensors):
            if values.dtype == np.float32:
                others = tuple(range(values.ndim - 1))
                low, high = values.min(others), values.max(others)
                if tensor in found:
                    low = np.fmin(low, found[tensor][0])
                    high = np.fmax(high, found[tensor][1])
                found[tensor] = np.stack([low, high])
    return {graph.tensors[i].name.decode(): ends for i, ends in found.items()}


def _factor(reach, kernels, spreads):
    """Returns the factors of the channels of a map, float (C,).

    Args:
        reach: float (C,), largest absolute value of each.
        kernels: float (F, h, w, C) that read them and have one scale for each
            filter; depthwise ones have one for each channel and are exact.
        spreads: float (C,), largest minus least value of each channel of the
            outputs of ReLU6.
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
    if spreads:
        # Clipped values stay as they are.
        cap = np.maximum(6 / (_HEADROOM * reach), 1.0)
        silent = np.maximum.reduce(spreads) < _SILENT * reach.max()
        factor = np.clip(factor, 1.0, np.where(silent, 1.0, cap))
    return factor


def _shares(kernel):
    """Returns each channel's largest weight, relative to its filter's."""
    size = np.abs(kernel)
    whole = np.maximum(size.max((1, 2, 3), keepdims=True), 1e-12)
    return (size / whole).max((0, 1, 2))
