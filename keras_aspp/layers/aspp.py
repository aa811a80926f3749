"""Atrous Spatial Pyramid Pooling.

Shape legend: B batch, h x w feature cells, C input channels, F = `filters`,
R number of rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from keras_aspp.layers import lowering
from keras_aspp.layers.checks import (
    check_atrous_rates,
    check_fusion,
    check_image_pooling,
    rate_text,
)
from keras_aspp.layers.context import ContextLayer
from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.utils.types import (
    Activation,
    BatchNorm,
    ImagePoolingMode,
    Rate,
    Shape,
    Tensor,
)

FUSIONS = ("concat", "sum", "linear_sum")


@keras.saving.register_keras_serializable(package="keras_aspp")
class ASPP(ContextLayer):
    """Atrous Spatial Pyramid Pooling: parallel branches of different rates.

    Branches: 1x1 convolution; one 3x3 convolution per rate; image-level
    pooling. Fusion `"concat"`: the branches are concatenated in this order,
    projected by a convolution and dropped out. Fusion `"sum"`: they are
    added, then dropped out. Fusion `"linear_sum"`: branches without activation
    are added, then activated, then dropped out.

    With `shared=True`, all rates use one 3x3 kernel (two where `separable`),
    each followed by a batch norm of its own: kernel-sharing atrous convolution
    (KSAC). A border cell of a large rate reads little but padding; the kernel
    is trained by the small rates too.

    Args:
        filters: int > 0. Channels of every branch and of the result. Defaults
            to 256.
        atrous_rates: sequence of ints > 0 or pairs `(height, width)`, in
            feature cells; any number of them, or an empty one beside image
            pooling, as in LR-ASPP. Defaults to (6, 12, 18), which is for
            output stride 16.
        fusion: `"concat"` (DeepLabV3), `"sum"` (DeepLabV2's rule) or
            `"linear_sum"` (KSAC). Defaults to `"concat"`.
        separable: bool. Depthwise separable 3x3 branches. Defaults to `False`.
        image_pooling: `True`, `False`, or `"bias"`: without batch norm, whose
            statistics come from one value per image there, too few in small
            batches (docs/ablation.md). Defaults to `True`.
        dropout: float in [0, 1), rate after the fusion. Defaults to 0.1.
        activation: Keras activation or its name. Defaults to `"relu"`.
        batch_norm: see `AtrousConv2D`. Defaults to `True`.
        batch_norm_momentum: float in [0, 1). Defaults to 0.99.
        batch_norm_epsilon: float > 0. Defaults to 1e-3.
        projection_kernel_size: odd int > 0, of the convolution after the
            concatenation; 3 in DAFormer and mmsegmentation. Defaults to 1.
        shared: bool. One kernel for all rates. Defaults to `False`.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float; height and width may
        be `None`.

    Output shape:
        `(batch_size, height, width, filters)`, the layer's compute dtype.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> layer = ASPP(filters=4, atrous_rates=(1, 2))
    >>> layer(keras.ops.ones((2, 9, 7, 5))).shape
    TensorShape([2, 9, 7, 4])

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 3.3;
        `"sum"`: [Chen et al., 2016](https://arxiv.org/abs/1606.00915),
        section 3.2; `shared=True`: [Huang et al.,
        2019](https://arxiv.org/abs/1908.09443), with `"linear_sum"` or
        `"concat"`. Differs from them in: dropout is applied in the block,
        before the classifier, as in the published code.
    """

    def __init__(
        self,
        filters: int = 256,
        atrous_rates: Sequence[Rate] = (6, 12, 18),
        fusion: Literal["concat", "sum", "linear_sum"] = "concat",
        separable: bool = False,
        image_pooling: ImagePoolingMode = True,
        dropout: float = 0.1,
        activation: Activation = "relu",
        batch_norm: BatchNorm = True,
        batch_norm_momentum: float = 0.99,
        batch_norm_epsilon: float = 1e-3,
        *,
        projection_kernel_size: int = 1,
        shared: bool = False,
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
        self.atrous_rates = check_atrous_rates(
            atrous_rates, allow_empty=bool(image_pooling)
        )
        self.fusion = check_fusion(fusion, FUSIONS)
        self.separable = bool(separable)
        self.image_pooling = check_image_pooling(image_pooling)
        self.projection_kernel_size = projection_kernel_size
        self.shared = bool(shared)
        branch = self.common
        if fusion == "linear_sum":
            branch["activation"] = None
        # The order of creation decides the initial weights of a seed.
        self.branches = [
            AtrousConv2D(filters, kernel_size=1, name="point", **branch),
            *self.atrous_stages(
                filters,
                self.atrous_rates,
                separable=separable,
                activation=branch["activation"],
            ),
        ]
        for stage in self.branches[2:] if shared else ():
            stage.tie_kernels(self.branches[1])
        if image_pooling:
            self.branches.append(
                self.pooling_branch(
                    image_pooling, filters, activation=branch["activation"]
                )
            )
        self.projection = None
        if fusion == "concat":
            self.projection = AtrousConv2D(
                filters,
                kernel_size=projection_kernel_size,
                name="projection",
                **self.common,
            )
        self.add_dropout()

    def build(self, input_shape: Shape) -> None:
        for branch in self.branches:
            branch.build(input_shape)
        if self.projection is not None:
            channels = self.filters * len(self.branches)
            self.projection.build((*input_shape[:-1], channels))

    @property
    def normalized(self) -> bool:
        return self.projection is not None

    @property
    def branch_titles(self) -> list[str]:
        titles = ["1x1", *(f"rate {rate_text(r)}" for r in self.atrous_rates)]
        return titles + ["image pooling"] * bool(self.image_pooling)

    def branch_maps(
        self, inputs: Tensor, training: bool | None = None
    ) -> list[Tensor]:
        return [branch(inputs, training=training) for branch in self.branches]

    def fuse(
        self, maps: list[Tensor], inputs: Tensor, training: bool | None
    ) -> Tensor:
        if self.projection is None:
            fused = sum(maps[1:], start=maps[0])
            if self.fusion == "linear_sum":
                fused = self.activation(fused)
        else:
            fused = ops.concatenate(maps, axis=-1)  # (B, h, w, (2+R)F)
            fused = self.projection(fused, training=training)
        return self.drop(fused, training=training)  # (B, h, w, F)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if self._pooling_is_a_bias():
            return self._project_apart(inputs)
        return super().call(inputs, training=training)

    def _pooling_is_a_bias(self):
        """Returns True if the pooled branch is projected as one cell."""
        return (
            lowering.form() == "export"
            and self.image_pooling
            and self.projection is not None
            and self.projection_kernel_size == 1
            and self.projection.norm is None
        )

    def _project_apart(self, inputs):
        """Computes the block with the pooled branch added as a bias.

        The pooled branch has one value for all cells, so its share of the
        projection is one cell too. The converter then emits no broadcast.
        """
        *branches, pooling = self.branches
        maps = ops.concatenate([branch(inputs) for branch in branches], axis=-1)
        kernel, bias = self.projection.conv.kernel, self.projection.conv.bias
        rest, last = ops.split(kernel, [self.filters * len(branches)], axis=2)
        once = (1, 1)
        fused = lowering.convolve(maps, rest, once, "valid", once)
        pooled = lowering.convolve(
            pooling.pool(inputs), last, once, "valid", once
        )
        return self.projection.activation(fused + (pooled + bias))

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "atrous_rates": self.atrous_rates,
            "fusion": self.fusion,
            "separable": self.separable,
            "image_pooling": self.image_pooling,
        }
        if self.projection_kernel_size > 1:
            # Earlier versions load a layer without it.
            config["projection_kernel_size"] = self.projection_kernel_size
        if self.shared:
            # Earlier versions load a layer without it.
            config["shared"] = True
        return config
