"""Atrous rates at an output stride."""

from types import SimpleNamespace

import pytest

from keras_aspp.models.factory import ARCHITECTURES
from keras_aspp.models.rates import (
    degenerate_note,
    degenerate_rates,
    offsets_of,
    whole_rates,
)


def offsets_px(architecture, **head):
    segmenter = ARCHITECTURES[architecture]
    return segmenter.branch_offsets_px(None, SimpleNamespace(**head))


@pytest.mark.parametrize(
    "architecture, head, output_stride, rates",
    [
        ("deeplab_v2", {"pyramid": "large_fov"}, 8, (12,)),
        ("deeplab_v2", {"pyramid": "aspp_s"}, 8, (2, 4, 8, 12)),
        ("deeplab_v2", {"pyramid": "aspp_l"}, 8, (6, 12, 18, 24)),
        ("deeplab_v3", {}, 8, (12, 24, 36)),
        ("deeplab_v3", {}, 16, (6, 12, 18)),
        ("deeplab_v3", {}, 32, (3, 6, 9)),
        ("deeplab_v3_cascaded", {}, 16, ()),
        ("deeplab_v3_plus", {}, 16, (6, 12, 18)),
        ("dense_aspp", {}, 8, (3, 6, 12, 18, 24)),
        ("lr_aspp", {}, 16, ()),
        ("daformer", {}, 4, (6, 12, 18)),
    ],
)
def test_rates_of_the_papers(architecture, head, output_stride, rates):
    assert whole_rates(offsets_px(architecture, **head), output_stride) == rates


@pytest.mark.parametrize("output_stride", [1, 2, 4, 8])
def test_offsets_are_reached_at_every_stride(output_stride):
    for architecture in ARCHITECTURES:
        offsets = offsets_px(architecture, pyramid="aspp_s")
        rates = whole_rates(offsets, output_stride)
        assert tuple(r * output_stride for r in rates) == offsets


def test_rates_of_both_axes_scale_by_axis():
    offsets = offsets_of((6, (6, 12), (18, 3)), 16)
    assert offsets == (96, (96, 192), (288, 48))
    assert whole_rates(offsets, 8) == (12, (12, 24), (36, 6))
    with pytest.raises(ValueError, match=r"\[1, 2, 4, 8, 16\].*stride=32"):
        whole_rates(offsets, 32)


def test_rates_of_both_axes_degenerate_when_both_leave_the_map():
    rates = ((5, 12), (12, 4), (4, 12), 12)
    assert degenerate_rates(rates, 16, (5 * 16, 9 * 16))[0] == ((5, 12), 12)


def test_the_note_on_degenerate_rates_is_in_pixels_of_the_image():
    assert degenerate_note((5, 6), 16, (48, 40), 2, "crop") == (
        "rates (6,) reach beyond the 6x5 map of a 48x40 crop (8 pixels per "
        "cell)"
    )
    assert degenerate_note((5,), 16, (48, 40), 2) is None


def test_no_whole_rate():
    message = r"\[1, 2, 4, 8, 16, 32\].*Received: output_stride=64"
    with pytest.raises(ValueError, match=message):
        whole_rates((96, 192, 288), 64)


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
