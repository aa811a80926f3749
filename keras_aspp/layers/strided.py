"""Keras' strided layers, remembering the strides they were built with.

A backbone made dense trades strides for dilation. These subclasses have the
weights and names of Keras' layers; `original` holds the configuration that
was traded, so that the trade can be undone or changed, also after a reload.
They convolve through `layers.lowering`.
"""

import keras

from keras_aspp.layers import lowering


class _Original:
    """Mixin: keeps the configuration values of before a rewrite.

    Args:
        original: dict or `None`. Values of this layer's configuration as they
            stood before the first rewrite, e.g. `{"strides": [2, 2]}`.
    """

    def __init__(self, *args, original=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.original = dict(original or {})

    def get_config(self):
        return {**super().get_config(), "original": dict(self.original)}


@keras.saving.register_keras_serializable(package="keras_aspp")
class Conv2D(_Original, keras.layers.Conv2D):
    """`keras.layers.Conv2D` that can be made dense."""

    def convolution_op(self, inputs, kernel):
        return lowering.convolve(
            inputs, kernel, self.strides, self.padding, self.dilation_rate
        )


@keras.saving.register_keras_serializable(package="keras_aspp")
class DepthwiseConv2D(_Original, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` that can be made dense."""

    def call(self, inputs):
        outputs = lowering.convolve_depthwise(
            inputs,
            self.kernel,
            self.strides,
            self.padding,
            self.dilation_rate,
        )
        if self.use_bias:
            outputs = outputs + self.bias
        return self.activation(outputs) if self.activation else outputs


@keras.saving.register_keras_serializable(package="keras_aspp")
class ZeroPadding2D(_Original, keras.layers.ZeroPadding2D):
    """`keras.layers.ZeroPadding2D`; padding of zero is no operation."""

    def call(self, inputs):
        if self.padding == ((0, 0), (0, 0)):
            return inputs
        return super().call(inputs)
