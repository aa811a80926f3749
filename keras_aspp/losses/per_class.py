"""PerClass: the mean over classes that may overlap of a loss of one object.

Shape legend: B batch, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.label_tensors import pixel_weights
from keras_aspp.losses.base import WholeLoss, check_class_weights
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class PerClass(WholeLoss):
    """Weighted mean over classes of a loss of one object each.

    Each class is an object before a background of logit 0, so that the cross
    entropy of the two is that of the class's sigmoid. Every loss of this
    package for one object serves: cross entropy with its options, `Dice` and
    `Tversky` with `class_weights=(0, 1)`, and `LovaszHinge`. A class without
    a labeled pixel in the batch adds 0 to the mean of the latter three.

    Args:
        loss: Keras loss of labels (B, H, W), 0, 1 or ignored, and logits
            (B, H, W, 2), the background's first.
        class_weights: floats >= 0, weight of each class in the mean, or
            `None` for equal weights. Defaults to `None`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W, K): 1 where the class is, 0 where it is not, or
            the loss's ignored label.
        y_pred: float (B, H, W, K) logits.
        sample_weight: see `SegmentationLoss`.

    Raises:
        ValueError: labels and logits differ in their axes, or class weights
            are invalid or not one for each class.

    Example:
    >>> from keras_aspp.losses import CrossEntropy
    >>> loss = PerClass(CrossEntropy())
    >>> round(float(loss([[[[1, 255]]]], [[[[0.0, 9.0]]]])), 4)
    0.3466
    """

    def __init__(
        self,
        loss: keras.losses.Loss,
        class_weights: Sequence[float] | None = None,
        name: str | None = "per_class",
    ) -> None:
        super().__init__(name)
        self.loss: keras.losses.Loss = loss
        self.class_weights: tuple[float, ...] | None = check_class_weights(
            class_weights
        )

    def call(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        labels = ops.convert_to_tensor(y_true)
        logits = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        shapes = tuple(labels.shape), tuple(logits.shape)
        if len(shapes[0]) != 4 or shapes[0][-1] != shapes[1][-1]:
            raise InputError(
                "Labels and logits of classes that may overlap must both be "
                f"(B, H, W, K). Received: shapes {shapes[0]} and {shapes[1]}"
            )
        if sample_weight is not None:
            # Keras' own losses of (B, H, W) do not accept weights of images,
            # (B,).
            sample_weight = pixel_weights(sample_weight, labels[..., 0])
        weights = self.class_weights or (1.0,) * shapes[1][-1]
        if len(weights) != shapes[1][-1]:
            raise InputError(
                "`class_weights` must hold one weight for each class. "
                f"Received: {len(weights)} weights for {shapes[1][-1]} classes"
            )
        background = ((0, 0), (0, 0), (0, 0), (1, 0))
        total = sum(
            weight
            * self.loss(
                labels[..., i],
                ops.pad(logits[..., i : i + 1], background),
                sample_weight,
            )
            for i, weight in enumerate(weights)
            if weight
        )
        return total / sum(weights)

    def get_config(self) -> dict[str, Any]:
        return {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "class_weights": self.class_weights,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerClass:
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})
