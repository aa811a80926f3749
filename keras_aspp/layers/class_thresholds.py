"""ClassThresholds: logits of independent classes, above 0 where predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_aspp.layers.background_logit import check_threshold, logit
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class ClassThresholds(keras.layers.Layer):
    """Shifts the logit of each class by that of its threshold.

    One logit z per class and pixel makes the probability `sigmoid(z)` of the
    class. With the logit of the threshold t, `log(t / (1 - t))`, subtracted,
    the result is above 0 exactly where `sigmoid(z)` exceeds t. In training
    nothing is subtracted, since losses learn the probability.

    Args:
        thresholds: floats in (0, 1), one for each class.
        **kwargs: arguments of `keras.layers.Layer`.

    Input shape:
        `(batch_size, height, width, num_classes)`.

    Output shape:
        The same.

    Raises:
        ValueError: `thresholds` is not a sequence, or a threshold is
            outside (0, 1).

    Example:
    >>> layer = ClassThresholds([0.5, 0.25])
    >>> [round(float(n), 4) for n in layer(ops.ones((1, 1, 1, 2)))[0, 0, 0]]
    [1.0, 2.0986]
    """

    def __init__(self, thresholds: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if np.ndim(thresholds) != 1:
            raise InputError(
                "`thresholds` must be a sequence of probabilities, one for "
                f"each class. Received: thresholds={thresholds!r}"
            )
        self.thresholds: tuple[float, ...] = tuple(
            check_threshold(threshold) for threshold in thresholds
        )

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if training or set(self.thresholds) == {0.5}:
            return inputs
        shift = [logit(threshold) for threshold in self.thresholds]
        return inputs - ops.convert_to_tensor(shift, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "thresholds": list(self.thresholds)}


def check_thresholds(
    threshold: float | Sequence[float], num_classes: int
) -> tuple[float, ...]:
    """Returns one threshold for each class.

    Args:
        threshold: float in (0, 1), or one for each class.
        num_classes: int > 0.

    Raises:
        ValueError: a threshold is not in (0, 1), or their number differs.
    """
    if not isinstance(threshold, (list, tuple)):
        return (check_threshold(threshold),) * num_classes
    if len(threshold) != num_classes:
        raise InputError(
            f"`threshold` must be one probability, or {num_classes}, one for "
            f"each class. Received: threshold={list(threshold)}"
        )
    return tuple(check_threshold(one) for one in threshold)
