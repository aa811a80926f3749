"""Atrous rates at an output stride.

Architectures state how many pixels of the image their rates reach. A rate is
this offset divided by the output stride, so it reaches equally far at every
density of the feature map.
"""

from collections.abc import Sequence

from keras_aspp.layers.checks import rate_pair
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Rate


def offsets_of(
    atrous_rates: Sequence[Rate], output_stride: int
) -> tuple[Rate, ...]:
    """Converts rates in feature cells to offsets in pixels.

    Args:
        atrous_rates: ints > 0 or pairs `(height, width)`, in cells.
        output_stride: int > 0, input pixels per feature cell.
    """
    return _per_axis(atrous_rates, lambda rate: rate * output_stride)


def whole_rates(
    offsets: Sequence[Rate], output_stride: int
) -> tuple[Rate, ...]:
    """Converts offsets in pixels to rates in feature cells.

    Args:
        offsets: ints > 0 or pairs `(height, width)`, in pixels.
        output_stride: int > 0, input pixels per feature cell.

    Returns:
        Tuple of rates, e.g. (6, 12, 18) for (96, 192, 288) at 16.

    Raises:
        ValueError: an offset is not a multiple of `output_stride`.
    """
    pixels = [n for offset in offsets for n in rate_pair(offset)]
    if any(n % output_stride for n in pixels):
        works = [
            2**power
            for power in range(10)
            if not any(n % 2**power for n in pixels)
        ]
        raise InputError(
            f"Atrous rates that reach {tuple(offsets)} px are whole numbers "
            f"at output strides {works}; elsewhere pass `atrous_rates`. "
            f"Received: output_stride={output_stride}"
        )
    return _per_axis(offsets, lambda offset: offset // output_stride)


def degenerate_rates(
    atrous_rates: Sequence[Rate],
    output_stride: int,
    image_size: tuple[int, int],
) -> tuple[tuple[Rate, ...], tuple[int, int]]:
    """Finds rates whose outer taps lie outside the map at every cell.

    Such a 3x3 convolution acts as a 1x1 (Chen et al., 2017, section 3.3).

    Args:
        atrous_rates: ints or pairs `(height, width)`, in feature cells.
        output_stride: int, input pixels per feature cell.
        image_size: `(height, width)` in pixels.

    Returns:
        `(rates, cells)`: the degenerate rates, and the map's
        `(height, width)` in cells.
    """
    height, width = (-(-n // output_stride) for n in image_size)
    lost = []
    for rate in atrous_rates:
        rows, columns = rate_pair(rate)
        if rows >= height and columns >= width:
            lost.append(rate)
    return tuple(lost), (height, width)


def degenerate_note(
    atrous_rates: Sequence[Rate],
    output_stride: int,
    image_size: tuple[int, int],
    input_scale: int = 1,
    what: str = "image",
) -> str | None:
    """Describes the degenerate rates, or returns `None` where there are none.

    Args:
        atrous_rates: ints or pairs `(height, width)`, in feature cells.
        output_stride: int, pixels of the upsampled image per feature cell.
        image_size: `(height, width)` in pixels, before the upsampling.
        input_scale: int > 0, factor by which the model upsamples images.
        what: name of the image.
    """
    height, width = image_size
    lost, cells = degenerate_rates(
        atrous_rates,
        output_stride,
        (height * input_scale, width * input_scale),
    )
    if not lost:
        return None
    return (
        f"rates {lost} reach beyond the {cells[0]}x{cells[1]} map of a "
        f"{height}x{width} {what} ({output_stride / input_scale:g} pixels "
        "per cell)"
    )


def _per_axis(rates, function):
    return tuple(
        function(rate) if isinstance(rate, int) else tuple(map(function, rate))
        for rate in rates
    )
