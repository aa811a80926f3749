"""Images of what atrous convolution does, on an image of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_aspp.analysis.receptive_field import receptive_fields
from keras_aspp.backbones import with_output_stride
from keras_aspp.backbones.output_stride import (
    output_strides,
    tensor_strides,
)
from keras_aspp.layers import BilinearResize
from keras_aspp.layers.context import ContextLayer
from keras_aspp.utils.exceptions import InputError

DENSE_STRIDE = 8
FILTERS = ("brightness", "edges, flat", "edges, upright", "spots")
SURROUND_RATES = (2, 6, 12)


def filter_bank() -> keras.Model:
    """A network with filters set by hand: it needs no training.

    The image is blurred and halved three times, looked at by four filters
    (`FILTERS`) with stride 2, and halved once more. RGB in [0, 1] goes in,
    one map of stride 32 comes out.

    Returns:
        `keras.Model`.
    """
    luminance = np.array([0.299, 0.587, 0.114]).reshape(1, 1, 3, 1)
    binomial = (np.outer([1, 2, 1], [1, 2, 1]) / 16).reshape(3, 3, 1, 1)
    identity = np.zeros((3, 3))
    identity[1, 1] = 1
    slope = np.outer([-1, 0, 1], [1, 2, 1]) / 4
    ring = (np.ones((3, 3)) - identity) / 8
    filters = np.stack([identity, slope, slope.T, identity - ring], -1)
    inputs = keras.Input((None, None, 3), name="image")
    gray = keras.layers.Conv2D(1, 1, name="gray")
    x = gray(inputs)
    # The padding is then as bright as an image of average brightness.
    gray.set_weights([luminance, np.array([-0.5])])
    for i in range(1, 6):
        x = keras.layers.ZeroPadding2D(1, name=f"pad_{i}")(x)
        if i == 4:
            layer = keras.layers.Conv2D(
                4, 3, strides=2, use_bias=False, name="filters"
            )
            kernel = filters[:, :, None, :]
        else:
            layer = keras.layers.DepthwiseConv2D(
                3, strides=2, use_bias=False, name=f"halve_{i}"
            )
            kernel = binomial.repeat(x.shape[-1], axis=2)
        x = layer(x)
        layer.set_weights([kernel])
    return keras.Model(inputs, x, name="filter_bank")


def strided_and_dense(
    backbone: keras.Model, image: np.ndarray, input_scale: int = 1
) -> dict[str, Any]:
    """Features of an image at a network's own stride, and denser.

    Args:
        backbone: functional `keras.Model`; of dict outputs the coarsest
            is taken.
        image: float array `(height, width, channels)`, as it takes it.
        input_scale: int > 0, factor by which the image is upsampled for the
            network. Defaults to 1.

    Returns:
        dict: `strided` and `dense`, float arrays `(h, w, channels)`;
        `strides`, pixels of `image` per cell of each; `step`, dense cells
        per strided one; `difference`, the largest between the strided map
        and the dense one subsampled, in standard deviations of the strided
        one.

    Raises:
        TypeError, ValueError: the backbone cannot be made dense, or the
            image is smaller than one cell.
    """
    own = max(tensor_strides(backbone).values())
    if min(image.shape[:2]) * input_scale < own:
        raise InputError(
            "The image is smaller than one cell of "
            f"{own / input_scale:g} pixels. "
            f"Received: {image.shape[0]}x{image.shape[1]}"
        )
    pixels = image[None]
    if input_scale > 1:
        pixels = BilinearResize(scale=input_scale, dtype="float32")(pixels)
    fine = min(DENSE_STRIDE, max(own // 4, 1))
    size = tuple(pixels.shape[1:3])
    maps, centers = [], []
    for stride in (own, fine):
        model = with_output_stride(backbone, stride)
        key = _coarsest(backbone)
        if key is not None:
            model = keras.Model(model.input, model.output[key])
        features = model(pixels, training=False)
        maps.append(keras.ops.convert_to_numpy(features)[0])
        centers.append(receptive_fields(model, size)[-1].center)
    strided, dense = maps
    # Cell (0, 0) of the two may cover different pixels: by the padding.
    start = [round((a - b) / fine) for a, b in zip(*centers, strict=True)]
    step = own // fine
    picked = dense[start[0] :: step, start[1] :: step]
    shape = [
        min(a, b) for a, b in zip(picked.shape, strided.shape, strict=True)
    ]
    a, b = (m[: shape[0], : shape[1]] for m in (picked, strided))
    return {
        "strided": strided,
        "dense": dense,
        "strides": tuple(
            n / input_scale if n % input_scale else n // input_scale
            for n in (own, fine)
        ),
        "step": step,
        "difference": float(np.abs(a - b).max() / strided.std()),
    }


def _coarsest(backbone):
    """Key of the output of the largest stride, or `None` without keys."""
    if not isinstance(backbone.output, dict):
        return None
    strides = output_strides(backbone)
    return max(strides, key=strides.__getitem__)


def surroundings(
    features: np.ndarray, rates: Sequence[int] = SURROUND_RATES
) -> dict[str, np.ndarray]:
    """A cell minus the mean of its eight neighbors, at several rates.

    What ASPP's branches can learn, set by hand: each rate answers to things
    of its own size.

    Args:
        features: float array `(h, w)`.
        rates: ints > 0, in cells.

    Returns:
        dict: title -> float array `(h, w)`.
    """
    kernel = -np.ones((3, 3, 1, 1), "float32") / 8
    kernel[1, 1] = 1
    maps = {}
    for rate in rates:
        found = keras.ops.conv(
            features[None, ..., None].astype("float32"),
            kernel,
            padding="same",
            dilation_rate=rate,
        )
        maps[f"rate {rate}"] = keras.ops.convert_to_numpy(found)[0, ..., 0]
    return maps


def context_of(model: keras.Model) -> ContextLayer | None:
    """The ASPP, or other context module, among a model's layers, or `None`."""
    return next((x for x in model.layers if isinstance(x, ContextLayer)), None)


def branches_of(model: keras.Model, image: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the response of each branch of a model's context module.

    Args:
        model: functional `keras.Model` with a `ContextLayer`, such as `ASPP`,
            among its layers.
        image: float array `(height, width, channels)`, as it takes it.

    Returns:
        dict: title -> float array `(h, w)`, root mean square over channels,
        `"rate 6 (2)"` for a second branch of one title; empty where the model
        has no such layer.
    """
    context = context_of(model)
    if context is None:
        return {}
    features = keras.Model(model.input, context.input)(
        image[None], training=False
    )
    maps = context.branch_maps(features, training=False)
    together = context.fuse(maps, features, training=False)
    named = zip(_unlike(context.branch_titles), maps, strict=True)
    return {
        **{title: _strength(branch) for title, branch in named},
        "together": _strength(together),
    }


def _unlike(titles):
    """Numbers titles that occurred before."""
    for i, title in enumerate(titles):
        count = titles[: i + 1].count(title)
        yield title if count == 1 else f"{title} ({count})"


def _strength(features):
    values = keras.ops.convert_to_numpy(features)[0].astype("float32")
    return np.sqrt((values**2).mean(axis=-1))
