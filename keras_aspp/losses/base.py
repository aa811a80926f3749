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
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W), `0..K-1` or `ignore_label`.
        y_pred: float (B, H, W, K) logits.
    """

    def __init__(self, ignore_label=255, name=None):
        # The batch is reduced here, over its valid pixels; Keras' own mean
        # would count the ignored ones.
        super().__init__(name=name, reduction=None, dtype="float32")
        self.ignore_label = ignore_label

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

    def get_config(self):
        return {"ignore_label": self.ignore_label, "name": self.name}


def check_share(name, value):
    """Raises where `value` is not in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(
            f"`{name}` must be in (0, 1]. Received: {name}={value}"
        )


def check_not_negative(**values):
    """Raises where one of the values is negative."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` must be >= 0. Received: {name}={value}")


def check_class_weights(weights):
    """Class weights as a tuple of floats, or `None`."""
    if weights is None:
        return None
    weights = tuple(float(w) for w in weights)
    if not weights or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(
            "`class_weights` must be floats >= 0, one for each class, and not "
            f"all 0. Received: class_weights={weights}"
        )
    return weights


def of_classes(weights, num_classes):
    """Class weights as a tensor (K,); ones where there are none."""
    if weights is None:
        return ops.ones(num_classes)
    if len(weights) != num_classes:
        raise ValueError(
            "`class_weights` must hold one weight for each class. Received: "
            f"{len(weights)} weights for {num_classes} classes"
        )
    return ops.convert_to_tensor(weights, "float32")
