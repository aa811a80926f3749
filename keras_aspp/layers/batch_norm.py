"""Keras' normalization layers, with a fused kernel and a lasting freeze.

Shape legend: B batch, h x w feature cells, C channels.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
from keras import ops

from keras_aspp.layers import lowering
from keras_aspp.layers.checks import check_batch_norm_numbers
from keras_aspp.utils.keras_graph import sublayers
from keras_aspp.utils.numeric import check_int
from keras_aspp.utils.types import (
    BatchNorm,
    Constraint,
    Initializer,
    Regularizer,
    Shape,
    Tensor,
)


@keras.saving.register_keras_serializable(package="keras_aspp")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that trains through `lowering`.

    Weights and results equal those of Keras' layer. In training, feature maps
    are normalized by one fused kernel where the backend has one. That halves
    the time and keeps one tensor for the gradient instead of several.
    Inference is bitwise that of Keras; `fold_batch_norm` makes it fast.

    Args:
        axis: see `keras.layers.BatchNormalization`, as all arguments but
            `frozen`.
        momentum: float in [0, 1). Defaults to 0.99.
        epsilon: float > 0. Defaults to 1e-3.
        center: bool. Defaults to `True`.
        scale: bool. Defaults to `True`.
        beta_initializer: Keras initializer.
        gamma_initializer: Keras initializer.
        moving_mean_initializer: Keras initializer.
        moving_variance_initializer: Keras initializer.
        beta_regularizer: Keras regularizer or `None`.
        gamma_regularizer: Keras regularizer or `None`.
        beta_constraint: Keras constraint or `None`.
        gamma_constraint: Keras constraint or `None`.
        renorm: bool. Defaults to `False`.
        renorm_clipping: dict or `None`.
        renorm_momentum: float. Defaults to 0.99.
        synchronized: bool. Defaults to `False`.
        frozen: bool. Training uses the moving statistics and changes neither
            them nor scale and offset, whatever `trainable` is set to. Keras'
            `model.trainable = True` sets `trainable` of every layer within;
            it does not change `frozen`. Set `layer.frozen = False` to train
            the layer again. Defaults to `False`.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).
    """

    _frozen = False

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Initializer = "zeros",
        gamma_initializer: Initializer = "ones",
        moving_mean_initializer: Initializer = "zeros",
        moving_variance_initializer: Initializer = "ones",
        beta_regularizer: Regularizer = None,
        gamma_regularizer: Regularizer = None,
        beta_constraint: Constraint = None,
        gamma_constraint: Constraint = None,
        renorm: bool = False,
        renorm_clipping: dict[str, float] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        *,
        frozen: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_momentum,
            synchronized=synchronized,
            **kwargs,
        )
        if frozen:
            self.frozen = True

    @property
    def frozen(self) -> bool:
        """True if training never updates the layer, whatever `trainable`."""
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self._frozen = bool(value)
        self.trainable = not value

    @property
    def trainable(self) -> bool:
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        # Keras calls this setter for every layer of a model whose `trainable`
        # is set.
        keras.layers.BatchNormalization.trainable.fset(
            self, value and not self._frozen
        )

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        plain = (
            not (training and self.trainable)
            or mask is not None
            or self.renorm
            or self.synchronized
            or self.axis not in (-1, 3)
        )
        if plain or not lowering.has_fused_batch_norm(inputs):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        outputs, mean, variance = lowering.normalize(
            inputs,
            _float32(self.gamma if self.scale else ops.ones(channels)),
            _float32(self.beta if self.center else ops.zeros(channels)),
            self.epsilon,
        )
        for moving, found in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(
                _float32(moving) * self.momentum + found * (1.0 - self.momentum)
            )
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "frozen": self.frozen}


def _float32(x):
    return ops.cast(x, "float32")


