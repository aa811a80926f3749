"""PixelFormat: number, type and value range of the channels of images."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from keras_aspp.utils.exceptions import InputError

DTYPES = ("uint8", "uint16", "float32")
MAX_CHANNELS = 512
# Mean and standard deviation of ImageNet's pixels, averaged over RGB: where
# `mean` and `std` of a data set are mapped to on the scale of 0..255, since
# the backbones were trained there.
_MEAN, _STD = 255 * 0.449, 255 * 0.226


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """Channels of the images of a data set or model.

    Args:
        channels: int in 1..512. Defaults to 3 (RGB).
        dtype: `"uint8"`, `"uint16"` or `"float32"`. Defaults to `"uint8"`.
        value_range: `(low, high)`, values shown as black and white, each a
            float or one per channel; or `None`. uint8 has 0..255.
        mean: float or one per channel, in stored units, instead of
            `value_range`; or `None`.
        std: float > 0 or one per channel, with `mean`; or `None`.

    Raises:
        ValueError: a value is not as above.
    """

    channels: int = 3
    dtype: str = "uint8"
    value_range: tuple[Any, Any] | None = None
    mean: Any = None
    std: Any = None

    def __post_init__(self) -> None:
        if type(self.channels) is not int or not (
            1 <= self.channels <= MAX_CHANNELS
        ):
            raise InputError(
                f"`channels` must be an int in 1..{MAX_CHANNELS}. "
                f"Received: channels={self.channels!r}"
            )
        if self.dtype not in DTYPES:
            raise InputError(
                f"`dtype` must be one of {', '.join(DTYPES)}. "
                f"Received: dtype={self.dtype!r}"
            )
        if (self.mean is None) != (self.std is None) or (
            self.mean is not None and self.value_range is not None
        ):
            raise InputError(
                "Either `value_range`, or `mean` and `std` together, or none "
                f"of them. Received: value_range={self.value_range}, "
                f"mean={self.mean}, std={self.std}"
            )
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, self._per_channel(name, value))
        if self.std is not None and np.min(self.std) <= 0:
            raise InputError(f"`std` must be > 0. Received: std={self.std}")
        if self.value_range is not None:
            object.__setattr__(self, "value_range", self._checked_range())

    def _checked_range(self):
        value = self.value_range
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise InputError(
                "`value_range` must be [low, high]. "
                f"Received: value_range={value!r}"
            )
        low, high = (self._per_channel("value_range", v) for v in value)
        if np.any(np.asarray(low) >= np.asarray(high)):
            raise InputError(
                "`value_range` must be [low, high] with low < high. "
                f"Received: value_range={list(value)}"
            )
        return low, high

    def _per_channel(self, name, value):
        """Returns a float, or a tuple of one for each channel."""
        several = isinstance(value, (list, tuple))
        numbers = value if several else (value,)
        if not all(
            type(n) in (int, float) and math.isfinite(n) for n in numbers
        ) or (several and len(numbers) != self.channels):
            raise InputError(
                f"`{name}` must hold finite numbers, one for all or one for "
                f"each of the {self.channels} channels. Received: {value!r}"
            )
        return tuple(map(float, numbers)) if several else float(value)

    @property
    def is_default(self) -> bool:
        """True for RGB of 0..255."""
        return self == PixelFormat()

    def input_range(self) -> tuple[Any, Any] | None:
        """Returns the stored values that become 0 and 255.

        Returns:
            `(low, high)`, each a float or one per channel; `None` if they are
            0 and 255.

        Raises:
            ValueError: neither `value_range` nor statistics are known.
        """
        if self.value_range is not None:
            return self.value_range
        if self.mean is not None:
            mean, std = np.asarray(self.mean), np.asarray(self.std)
            ends = (mean + (p - _MEAN) / _STD * std for p in (0, 255))
            low, high = (end.tolist() for end in ends)
            return tuple(
                tuple(end) if isinstance(end, list) else end
                for end in (low, high)
            )
        if self.dtype == "uint8":
            return None
        raise InputError(
            f"Images of {self.dtype} need `value_range`, or `mean` and `std`, "
            "in dataset.json; `keras-aspp data check ROOT` prints them. "
            f"Received: dtype={self.dtype!r} alone"
        )

    def describe(self) -> str:
        """Returns e.g. `"4 bands of uint16"`."""
        bands = "1 band" if self.channels == 1 else f"{self.channels} bands"
        return f"{bands} of {self.dtype}"

    def check(self, image: np.ndarray, path: str) -> np.ndarray:
        """Returns an image of this format, or raises `ValueError`.

        Args:
            image: array `[H, W, C]`.
            path: name for messages.

        Returns:
            array `[H, W, channels]` of `dtype`. Numbers of any type fit
            float32.
        """
        found = image.shape[-1], image.dtype.name
        fits = self.dtype in (found[1], "float32")
        if found[0] == self.channels and fits:
            return image.astype(self.dtype, copy=False)
        bands = "1 band" if found[0] == 1 else f"{found[0]} bands"
        dtype = found[1] if found[1] in DTYPES else "float32"
        raise InputError(
            f"Images must have {self.describe()}, as dataset.json or the model "
            f"says. File: {path} ({bands} of {found[1]}); such files need a "
            f'model that was trained on them, by "channels": {found[0]}, '
            f'"dtype": "{dtype}" in dataset.json'
        )


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts an image of any format to RGB for people.

    The first three bands, or the first one in gray. All but uint8 is
    stretched from the 2nd to the 98th percentile of each band; pixels that
    are NaN become black.

    Args:
        image: array `[H, W, C]`.

    Returns:
        uint8 `[H, W, 3]`.
    """
    bands = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    if bands.dtype != np.uint8:
        # Every pixel of a large image would not change percentiles.
        step = 1 + max(bands.shape[:2]) // 1024
        some = bands[::step, ::step].reshape(-1, bands.shape[-1])
        valid = np.isfinite(some).all(-1)
        some = some[valid].astype("float32") if valid.any() else np.zeros(1)
        low, high = np.percentile(some, (2, 98), axis=0)
        scaled = (bands - low) / np.maximum(high - low, 1e-12)
        scaled = np.clip(np.nan_to_num(scaled), 0, 1)
        bands = np.round(255 * scaled).astype("uint8")
    return np.repeat(bands, 3, -1) if bands.shape[-1] == 1 else bands
