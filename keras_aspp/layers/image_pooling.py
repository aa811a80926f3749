"""Image-level pooling, the global branch of ASPP.

Shape legend: B batch, h x w feature cells, C input channels, F = `filters`.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.utils.types import Activation, BatchNorm, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class ImagePooling(keras.layers.Layer):
    """Averages a feature map over space and broadcasts the result over it.

    mean over h x w -> 1x1 convolution -> batch norm -> ReLU -> broadcast to
    h x w. A bilinear resize of a 1x1 map *is* a broadcast, so no resize op is
    emitted. The mean is taken in float32.

    Args:
        filters: int > 0. Output channels. Defaults to 256.
        activation: Keras activation or its name. Defaults to `"relu"`.
        batch_norm: see `AtrousConv2D`. Defaults to `True`. In training, its
            statistics come from one value per image, so a batch of one image
            trains nothing here, except with `"group"`.
        batch_norm_momentum: float in [0, 1). Defaults to 0.99.
        batch_norm_epsilon: float > 0. Defaults to 1e-3.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float; height and width may
        be `None`.

    Output shape:
        `(batch_size, height, width, filters)`, the layer's compute dtype.

    Raises:
        ValueError: `filters` is not a positive int.

    Example:
    >>> ImagePooling(filters=4)(keras.ops.ones((2, 9, 7, 5))).shape
    TensorShape([2, 9, 7, 4])

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 3.3.
        Differs from it in: nothing.
    """

    def __init__(
        self,
        filters: int = 256,
        activation: Activation = "relu",
        batch_norm: BatchNorm = True,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.conv = AtrousConv2D(
            filters,
            kernel_size=1,
            activation=activation,
            batch_norm=batch_norm,
            batch_norm_momentum=batch_norm_momentum,
            batch_norm_epsilon=batch_norm_epsilon,
            dtype=self.dtype_policy,
            name="conv",
        )

    def build(self, input_shape: Shape) -> None:
        self.conv.build((input_shape[0], 1, 1, input_shape[-1]))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        pooled = self.pool(inputs, training)
        shape = ops.shape(inputs)
        return ops.broadcast_to(pooled, (*shape[:3], pooled.shape[-1]))

    def pool(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Computes the branch before the broadcast, (B, 1, 1, F)."""
        mean = ops.cast(mean_of_map(inputs), self.compute_dtype)
        return self.conv(mean, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.conv.filters)

    def get_config(self) -> dict[str, Any]:
        conv = self.conv.get_config()
        names = (
            "filters",
            "activation",
            "batch_norm",
            "batch_norm_momentum",
            "batch_norm_epsilon",
        )
        return {**super().get_config(), **{name: conv[name] for name in names}}


def mean_of_map(x: Tensor) -> Tensor:
    """Computes the mean over space, float32 (B, 1, 1, C).

    float16 sums of a large map overflow, so the mean is in float32.

    Args:
        x: float tensor (B, h, w, C).
    """
    return ops.mean(ops.cast(x, "float32"), axis=(1, 2), keepdims=True)
