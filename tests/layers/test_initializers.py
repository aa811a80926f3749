"""Fans of depthwise kernels, by counting the connections of one response."""

import keras
import numpy as np
import pytest
from helpers import npy

from keras_aspp import layers
from keras_aspp.layers.initializers import fresh, with_depthwise_fans

CHANNELS = 512


def depthwise_kernels():
    """Every layer of ours with a depthwise kernel of CHANNELS channels."""
    atrous = layers.AtrousConv2D(4, 5, separable=True)
    pyramid = layers.ASPP(4, (2,), separable=True)
    dense = layers.DenseASPP(
        4, bottleneck_filters=CHANNELS, atrous_rates=(2,), separable=True
    )
    for layer in (atrous, pyramid, dense):
        layer.build((None, None, None, CHANNELS))
    yield atrous.depthwise.kernel, 2 / 25
    yield pyramid.branches[1].depthwise.kernel, 2 / 9
    yield dense.atrous[0].depthwise.kernel, 2 / 9
    plain = [
        # Glorot: 2 / (fan in + fan out) = 2 / (9 + 9 * multiplier)
        (layers.DepthwiseConv2D(3, depth_multiplier=3), "kernel", 2 / 36),
        (layers.SeparableConv2D(4, 3), "depthwise_kernel", 2 / 18),
        (layers.Conv2D(CHANNELS, 7, groups=CHANNELS), "kernel", 2 / 98),
        (
            layers.Conv2D(
                CHANNELS, 3, groups=CHANNELS, kernel_initializer="he_normal"
            ),
            "kernel",
            2 / 9,
        ),
    ]
    for layer, name, variance in plain:
        layer.build((None, None, None, CHANNELS))
        yield getattr(layer, name), variance


def test_variance_is_that_of_one_channels_window():
    for kernel, variance in depthwise_kernels():
        # Of 4608 numbers or more the variance is known to 2 %, one sigma.
        found = npy(kernel).var()
        assert found == pytest.approx(variance, rel=0.12), kernel.path


def test_a_depthwise_response_has_unit_scale():
    layer = layers.DepthwiseConv2D(3, depthwise_initializer="lecun_normal")
    x = np.random.default_rng(0).normal(size=(2, 33, 31, CHANNELS))
    out = npy(layer(x.astype("float32")))[:, 1:-1, 1:-1]
    assert out.std() == pytest.approx(1, rel=0.05)


def test_ordinary_and_grouped_fan_in_stay_kerass():
    ordinary = layers.Conv2D(64, 3, kernel_initializer="he_normal")
    grouped = layers.Conv2D(64, 3, groups=4, kernel_initializer="he_normal")
    for layer, fan_in in ((ordinary, 9 * 128), (grouped, 9 * 32)):
        layer.build((None, None, None, 128))
        found = npy(layer.kernel).var()
        assert found == pytest.approx(2 / fan_in, rel=0.05)


def test_initializer_survives_the_configuration_with_its_seed():
    layer = layers.DepthwiseConv2D(
        3, depthwise_initializer=keras.initializers.HeNormal(seed=7)
    )
    copy = layers.DepthwiseConv2D.from_config(layer.get_config())
    drawn = [npy(i.depthwise_initializer((3, 3, 6, 1))) for i in (layer, copy)]
    np.testing.assert_array_equal(*drawn)
    assert copy.get_config() == layer.get_config()


def test_initializers_without_fans_are_left_alone():
    constant = keras.initializers.Constant(0.5)
    assert with_depthwise_fans(constant) is constant


class Twice(keras.initializers.Initializer):
    """Has no `get_config`, which Keras needs for files alone."""

    def __init__(self, value):
        self.value = value

    def __call__(self, shape, dtype=None):
        return keras.ops.full(shape, 2 * self.value, dtype)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(
    "initializer",
    [Twice(1.5), lambda shape, dtype=None: keras.ops.full(shape, 3.0, dtype)],
    ids=["class", "function"],
)
def test_an_initializer_of_ones_own_is_used_as_it_is(initializer, separable):
    layer = layers.AtrousConv2D(
        4, separable=separable, kernel_initializer=initializer
    )
    layer.build((None, None, None, 3))
    kernels = [w for w in layer.weights if "kernel" in w.path]
    assert len(kernels) == 1 + separable
    for kernel in kernels:
        np.testing.assert_array_equal(npy(kernel), 3.0)


@pytest.mark.parametrize("seed", [None, 3])
def test_two_kernels_have_draws_of_their_own_without_a_seed(seed):
    initializer = keras.initializers.RandomNormal(seed=seed)
    drawn = [npy(fresh(initializer)((3, 3))) for _ in range(2)]
    assert (drawn[0] == drawn[1]).all() == (seed is not None)
