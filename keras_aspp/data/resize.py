"""Resizing of images."""

import numpy as np
from PIL import Image

from keras_aspp.utils.types import Size


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """uint8 `[H, W, 3]` resized to `(height, width)`, antialiased."""
    if image.shape[:2] == tuple(size):
        return image
    picture = Image.fromarray(image)
    return np.array(
        picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    )
