"""Atrous cascade: convolutions of several rates, one after the other.

Shape legend: B batch, h x w feature cells, C input channels, F = `filters`,
R number of rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from keras_aspp.layers.checks import (
    check_atrous_rates,
    check_fusion,
    check_image_pooling,
    rate_text,
)
from keras_aspp.layers.context import ContextLayer
from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import (
    Activation,
    BatchNorm,
    ImagePoolingMode,
    Rate,
    Shape,
    Tensor,
)

FUSIONS = ("concat", "sum")


@keras.saving.register_keras_serializable(package="keras_aspp")
class AtrousCascade(ContextLayer):
    """A chain of atrous convolutions whose results are all used.

    1x1 convolution -> 3x3 convolution of the first rate -> of the second, and
    so on; image-level pooling beside them. Each stage reads the one before,
    so the receptive field grows by the sum of the rates, not by the largest.
    Fusion `"concat"`: the results of all stages and the pooled branch are
    concatenated, projected by a 1x1 convolution and dropped out. Fusion
    `"sum"`: they are added, then dropped out.

    Args:
        filters: int > 0. Channels of every stage and of the result. Defaults
            to 256.
        atrous_rates: non-empty sequence of ints > 0 or pairs `(height,
            width)`, in feature cells, in the order of the stages. Defaults to
            (18, 12, 6), the published order, for output stride 16. On small
            maps rising rates gained (docs/ablation.md).
        fusion: `"concat"` (WASP) or `"sum"` (D-LinkNet). Defaults to
            `"concat"`.
        separable: bool. Depthwise separable 3x3 convolutions. Defaults to
            `False`.
        image_pooling: `True`, `False`, or `"bias"`: without batch norm, whose
            statistics come from one value per image there, too few in small
            batches (docs/ablation.md). Defaults to `True`.
        dropout: float in [0, 1), rate after the fusion. Defaults to 0.1.
        activation: Keras activation or its name. Defaults to `"relu"`.
        batch_norm: see `AtrousConv2D`. Defaults to `True`.
        batch_norm_momentum: float in [0, 1). Defaults to 0.99.
        batch_norm_epsilon: float > 0. Defaults to 1e-3.
        point: bool. The 1x1 convolution. Without it, the input takes its
            place and must have `filters` channels. Defaults to `True`.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float; height and width may
        be `None`.

    Output shape:
        `(batch_size, height, width, filters)`, the layer's compute dtype.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> layer = AtrousCascade(filters=4, atrous_rates=(2, 1))
    >>> layer(keras.ops.ones((2, 9, 7, 5))).shape
    TensorShape([2, 9, 7, 4])

    Reference:
        `"concat"`: WASP, [Artacho & Savakis,
        2019](https://arxiv.org/abs/1912.03183), as in the code of UniPose.
        Differs from it in: the linear 1x1 convolution that all stages share
        there is left out; the projection, linear in the stages too, contains
        it. `"sum"` with rates (1, 2, 4, 8), `point=False` and
        `image_pooling=False`: the center of D-LinkNet, Zhou et al., 2018,
        "D-LinkNet: LinkNet with Pretrained Encoder and Dilated Convolution
        for High Resolution Satellite Imagery Road Extraction". Differs from
        its code in: batch norm, unless `batch_norm=False`.
    """

    def __init__(
        self,
        filters: int = 256,
        atrous_rates: Sequence[Rate] = (18, 12, 6),
        fusion: Literal["concat", "sum"] = "concat",
        separable: bool = False,
        image_pooling: ImagePoolingMode = True,
        dropout: float = 0.1,
        activation: Activation = "relu",
        batch_norm: BatchNorm = True,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        *,
        point: bool = True,
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
        self.atrous_rates = check_atrous_rates(atrous_rates)
        self.fusion = check_fusion(fusion, FUSIONS)
        self.separable = bool(separable)
        self.image_pooling = check_image_pooling(image_pooling)
        self.point = bool(point)
        self.first = self.pooling = self.projection = None
        if point:
            self.first = AtrousConv2D(
                filters, kernel_size=1, name="point", **self.common
            )
        self.stages = list(
            self.atrous_stages(filters, self.atrous_rates, separable=separable)
        )
        if image_pooling:
            self.pooling = self.pooling_branch(image_pooling, filters)
        if fusion == "concat":
            self.projection = AtrousConv2D(
                filters, kernel_size=1, name="projection", **self.common
            )
        self.add_dropout()

    def build(self, input_shape: Shape) -> None:
        inner = (*input_shape[:-1], self.filters)
        if self.first is not None:
            self.first.build(input_shape)
        elif input_shape[-1] != self.filters:
            raise InputError(
                "Without `point`, the input must have `filters` channels. "
                f"Received: filters={self.filters}, an input of "
                f"{input_shape[-1]} channels"
            )
        for stage in self.stages:
            stage.build(inner)
        if self.pooling is not None:
            self.pooling.build(input_shape)
        if self.projection is not None:
            channels = self.filters * len(self.branch_titles)
            self.projection.build((*inner[:-1], channels))

    @property
    def normalized(self) -> bool:
        return self.projection is not None

    @property
    def branch_titles(self) -> list[str]:
        titles = [f"rate {rate_text(rate)}" for rate in self.atrous_rates]
        titles = ["1x1" if self.point else "input", *titles]
        return titles + ["image pooling"] * bool(self.image_pooling)

    def branch_maps(
        self, inputs: Tensor, training: bool | None = None
    ) -> list[Tensor]:
        x = inputs
        if self.first is not None:
            x = self.first(x, training=training)
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1], training=training))
        if self.pooling is not None:
            maps.append(self.pooling(inputs, training=training))
        return maps

    def fuse(
        self, maps: list[Tensor], inputs: Tensor, training: bool | None
    ) -> Tensor:
        if self.projection is None:
            fused = sum(maps[1:], start=maps[0])
        else:
            fused = ops.concatenate(maps, axis=-1)  # (B, h, w, (2+R)F)
            fused = self.projection(fused, training=training)
        return self.drop(fused, training=training)  # (B, h, w, F)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "atrous_rates": self.atrous_rates,
            "fusion": self.fusion,
            "separable": self.separable,
            "image_pooling": self.image_pooling,
            "point": self.point,
        }
