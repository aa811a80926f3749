"""Effective receptive field: the pixels that matter, by their gradients."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_aspp.analysis.trace import output_of
from keras_aspp.utils.exceptions import InputError


@dataclasses.dataclass(frozen=True)
class EffectiveField:
    """Sensitivity of the central cell to each pixel.

    Attributes:
        map: float array `(height, width)`, sums to 1.
        cell: `(row, column)` of the cell, in cells.
    """

    map: np.ndarray
    cell: tuple[int, int]

    @property
    def center(self) -> tuple[float, float]:
        """`(y, x)`, center of gravity in pixels."""
        return tuple(
            float(np.arange(n) @ share)
            for n, share in zip(self.map.shape, self._margins, strict=True)
        )

    @property
    def std(self) -> tuple[float, float]:
        """`(y, x)`, standard deviation in pixels."""
        pairs = zip(self.center, self._margins, strict=True)
        return tuple(
            float(np.sqrt((np.arange(len(share)) - at) ** 2 @ share))
            for at, share in pairs
        )

    def side(self, share: float = 0.95) -> int:
        """Side of the square that holds a share of the whole.

        Args:
            share: float in (0, 1). Defaults to 0.95.

        Returns:
            int, odd, in pixels: of the smallest square whose center lies
            within a pixel of `center`, cropped to the image.
        """
        rows, columns = np.indices(self.map.shape)
        sides = []
        for dy, dx in np.ndindex(3, 3):
            y, x = (
                round(at) + d - 1
                for at, d in zip(self.center, (dy, dx), strict=True)
            )
            distance = np.maximum(abs(rows - y), abs(columns - x))
            within = np.cumsum(np.bincount(distance.ravel(), self.map.ravel()))
            sides.append(2 * int(np.searchsorted(within, share)) + 1)
        return min(sides)

    @property
    def _margins(self):
        return self.map.sum(axis=1), self.map.sum(axis=0)


def effective_receptive_field(
    model: keras.Model, images: ArrayLike, layer: str | None = None
) -> EffectiveField:
    """Gradient of the central cell with respect to the pixels.

    The theoretical field says which pixels can matter; most of its rim hardly
    does. Here the absolute gradient of the cell's channels is averaged over
    images and over random signs of the channels, one draw an image, so
    that channels do not cancel.

    Args:
        model: functional `keras.Model` of one image (TensorFlow backend).
        images: float array `(n, height, width, channels)`, as the model takes
            them, of any size that it takes.
        layer: name of one of the model's layers, or key of its outputs.
            Defaults to its one output.

    Returns:
        `EffectiveField`.

    Raises:
        ValueError: the layer does not exist, its output is not a map, or it
            does not depend on the image.

    Reference:
        [Luo et al., 2016](https://arxiv.org/abs/1701.04128), section 3.
        Differs from it in: the cell's channels have random signs, and size is
        given by mass, not by a threshold.
    """
    import tensorflow as tf

    output = _output(model, layer)
    part = keras.Model(model.inputs[0], output)
    rng = np.random.default_rng(0)
    total, cell = 0.0, None
    for image in np.asarray(images, "float32"):
        pixels = tf.constant(image[None])
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            features = part(pixels, training=False)
            cell = tuple(n // 2 for n in features.shape[1:3])
            signs = rng.choice([-1.0, 1.0], features.shape[-1])
            value = tf.reduce_sum(
                tf.cast(features[0, cell[0], cell[1]], "float32")
                * signs.astype("float32")
            )
        gradient = tape.gradient(value, pixels)
        if gradient is not None:
            total = total + np.abs(gradient.numpy()[0]).sum(axis=-1)
    if not np.sum(total) > 0:
        raise InputError(
            "The central cell depends on no pixel of these images. "
            f"Received: layer={layer!r}, {len(images)} images"
        )
    return EffectiveField(total / total.sum(), cell)


def _output(model, layer):
    output = output_of(model)
    names = [one.name for one in model.layers]
    if isinstance(output, dict) and layer in output:
        found = output[layer]
    elif layer in names:
        found = model.get_layer(layer).output
    elif layer is None and not isinstance(output, (dict, list, tuple)):
        found = output
    else:
        known = list(output) if isinstance(output, dict) else names[-5:]
        raise InputError(
            "`layer` must be a layer of the model or a key of its outputs, "
            f"such as {', '.join(known)}. Received: layer={layer!r}"
        )
    if len(getattr(found, "shape", ())) != 4:
        raise InputError(
            "`layer` must have one map (batch, height, width, channels) as "
            f"its output. Received: layer={layer!r}"
        )
    return found
