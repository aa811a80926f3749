"""Mean, spread and range of the bands of images."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from keras_aspp.data.tiff import Bands
from keras_aspp.pixels import DTYPES


class BandStatistics:
    """Running statistics of the bands of images, one format at a time.

    Attributes:
        formats: `Counter` of `(channels, dtype)`, the images of each.
    """

    def __init__(self) -> None:
        self.formats: collections.Counter[tuple[int, str]] = (
            collections.Counter()
        )
        self._sums: dict[tuple[int, str], np.ndarray] = {}

    def add(self, bands: Bands) -> None:
        """Adds the valid pixels of an image."""
        values = bands.values
        key = values.shape[-1], values.dtype.name
        self.formats[key] += 1
        pixels = values.reshape(-1, values.shape[-1])
        if bands.valid is not None:
            pixels = pixels[bands.valid.ravel()]
        if not len(pixels):
            return
        pixels = pixels.astype("float64")
        count = np.full(values.shape[-1], len(pixels), "float64")
        mean = pixels.mean(0)
        found = np.stack(
            [count, mean, ((pixels - mean) ** 2).sum(0)]
            + [pixels.min(0), pixels.max(0)]
        )
        before = self._sums.get(key)
        self._sums[key] = found if before is None else _merged(before, found)

    def result(self) -> dict[str, Any]:
        """Returns the statistics of the most frequent format.

        Returns:
            dict of `channels`, `dtype`, and lists of one number for each
            band: `mean`, `std`, `min`, `max`; empty if there are none.
        """
        if not self._sums:
            return {}
        key = max(self._sums, key=lambda key: self.formats[key])
        count, mean, squares, low, high = self._sums[key]
        # A constant band has no spread, and is not scaled.
        std = np.sqrt(squares / count)
        std[std == 0] = 1.0
        rows = {"mean": mean, "std": std, "min": low, "max": high}
        return {
            "channels": key[0],
            "dtype": key[1] if key[1] in DTYPES else "float32",
            **{name: _rounded(row) for name, row in rows.items()},
        }


def _merged(one, other):
    """Merges two statistics; source: Chan, Golub & LeVeque, 1979."""
    (n, mean, squares, *ends), (m, more, others, *others_ends) = one, other
    delta = more - mean
    return np.stack(
        [
            n + m,
            mean + delta * m / (n + m),
            squares + others + delta**2 * n * m / (n + m),
            np.minimum(ends[0], others_ends[0]),
            np.maximum(ends[1], others_ends[1]),
        ]
    )


def _rounded(row):
    return [float(f"{value:.6g}") for value in row]
