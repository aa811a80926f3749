"""BackgroundLogit: scores of two classes from one logit."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_aspp.utils.numeric import check_number
from keras_aspp.utils.types import Tensor


@keras.saving.register_keras_serializable(package="keras_aspp")
class BackgroundLogit(keras.layers.Layer):
    """Puts the fixed logit of the background before that of the object.

    One logit z per pixel makes the probability `sigmoid(z)` of the object. The
    same probability is the softmax of the two logits 0 and z, so everything
    that takes logits of classes takes a binary model. With the background's
    logit at `log(t / (1 - t))`, the object is the larger one exactly where
    `sigmoid(z)` exceeds the threshold t.

    Args:
        threshold: float in (0, 1), least probability of the object. Defaults
            to 0.5.
        **kwargs: arguments of `keras.layers.Layer`.

    Input shape:
        `(batch_size, height, width, 1)`.

    Output shape:
        `(batch_size, height, width, 2)`.

    Example:
    >>> layer = BackgroundLogit(threshold=0.25)
    >>> [round(float(n), 4) for n in layer(ops.ones((1, 1, 1, 1)))[0, 0, 0]]
    [-1.0986, 1.0]
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold: float = check_threshold(threshold)

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        scores = ops.pad(inputs, [[0, 0], [0, 0], [0, 0], [1, 0]])
        # Losses learn the probability, which no threshold moves.
        if training or self.threshold == 0.5:
            return scores
        shift = [logit(self.threshold), 0.0]
        return scores + ops.convert_to_tensor(shift, scores.dtype)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (*input_shape[:-1], 2)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "threshold": self.threshold}


def logit(threshold: float) -> float:
    """Returns the logit of a probability in (0, 1)."""
    return math.log(threshold / (1 - threshold))


def check_threshold(threshold: float) -> float:
    """Returns a threshold as a float; raises `ValueError` outside (0, 1)."""
    return check_number("threshold", threshold, "(0, 1)")
