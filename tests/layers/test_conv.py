"""AtrousConv2D against NumPy."""

import keras
import numpy as np
import pytest
from helpers import (
    SHAPE,
    assert_close,
    compute_dtypes,
    np_batch_norm,
    np_depthwise,
    np_dilated_conv,
    npy,
    randomize,
    relu,
    sample,
)

from keras_aspp.layers import AtrousConv2D


def built(shape=SHAPE, **kwargs):
    layer = AtrousConv2D(**{"filters": 4, **kwargs})
    layer.build(shape)
    return randomize(layer)


def finish(x, conv, norm, epsilon):
    x = np_batch_norm(x, norm, epsilon) if norm else x + npy(conv.bias)
    return relu(x)


def oracle(layer, x, epsilon=1e-3):
    rate = layer.atrous_rate
    if layer.separable:
        x = np_depthwise(x, npy(layer.depthwise.kernel), rate)
        x, rate = finish(x, layer.depthwise, layer.depthwise_norm, epsilon), 1
    x = np_dilated_conv(x, npy(layer.conv.kernel), rate)
    return finish(x, layer.conv, layer.norm, epsilon)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize(
    "kernel_size, atrous_rate",
    [(1, 1), (3, 1), (3, 2), (3, 5), (5, 2), (3, (1, 4)), (5, [3, 2])],
)
def test_values(kernel_size, atrous_rate, separable, batch_norm):
    x = sample()
    layer = built(
        kernel_size=kernel_size,
        atrous_rate=atrous_rate,
        separable=separable,
        batch_norm=batch_norm,
        batch_norm_epsilon=0.1,
    )
    assert_close(layer(x), oracle(layer, x, epsilon=0.1))


def test_activation_comes_last_and_may_be_none():
    x = sample()
    linear = built(activation=None)
    assert npy(linear(x)).min() < -0.1
    assert_close(built()(x), relu(npy(linear(x))))


@pytest.mark.parametrize("separable", [True, False])
def test_convention_rate_beyond_map_is_the_centre_tap(separable):
    # Chen et al. 2017, section 3.3: a 3x3 at a huge rate degenerates to 1x1.
    x = sample()
    layer = built(atrous_rate=50, separable=separable, activation=None)
    if separable:
        expected = x * npy(layer.depthwise.kernel)[1, 1, :, 0]
        expected = np_batch_norm(expected, layer.depthwise_norm)
        expected = expected @ npy(layer.conv.kernel)[0, 0]
    else:
        expected = x @ npy(layer.conv.kernel)[1, 1]
    assert_close(layer(x), np_batch_norm(expected, layer.norm))


@pytest.mark.parametrize("separable", [True, False])
def test_rates_of_both_axes_trade_places_with_the_axes(separable):
    x = sample()
    layer = built(atrous_rate=(4, 1), separable=separable)
    turned = built(atrous_rate=(1, 4), separable=separable)
    for weight, other in zip(turned.weights, layer.weights, strict=True):
        axes = (1, 0, 2, 3) if len(weight.shape) == 4 else (0,)
        weight.assign(npy(other).transpose(axes))
    expected = npy(turned(x.transpose(0, 2, 1, 3))).transpose(0, 2, 1, 3)
    assert_close(layer(x), expected)


def test_equal_rates_of_both_axes_are_one_int():
    assert AtrousConv2D(4, atrous_rate=(3, 3)).get_config()["atrous_rate"] == 3
    layer = AtrousConv2D(4, atrous_rate=[3, 5])
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.atrous_rate == copy.conv.dilation_rate == (3, 5)


