"""SkipFusion: a 1x1 convolution of a coarse map and a fine one.

Shape legend: B batch, h x w cells of the coarse map, H x W of the fine one, C
and D their channels, F = `filters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.layers.resize import BilinearResize
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class SkipFusion(AtrousConv2D):
    """Fuses an upsampled map and a finer one by a 1x1 convolution.

    Equal to resize -> concatenate -> 1x1 convolution -> batch norm ->
    activation, with the weights of that `AtrousConv2D`. A 1x1 convolution and
    a bilinear resize commute. So the coarse map's part of the kernel is
    applied before the resize, on `scale ** 2` times fewer cells. The two
    products are added.

    Args:
        filters: int > 0. Output channels.
        scale: int > 0. Cells of the fine map per cell of the coarse one.
        align_corners: bool, see `BilinearResize`. Defaults to `False`.
        shift: `(down, right)`, see `BilinearResize`. Defaults to (0, 0).
        **kwargs: further arguments of `AtrousConv2D` without `kernel_size`,
            `atrous_rate` and `separable`.

    Call arguments:
        inputs: list of the coarse map (B, h, w, C) and the fine one
            (B, H, W, D), float.

    Output shape:
        `(B, H, W, filters)`, the layer's compute dtype.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> coarse, fine = ops.ones((1, 3, 4, 2)), ops.ones((1, 6, 8, 5))
    >>> SkipFusion(filters=4, scale=2)([coarse, fine]).shape
    TensorShape([1, 6, 8, 4])
    """

    def __init__(
        self,
        filters: int,
        scale: int,
        align_corners: bool = False,
        shift: Sequence[float] = (0, 0),
        **kwargs: Any,
    ) -> None:
        fixed = sorted({"separable", "atrous_rate", "kernel_size"} & {*kwargs})
        if fixed:
            raise InputError(
                "`SkipFusion` is a 1x1 convolution and takes no "
                f"`{fixed[0]}`. Received: {fixed[0]}={kwargs[fixed[0]]!r}"
            )
        super().__init__(filters, kernel_size=1, **kwargs)
        self.resize = BilinearResize(
            scale=scale,
            align_corners=align_corners,
            shift=shift,
            dtype=self.dtype_policy,
            name="resize",
        )

    def build(self, input_shape: Sequence[Shape]) -> None:
        coarse, fine = input_shape
        self.conv.build((*fine[:-1], coarse[-1] + fine[-1]))
        if self.norm is not None:
            self.norm.build(self.compute_output_shape(input_shape))

    def call(
        self, inputs: Sequence[Tensor], training: bool | None = None
    ) -> Tensor:
        coarse, fine = inputs
        channels = coarse.shape[-1]
        kernel = ops.cast(self.conv.kernel, self.compute_dtype)
        x = _project(coarse, kernel[:, :, :channels])  # (B, h, w, F)
        x = self.resize(x, reference=fine)  # (B, H, W, F), float32
        y = _project(fine, kernel[:, :, channels:])  # (B, H, W, F)
        if self.conv.use_bias:
            y = y + ops.cast(self.conv.bias, self.compute_dtype)
        x = ops.cast(x, self.compute_dtype) + y
        return self._finish(x, self.norm, training)

    def compute_output_shape(self, input_shape: Sequence[Shape]) -> Shape:
        _, fine = input_shape
        return super().compute_output_shape(fine)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for fixed in ("kernel_size", "atrous_rate", "separable"):
            del config[fixed]
        return {
            **config,
            "scale": self.resize.scale,
            "align_corners": self.resize.align_corners,
            "shift": self.resize.shift,
        }


def _project(x, kernel):
    # Unlike `lowering.convolve`, it takes symbolic maps, so that
    # `analysis.trace` finds both products.
    return ops.conv(x, kernel, data_format="channels_last")
