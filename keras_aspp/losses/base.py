"""SegmentationLoss: what every loss shares.

Shape legend: B batch, H x W pixels, K classes.
"""

import math

import keras
from keras import ops

from keras_aspp.label_tensors import pixel_weights, split_labels
from keras_aspp.utils.exceptions import InputError


class SegmentationLoss(keras.losses.Loss):
    """A number for a batch of logits, of which ignored pixels are no part.

    A subclass says in `of_valid` what it is. A batch without a valid pixel
    gives 0. A label that is neither a class nor `ignore_label` makes loss and
    gradient NaN, in eager mode, in a graph and under XLA alike.

    `sample_weight`, as `fit`, `evaluate` and `train_on_batch` pass it, weighs
    images or pixels. Two rules hold for every loss:

    - A pixel of weight 2 counts as two pixels of weight 1 would, in means and
      in areas; a pixel of weight 0 has no influence on the loss but for the
      next rule, and its label may be any.
    - The loss is then multiplied by the mean weight of the valid pixels, so
      that weights of 2 everywhere double it.

    For cross entropy this is Keras' own definition, the sum of weight times
    loss over the number of valid pixels. For losses of regions (Dice,
    Tversky, Lovász) no single definition is published.

    Args:
        ignore_label: int. Pixels labelled so count for nothing. Defaults to
            255.
        class_weights: floats >= 0, one for each class, or `None`: what a
            class weighs in the mean. Defaults to `None`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W) or (B, H, W, 1), `0..K-1` or `ignore_label`.
        y_pred: float (B, H, W, K) logits.
        sample_weight: float >= 0, (B,) or (B, H, W), or `None`.

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
            if not any(class_weights) or not all(
                0 <= w < math.inf for w in class_weights
            ):
                raise InputError(
                    "`class_weights` must be floats >= 0, one for each class, "
                    "and not all 0. Received: "
                    f"class_weights={class_weights}"
                )
        self.ignore_label = ignore_label
        self.class_weights = class_weights

    def __call__(self, y_true, y_pred, sample_weight=None):
        # Keras would weigh what `call` returns, which is already a mean.
        with keras.name_scope(self.name):
            return self.call(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred, sample_weight=None):
        labels = ops.convert_to_tensor(y_true)
        logits = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        shapes = tuple(labels.shape), tuple(logits.shape)
        if len(shapes[0]) == 4 and shapes[0][-1] == 1:
            labels = ops.squeeze(labels, -1)
        if len(labels.shape) != 3 or len(logits.shape) != 4:
            raise InputError(
                "Labels must be (B, H, W) or (B, H, W, 1) and logits "
                "(B, H, W, K); of one-hot labels take "
                "`keras.ops.argmax(labels, -1)`. Received: "
                f"shapes {shapes[0]} and {shapes[1]}"
            )
        labels, valid, known = split_labels(
            labels, logits.shape[-1], self.ignore_label
        )
        if sample_weight is None:
            loss = self.of_valid(labels, logits, ops.cast(valid, "float32"))
        else:
            weights = ops.where(valid, pixel_weights(sample_weight, labels), 0)
            pixels = ops.cast(valid, "float32")
            total, count = ops.unstack(
                self.everywhere(ops.stack([ops.sum(weights), ops.sum(pixels)]))
            )
            mean = total / ops.maximum(count, 1.0)
            # Of mean 1, so that constants in pixels keep their meaning.
            relative = weights / ops.where(mean == 0, 1.0, mean)
            loss = mean * self.of_weighted(labels, logits, relative)
            valid = weights != 0
        wrong = ops.any(ops.logical_and(valid, ops.logical_not(known)))
        # Times NaN instead of NaN: the gradient shall be NaN as well.
        return loss * ops.where(wrong, float("nan"), 1.0)

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

    def of_weighted(self, labels, logits, weights):
        """The loss of weighted pixels; arguments as of `of_valid`.

        Args:
            labels: int32 (B, H, W), 0 where ignored.
            logits: float32 (B, H, W, K).
            weights: float32 (B, H, W), 0 where ignored, of mean 1 over the
                valid pixels.

        Returns:
            float32 scalar. By default that of `of_valid`, which serves where
            `valid` is no more than a factor of each pixel.
        """
        return self.of_valid(labels, logits, weights)

    def weights_of(self, num_classes):
        """Class weights as a tensor (K,); ones where there are none."""
        if self.class_weights is None:
            return ops.ones(num_classes)
        if len(self.class_weights) != num_classes:
            raise InputError(
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
            raise InputError(f"`{name}` must be >= 0. Received: {name}={value}")
