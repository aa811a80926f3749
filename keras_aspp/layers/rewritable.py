"""Keras' strided layers, remembering the strides they were built with.

A backbone made dense trades strides for dilation. These subclasses have the
weights and names of Keras' layers; `original` holds the configuration that
was traded, so that the trade can be undone or changed, also after a reload.
They convolve and pool through `layers.lowering`.
"""

import keras
from keras import ops

from keras_aspp.layers import lowering
from keras_aspp.layers.initializers import is_depthwise, with_depthwise_fans


class RemembersOriginal:
    """Mixin: keeps the configuration values of before a rewrite.

    Args:
        original: dict or `None`. Values of this layer's configuration as they
            stood before the first rewrite, e.g. `{"strides": [2, 2]}`.
    """

    def __init__(self, *args, original=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.original = _listed(original or {})

    def get_config(self):
        return {**super().get_config(), "original": dict(self.original)}


def _listed(value):
    # As JSON has it, so that a configuration is the same after a reload.
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_listed(inner) for inner in value]
    return value


class _Window(RemembersOriginal):
    """Mixin: a window that slides over a map, with explicit padding.

    Args:
        pads: `((top, bottom), (left, right))`, cells around the map that
            count for nothing: zero for a convolution, left out by pooling.
            They take `padding="valid"`.
        anchor: `(row, column)` or `None`. The cell of the first sample in a
            dense map whose original layer was `same` and strided. Such a
            layer pads by the size of its input; given an anchor it pads as
            the original did, and its first sample stays where it was.
    """

    def __init__(self, *args, pads=None, anchor=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.pads = pads and tuple(tuple(pair) for pair in pads)
        self.anchor = anchor and tuple(anchor)

    @property
    def window(self):
        """Height and width of the kernel or pool, holes not counted."""
        return getattr(self, "kernel_size", None) or self.pool_size

    def padding_of(self, inputs):
        """`(padding, pads)` for a map, where pads may be `None`."""
        if self.anchor is None:
            return self.padding, self.pads
        before = lowering.original_padding(
            ops.shape(inputs)[1:3],
            self.window,
            self.original["strides"],
            self.original["dilation_rate"],
            self.dilation_rate,
            self.anchor,
        )
        return "valid", before

    def compute_output_shape(self, input_shape):
        if self.pads:
            batch, *size, channels = input_shape
            size = [
                n and n + sum(p) for n, p in zip(size, self.pads, strict=True)
            ]
            input_shape = (batch, *size, channels)
        return super().compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "pads": self.pads,
            "anchor": self.anchor,
        }


@keras.saving.register_keras_serializable(package="keras_aspp")
class Conv2D(_Window, keras.layers.Conv2D):
    """`keras.layers.Conv2D` that can be made dense."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if is_depthwise(self):
            self.kernel_initializer = with_depthwise_fans(
                self.kernel_initializer, self.groups
            )

    def convolution_op(self, inputs, kernel):
        padding, pads = self.padding_of(inputs)
        return lowering.convolve(
            lowering.pad(inputs, pads),
            kernel,
            self.strides,
            padding,
            self.dilation_rate,
        )


class _Depthwise(_Window):
    """Mixin: a depthwise kernel, drawn with the fans of one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.depthwise_initializer = with_depthwise_fans(
            self.depthwise_initializer
        )


@keras.saving.register_keras_serializable(package="keras_aspp")
class DepthwiseConv2D(_Depthwise, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` that can be made dense."""

    def call(self, inputs):
        padding, pads = self.padding_of(inputs)
        outputs = lowering.convolve_depthwise(
            lowering.pad(inputs, pads),
            self.kernel,
            self.strides,
            padding,
            self.dilation_rate,
        )
        if self.use_bias:
            outputs = outputs + self.bias
        return self.activation(outputs) if self.activation else outputs


@keras.saving.register_keras_serializable(package="keras_aspp")
class SeparableConv2D(_Depthwise, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` that can be made dense."""

    def call(self, inputs):
        padding, pads = self.padding_of(inputs)
        outputs = lowering.convolve_depthwise(
            lowering.pad(inputs, pads),
            self.depthwise_kernel,
            self.strides,
            padding,
            self.dilation_rate,
        )
        outputs = lowering.convolve(
            outputs, self.pointwise_kernel, (1, 1), "valid", (1, 1)
        )
        if self.use_bias:
            outputs = outputs + self.bias
        return self.activation(outputs) if self.activation else outputs


class _Pooling(_Window):
    """Mixin: pooling with holes.

    Args:
        dilation_rate: int or two ints > 0. Cells from one to the next in the
            window; strides must be 1 if it is not. Defaults to 1.
    """

    def __init__(self, *args, dilation_rate=1, **kwargs):
        super().__init__(*args, **kwargs)
        rate = dilation_rate
        self.dilation_rate = (rate, rate) if type(rate) is int else tuple(rate)

    def call(self, inputs):
        padding, pads = self.padding_of(inputs)
        return self.pool(
            inputs,
            self.pool_size,
            self.strides,
            padding,
            self.dilation_rate,
            pads,
        )

    def compute_output_shape(self, input_shape):
        batch, *size, channels = input_shape
        same = self.padding == "same"
        for axis, n in enumerate(size):
            if n is None:
                continue
            if not same:
                reach = (self.pool_size[axis] - 1) * self.dilation_rate[axis]
                n += sum(self.pads[axis]) if self.pads else 0
                n -= reach
            size[axis] = -(-n // self.strides[axis])
        return (batch, *size, channels)

    def get_config(self):
        return {**super().get_config(), "dilation_rate": self.dilation_rate}


@keras.saving.register_keras_serializable(package="keras_aspp")
class MaxPooling2D(_Pooling, keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` that can be made dense."""

    pool = staticmethod(lowering.pool_max)


@keras.saving.register_keras_serializable(package="keras_aspp")
class AveragePooling2D(_Pooling, keras.layers.AveragePooling2D):
    """`keras.layers.AveragePooling2D` that can be made dense."""

    pool = staticmethod(lowering.pool_average)


@keras.saving.register_keras_serializable(package="keras_aspp")
class ZeroPadding2D(RemembersOriginal, keras.layers.ZeroPadding2D):
    """`keras.layers.ZeroPadding2D`; padding of zero is no operation."""

    def call(self, inputs):
        if self.padding == ((0, 0), (0, 0)):
            return inputs
        return super().call(inputs)


@keras.saving.register_keras_serializable(package="keras_aspp")
class Cropping2D(RemembersOriginal, keras.layers.Cropping2D):
    """`keras.layers.Cropping2D` that can be made dense."""


@keras.saving.register_keras_serializable(package="keras_aspp")
class Trim(keras.layers.Layer):
    """Cuts maps at their lower and right ends to the size of the smallest.

    Dense maps that the original network joins may differ by less than one
    original cell there.

    Input shape:
        list of `(batch_size, height, width, channels)`.

    Output shape:
        the same list, height and width the smallest of all.
    """

    def call(self, inputs):
        shapes = [ops.shape(x) for x in inputs]
        height = lowering.smallest([shape[1] for shape in shapes])
        width = lowering.smallest([shape[2] for shape in shapes])
        return [x[:, :height, :width] for x in inputs]

    def compute_output_shape(self, input_shape):
        size = [
            None if None in n else min(n)
            for n in zip(*(shape[1:3] for shape in input_shape), strict=True)
        ]
        return [(shape[0], *size, *shape[3:]) for shape in input_shape]
