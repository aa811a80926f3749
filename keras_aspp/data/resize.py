"""Resizing of images."""

from __future__ import annotations

import numpy as np
from PIL import Image

from keras_aspp.utils.types import Size


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Resizes uint8 `[H, W, 3]` to `(height, width)`, antialiased."""
    if image.shape[:2] == tuple(size):
        return image
    resized = Image.fromarray(image)
    return np.array(
        resized.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    )
