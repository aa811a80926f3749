"""The one table of rates."""

import pytest

from keras_aspp.models.rates import (
    OFFSETS_PX,
    atrous_rates_at,
    degenerate_rates,
)


@pytest.mark.parametrize(
    "architecture, output_stride, rates",
    [
        ("deeplab_v2_large_fov", 8, (12,)),
        ("deeplab_v2_aspp_s", 8, (2, 4, 8, 12)),
        ("deeplab_v2_aspp_l", 8, (6, 12, 18, 24)),
        ("deeplab_v3", 8, (12, 24, 36)),
        ("deeplab_v3", 16, (6, 12, 18)),
        ("deeplab_v3", 32, (3, 6, 9)),
        ("deeplab_v3_cascaded", 16, ()),
        ("deeplab_v3_plus", 16, (6, 12, 18)),
        ("dense_aspp", 8, (3, 6, 12, 18, 24)),
        ("lr_aspp", 16, ()),
    ],
)
def test_rates_of_the_papers(architecture, output_stride, rates):
    assert atrous_rates_at(architecture, output_stride) == rates


def test_every_offset_is_reached_at_every_stride():
    for architecture, offsets in OFFSETS_PX.items():
        for output_stride in (1, 2, 4, 8):
            rates = atrous_rates_at(architecture, output_stride)
            assert tuple(r * output_stride for r in rates) == offsets


def test_no_whole_rate():
    message = r"\[1, 2, 4, 8, 16, 32\].*Received: output_stride=64"
    with pytest.raises(ValueError, match=message):
        atrous_rates_at("deeplab_v3", 64)


@pytest.mark.parametrize(
    "image_size, cells, lost",
    [
        ((513, 513), (33, 33), ()),
        ((288, 288), (18, 18), (18,)),
        ((289, 200), (19, 13), ()),  # still reaches along one axis
        ((192, 64), (12, 4), (12, 18)),
        ((16, 16), (1, 1), (6, 12, 18)),
    ],
)
def test_degenerate_rates(image_size, cells, lost):
    found = degenerate_rates((6, 12, 18), 16, image_size)
    assert found == (lost, cells)
