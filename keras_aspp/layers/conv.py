"""AtrousConv2D: convolution, batch norm, activation.

Defines padding, rate, dtype and batch-norm policy for all other layers.
Shape legend: B batch, h x w feature cells, C input channels, F = `filters`.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_aspp.layers.batch_norm import normalization
from keras_aspp.layers.checks import (
    check_atrous_rate,
    check_batch_norm,
    check_odd,
)
from keras_aspp.layers.initializers import fresh
from keras_aspp.layers.rewritable import Conv2D, DepthwiseConv2D
from keras_aspp.utils.numeric import check_int
from keras_aspp.utils.types import (
    Activation,
    BatchNorm,
    Initializer,
    Rate,
    Shape,
    Tensor,
)


@keras.saving.register_keras_serializable(package="keras_aspp")
class AtrousConv2D(keras.layers.Layer):
    """Atrous (dilated) convolution with batch norm and activation.

    Ordinary: k x k convolution -> batch norm -> activation.
    Separable: k x k depthwise -> batch norm -> activation -> 1x1 convolution
    -> batch norm -> activation. The rate applies to the k x k part. Padding is
    `"same"` and the stride is 1: the output has the size of the input.

    Args:
        filters: int > 0. Output channels.
        kernel_size: odd int > 0. Defaults to 3.
        atrous_rate: int > 0, or two of them, `(height, width)`, in feature
            cells. Distance between neighboring taps; 1 is an ordinary
            convolution. Defaults to 1.
        separable: bool. Defaults to `False`.
        activation: Keras activation or its name, or `None`. Defaults to
            `"relu"`.
        batch_norm: `True`: batch norm; `False`: a bias instead; `"freeze"`:
            training uses the moving statistics and updates no weight of
            batch norm; `"sync"`: batch statistics over all replicas of a
            `tf.distribute` strategy; `"group"`: `GroupNormalization`
            instead. Defaults to `True`.
        batch_norm_momentum: float in [0, 1). Defaults to 0.99.
        batch_norm_epsilon: float > 0. Defaults to 1e-3.
        kernel_initializer: Keras initializer. Defaults to `"he_normal"`.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float; height and width may
        be `None`.

    Output shape:
        `(batch_size, height, width, filters)`, the layer's compute dtype.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> layer = AtrousConv2D(filters=4, atrous_rate=2)
    >>> layer(keras.ops.ones((2, 9, 7, 5))).shape
    TensorShape([2, 9, 7, 4])

    Reference:
        [Chen et al., 2018](https://arxiv.org/abs/1802.02611), section 3.1.
        Differs from it in: the separable form has batch norm and activation
        after the depthwise part too, as its published code has.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        atrous_rate: Rate = 1,
        separable: bool = False,
        activation: Activation = "relu",
        batch_norm: BatchNorm = True,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        kernel_initializer: Initializer = "he_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = check_int("filters", filters)
        self.kernel_size = check_odd(kernel_size)
        self.atrous_rate = check_atrous_rate("atrous_rate", atrous_rate)
        self.separable = bool(separable)
        self.activation = keras.activations.get(activation)
        self.batch_norm = check_batch_norm(batch_norm)
        self.batch_norm_momentum = batch_norm_momentum
        self.batch_norm_epsilon = batch_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        spatial = {
            "kernel_size": self.kernel_size,
            "dilation_rate": self.atrous_rate,
            "padding": "same",
            "use_bias": not batch_norm,
            "dtype": self.dtype_policy,
        }
        if separable:
            self.depthwise = DepthwiseConv2D(
                depthwise_initializer=fresh(self.kernel_initializer),
                name="depthwise",
                **spatial,
            )
            self.depthwise_norm = self._norm("depthwise_norm")
            spatial |= {"kernel_size": 1, "dilation_rate": 1}
        self.conv = Conv2D(
            filters,
            kernel_initializer=fresh(self.kernel_initializer),
            name="conv",
            **spatial,
        )
        self.norm = self._norm("norm")

    def _norm(self, name):
        return normalization(
            self.batch_norm,
            self.batch_norm_momentum,
            self.batch_norm_epsilon,
            dtype=self.dtype_policy,
            name=name,
        )

    def tie_kernels(self, owner: AtrousConv2D) -> None:
        """Uses the kernels of another layer; call it before `build`.

        Bias and batch norm stay this layer's own.

        Args:
            owner: `AtrousConv2D` of the same `filters`, `kernel_size` and
                `separable`, which is built before this one.
        """
        self.conv.tie_kernel(owner.conv)
        if self.separable:
            self.depthwise.tie_kernel(owner.depthwise)

    @property
    def is_tied(self) -> bool:
        """True for a layer that uses the kernels of another one."""
        return self.conv.is_tied

    def build(self, input_shape: Shape) -> None:
        if self.separable:
            self.depthwise.build(input_shape)
            if self.depthwise_norm is not None:
                self.depthwise_norm.build(input_shape)
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build(self.compute_output_shape(input_shape))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        x = inputs
        if self.separable:
            x = self.depthwise(x)
            x = self._finish(x, self.depthwise_norm, training)  # (B, h, w, C)
        x = self.conv(x)
        return self._finish(x, self.norm, training)  # (B, h, w, F)

    def _finish(self, x, norm, training):
        if norm is not None:
            x = norm(x, training=training)
        return self.activation(x)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "atrous_rate": self.atrous_rate,
            "separable": self.separable,
            "activation": keras.activations.serialize(self.activation),
            "batch_norm": self.batch_norm,
            "batch_norm_momentum": self.batch_norm_momentum,
            "batch_norm_epsilon": self.batch_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
        }
