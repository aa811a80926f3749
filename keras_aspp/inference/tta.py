"""MultiScale: test-time augmentation, the mean over scales and mirror images.

Shape legend: B batch, H x W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_aspp.data.resize import resize_image
from keras_aspp.inference.serving import MASK_OUTPUTS, OUTPUTS
from keras_aspp.inference.sliding_window import (
    Threshold,
    from_scores,
    to_scores,
    true_probabilities,
)
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import is_number


class MultiScale:
    """Runtime that averages predictions over scales and mirror images.

    Probabilities are resized to the image bilinearly and averaged.

    Args:
        engine: with `scores(images)`, float logits (B, H, W, K).
        scales: floats > 0, factors on both sides of the image.
        flip: bool. Also average over mirror images.

    Raises:
        ValueError: a scale is not > 0, or there is none.

    Reference:
        [Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 4.1
        (0.5, 0.75, 1, 1.25, 1.5, 1.75 and flips). Differs from it in:
        nothing.
    """

    image_size: tuple[int, int] | None = None

    def __init__(
        self, engine: Any, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> None:
        scales = checked_scales(scales)
        self.engine: Any = engine
        self.is_multilabel: bool = isinstance(engine.threshold, tuple)
        self.outputs: tuple[str, ...] = (
            MASK_OUTPUTS if self.is_multilabel else OUTPUTS
        )
        self.scales: tuple[float, ...] = scales
        self.flip: bool = bool(flip)
        self.num_classes: int = engine.num_classes
        self.pixels: PixelFormat = getattr(engine, "pixels", PixelFormat())
        self.threshold: Threshold = engine.threshold
        least = engine.smallest_side / min(1.0, *scales)
        self.smallest_side: int = math.ceil(least)
        self.survives_fork: bool = False
        self.output_stride: int = getattr(engine, "output_stride", 1)

    def bytes_needed(self, count: int, height: int, width: int) -> int:
        """Returns the memory for the largest scale and the sum, in bytes."""
        largest = max(1.0, *self.scales)
        seen = (round(n * largest) for n in (height, width))
        scores = 12 * count * height * width * self.num_classes
        return self.engine.bytes_needed(count, *seen) + scores

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Computes the logarithm of the mean probability."""
        size = images.shape[1:3]
        total, count = 0, 0
        for scale in self.scales:
            scaled = _resized(images, scale)
            for step in (1, -1) if self.flip else (1,):
                seen = self.engine.scores(scaled[:, :, ::step])
                seen = true_probabilities(seen, self.threshold)[:, :, ::step]
                if scaled.shape[1:3] != size:
                    seen = keras.ops.convert_to_numpy(
                        keras.ops.image.resize(
                            seen, size, "bilinear", data_format="channels_last"
                        )
                    )
                total, count = total + seen, count + 1
        return to_scores(total, count, self.threshold)

    def answer(
        self, images: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Computes outputs of `from_scores`."""
        return from_scores(self.scores(images), outputs, self.threshold)


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Returns scales as a tuple.

    Raises:
        ValueError: no sequence of numbers in (0, 8], or an empty one.
    """
    found = tuple(scales) if isinstance(scales, Iterable) else ()
    if not found or not all(
        is_number(scale) and 0 < scale <= 8 for scale in found
    ):
        raise InputError(
            "`scales` must be floats > 0, 8 at most, such as (0.5, 1.0). "
            f"Received: scales={scales!r}"
        )
    return found


def _resized(images, scale):
    size = tuple(max(round(n * scale), 1) for n in images.shape[1:3])
    return np.stack([resize_image(image, size) for image in images])
