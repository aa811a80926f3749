"""Mean, spread and range of the bands of images."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_aspp.data.decode import RGB
from keras_aspp.data.tiff import Bands
from keras_aspp.pixels import DTYPES, PixelFormat
from keras_aspp.utils.types import PathLike


class BandStatistics:
    """Running statistics of the bands of images, one format at a time.

    Args:
        pixels: `PixelFormat` of dataset.json. RGB of 0..255 needs no
            statistics, and is counted only; float32 takes numbers of any type.

    Attributes:
        files: dict, `(channels, dtype)` -> list of the images of this format.
    """

    def __init__(self, pixels: PixelFormat = RGB) -> None:
        self.pixels = pixels
        self.files: dict[tuple[int, str], list[PathLike]] = {}
        self._sums: dict[tuple[int, str], np.ndarray] = {}

    def add(self, bands: Bands, path: PathLike) -> None:
        """Adds the valid pixels of an image."""
        values = bands.values
        dtype = values.dtype.name
        if self.pixels.dtype == "float32":
            dtype = "float32"
        key = values.shape[-1], dtype
        self.files.setdefault(key, []).append(path)
        if self.pixels.is_default and key == (RGB.channels, RGB.dtype):
            return
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
        """Returns the statistics of all images.

        Returns:
            dict of `channels`, `dtype`, and lists of one number for each
            band: `mean`, `std`, `min`, `max`; empty for images of several
            formats, or if nothing was measured.
        """
        if len(self.files) != 1 or not self._sums:
            return {}
        ((key, sums),) = self._sums.items()
        count, mean, squares, low, high = sums
        # A constant band has no spread, and is not scaled.
        std = np.sqrt(squares / count)
        std[std == 0] = 1.0
        rows = {"mean": mean, "std": std, "min": low, "max": high}
        return {
            "channels": key[0],
            "dtype": key[1] if key[1] in DTYPES else "float32",
            **{name: _rounded(row) for name, row in rows.items()},
        }

    def note(self) -> str | None:
        """Describes several formats; `None` if there is one."""
        if len(self.files) < 2:
            return None
        by_count = sorted(self.files.items(), key=lambda item: -len(item[1]))
        shown = ", ".join(
            f"{len(files)} of {channels} x {dtype}, first {files[0]}"
            for (channels, dtype), files in by_count
        )
        return (
            "images have several formats (bands x type), of which dataset.json "
            f"can describe one: {shown}"
        )


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
