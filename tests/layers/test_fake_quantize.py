"""Fake quantization against a NumPy oracle, its gradient too."""

import numpy as np
import pytest
from helpers import npy, sample, value_and_gradients
from keras import ops

from keras_aspp.layers.fake_quantize import (
    ActivationQuantizer,
    fake_quantize,
    fake_quantize_kernel,
)


def np_fake_quantize(x, low, high, bits):
    """Quantizes to ints and back, as TFLite stores an activation."""
    levels = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / levels
    zero_point = int(np.clip(np.round(-low / scale), 0, levels))
    q = np.clip(np.round(x / scale) + zero_point, 0, levels)
    return scale * (q - zero_point), scale, zero_point


@pytest.mark.parametrize("low, high", [(-1.3, 2.1), (0.4, 2.0), (-2.0, -0.5)])
@pytest.mark.parametrize("bits", [8, 4])
def test_values_and_gradient(low, high, bits):
    x = sample((3, 5, 7)) * 1.5
    expected, scale, zero_point = np_fake_quantize(x, low, high, bits)
    weights = sample(x.shape, seed=1)
    y = fake_quantize(x, low, high, bits)
    _, (gradient,) = value_and_gradients(
        lambda x: ops.sum(weights * fake_quantize(x, low, high, bits)), x
    )
    assert expected.std() > 0.1
    np.testing.assert_allclose(npy(y), expected, atol=1e-5)
    first = -scale * zero_point
    last = first + scale * (2**bits - 1)
    inside = (x > first) & (x < last)
    assert 0.1 < inside.mean() < 1
    np.testing.assert_allclose(npy(gradient), weights * inside)


def test_zero_is_a_level():
    low, high = -0.7123, 1.9
    assert npy(fake_quantize(np.zeros(1, "float32"), low, high))[0] == 0


def test_each_channel_of_a_kernel_has_its_own_scale():
    kernel = sample((3, 2, 5, 4)) * np.array([1, 10, 100, 0.01])
    kernel = kernel.astype("float32")
    found = npy(fake_quantize_kernel(kernel, (0, 1, 2)))
    scale = np.abs(kernel).max((0, 1, 2)) / 127
    expected = np.round(kernel / scale) * scale
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(found - kernel).max() > 0
    weights = sample(kernel.shape, seed=1)
    _, (gradient,) = value_and_gradients(
        lambda k: ops.sum(weights * fake_quantize_kernel(k, (0, 1, 2))), kernel
    )
    np.testing.assert_allclose(npy(gradient), weights)


def test_a_range_is_averaged_then_stays():
    layer = ActivationQuantizer(momentum=0.5, observe_steps=3)
    x = np.array([-1.0, 0.5, 2.0], "float32")
    np.testing.assert_array_equal(npy(layer(x)), x)  # nothing observed yet
    low = high = 0.0
    for i, factor in enumerate((1, 3, 5, 1000)):
        layer(x * factor, training=True)
        keep = min(0.5, i / (i + 1)) if i < 3 else 1.0
        low = low * keep - factor * (1 - keep)
        high = high * keep + 2 * factor * (1 - keep)
        np.testing.assert_allclose(float(layer.low), low, rtol=1e-6)
        np.testing.assert_allclose(float(layer.high), high, rtol=1e-6)
    before = float(layer.high)
    layer(x * 7, training=True, observe=False)
    layer(x * 7, training=False)
    assert float(layer.high) == before
    expected, *_ = np_fake_quantize(x, low, high, 8)
    np.testing.assert_allclose(npy(layer(x)), expected, atol=1e-6)


def test_a_fixed_range_has_no_state():
    layer = ActivationQuantizer(fixed=(0.0, 255 / 256))
    x = np.array([0.1234, 0.9999, 2.0], "float32")
    expected = np.minimum(np.round(x * 256), 255) / 256
    np.testing.assert_allclose(npy(layer(x, training=True)), expected)
    assert not layer.variables
