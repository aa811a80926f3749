"""Densely connected Atrous Spatial Pyramid Pooling.

Shape legend: B batch, h x w feature cells, C input channels, F = `filters`,
R number of rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.layers.checks import check_atrous_rates, rate_text
from keras_aspp.layers.context import ContextLayer
from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.utils.types import (
    Activation,
    BatchNorm,
    Rate,
    Shape,
    Tensor,
)


@keras.saving.register_keras_serializable(package="keras_aspp")
class DenseASPP(ContextLayer):
    """Densely connected atrous convolutions of rising rates.

    For each rate: the input and the outputs so far are concatenated, narrowed
    by a 1x1 convolution, and passed to a 3x3 convolution of that rate. The
    input and all outputs are concatenated in this order, then dropped out.

    Args:
        filters: int > 0. Channels that each rate adds. Defaults to 64.
        bottleneck_filters: int > 0. Channels between the two convolutions.
            Defaults to 256.
        atrous_rates: non-empty sequence of ints > 0 or pairs `(height, width)`,
            in feature cells.
            Defaults to (3, 6, 12, 18, 24), which is for output stride 8.
        separable: bool. Depthwise separable 3x3 convolutions. Defaults to
            `False`.
        dropout: float in [0, 1), rate after the concatenation. Defaults to
            0.1.
        activation: Keras activation or its name. Defaults to `"relu"`.
        batch_norm: see `AtrousConv2D`. Defaults to `True`.
        batch_norm_momentum: float in [0, 1). Defaults to 0.99.
        batch_norm_epsilon: float > 0. Defaults to 1e-3.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float; height and width may
        be `None`.

    Output shape:
        `(batch_size, height, width, channels + filters * number of rates)`,
        the layer's compute dtype.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> layer = DenseASPP(filters=4, bottleneck_filters=6, atrous_rates=(1, 2))
    >>> layer(keras.ops.ones((2, 9, 7, 5))).shape
    TensorShape([2, 9, 7, 13])

    Reference:
        Yang et al., 2018, "DenseASPP for Semantic Segmentation in Street
        Scenes", section 3. Differs from it in: batch norm and activation come
        after a convolution, not before it; dropout once, at the end.
    """

    def __init__(
        self,
        filters: int = 64,
        bottleneck_filters: int = 256,
        atrous_rates: Sequence[Rate] = (3, 6, 12, 18, 24),
        separable: bool = False,
        dropout: float = 0.1,
        activation: Activation = "relu",
        batch_norm: BatchNorm = True,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            dropout,
            activation,
            batch_norm,
            batch_norm_momentum,
            batch_norm_epsilon,
            **kwargs,
        )
        self.bottleneck_filters = bottleneck_filters
        self.atrous_rates = check_atrous_rates(atrous_rates)
        self.separable = bool(separable)
        stages = self.atrous_stages(
            filters, self.atrous_rates, separable=separable
        )
        self.bottlenecks, self.atrous = [], []
        for i in range(1, len(self.atrous_rates) + 1):
            self.bottlenecks.append(
                AtrousConv2D(
                    bottleneck_filters,
                    kernel_size=1,
                    name=f"bottleneck_{i}",
                    **self.common,
                )
            )
            self.atrous.append(next(stages))
        self.add_dropout()

    def build(self, input_shape: Shape) -> None:
        *outer, channels = input_shape
        for bottleneck, atrous in zip(
            self.bottlenecks, self.atrous, strict=True
        ):
            bottleneck.build((*outer, channels))
            atrous.build((*outer, self.bottleneck_filters))
            channels += self.filters

    @property
    def branch_titles(self) -> list[str]:
        return [f"rate {rate_text(rate)}" for rate in self.atrous_rates]

    def branch_maps(
        self, inputs: Tensor, training: bool | None = None
    ) -> list[Tensor]:
        x, maps = inputs, []
        for bottleneck, atrous in zip(
            self.bottlenecks, self.atrous, strict=True
        ):
            if maps:
                x = ops.concatenate([inputs, *maps], axis=-1)
            narrow = bottleneck(x, training=training)
            maps.append(atrous(narrow, training=training))
        return maps

    def fuse(
        self, maps: list[Tensor], inputs: Tensor, training: bool | None
    ) -> Tensor:
        x = ops.concatenate([inputs, *maps], axis=-1)
        return self.drop(x, training=training)  # (B, h, w, C + RF)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        added = self.filters * len(self.atrous_rates)
        return (*input_shape[:-1], input_shape[-1] + added)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "bottleneck_filters": self.bottleneck_filters,
            "atrous_rates": self.atrous_rates,
            "separable": self.separable,
        }
