"""WeightedSum: a weighted sum of losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.label_tensors import pixel_weights
from keras_aspp.losses.base import WholeLoss
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_numbers
from keras_aspp.utils.types import Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class WeightedSum(WholeLoss):
    """Weighted sum of losses.

    Args:
        losses: Keras losses of labels (B, H, W) and logits (B, H, W, K); each
            applies `sample_weight` by its own rule.
        weights: floats, one for each loss.
        name: str or `None`.

    Raises:
        ValueError: `losses` is empty, or `weights` has another length.

    Example:
    >>> from keras_aspp.losses import CrossEntropy, Dice
    >>> loss = WeightedSum([CrossEntropy(), Dice()], [1.0, 0.5])
    >>> round(float(loss([[[0, 255]]], [[[[0.0, 0.0], [9.0, 0.0]]]])), 4)
    0.8598
    """

    def __init__(
        self,
        losses: Sequence[keras.losses.Loss],
        weights: Sequence[float],
        name: str | None = "weighted_sum",
    ) -> None:
        super().__init__(name)
        self.losses = list(losses)
        self.weights = list(check_numbers("weights", weights, "(-inf, inf)"))
        if not losses or len(losses) != len(weights):
            raise InputError(
                "`losses` must hold at least one loss, and `weights` as many "
                f"numbers. Received: {len(losses)} losses, weights={weights}"
            )

    def call(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        if sample_weight is not None:
            # Keras' own losses of (B, H, W) do not accept weights of images,
            # (B,).
            pixels = ops.convert_to_tensor(y_pred)[..., 0]
            sample_weight = pixel_weights(sample_weight, pixels)
        return sum(
            weight * loss(y_true, y_pred, sample_weight)
            for loss, weight in zip(self.losses, self.weights, strict=True)
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "losses": [
                keras.saving.serialize_keras_object(loss)
                for loss in self.losses
            ],
            "weights": self.weights,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightedSum:
        losses = [
            keras.saving.deserialize_keras_object(loss)
            for loss in config["losses"]
        ]
        return cls(**{**config, "losses": losses})
