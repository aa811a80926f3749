"""BatchNormalization: Keras' layer, by the kernel that is fastest.

Shape legend: B batch, h x w feature cells, C channels.
"""

import math
import warnings

import keras
from keras import ops

from keras_aspp.layers import lowering
from keras_aspp.utils.keras_graph import sublayers


@keras.saving.register_keras_serializable(package="keras_aspp")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that trains through `lowering`.

    Weights and results are those of Keras' layer. Maps it
    normalizes in training by one kernel, where there is one: half of the
    time, and one tensor kept for the gradient instead of several. Inference
    is Keras' to the last bit; `fold_batch_norm` is the way to make it fast.

    Args:
        *args: those of Keras' layer.
        frozen: bool. Training uses the moving statistics and changes neither
            them nor scale and offset, whatever `trainable` is set to. Keras'
            `model.trainable = True` sets `trainable` of every layer within;
            it does not change `frozen`. Set `layer.frozen = False` to train
            the layer again. Defaults to `False`.
        **kwargs: those of Keras' layer (`momentum`, `epsilon`, `name`, ...).
    """

    _frozen = False

    def __init__(self, *args, frozen=False, **kwargs):
        super().__init__(*args, **kwargs)
        if frozen:
            self.frozen = True

    @property
    def frozen(self):
        """bool: whether the layer stays as it is, whatever `trainable`."""
        return self._frozen

    @frozen.setter
    def frozen(self, value):
        self._frozen = bool(value)
        self.trainable = not value

    @property
    def trainable(self):
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        # Keras calls this setter for every layer of a model whose `trainable`
        # is set.
        keras.layers.BatchNormalization.trainable.fset(
            self, value and not self._frozen
        )

    def call(self, inputs, training=None, mask=None):
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
            self.gamma if self.scale else ops.ones(channels),
            self.beta if self.center else ops.zeros(channels),
            self.epsilon,
        )
        for moving, found in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(
                moving * self.momentum + found * (1.0 - self.momentum)
            )
        return outputs

    def get_config(self):
        return {**super().get_config(), "frozen": self.frozen}


def freeze_batch_norm(model):
    """Freezes batch norm in a model, in place, whatever `trainable` is set to.

    Keras' own layers, which a layer of the user's may contain, become
    `BatchNormalization` of ours. Other subclasses of Keras' layer have only
    `trainable` for it, which a warning says.

    Args:
        model: `keras.Model`.
    """
    loose = []
    for layer in sublayers(model):
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        if type(layer) is keras.layers.BatchNormalization:
            # It has the state of ours, and a layer that contains it may hold
            # other references to it, so it is not replaced by a copy.
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

    It normalizes a picture by itself: the size of the batch means nothing to
    it, and it keeps no statistics.

    Args:
        groups: int > 0, at most so many; used is the largest divisor of the
            channels that also divides it. Defaults to 32.
        **kwargs: those of Keras' layer (`epsilon`, `name`, `dtype`, ...).

    Input shape:
        `(batch_size, height, width, channels)`, float.

    Output shape:
        That of the input.

    Example:
    >>> layer = GroupNormalization()
    >>> layer(keras.ops.ones((1, 4, 4, 48))).shape, layer.groups
    (TensorShape([1, 4, 4, 48]), 16)

    Reference:
        [Wu & He, 2018](https://arxiv.org/abs/1803.08494). Differs from it in:
        fewer groups where 32 do not divide the channels.
    """

    def __init__(self, groups=32, **kwargs):
        super().__init__(groups=groups, **kwargs)

    def build(self, input_shape):
        self.groups = math.gcd(self.groups, input_shape[self.axis])
        super().build(input_shape)
