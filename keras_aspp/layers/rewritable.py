"""Keras' strided layers that remember their original configuration.

A dense backbone trades strides for dilation. These subclasses keep the weights
and names of Keras' layers. `original` stores the replaced configuration
values, so that the rewrite can be undone or changed, also after a reload.
Convolution and pooling go through `layers.lowering`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from keras_aspp.layers import lowering
from keras_aspp.layers.checks import (
    check_atrous_rate,
    check_channels_last,
    rate_pair,
)
from keras_aspp.layers.initializers import is_depthwise, with_depthwise_fans
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import (
    Activation,
    Constraint,
    Initializer,
    Pads,
    Regularizer,
    Shape,
    Size,
    Tensor,
)


class RemembersOriginal:
    """Mixin that stores the configuration values from before a rewrite.

    Args:
        original: dict or `None`. Configuration values of this layer before
            the first rewrite, e.g. `{"strides": [2, 2]}`.
    """

    def __init__(
        self, *args: Any, original: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.original: dict[str, Any] = as_lists(original or {})

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "original": dict(self.original)}


def as_lists(value: Any) -> Any:
    """Replaces tuples by lists, at any depth of dicts and sequences.

    So a configuration is equal before and after saving.
    """
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_lists(inner) for inner in value]
    return value


class _Window(RemembersOriginal):
    """Mixin for convolution and pooling with explicit padding.

    Args:
        pads: `((top, bottom), (left, right))`, cells added around the map:
            zeros for a convolution, excluded from pooling. Takes
            `padding="valid"`.
        anchor: `(row, column)` or `None`. Cell of the first sample in a dense
            map whose original layer was `same` and strided. The padding of
            such a layer depends on the size of its input. With an anchor it
            pads as the original did, and its first sample keeps its cell.
    """

    def __init__(self, *args, pads=None, anchor=None, **kwargs):
        super().__init__(*args, **kwargs)
        check_channels_last(self.data_format)
        self.pads = pads and tuple(tuple(pair) for pair in pads)
        self.anchor = anchor and tuple(anchor)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the kernel or pool, without dilation."""
        return getattr(self, "kernel_size", None) or self.pool_size

    def padding_of(self, inputs: Tensor) -> tuple[str, Pads | None]:
        """Returns `(padding, pads)` for a map; pads may be `None`."""
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


class _Tieable:
    """Mixin for a convolution that can use the kernel of another one."""

    _kernel_owner = None

    def tie_kernel(self, owner):
        """Uses the kernel of another layer, which is built before this one.

        Args:
            owner: layer of the same class, with a kernel of the same shape.
        """
        # A function, because Keras would track a layer as part of this one.
        self._kernel_owner = lambda: owner

    @property
    def is_tied(self):
        return self._kernel_owner is not None

    def add_weight(self, *args, name=None, **kwargs):
        if name == "kernel" and self.is_tied:
            return self._kernel_owner().kernel
        return super().add_weight(*args, name=name, **kwargs)

    # A file contains the kernel once, with its owner.

    def save_own_variables(self, store):
        if not self.is_tied:
            super().save_own_variables(store)
        elif self.use_bias:
            store["bias"] = self.bias

    def load_own_variables(self, store):
        if not self.is_tied:
            super().load_own_variables(store)
        elif self.use_bias:
            self.bias.assign(store["bias"])


@keras.saving.register_keras_serializable(package="keras_aspp")
class Conv2D(_Tieable, _Window, keras.layers.Conv2D):
    """`keras.layers.Conv2D` that can be made dense."""

    def __init__(
        self,
        filters: int,
        kernel_size: int | Size,
        strides: int | Size = (1, 1),
        padding: Literal["valid", "same"] = "valid",
        data_format: str | None = None,
        dilation_rate: int | Size = (1, 1),
        groups: int = 1,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        *,
        pads: Pads | None = None,
        anchor: Size | None = None,
        original: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            pads=pads,
            anchor=anchor,
            original=original,
            **kwargs,
        )
        if is_depthwise(self):
            self.kernel_initializer = with_depthwise_fans(
                self.kernel_initializer, self.groups
            )

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        padding, pads = self.padding_of(inputs)
        return lowering.convolve(
            lowering.pad(inputs, pads),
            kernel,
            self.strides,
            padding,
            self.dilation_rate,
        )


