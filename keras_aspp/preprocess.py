"""Preprocess: conversion of pixels to the input of a model."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_aspp.layers.lowering import scale_and_shift
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Tensor

CHANNEL_ORDERS = ("rgb", "bgr")


@keras.saving.register_keras_serializable(package="keras_aspp")
@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Converts pixels to the value range a model was trained on.

    `(value_range[0] + pixel / 255 * (value_range[1] - value_range[0]) - mean)
    / std`, per channel, in the channel order of the model. A pixel is a value
    in 0..255; images of other ranges are mapped to it first, by `input_range`.

    Args:
        value_range: two floats, values of 0 and 255 before `mean` and `std`.
            Defaults to (-1.0, 1.0).
        mean: float or one float per channel, in the model's channel order.
            Defaults to 0.0.
        std: float > 0 or one per channel. Defaults to 1.0.
        channel_order: `"rgb"` or `"bgr"`, channel order of the model. Input
            images are RGB. Defaults to `"rgb"`.
        input_dtype: `"uint8"`, `"uint16"` or `"float32"`, type of the images.
            Defaults to `"uint8"`.
        input_range: `(low, high)`, stored values that mean pixels 0 and
            255, each a float or one per channel of the image; `None`, the
            default, for 0 and 255.

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
    input_dtype: str = "uint8"
    input_range: tuple[Any, Any] | None = None

    def __post_init__(self) -> None:
        # From JSON, tuples come back as lists.
        for name in ("value_range", "mean", "std", "input_range"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if self.input_range is not None:
            ends = (
                tuple(e) if isinstance(e, list) else e for e in self.input_range
            )
            object.__setattr__(self, "input_range", tuple(ends))
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
        """Converts an image `(..., H, W, C)` as stored to float32."""
        # In tf.data an image is a TensorFlow tensor on every backend.
        if getattr(image, "dtype", None) != "float32":
            image = ops.cast(image, "float32")
        if self.channel_order == "bgr":
            image = image[..., ::-1]
        return scale_and_shift(image, *self._scale_and_shift(image.shape[-1]))

    def _scale_and_shift(self, channels):
        low, high = self.value_range
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        scale, shift = (high - low) / 255 / std, (low - mean) / std
        if self.input_range is not None:
            to_pixel, offset = self._pixel_map()
            if self.channel_order == "bgr":
                # The range is that of the image, the rest of the model.
                to_pixel, offset = to_pixel[..., ::-1], offset[..., ::-1]
            scale, shift = scale * to_pixel, shift + scale * offset
        return (
            np.broadcast_to(row, channels).astype("float32")
            for row in (scale, shift)
        )

    def affine(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the conversion as `image @ matrix + shift`.

        Args:
            channels: int > 0.

        Returns:
            `(matrix, shift)`: float32 (channels, channels) and (channels,).
        """
        scale, shift = self._scale_and_shift(channels)
        matrix = np.diag(scale)
        if self.channel_order == "bgr":
            matrix = matrix[::-1]
        return matrix, shift

    def _pixel_map(self):
        """Returns `(factor, offset)` from stored values to 0..255."""
        low, high = (np.atleast_1d(np.asarray(e)) for e in self.input_range)
        factor = 255 / (high - low)
        return factor, -low * factor

    def to_pixels(self, image: Tensor) -> Tensor:
        """Converts an image as stored to the scale of 0..255, unclipped.

        Args:
            image: tensor `(..., H, W, C)`.

        Returns:
            float32; the image itself if it is stored in 0..255.
        """
        if self.input_range is None:
            return image
        factor, offset = self._pixel_map()
        image = ops.cast(image, "float32")
        return image * factor.astype("float32") + offset.astype("float32")

    def of_pixels(self) -> "Preprocess":
        """Returns the conversion of what `to_pixels` returns."""
        return dataclasses.replace(self, input_dtype="uint8", input_range=None)

    def of_images(self, pixels: PixelFormat) -> "Preprocess":
        """Returns the conversion of images of a format.

        Args:
            pixels: `PixelFormat` of the images.

        Raises:
            ValueError: the format has no range of values.
        """
        return dataclasses.replace(
            self, input_dtype=pixels.dtype, input_range=pixels.input_range()
        )

    def get_config(self) -> dict[str, Any]:
        config = dataclasses.asdict(self)
        # Files of RGB models are those of versions that knew no others.
        if self.input_dtype == "uint8":
            del config["input_dtype"]
        if self.input_range is None:
            del config["input_range"]
        return config

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
