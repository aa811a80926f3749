"""Deep aggregation of pools of several sizes, in turn or in parallel.

Shape legend: B batch, h x w feature cells, C input channels, F = `filters`,
G = `branch_filters`, R number of pool strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.layers.batch_norm import normalization
from keras_aspp.layers.checks import check_batch_norm
from keras_aspp.layers.context import ContextLayer
from keras_aspp.layers.image_pooling import mean_of_map
from keras_aspp.layers.resize import BilinearResize
from keras_aspp.layers.rewritable import Conv2D
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_int
from keras_aspp.utils.types import Activation, BatchNorm, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class DAPPM(ContextLayer):
    """Average pools of several sizes, each refined together with another.

    Scales: a 1x1 convolution of the input; of its averages over windows of
    `2 s + 1` cells, one every `s` cells, upsampled by `s`; of its average over
    the whole map. Each but the first is added to another scale and passes a
    3x3 convolution: to the scale before it, so that it reads all smaller ones
    (DAPPM), or with `parallel=True` to the first one (PAPPM). All scales are
    concatenated and pass a 1x1 convolution; a 1x1 convolution of the input is
    added, then dropped out. Every convolution comes after its batch norm and
    activation, so the result is linear.

    Args:
        filters: int > 0. Channels of the result. Defaults to 256.
        branch_filters: int > 0, channels of each scale, or `None` for half of
            `filters`. Defaults to `None`.
        pool_strides: non-empty sequence of ints > 0, in feature cells.
            Defaults to (2, 4, 8).
        parallel: bool. Scales do not read each other (PAPPM). Defaults to
            `False`.
        dropout: float in [0, 1), rate at the end. Defaults to 0.
        activation: Keras activation or its name. Defaults to `"relu"`.
        batch_norm: see `AtrousConv2D`. Defaults to `True`. In training, the
            statistics of the global scale come from one value per image, see
            `ImagePooling`.
        batch_norm_momentum: float in [0, 1). Defaults to 0.99.
        batch_norm_epsilon: float > 0. Defaults to 1e-3.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float; height and width may
        be `None`.

    Output shape:
        `(batch_size, height, width, filters)`, the layer's compute dtype.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> layer = DAPPM(filters=4)
    >>> layer(keras.ops.ones((2, 9, 7, 5))).shape
    TensorShape([2, 9, 7, 4])

    Reference:
        DAPPM: [Hong et al., 2021](https://arxiv.org/abs/2101.06085); PAPPM:
        [Xu et al., 2022](https://arxiv.org/abs/2206.02066). Windows at the
        border include the zeros of their padding, as in the published code.
        Differs from it in: a pooled map is upsampled by its stride and
        cropped, so that its cells lie at the same place at every size, which
        is equal where height and width are multiples of the strides; the four
        groups of PAPPM's 3x3 convolution are four convolutions.
    """

    rates_argument = "pool_strides"

    def __init__(
        self,
        filters: int = 256,
        branch_filters: int | None = None,
        pool_strides: Sequence[int] = (2, 4, 8),
        parallel: bool = False,
        dropout: float = 0.0,
        activation: Activation = "relu",
        batch_norm: BatchNorm = True,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            check_int("filters", filters),
            dropout,
            activation,
            check_batch_norm(batch_norm),
            batch_norm_momentum,
            batch_norm_epsilon,
            **kwargs,
        )
        if branch_filters is not None:
            branch_filters = check_int("branch_filters", branch_filters)
        self.branch_filters = branch_filters
        self.pool_strides = _check_strides(pool_strides)
        self.parallel = bool(parallel)
        width = branch_filters or max(filters // 2, 1)
        count = len(self.pool_strides) + 1  # the global scale included
        self.pools = [_Pool(s, name=f"pool_{s}") for s in self.pool_strides]
        self.scales = [
            self._unit(width, 1, f"scale_{i}") for i in range(count + 1)
        ]
        self.resizes = [
            BilinearResize(scale=s, dtype=self.dtype_policy, name=f"resize_{s}")
            for s in self.pool_strides
        ]
        self.processes = [
            self._unit(width, 3, f"process_{i}") for i in range(1, count + 1)
        ]
        self.compression = self._unit(filters, 1, "compression")
        self.shortcut = self._unit(filters, 1, "shortcut")
        self.add_dropout()

    def _unit(self, filters, kernel_size, name):
        return _PreActivated(filters, kernel_size, name=name, **self.common)

    def build(self, input_shape: Shape) -> None:
        outer = input_shape[:-1]
        for scale in self.scales[:-1]:
            scale.build(input_shape)
        self.scales[-1].build((input_shape[0], 1, 1, input_shape[-1]))
        width = self.scales[0].conv.filters
        for process in self.processes:
            process.build((*outer, width))
        self.compression.build((*outer, width * len(self.scales)))
        self.shortcut.build(input_shape)

    @property
    def normalized(self) -> bool:
        # Published before a head that begins with batch norm.
        return False

    @property
    def branch_titles(self) -> list[str]:
        pools = [f"pool {2 * s + 1}" for s in self.pool_strides]
        return ["1x1", *pools, "image pooling"]

    def branch_maps(
        self, inputs: Tensor, training: bool | None = None
    ) -> list[Tensor]:
        maps = [self.scales[0](inputs, training=training)]  # (B, h, w, G)
        for i, process in enumerate(self.processes):
            scale = self.scales[i + 1]
            if i < len(self.pools):
                x = scale(self.pools[i](inputs), training=training)
                x = self.resizes[i](x, reference=inputs)
                x = ops.cast(x, self.compute_dtype)
            else:
                # (B, 1, 1, G)
                x = scale(mean_of_map(inputs), training=training)
            other = maps[0] if self.parallel else maps[-1]
            maps.append(process(x + other, training=training))
        return maps

    def fuse(
        self, maps: list[Tensor], inputs: Tensor, training: bool | None
    ) -> Tensor:
        x = ops.concatenate(maps, axis=-1)  # (B, h, w, (2+R)G)
        x = self.compression(x, training=training)
        x = x + self.shortcut(inputs, training=training)
        return self.drop(x, training=training)  # (B, h, w, F)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "branch_filters": self.branch_filters,
            "pool_strides": self.pool_strides,
            "parallel": self.parallel,
        }


class _Pool(keras.layers.Layer):
    """Average over `2 stride + 1` cells, zeros beyond the map included.

    In float32: a sum of many cells loses digits, or overflows.
    """

    def __init__(self, stride, **kwargs):
        super().__init__(**kwargs, dtype="float32")
        self.pad = keras.layers.ZeroPadding2D(
            stride, dtype="float32", name=f"{self.name}_pad"
        )
        self.average = keras.layers.AveragePooling2D(
            2 * stride + 1,
            strides=stride,
            dtype="float32",
            name=f"{self.name}_average",
        )

    def call(self, inputs):
        return self.average(self.pad(inputs))


class _PreActivated(keras.layers.Layer):
    """Batch norm -> activation -> convolution."""

    def __init__(
        self,
        filters,
        kernel_size,
        activation,
        batch_norm,
        batch_norm_momentum,
        batch_norm_epsilon,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.norm = normalization(
            batch_norm,
            batch_norm_momentum,
            batch_norm_epsilon,
            dtype=self.dtype_policy,
            name="norm",
        )
        self.activation = activation
        self.conv = Conv2D(
            filters,
            kernel_size,
            padding="same",
            use_bias=not batch_norm,
            kernel_initializer="he_normal",
            dtype=self.dtype_policy,
            name="conv",
        )

    def build(self, input_shape):
        if self.norm is not None:
            self.norm.build(input_shape)
        self.conv.build(input_shape)

    def call(self, inputs, training=None):
        x = inputs
        if self.norm is not None:
            x = self.norm(x, training=training)
        return self.conv(self.activation(x))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.conv.filters)


def _check_strides(strides):
    """Returns the strides as a tuple, or raises `ValueError`."""
    sequence = isinstance(strides, (list, tuple)) and len(strides) > 0
    if not sequence or any(type(s) is not int or s < 1 for s in strides):
        raise InputError(
            "`pool_strides` must be a non-empty sequence of ints > 0. "
            f"Received: pool_strides={strides}"
        )
    return tuple(strides)