class _Depthwise(_Window):
    """Mixin for depthwise kernels, drawn with depthwise fans."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.depthwise_initializer = with_depthwise_fans(
            self.depthwise_initializer
        )


@keras.saving.register_keras_serializable(package="keras_aspp")
class DepthwiseConv2D(_Tieable, _Depthwise, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` that can be made dense."""

    def __init__(
        self,
        kernel_size: int | Size,
        strides: int | Size = (1, 1),
        padding: Literal["valid", "same"] = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: int | Size = (1, 1),
        activation: Activation = None,
        use_bias: bool = True,
        depthwise_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        depthwise_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        depthwise_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        *,
        pads: Pads | None = None,
        anchor: Size | None = None,
        original: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            depth_multiplier=depth_multiplier,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            depthwise_initializer=depthwise_initializer,
            bias_initializer=bias_initializer,
            depthwise_regularizer=depthwise_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            depthwise_constraint=depthwise_constraint,
            bias_constraint=bias_constraint,
            pads=pads,
            anchor=anchor,
            original=original,
            **kwargs,
        )

    def call(self, inputs: Tensor) -> Tensor:
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

    def __init__(
        self,
        filters: int,
        kernel_size: int | Size,
        strides: int | Size = (1, 1),
        padding: Literal["valid", "same"] = "valid",
        data_format: str | None = None,
        dilation_rate: int | Size = (1, 1),
        depth_multiplier: int = 1,
        activation: Activation = None,
        use_bias: bool = True,
        depthwise_initializer: Initializer = "glorot_uniform",
        pointwise_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        depthwise_regularizer: Regularizer = None,
        pointwise_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        depthwise_constraint: Constraint = None,
        pointwise_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        *,
        pads: Pads | None = None,
        anchor: Size | None = None,
        original: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            depth_multiplier=depth_multiplier,
            activation=activation,
            use_bias=use_bias,
            depthwise_initializer=depthwise_initializer,
            pointwise_initializer=pointwise_initializer,
            bias_initializer=bias_initializer,
            depthwise_regularizer=depthwise_regularizer,
            pointwise_regularizer=pointwise_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            depthwise_constraint=depthwise_constraint,
            pointwise_constraint=pointwise_constraint,
            bias_constraint=bias_constraint,
            pads=pads,
            anchor=anchor,
            original=original,
            **kwargs,
        )

    def call(self, inputs: Tensor) -> Tensor:
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
    """Mixin for dilated pooling.

    Args:
        dilation_rate: int or two ints > 0. Distance between neighboring cells
            of the window; above 1 strides must be 1, which they then default
            to. Defaults to 1.
    """

    def __init__(self, *args, strides=None, dilation_rate=1, **kwargs):
        rate = rate_pair(check_atrous_rate("dilation_rate", dilation_rate))
        if max(rate) > 1:
            if strides is not None and rate_pair(strides) != (1, 1):
                raise InputError(
                    "Dilated pooling must have strides of 1. Received: "
                    f"strides={strides}, dilation_rate={dilation_rate}"
                )
            strides = 1
        super().__init__(*args, strides=strides, **kwargs)
        self.dilation_rate = rate

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

    def __init__(
        self,
        pool_size: int | Size = (2, 2),
        strides: int | Size | None = None,
        padding: Literal["valid", "same"] = "valid",
        data_format: str | None = None,
        name: str | None = None,
        *,
        dilation_rate: int | Size = 1,
        pads: Pads | None = None,
        anchor: Size | None = None,
        original: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            pool_size=pool_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            name=name,
            dilation_rate=dilation_rate,
            pads=pads,
            anchor=anchor,
            original=original,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_aspp")
class AveragePooling2D(_Pooling, keras.layers.AveragePooling2D):
    """`keras.layers.AveragePooling2D` that can be made dense."""

    pool = staticmethod(lowering.pool_average)

    def __init__(
        self,
        pool_size: int | Size,
        strides: int | Size | None = None,
        padding: Literal["valid", "same"] = "valid",
        data_format: str | None = None,
        name: str | None = None,
        *,
        dilation_rate: int | Size = 1,
        pads: Pads | None = None,
        anchor: Size | None = None,
        original: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            pool_size=pool_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            name=name,
            dilation_rate=dilation_rate,
            pads=pads,
            anchor=anchor,
            original=original,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_aspp")
class ZeroPadding2D(RemembersOriginal, keras.layers.ZeroPadding2D):
    """`keras.layers.ZeroPadding2D` that can be made dense.

    Padding of zero cells emits no operation.
    """

    def __init__(
        self,
        padding: int | Size | Pads = (1, 1),
        data_format: str | None = None,
        *,
        original: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            padding=padding,
            data_format=data_format,
            original=original,
            **kwargs,
        )

    def call(self, inputs: Tensor) -> Tensor:
        if self.padding == ((0, 0), (0, 0)):
            return inputs
        return super().call(inputs)


@keras.saving.register_keras_serializable(package="keras_aspp")
class Cropping2D(RemembersOriginal, keras.layers.Cropping2D):
    """`keras.layers.Cropping2D` that can be made dense."""

    def __init__(
        self,
        cropping: int | Size | Pads = ((0, 0), (0, 0)),
        data_format: str | None = None,
        *,
        original: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            cropping=cropping,
            data_format=data_format,
            original=original,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="keras_aspp")
class Trim(keras.layers.Layer):
    """Crops maps at the bottom and right to the size of the smallest.

    Dense maps that the original network joins may differ there by less than
    one original cell.

    Input shape:
        list of `(batch_size, height, width, channels)`.

    Output shape:
        the same list, with the smallest height and width.
    """

    def call(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        shapes = [ops.shape(x) for x in inputs]
        height = lowering.smallest([shape[1] for shape in shapes])
        width = lowering.smallest([shape[2] for shape in shapes])
        return [lowering.crop(x, (height, width)) for x in inputs]

    def compute_output_shape(self, input_shape: Sequence[Shape]) -> list[Shape]:
        size = [
            None if None in n else min(n)
            for n in zip(*(shape[1:3] for shape in input_shape), strict=True)
        ]
        return [(shape[0], *size, *shape[3:]) for shape in input_shape]
