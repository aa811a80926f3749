"""Atrous rates and output strides: the one table that ties them.

Offsets are in pixels of the picture, so a rate is an offset divided by the
output stride and reaches equally far at every density.
"""

OFFSETS_PX = {
    "deeplab_v3": (96, 192, 288),
    "deeplab_v3_plus": (96, 192, 288),
}


def atrous_rates_at(architecture, output_stride):
    """Rates of an architecture's ASPP, in feature cells.

    Args:
        architecture: a key of `OFFSETS_PX`.
        output_stride: int > 0, input pixels per feature cell.

    Returns:
        tuple of ints, e.g. (6, 12, 18) for DeepLabV3 at output stride 16.

    Raises:
        ValueError: an offset is no multiple of `output_stride`.

    Source: Chen et al., 2017, section 4.1 (6, 12, 18 at 16; doubled at 8).
    """
    offsets = OFFSETS_PX[architecture]
    if any(offset % output_stride for offset in offsets):
        works = [
            2**n
            for n in range(10)
            if not any(offset % 2**n for offset in offsets)
        ]
        raise ValueError(
            f"Offsets {offsets} px of {architecture} give whole rates at "
            f"output strides {works}; elsewhere pass `atrous_rates`. "
            f"Received: output_stride={output_stride}"
        )
    return tuple(offset // output_stride for offset in offsets)


def degenerate_rates(atrous_rates, output_stride, image_size):
    """Rates whose outer taps never fall on the map.

    Such a 3x3 convolution is a 1x1 (Chen et al., 2017, section 3.3).

    Args:
        atrous_rates: ints, in feature cells.
        output_stride: int, input pixels per feature cell.
        image_size: `(height, width)` in pixels.

    Returns:
        `(rates, cells)`: the rates concerned, and the map's
        `(height, width)` in cells.
    """
    cells = tuple(-(-n // output_stride) for n in image_size)
    return tuple(r for r in atrous_rates if r >= max(cells)), cells
