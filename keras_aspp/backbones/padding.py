"""Symmetric padding of strided convolutions, as PyTorch pads."""

from typing import Any

import keras

from keras_aspp.backbones.grids import CONVOLUTIONS, pair
from keras_aspp.utils.keras_graph import consumers, layers_by_path, producers


def symmetric_padding(
    model: keras.Model,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Computes changes that make the padding of all windows symmetric.

    Keras' own backbones pad by the parity of the size they are built with, or
    not at all. Here a map has ceil(image / stride) cells, and cell i lies
    at pixel i * stride.

    Returns:
        `(changes, padding_before)`, arguments of `rebuild`.
    """
    changes, padding_before = {}, {}
    for path, layer in layers_by_path(model):
        if isinstance(layer, keras.layers.ZeroPadding2D):
            kernel = _kernel_behind(layer)
            if kernel:
                changes[path] = {"padding": (kernel - 1) // 2}
            continue
        kernel, strided = _kernel(layer), _stride(layer) > 1
        if not kernel or kernel == 1 or _zeros_before(layer):
            continue
        half = (kernel - 1) // 2
        if kernel % 2 == 0 or not strided:
            # The window of the last cell may reach beyond the map.
            after = {"padding": "same"}
            if isinstance(layer, CONVOLUTIONS) and strided:
                after = {"padding": "valid"}
                padding_before[path] = ((0, kernel - 1), (0, kernel - 1))
            changes[path] = after
        elif isinstance(layer, CONVOLUTIONS):
            padding_before[path] = half
            changes[path] = {"padding": "valid"}
        else:
            pads = ((half, half), (half, half))
            changes[path] = {"padding": "valid", "pads": pads}
    return changes, padding_before


def _kernel(layer):
    """Height of a convolution's kernel or a pool, or `None`."""
    size = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
    return size and size[0]


def _stride(layer):
    return pair(getattr(layer, "strides", 1))[0]


def _kernel_behind(layer):
    """Kernel size of the window that a ZeroPadding2D pads for, or `None`."""
    return _kernel(consumers(layer)[0])


def _zeros_before(layer):
    source = producers(layer)[0]
    return isinstance(source, keras.layers.ZeroPadding2D)
