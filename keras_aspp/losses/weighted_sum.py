"""WeightedSum: several losses of one batch."""

import keras


@keras.saving.register_keras_serializable(package="keras_aspp")
class WeightedSum(keras.losses.Loss):
    """The sum of losses, each times its weight.

    Args:
        losses: losses of labels (B, H, W) and logits (B, H, W, K).
        weights: floats, one for each loss.
        name: str or `None`.

    Raises:
        ValueError: no losses, or not as many weights.

    Example:
    >>> from keras_aspp.losses import CrossEntropy, Dice
    >>> loss = WeightedSum([CrossEntropy(), Dice()], [1.0, 0.5])
    >>> round(float(loss([[[0, 255]]], [[[[0.0, 0.0], [9.0, 0.0]]]])), 4)
    0.8598
    """

    def __init__(self, losses, weights, name="weighted_sum"):
        super().__init__(name=name, reduction=None, dtype="float32")
        if not losses or len(losses) != len(weights):
            raise ValueError(
                "`losses` must hold at least one loss, and `weights` as many "
                f"numbers. Received: {len(losses)} losses, weights={weights}"
            )
        self.losses, self.weights = list(losses), list(weights)

    def call(self, y_true, y_pred):
        return sum(
            weight * loss(y_true, y_pred)
            for loss, weight in zip(self.losses, self.weights, strict=True)
        )

    def get_config(self):
        return {
            "losses": [
                keras.saving.serialize_keras_object(loss)
                for loss in self.losses
            ],
            "weights": self.weights,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        losses = [
            keras.saving.deserialize_keras_object(loss)
            for loss in config["losses"]
        ]
        return cls(**{**config, "losses": losses})
