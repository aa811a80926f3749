"""BatchNormalization: Keras' layer, by the kernel that is fastest.

Shape legend: B batch, h x w feature cells, C channels.
"""

import keras
from keras import ops

from keras_aspp.layers import lowering


@keras.saving.register_keras_serializable(package="keras_aspp")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that trains through `lowering`.

    Arguments, weights and results are those of Keras' layer. On maps it
    normalizes in one pass where there is a kernel for it, which keeps one
    tensor for the gradient instead of several.
    """

    def call(self, inputs, training=None, mask=None):
        plain = (
            mask is not None
            or self.renorm
            or self.synchronized
            or self.axis not in (-1, 3)
        )
        if plain or not lowering.has_fused_batch_norm(inputs):
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        scale = self.gamma if self.scale else ops.ones(channels)
        offset = self.beta if self.center else ops.zeros(channels)
        if not (training and self.trainable):
            return lowering.normalize(
                inputs,
                scale,
                offset,
                self.epsilon,
                (self.moving_mean, self.moving_variance),
            )
        outputs, mean, variance = lowering.normalize(
            inputs, scale, offset, self.epsilon
        )
        for moving, found in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(
                moving * self.momentum + found * (1.0 - self.momentum)
            )
        return outputs
