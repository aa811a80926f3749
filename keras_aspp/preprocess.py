"""Preprocess: conversion of pixels to the input of a model."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_aspp.layers.lowering import scale_and_shift
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Tensor

CHANNEL_ORDERS = ("rgb", "bgr")


@keras.saving.register_keras_serializable(package="keras_aspp")
@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Converts pixels in 0..255 to the value range a model was trained on.

    `(value_range[0] + pixel / 255 * (value_range[1] - value_range[0]) - mean)
    / std`, per channel, in the channel order of the model.

    Args:
        value_range: two floats, values of 0 and 255 before `mean` and `std`.
            Defaults to (-1.0, 1.0).
        mean: float or one float per channel, in the model's channel order.
            Defaults to 0.0.
        std: float > 0 or one per channel. Defaults to 1.0.
        channel_order: `"rgb"` or `"bgr"`, channel order of the model. Input
            images are RGB. Defaults to `"rgb"`.

    Raises:
        ValueError: `std` is not > 0, or `channel_order` is unknown.

    Example:
    >>> Preprocess()([[[0, 255, 51]]])
    <tf.Tensor: shape=(1, 1, 3), dtype=float32, numpy=array([[[-1. ,  1. , ...
    """

    value_range: tuple[float, float] = (-1.0, 1.0)
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    channel_order: str = "rgb"

    def __post_init__(self) -> None:
        # From JSON, tuples come back as lists.
        for name in ("value_range", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name in ("value_range", "mean", "std"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(_is_finite(number) for number in numbers):
                raise InputError(
                    f"`{name}` must be finite floats. Received: {name}={value}"
                )
        std = self.std if isinstance(self.std, tuple) else (self.std,)
        if any(s <= 0 for s in std):
            raise InputError(f"`std` must be > 0. Received: std={self.std}")
        if self.channel_order not in CHANNEL_ORDERS:
            raise InputError(
                f"`channel_order` must be one of {CHANNEL_ORDERS}. "
                f"Received: channel_order={self.channel_order!r}"
            )

    def __call__(self, image: Tensor) -> Tensor:
        """Converts an image `(..., H, W, C)` in 0..255 to float32."""
        # In tf.data an image is a TensorFlow tensor on every backend.
        if getattr(image, "dtype", None) != "float32":
            image = ops.cast(image, "float32")
        if self.channel_order == "bgr":
            image = image[..., ::-1]
        return scale_and_shift(image, *self._scale_and_shift(image.shape[-1]))

    def _scale_and_shift(self, channels):
        low, high = self.value_range
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return (
            np.broadcast_to(row, channels).astype("float32")
            for row in ((high - low) / 255 / std, (low - mean) / std)
        )

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Preprocess":
        return cls(**config)


def _is_finite(number):
    return isinstance(number, (int, float, np.number)) and math.isfinite(number)


# Unchanged pixels, for networks that scale their input themselves.
RAW = Preprocess(value_range=(0.0, 255.0))
# Conventions of published weights.
KERAS_TF = Preprocess()
KERAS_CAFFE = Preprocess(
    value_range=(0.0, 255.0),
    mean=(103.939, 116.779, 123.68),
    channel_order="bgr",
)
TORCHVISION = Preprocess(
    value_range=(0.0, 1.0),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
