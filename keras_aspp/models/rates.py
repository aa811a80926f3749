"""Atrous rates at an output stride.

Architectures state how many pixels of the image their rates reach. A rate is
this offset divided by the output stride, so it reaches equally far at every
density of the feature map.
"""

from collections.abc import Sequence

from keras_aspp.utils.exceptions import InputError


def whole_rates(offsets: Sequence[int], output_stride: int) -> tuple[int, ...]:
    """Converts offsets in pixels to rates in feature cells.

    Args:
        offsets: ints > 0, in pixels.
        output_stride: int > 0, input pixels per feature cell.

    Returns:
        Tuple of ints > 0, e.g. (6, 12, 18) for (96, 192, 288) at 16.

    Raises:
        ValueError: an offset is not a multiple of `output_stride`.
    """
    if any(offset % output_stride for offset in offsets):
        works = [
            2**n
            for n in range(10)
            if not any(offset % 2**n for offset in offsets)
        ]
        raise InputError(
            f"Atrous rates that reach {tuple(offsets)} px are whole numbers "
            f"at output strides {works}; elsewhere pass `atrous_rates`. "
            f"Received: output_stride={output_stride}"
        )
    return tuple(offset // output_stride for offset in offsets)


def degenerate_rates(
    atrous_rates: Sequence[int],
    output_stride: int,
    image_size: tuple[int, int],
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Finds rates whose outer taps lie outside the map at every cell.

    Such a 3x3 convolution acts as a 1x1 (Chen et al., 2017, section 3.3).

    Args:
        atrous_rates: ints, in feature cells.
        output_stride: int, input pixels per feature cell.
        image_size: `(height, width)` in pixels.

    Returns:
        `(rates, cells)`: the degenerate rates, and the map's
        `(height, width)` in cells.
    """
    height, width = (-(-n // output_stride) for n in image_size)
    most = max(height, width)
    return tuple(r for r in atrous_rates if r >= most), (height, width)
