"""GroupNormalization: Keras' layer, with groups that any width divides into."""

import math

import keras


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
