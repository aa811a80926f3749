"""Preprocess: what a model expects its picture to look like."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from keras_aspp.layers.lowering import scale_and_shift
from keras_aspp.utils.exceptions import InputError

CHANNEL_ORDERS = ("rgb", "bgr")


@keras.saving.register_keras_serializable(package="keras_aspp")
@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Turns pixels in 0..255 into the numbers that a model was trained on.

    `(value_range[0] + pixel / 255 * (value_range[1] - value_range[0]) - mean)
    / std`, per channel, in the channel order of the model.

    Args:
        value_range: two floats; where 0 and 255 go first. Defaults to
            (-1.0, 1.0).
        mean: float or one float per channel, in the model's channel order.
        std: float > 0 or one per channel.
        channel_order: `"rgb"` or `"bgr"`: the order the model sees. Pictures
            at the door are RGB.

    Raises:
        ValueError: `std` not > 0, or `channel_order` unknown.

    Example:
    >>> Preprocess()([[[0, 255, 51]]])
    <tf.Tensor: shape=(1, 1, 3), dtype=float32, numpy=array([[[-1. ,  1. , ...
    """

    value_range: tuple = (-1.0, 1.0)
    mean: float | tuple = 0.0
    std: float | tuple = 1.0
    channel_order: str = "rgb"

    def __post_init__(self):
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

    def __call__(self, image):
        """`image` (..., H, W, C), 0..255, as float32 of the same shape."""
        # In tf.data a picture is TensorFlow's, whatever Keras computes by.
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

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _is_finite(number):
    return isinstance(number, (int, float, np.number)) and math.isfinite(number)


# Pixels as they are, for a network that begins by scaling them.
RAW = Preprocess(value_range=(0.0, 255.0))
# The conventions that published weights were trained with.
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