@pytest.mark.parametrize("separable", [True, False])
def test_inference_leaves_batch_norm_alone(separable):
    layer = built(atrous_rate=2, separable=separable)
    before = [npy(v) for v in layer.non_trainable_variables]
    layer(sample())  # no `training` argument, on purpose
    for a, b in zip(before, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(a, npy(b))


def test_training_updates_every_batch_norm():
    layer = built(separable=True, batch_norm_momentum=0.9)
    norms = (layer.depthwise_norm, layer.norm)
    before = [npy(norm.moving_mean) for norm in norms]
    x = sample()
    batch = np_depthwise(x, npy(layer.depthwise.kernel)).mean((0, 1, 2))
    layer(x, training=True)
    np.testing.assert_allclose(
        npy(norms[0].moving_mean), 0.9 * before[0] + 0.1 * batch, rtol=1e-4
    )
    assert np.abs(npy(norms[1].moving_mean) - before[1]).min() > 1e-4


def test_config_round_trip():
    layer = built(
        filters=6,
        kernel_size=5,
        atrous_rate=3,
        separable=True,
        activation="leaky_relu",
        batch_norm_momentum=0.7,
        batch_norm_epsilon=1e-4,
        kernel_initializer=keras.initializers.RandomUniform(-2, 2),
        name="branch",
        dtype="mixed_bfloat16",
    )
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()
    assert copy.filters == 6
    assert copy.kernel_size == 5
    assert copy.atrous_rate == 3
    assert copy.depthwise.dilation_rate == (3, 3)
    assert copy.conv.dilation_rate == (1, 1)
    assert copy.activation is keras.activations.leaky_relu
    assert copy.norm.momentum == copy.depthwise_norm.momentum == 0.7
    assert copy.norm.epsilon == copy.depthwise_norm.epsilon == 1e-4
    assert copy.kernel_initializer.maxval == 2
    assert copy.dtype_policy.name == "mixed_bfloat16"


def test_config_round_trip_without_batch_norm():
    layer = built(batch_norm=False, activation=None)
    copy = AtrousConv2D.from_config(layer.get_config())
    assert copy.norm is None and copy.conv.use_bias
    assert copy.activation is keras.activations.linear


def test_two_layers_of_one_initializer_differ():
    layer = AtrousConv2D(
        5, separable=True, kernel_initializer=keras.initializers.HeNormal()
    )
    other = AtrousConv2D(5, kernel_initializer=layer.kernel_initializer)
    layer.build(SHAPE)
    other.build((*SHAPE[:3], 5))
    drawn = npy(layer.conv.kernel).ravel()
    assert np.abs(drawn - npy(other.conv.kernel).ravel()[:25]).max() > 0.1


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_dtype_policy_reaches_every_sublayer(policy):
    layer = built(separable=True, dtype=policy)
    assert set(compute_dtypes(layer).values()) == {policy[6:]}
    assert {w.dtype for w in layer.weights} == {"float32"}
    assert keras.backend.standardize_dtype(layer(sample()).dtype) == policy[6:]


@pytest.mark.parametrize("separable", [True, False])
def test_dynamic_size(separable):
    layer = built(atrous_rate=2, separable=separable)
    inputs = keras.Input((None, None, SHAPE[-1]))
    outputs = layer(inputs)
    assert outputs.shape == (None, None, None, 4)
    x = sample()
    model = keras.Model(inputs, outputs)
    assert_close(model.predict(x, verbose=0), oracle(layer, x))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"filters": 0}, "Received: filters=0"),
        ({"filters": 2.0}, r"Received: filters=2\.0"),
        ({"kernel_size": 4}, "must be odd.*Received: kernel_size=4"),
        ({"kernel_size": (3, 3)}, r"Received: kernel_size=\(3, 3\)"),
        ({"atrous_rate": 0}, "Received: atrous_rate=0"),
        ({"atrous_rate": True}, "Received: atrous_rate=True"),
        ({"atrous_rate": (1, 0)}, r"two of them.*atrous_rate=\(1, 0\)"),
        ({"atrous_rate": (1, 2, 3)}, r"atrous_rate=\(1, 2, 3\)"),
        ({"batch_norm_momentum": 1.5}, r"momentum=1\.5"),
        ({"batch_norm_epsilon": -0.1}, r"epsilon=-0\.1"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AtrousConv2D(**{"filters": 4, **kwargs})
