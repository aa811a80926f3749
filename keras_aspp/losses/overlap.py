"""Tversky and Dice: losses of the overlap of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.losses.base import SegmentationLoss
from keras_aspp.utils.numeric import check_number
from keras_aspp.utils.types import Tensor

EPSILON = 1e-6  # pixels; avoids 0 / 0


@keras.saving.register_keras_serializable(package="keras_aspp")
class Tversky(SegmentationLoss):
    """1 minus the classes' soft Tversky index over the batch.

    With probabilities p and labels y of the valid pixels, a class has the
    index `sum(p y) / (sum(p y) + alpha sum(p (1 - y)) + beta sum((1 - p) y))`.
    The mean is over the classes labeled in the batch.

    Args:
        ignore_label: see `SegmentationLoss`.
        alpha: float >= 0, weight of false positives. Defaults to 0.3.
        beta: float >= 0, weight of false negatives. Defaults to 0.7.
        class_weights: see `SegmentationLoss`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W), `0..K-1` or `ignore_label`.
        y_pred: float (B, H, W, K) logits.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> loss = Tversky()
    >>> round(float(loss([[[0, 255]]], [[[[0.0, 0.0], [9.0, 0.0]]]])), 4)
    0.4118

    Reference:
        [Salehi et al., 2017](https://arxiv.org/abs/1706.05721), equation 3.
        Differs from it in: several classes, of which only labeled ones count.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        alpha: float = 0.3,
        beta: float = 0.7,
        class_weights: Sequence[float] | None = None,
        name: str | None = "tversky",
    ) -> None:
        super().__init__(ignore_label, class_weights, name)
        self.alpha: float = check_number("alpha", alpha, "[0, inf)")
        self.beta: float = check_number("beta", beta, "[0, inf)")

    def compute(self, labels: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
        classes, valid = logits.shape[-1], valid[..., None]
        target = ops.one_hot(labels, classes, dtype="float32")
        given = ops.softmax(logits, axis=-1) * valid
        hit, wanted, given = (
            self.all_reduce_sum(ops.sum(x, axis=(0, 1, 2)))
            for x in (given * target, target * valid, given)
        )
        # Clipped, since rounding could make a sum of misses negative.
        index = (hit + EPSILON) / (
            hit
            + self.alpha * ops.maximum(given - hit, 0.0)
            + self.beta * ops.maximum(wanted - hit, 0.0)
            + EPSILON
        )
        return (
            self.mean_over_present_classes(1 - index, wanted)
            / self.num_replicas
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "beta": self.beta,
        }


@keras.saving.register_keras_serializable(package="keras_aspp")
class Dice(Tversky):
    """1 minus the classes' soft Dice coefficient over the batch.

    It is `Tversky` with both weights 0.5.

    Args:
        ignore_label: see `SegmentationLoss`.
        class_weights: see `SegmentationLoss`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W), `0..K-1` or `ignore_label`.
        y_pred: float (B, H, W, K) logits.

    Example:
    >>> loss = Dice()
    >>> round(float(loss([[[0, 255]]], [[[[0.0, 0.0], [9.0, 0.0]]]])), 4)
    0.3333

    Reference:
        [Sudre et al., 2017](https://arxiv.org/abs/1707.03237), section 2.
        Differs from it in: only labeled classes count, without the weights of
        the generalized form (pass them as `class_weights`).
    """

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        name: str | None = "dice",
    ) -> None:
        super().__init__(ignore_label, 0.5, 0.5, class_weights, name)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {k: v for k, v in config.items() if k not in ("alpha", "beta")}
