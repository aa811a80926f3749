"""Against Keras' own depthwise convolution, gradients included."""

import itertools

import numpy as np
import pytest
from helpers import (
    ON_TENSORFLOW,
    assert_close,
    npy,
    sample,
    value_and_gradients,
)
from keras import ops

from keras_aspp.layers.depthwise_taps import depthwise_taps


def with_gradients(function, x, kernel):
    y = npy(ops.cast(function(x, kernel), "float32"))
    weights = np.sin(np.arange(y.size, dtype="float32")).reshape(y.shape)

    def loss(x, kernel):
        return ops.sum(ops.cast(function(x, kernel), "float32") * weights)

    return y, *map(npy, value_and_gradients(loss, x, kernel)[1])


# A stride above the kernel leaves cells that no window sees.
CASES = [
    (size, kernel, stride, rate, padding, multiplier)
    for size, kernel, stride, rate, padding, multiplier in itertools.product(
        [(7, 10), (8, 9), (1, 6)],
        [1, 2, 3, 5],
        [1, 2, 3],
        [1, 2],
        ["same", "valid"],
        [1, 2],
    )
    if (stride == 1 or rate == 1)
    and (padding == "same" or (kernel - 1) * rate < min(size))
]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_it_is_a_depthwise_convolution(stride, padding):
    cases = [c for c in CASES if c[2] == stride and c[4] == padding]
    assert len(cases) > 10
    if not ON_TENSORFLOW:
        cases = cases[::11]  # each is compiled anew
    for size, kernel_size, _, rate, _, multiplier in cases:
        x = sample((2, *size, 3))
        shape = (kernel_size, kernel_size, 3, multiplier)
        kernel = sample(shape, seed=1)
        how = ((stride, stride), padding, (rate, rate))

        def ours(x, kernel, how=how):
            return depthwise_taps(x, kernel, *how)

        def plain(x, kernel, how=how):
            return ops.depthwise_conv(
                x, kernel, how[0], how[1], dilation_rate=how[2]
            )

        expected = with_gradients(plain, x, kernel)
        actual = with_gradients(ours, x, kernel)
        for a, e in zip(actual, expected, strict=True):
            assert a.shape == e.shape, (size, kernel_size, how, multiplier)
            np.testing.assert_allclose(a, e, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_are_in_float32(dtype):
    """Of inputs that the short dtype holds, only the result is rounded."""
    x, kernel = (
        ops.cast(a, dtype) for a in (sample((2, 9, 7, 3)), sample((3, 3, 3, 1)))
    )
    how = ((2, 2), "same", (1, 1))
    short = depthwise_taps(x, kernel, *how)
    assert short.dtype == dtype
    long = depthwise_taps(
        ops.cast(x, "float32"), ops.cast(kernel, "float32"), *how
    )
    np.testing.assert_array_equal(short, ops.cast(long, dtype))


def test_a_different_stride_and_rate_along_each_axis():
    x, kernel = sample((2, 9, 12, 3)), sample((3, 3, 3, 1), seed=1)
    both = depthwise_taps(x, kernel, (2, 1), "same", (1, 2))
    rows = ops.depthwise_conv(x, kernel, 1, "same", dilation_rate=(1, 2))
    assert_close(both, rows[:, ::2], 1.6e-5)
