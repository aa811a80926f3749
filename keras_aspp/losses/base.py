"""SegmentationLoss: what every loss shares.

Shape legend: B batch, H x W pixels, K classes.
"""

import keras
from keras import ops


class SegmentationLoss(keras.losses.Loss):
    """A number for a batch of logits, of which ignored pixels are no part.

    A subclass says in `of_valid` what it is. A batch without a valid pixel
    gives 0.

    Args:
        ignore_label: int. Pixels labelled so count for nothing. Defaults to
            255.
        class_weights: floats >= 0, one for each class, or `None`: what a
            class weighs in the mean. Defaults to `None`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W), `0..K-1` or `ignore_label`.
        y_pred: float (B, H, W, K) logits.

    Attributes:
        devices: int, how many share a batch. What a loss returns is then the
            device's part: the parts add up to the loss of the batch.
        everywhere: function that sums a tensor over those devices.
    """

    devices = 1

    @staticmethod
    def everywhere(x):
        return x

    def __init__(self, ignore_label=255, class_weights=None, name=None):
        # The batch is reduced here, over its valid pixels; Keras' own mean
        # would count the ignored ones.
        super().__init__(name=name, reduction=None, dtype="float32")
        if class_weights is not None:
            class_weights = tuple(float(w) for w in class_weights)
            if min(class_weights, default=-1) < 0 or not any(class_weights):
                raise ValueError(
                    "`class_weights` must be floats >= 0, one for each class, "
                    "and not all 0. Received: "
                    f"class_weights={class_weights}"
                )
        self.ignore_label = ignore_label
        self.class_weights = class_weights

    def call(self, y_true, y_pred):
        labels = ops.cast(ops.convert_to_tensor(y_true), "int32")
        logits = ops.convert_to_tensor(y_pred)
        if len(labels.shape) != 3 or len(logits.shape) != 4:
            raise ValueError(
                "Labels must be (B, H, W) and logits (B, H, W, K). Received: "
                f"shapes {tuple(labels.shape)} and {tuple(logits.shape)}"
            )
        valid = labels != self.ignore_label
        labels = ops.where(valid, labels, 0)
        return self.of_valid(labels, logits, ops.cast(valid, "float32"))

    def of_valid(self, labels, logits, valid):
        """The loss.

        Args:
            labels: int32 (B, H, W), 0 where ignored.
            logits: float32 (B, H, W, K).
            valid: float32 (B, H, W), 0 where ignored, else 1.

        Returns:
            float32 scalar.
        """
        raise NotImplementedError

    def weights_of(self, num_classes):
        """Class weights as a tensor (K,); ones where there are none."""
        if self.class_weights is None:
            return ops.ones(num_classes)
        if len(self.class_weights) != num_classes:
            raise ValueError(
                "`class_weights` must hold one weight for each class. "
                f"Received: {len(self.class_weights)} weights for "
                f"{num_classes} classes"
            )
        return ops.convert_to_tensor(self.class_weights, "float32")

    def mean_of_labelled(self, losses, pixels):
        """Weighted mean of classes (K,), of those that have pixels (K,)."""
        present = ops.cast(pixels > 0, "float32")
        return weighted_mean(losses, self.weights_of(losses.shape[0]) * present)

    def get_config(self):
        return {
            "ignore_label": self.ignore_label,
            "class_weights": self.class_weights,
            "name": self.name,
        }


def weighted_mean(values, weights, everywhere=lambda x: x):
    """The mean, or 0 where all weights are 0.

    With `everywhere` it is the device's part of the mean over all devices.
    """
    total = everywhere(ops.sum(weights))
    return ops.sum(values * weights) / ops.where(total > 0, total, 1.0)


def check_not_negative(**values):
    """Raises where one of the values is negative."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` must be >= 0. Received: {name}={value}")
