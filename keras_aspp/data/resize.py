"""Resizing of images."""

from __future__ import annotations

import numpy as np
from PIL import Image

from keras_aspp.utils.types import Size


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes `[H, W, C]` to `(height, width)`, antialiased."""
    if image.shape[:2] == tuple(size):
        return image
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return _resized(image, size)
    bands = [
        _resized(image[..., i].astype("float32"), size)
        for i in range(image.shape[2])
    ]
    resized = np.stack(bands, axis=-1)
    if image.dtype.kind == "u":
        resized = np.round(resized)
    return resized.astype(image.dtype)


def _resized(image, size):
    return np.array(
        Image.fromarray(image).resize(
            (size[1], size[0]), Image.Resampling.BILINEAR
        )
    )
