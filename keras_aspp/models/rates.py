"""Atrous rates and output strides: the one table that ties them.

Offsets are in pixels of the picture, so a rate is an offset divided by the
output stride and reaches equally far at every density.
"""

from keras_aspp.utils.exceptions import InputError

OFFSETS_PX = {
    "deeplab_v2_large_fov": (96,),
    "deeplab_v2_aspp_s": (16, 32, 64, 96),
    "deeplab_v2_aspp_l": (48, 96, 144, 192),
    "deeplab_v3": (96, 192, 288),
    "deeplab_v3_cascaded": (),  # its rates are the backbone's
    "deeplab_v3_plus": (96, 192, 288),
    "dense_aspp": (24, 48, 96, 144, 192),
    "lr_aspp": (),
}


def atrous_rates_at(architecture, output_stride):
    """Rates of an architecture's head, in feature cells.

    Args:
        architecture: a key of `OFFSETS_PX`.
        output_stride: int > 0, input pixels per feature cell.

    Returns:
        tuple of ints, e.g. (6, 12, 18) for DeepLabV3 at output stride 16.

    Raises:
        ValueError: an offset is no multiple of `output_stride`.

    Source: DeepLabV3 and V3+: Chen et al., 2017, section 4.1 (6, 12, 18 at
    16; doubled at 8). V2: Chen et al., 2016, section 4.1 (at 8: LargeFOV 12;
    ASPP-S 2, 4, 8, 12; ASPP-L 6, 12, 18, 24). DenseASPP: Yang et al., 2018,
    section 3 (3, 6, 12, 18, 24 at 8).
    """
    return whole_rates(OFFSETS_PX[architecture], output_stride)


def whole_rates(offsets, output_stride):
    """Rates that reach as many pixels as given.

    Args:
        offsets: ints > 0, in pixels.
        output_stride: int > 0, input pixels per feature cell.

    Returns:
        tuple of ints > 0, in feature cells.

    Raises:
        ValueError: an offset is no multiple of `output_stride`.
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
