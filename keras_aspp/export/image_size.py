"""Default image size of files that have one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from keras_aspp.utils.text import num_of

_STEP, _LEAST, _MOST = 32, 128, 1024


def choose_image_size(
    sizes: Mapping[tuple[int, int], int],
    fixed: Sequence[int | None] = (None, None),
) -> tuple[tuple[int, int], str]:
    """Chooses the image size of files from the sizes of a data set's images.

    The median height and width, reduced at their ratio where one exceeds 1024,
    rounded to multiples of 32, at least 128.

    Args:
        sizes: dict, `(height, width)` -> number of images, not empty.
        fixed: `(height, width)` of the model's input; `None` where open.

    Returns:
        `((height, width), reason)`; the reason is a str.
    """
    fixed = tuple(fixed)
    if None not in fixed:
        return fixed, "the size of the model's input"
    shapes = np.repeat([*sizes], [*sizes.values()], axis=0)
    median = np.median(shapes, axis=0)
    steps = np.floor(median * min(1, _MOST / median.max()) / _STEP + 0.5)
    rounded = np.clip(_STEP * steps, _LEAST, _MOST).astype(int).tolist()
    height, width = median
    reason = (
        f"the median of {num_of(len(shapes), 'image')} is "
        f"{height:.0f}x{width:.0f}; sizes are multiples of {_STEP} in "
        f"{_LEAST}..{_MOST}"
    )
    size = (own or n for own, n in zip(fixed, rounded, strict=True))
    return tuple(size), reason
