"""Valid taps, counted one by one."""

import keras
import numpy as np
import pytest
from helpers import npy

from keras_aspp.analysis import valid_taps
from keras_aspp.models.rates import degenerate_rates


def counted(rate, size, kernel_size):
    """A kernel of ones over a map of ones counts its own taps."""
    ones = np.ones((1, *size, 1), "float32")
    kernel = np.ones((kernel_size, kernel_size, 1, 1), "float32")
    counts = keras.ops.conv(ones, kernel, 1, "same", dilation_rate=rate)
    return npy(counts)[0, ..., 0].round().astype(int)


@pytest.mark.parametrize("rate", [1, 2, 4, 5, 9, 12, (2, 5), (12, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_convolution_of_ones_counts_the_same(rate, kernel_size):
    counts = counted(rate, (11, 9), kernel_size)
    found = valid_taps(rate, (11, 9), kernel_size)
    assert found.shares == {
        int(n): pytest.approx((counts == n).mean()) for n in np.unique(counts)
    }
    assert found.mean == pytest.approx(counts.mean() / kernel_size**2)


@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((3, 1), (0, 5))])
def test_a_padded_convolution_of_ones_counts_the_same(pads):
    ones = np.pad(np.ones((11, 9)), pads)[None, ..., None].astype("float32")
    kernel = np.ones((3, 3, 1, 1), "float32")
    counts = npy(keras.ops.conv(ones, kernel, 1, "valid", dilation_rate=(3, 2)))
    found = valid_taps((3, 2), (11, 9), pads=pads)
    assert found.mean == pytest.approx(counts.mean() / 9)
    assert found.shares == {
        int(n): pytest.approx((counts == n).mean()) for n in np.unique(counts)
    }


def test_integers_of_numpy_are_integers():
    assert valid_taps(6, np.int64(33)) == valid_taps(6, (33, 33))


def test_figure_4_of_deeplab_v3():
    # 65x65: at rate 1 nearly all taps count, beyond the map one does.
    shares = valid_taps(1, 65).shares
    assert shares == {
        9: 63**2 / 65**2,
        6: 4 * 63 / 65**2,
        4: 4 / 65**2,
    }
    assert valid_taps(32, 65).shares[4] == 64**2 / 65**2
    assert valid_taps(65, 65).shares == {1: 1.0}


@pytest.mark.parametrize(
    "rate", [8, 9, 11, 12, (11, 8), (11, 9), (10, 9), (9, 11)]
)
def test_degenerate_is_what_the_models_warn_of(rate):
    lost, cells = degenerate_rates((rate,), 16, (11 * 16, 9 * 16))
    assert valid_taps(rate, cells).degenerate == bool(lost)


def test_one_by_one_kernels_do_not_degenerate():
    assert not valid_taps(3, 2, kernel_size=1).degenerate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 65), "Received: rate=0"),
        ((1.0, 65), r"Received: rate=1\.0"),
        ((1, (5, 0)), "Received: size=0"),
        ((1, (33, 20, 3)), r"or 2 of them. Received: size=\(33, 20, 3\)"),
        ((1, 33.0), r"Received: size=33\.0"),
        ((1, None), "Received: size=None"),
        ((1, 5, 2), "must be odd.*Received: kernel_size=2"),
        ((3, 5, 3, ((0, 0), (0, 0))), r"room for.*Received: pads=\(0, 0\)"),
        ((1, 5, 3, ((0, -1), (0, 0))), r"Received: pads=\(0, -1\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        valid_taps(*arguments)
