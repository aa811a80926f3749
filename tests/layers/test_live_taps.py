"""Live taps are the whole convolution: the rest multiplies padding."""

import itertools

import numpy as np
import pytest
from helpers import ON_TENSORFLOW, assert_close, npy, sample
from keras import ops

from keras_aspp.layers import lowering
from keras_aspp.layers.live_taps import (
    convolve_live_taps,
    crop_kernel,
    live_share,
)

# Standard deviations; measured 1.5e-6, 8.4e-3 and 1.9e-3 at most, times 10.
TOLERANCE = {"float32": 1.5e-5, "bfloat16": 0.084, "float16": 0.019}
SIZE = (9, 7)


def counted(size, kernel_size, atrous_rate):
    """Counts the taps on the map cell by cell."""
    live = 0
    ranges = [range(n) for n in (*size, *kernel_size)]
    for y, x, i, j in itertools.product(*ranges):
        at = [
            cell + tap * rate - (k - 1) * rate // 2
            for cell, tap, k, rate in zip(
                (y, x), (i, j), kernel_size, atrous_rate, strict=True
            )
        ]
        live += all(0 <= a < n for a, n in zip(at, size, strict=True))
    return live


@pytest.mark.parametrize(
    "size, kernel_size, atrous_rate",
    [
        ((9, 7), (3, 3), (2, 3)),
        ((9, 7), (3, 5), (9, 2)),
        ((9, 7), (2, 4), (3, 5)),
        ((5, 5), (3, 3), (1, 40)),
    ],
)
def test_live_share_is_the_counted_one(size, kernel_size, atrous_rate):
    live = counted(size, kernel_size, atrous_rate)
    share = live / np.prod(size + kernel_size)
    assert live_share(size, kernel_size, atrous_rate) == pytest.approx(share)


@pytest.mark.parametrize(
    "size, expected", [(33, 0.583), (16, 0.308), (65, 0.771)]
)
def test_live_share_of_the_published_rates(size, expected):
    shares = [
        live_share((size, size), (3, 3), (rate, rate)) for rate in (6, 12, 18)
    ]
    assert np.mean(shares) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "kernel_size, atrous_rate, left, rates",
    [
        ((3, 3), (8, 6), (3, 3), (8, 6)),  # one cell of the border is read
        ((3, 3), (9, 6), (1, 3), (1, 6)),
        ((3, 3), (50, 7), (1, 1), (1, 1)),
        ((5, 5), (5, 2), (3, 5), (5, 2)),
        ((4, 2), (9, 3), (2, 2), (9, 3)),
        ((1, 1), (9, 9), (1, 1), (1, 1)),
    ],
)
def test_crop_keeps_the_convolution(kernel_size, atrous_rate, left, rates):
    x, kernel = sample((2, *SIZE, 5)), sample((*kernel_size, 5, 4), seed=1)
    cropped, rate = crop_kernel(kernel, SIZE, atrous_rate)
    assert (cropped.shape[:2], rate) == (left, rates)
    plain = ops.conv(x, kernel, padding="same", dilation_rate=atrous_rate)
    small = ops.conv(x, cropped, padding="same", dilation_rate=rate)
    assert_close(small, plain, TOLERANCE["float32"])


@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize(
    "batch, kernel_size, rate, dtype",
    [
        (1, (3, 3), (2, 3), "float32"),
        (2, (3, 3), (6, 4), "float32"),  # beyond half of the map
        (3, (3, 1), (8, 1), "float32"),
        (2, (5, 3), (2, 6), "float32"),
        (2, (3, 3), (2, 3), "bfloat16"),
        (2, (3, 3), (2, 3), "float16"),
    ],
)
def test_value_and_gradients(batch, kernel_size, rate, dtype, how):
    if not ON_TENSORFLOW:
        pytest.skip("gradients are taken with TensorFlow's tape")
    import tensorflow as tf
    from test_lowering import run, with_gradients

    x, kernel = sample((batch, *SIZE, 5)), sample((*kernel_size, 5, 4), seed=1)
    args = [tf.cast(a, dtype) for a in (x, kernel)]

    def plain(x, k):
        return ops.conv(x, k, padding="same", dilation_rate=rate)

    def ours(x, k):
        return convolve_live_taps(x, k, rate)

    expected = with_gradients(plain)(*(tf.cast(a, "float32") for a in args))
    actual = run(how, with_gradients(ours), *args)
    for a, e in zip(actual, expected, strict=True):
        assert npy(e).std() > 0.1
        assert_close(tf.cast(a, "float32"), e, TOLERANCE[dtype])


def test_given_forward_and_backward_are_used():
    if not ON_TENSORFLOW:
        pytest.skip("gradients are taken with TensorFlow's tape")
    import tensorflow as tf

    x, kernel = tf.ones((1, 5, 5, 2)), tf.ones((3, 3, 2, 1))
    with tf.GradientTape() as tape:
        tape.watch((x, kernel))
        y = convolve_live_taps(
            x,
            kernel,
            (2, 2),
            lambda x, k: 7 * x[..., :1],
            lambda x, k, upstream: 5 * x,
        )
    of_x, of_kernel = tape.gradient(y, (x, kernel))
    assert set(npy(y).ravel()) == {7}
    assert set(npy(of_x).ravel()) == {5}
    # Ones: each tap counts the cells at which it lies on the map.
    np.testing.assert_array_equal(
        npy(of_kernel)[..., 0, 0], [[9, 15, 9], [15, 25, 15], [9, 15, 9]]
    )
    assert lowering.form() == "graph"
