"""BatchNormalization: Keras' layer, by the kernel that is fastest.

Shape legend: B batch, h x w feature cells, C channels.
"""

import keras
from keras import ops

from keras_aspp.layers import lowering


@keras.saving.register_keras_serializable(package="keras_aspp")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that trains through `lowering`.

    Arguments, weights and results are those of Keras' layer. Maps it
    normalizes in training by one kernel, where there is one: half of the
    time, and one tensor kept for the gradient instead of several. Inference
    is Keras' to the last bit; `fold_batch_norm` is the way to make it fast.
    """

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
