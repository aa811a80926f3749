"""Initializers with the fans of depthwise kernels."""

from __future__ import annotations

import copy

import keras

from keras_aspp.utils.keras_graph import sublayers
from keras_aspp.utils.types import Initializer

# Those that draw from a seed, which is their own if they were given none.
_RANDOM = (
    keras.initializers.Orthogonal,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.VarianceScaling,
)


def fresh(initializer: Initializer) -> Initializer:
    """Returns an initializer for another draw, if it was given no seed.

    One instance of Keras' random initializers gives two layers the same draw.
    Others are returned as they are, functions included.
    """
    if (
        not isinstance(initializer, _RANDOM)
        or initializer.get_config().get("seed") is not None
    ):
        return initializer
    copied = copy.copy(initializer)
    copied.seed = keras.initializers.RandomNormal().seed
    return copied


def with_depthwise_fans(
    initializer: Initializer, groups: int | None = None
) -> keras.initializers.Initializer:
    """Returns an initializer that counts the fans of a depthwise kernel.

    One output of a depthwise convolution sums over the k x k window of one
    channel: its fan in is `k * k`, its fan out `k * k * multiplier`. Keras
    counts `k * k * channels` in, so `"he_normal"` draws a variance that is
    `channels` times too small. Batch norm hides it in the forward pass, but
    the gradient, relative to the kernel, is `channels` times too large.

    Args:
        initializer: Keras initializer or its name. Only `VarianceScaling` and
            its subclasses (`"he_normal"`, `"glorot_uniform"`, ...) depend on
            fans; any other is returned unchanged.
        groups: int, or `None` for the kernel `(k, k, channels, multiplier)` of
            a depthwise layer. With an int, the kernel `(k, k, 1, channels)` of
            a `Conv2D` with as many groups as channels.

    Returns:
        Keras initializer, of the same class and seed.

    Reference:
        [He et al., 2015](https://arxiv.org/abs/1502.01852), section 2.2: the
        variance follows the number of connections of one response.
    """
    initializer = keras.initializers.get(initializer)
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return initializer
    copied = copy.copy(fresh(initializer))
    copied.input_axes = [0, 1]
    copied.output_axes = [0, 1, 3] if groups is None else [0, 1]
    return copied


def correct_depthwise_kernels(model: keras.Model) -> None:
    """Redraws the depthwise kernels of an untrained network.

    Args:
        model: built, untrained `keras.Model`. Its depthwise kernels, those of
            separable and grouped convolutions included, are assigned values
            drawn with the fans of `with_depthwise_fans`.
    """
    for layer in sublayers(model):
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            kernel, groups = layer.kernel, None
            initializer = layer.depthwise_initializer
        elif isinstance(layer, keras.layers.SeparableConv2D):
            kernel, groups = layer.depthwise_kernel, None
            initializer = layer.depthwise_initializer
        elif is_depthwise(layer):
            kernel, groups = layer.kernel, layer.groups
            initializer = layer.kernel_initializer
        else:
            continue
        draw = with_depthwise_fans(initializer, groups)
        kernel.assign(draw(kernel.shape, dtype=kernel.dtype))


def is_depthwise(layer: keras.layers.Layer) -> bool:
    """Returns True for a `Conv2D` with one group for each channel."""
    return (
        isinstance(layer, keras.layers.Conv2D)
        and layer.groups == layer.filters > 1
    )
