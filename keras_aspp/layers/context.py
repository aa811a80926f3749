"""ContextLayer: what all layers share that widen what a cell reads.

Shape legend: B batch, h x w feature cells, C input channels, F `filters`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import keras

from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.layers.image_pooling import ImagePooling
from keras_aspp.utils.numeric import check_number
from keras_aspp.utils.types import (
    Activation,
    BatchNorm,
    ImagePoolingMode,
    Rate,
    Shape,
    Tensor,
)


class ContextLayer(keras.layers.Layer):
    """Base of ASPP and its successors: several maps of one map, fused.

    A subclass computes its maps in `branch_maps`, names them in
    `branch_titles`, and fuses them in `fuse`. It creates its sublayers with
    `common`, and dropout with `add_dropout`.

    Args:
        filters: int > 0. Output channels.
        dropout: float in [0, 1).
        activation: Keras activation or its name.
        batch_norm: see `AtrousConv2D`.
        batch_norm_momentum: float in [0, 1).
        batch_norm_epsilon: float > 0.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).
    """

    # The argument that states distances in feature cells.
    rates_argument = "atrous_rates"

    def __init__(
        self,
        filters: int,
        dropout: float,
        activation: Activation,
        batch_norm: BatchNorm,
        batch_norm_momentum: float,
        batch_norm_epsilon: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.dropout = check_number("dropout", dropout, "[0, 1)")
        self.activation = keras.activations.get(activation)
        self.batch_norm = batch_norm
        self.batch_norm_momentum = batch_norm_momentum
        self.batch_norm_epsilon = batch_norm_epsilon

    @property
    def common(self) -> dict[str, Any]:
        """Returns the arguments that every sublayer with batch norm takes."""
        return {
            "activation": self.activation,
            "batch_norm": self.batch_norm,
            "batch_norm_momentum": self.batch_norm_momentum,
            "batch_norm_epsilon": self.batch_norm_epsilon,
            "dtype": self.dtype_policy,
        }

    def atrous_stages(
        self, filters: int, rates: Sequence[Rate], **kwargs: Any
    ) -> Iterator[AtrousConv2D]:
        """Yields a 3x3 convolution of each rate, `atrous_1`, `atrous_2`, ...

        Each is created when it is taken: the order of creation decides the
        initial weights of a seed.

        Args:
            filters: int > 0. Channels of each.
            rates: ints > 0 or pairs `(height, width)`, in feature cells.
            **kwargs: further arguments of `AtrousConv2D`.
        """
        for i, rate in enumerate(rates, start=1):
            yield AtrousConv2D(
                filters,
                atrous_rate=rate,
                name=f"atrous_{i}",
                **{**self.common, **kwargs},
            )

    def pooling_branch(
        self, mode: ImagePoolingMode, filters: int, **kwargs: Any
    ) -> ImagePooling:
        """Returns the image pooling, `image_pooling`.

        Args:
            mode: `True`, or `"bias"` for one without batch norm.
            filters: int > 0. Channels of it.
            **kwargs: further arguments of `ImagePooling`.
        """
        if mode == "bias":
            kwargs["batch_norm"] = False
        return ImagePooling(
            filters, name="image_pooling", **{**self.common, **kwargs}
        )

    def add_dropout(self) -> None:
        """Creates the sublayer `drop`; call it last in the constructor."""
        # The order of creation is that of the variables in a checkpoint.
        self.drop = keras.layers.Dropout(
            self.dropout, dtype=self.dtype_policy, name="dropout"
        )

    @property
    def normalized(self) -> bool:
        """True if the module ends in a convolution with batch norm."""
        return True

    @property
    def branch_titles(self) -> list[str]:
        """Names of `branch_maps`, for figures."""
        raise NotImplementedError

    def branch_maps(
        self, inputs: Tensor, training: bool | None = None
    ) -> list[Tensor]:
        """Computes the maps that are fused, (B, h, w, any) each."""
        raise NotImplementedError

    def fuse(
        self, maps: list[Tensor], inputs: Tensor, training: bool | None
    ) -> Tensor:
        """Computes the result of the layer from `branch_maps`."""
        raise NotImplementedError

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        maps = self.branch_maps(inputs, training=training)
        return self.fuse(maps, inputs, training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.filters)

    def with_rates(self, rates: Sequence[Rate], **changes: Any) -> Self:
        """Copies the layer, without weights, with other distances.

        Args:
            rates: ints > 0 or pairs, in feature cells, for `rates_argument`.
            **changes: further configuration values to replace.
        """
        changes[self.rates_argument] = rates
        return type(self).from_config({**self.get_config(), **changes})

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "dropout": self.dropout,
            "activation": keras.activations.serialize(self.activation),
            "batch_norm": self.batch_norm,
            "batch_norm_momentum": self.batch_norm_momentum,
            "batch_norm_epsilon": self.batch_norm_epsilon,
        }