def freeze_batch_norm(model: keras.Model) -> None:
    """Freezes batch norm in a model, in place, whatever `trainable` is set to.

    Layers of Keras' own class, nested ones included, become
    `keras_aspp.layers.BatchNormalization`. Other subclasses of Keras' layer
    only get `trainable = False`; a warning names them.

    Args:
        model: `keras.Model`.
    """
    loose = []
    for layer in sublayers(model):
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        if type(layer) is keras.layers.BatchNormalization:
            # The class is changed in place, because a layer that contains this
            # one may hold further references to it.
            layer.__class__ = BatchNormalization
        if isinstance(layer, BatchNormalization):
            layer.frozen = True
        else:
            layer.trainable = False
            loose.append(f"`{layer.name}` ({type(layer).__name__})")
    if loose:
        warnings.warn(
            "`trainable = True` of the model would undo `batch_norm='freeze'` "
            f"for {', '.join(loose)}: a subclass of Keras' BatchNormalization. "
            "Set `trainable = False` of these layers afterwards, or derive "
            "them from `keras_aspp.layers.BatchNormalization`.",
            stacklevel=2,
        )


@keras.saving.register_keras_serializable(package="keras_aspp")
class GroupNormalization(keras.layers.GroupNormalization):
    """`keras.layers.GroupNormalization` that chooses its groups when built.

    Normalizes each image by its own statistics, so the result is independent
    of the batch size, and the layer keeps no moving statistics.

    Args:
        groups: int > 0, upper limit; the number used is the greatest common
            divisor of it and the number of channels. Defaults to 32.
        axis: see `keras.layers.GroupNormalization`, as the arguments below.
        epsilon: float > 0. Defaults to 1e-3.
        center: bool. Defaults to `True`.
        scale: bool. Defaults to `True`.
        beta_initializer: Keras initializer.
        gamma_initializer: Keras initializer.
        beta_regularizer: Keras regularizer or `None`.
        gamma_regularizer: Keras regularizer or `None`.
        beta_constraint: Keras constraint or `None`.
        gamma_constraint: Keras constraint or `None`.
        **kwargs: forwarded to `keras.layers.Layer` (`name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float.

    Output shape:
        That of the input.

    Raises:
        ValueError: `groups` is not an int > 0.

    Example:
    >>> layer = GroupNormalization()
    >>> layer(keras.ops.ones((1, 4, 4, 48))).shape, layer.groups
    (TensorShape([1, 4, 4, 48]), 16)

    Reference:
        [Wu & He, 2018](https://arxiv.org/abs/1803.08494). Differs from it in:
        fewer groups where 32 do not divide the channels.
    """

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Initializer = "zeros",
        gamma_initializer: Initializer = "ones",
        beta_regularizer: Regularizer = None,
        gamma_regularizer: Regularizer = None,
        beta_constraint: Constraint = None,
        gamma_constraint: Constraint = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            groups=check_int("groups", groups),
            axis=axis,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            **kwargs,
        )

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[self.axis]
        self.groups = math.gcd(self.groups, channels)
        # Without the batch, what is left besides channels are positions.
        if self.groups == math.prod(n or 0 for n in input_shape[1:]):
            # A warning, since files with such a layer must load.
            warnings.warn(
                "Group norm of a 1x1 map with one channel per group returns "
                "a constant, and what is before it learns nothing: image "
                f"pooling, as a rule. Received: {channels} channels in "
                f"{self.groups} groups. Use a number of `filters` that does "
                "not divide 32, or leave out image pooling.",
                stacklevel=2,
            )
        super().build(input_shape)


def normalization(
    batch_norm: BatchNorm,
    momentum: float,
    epsilon: float,
    **kwargs: Any,
) -> keras.layers.Layer | None:
    """Creates the normalization layer of a policy, `None` for none.

    Args:
        batch_norm: see `AtrousConv2D`.
        momentum: float in [0, 1).
        epsilon: float > 0.
        **kwargs: forwarded to the layer (`name`, `dtype`).

    Raises:
        ValueError: momentum or epsilon are out of range.
    """
    if not batch_norm:
        return None
    check_batch_norm_numbers(momentum, epsilon)
    if batch_norm == "group":
        return GroupNormalization(epsilon=epsilon, **kwargs)
    return BatchNormalization(
        frozen=batch_norm == "freeze",
        synchronized=batch_norm == "sync",
        momentum=momentum,
        epsilon=epsilon,
        **kwargs,
    )
