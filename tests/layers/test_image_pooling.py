"""ImagePooling against NumPy."""

import keras
import numpy as np
import pytest
from helpers import (
    SHAPE,
    assert_close,
    compute_dtypes,
    np_batch_norm,
    npy,
    randomize,
    relu,
    sample,
)

from keras_aspp.layers import ImagePooling


def built(shape=SHAPE, **kwargs):
    layer = ImagePooling(**{"filters": 4, **kwargs})
    layer.build(shape)
    return randomize(layer)


def oracle(layer, x, epsilon=1e-3):
    y = x.mean((1, 2), keepdims=True) @ npy(layer.conv.conv.kernel)[0, 0]
    if layer.conv.norm:
        y = np_batch_norm(y, layer.conv.norm, epsilon)
    else:
        y = y + npy(layer.conv.conv.bias)
    return np.broadcast_to(relu(y), (*x.shape[:3], y.shape[-1]))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_values(batch_norm):
    # The mean of noise is nothing, so the channels get one of their own.
    x = sample() + sample(SHAPE[-1:], seed=1)
    layer = built(batch_norm=batch_norm, batch_norm_epsilon=0.1)
    assert_close(layer(x), oracle(layer, x, epsilon=0.1))


def test_dynamic_size():
    layer = built()
    inputs = keras.Input((None, None, SHAPE[-1]))
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == (None, None, None, 4)
    for size in ((9, 7), (4, 6)):
        x = sample((2, *size, SHAPE[-1])) + sample(SHAPE[-1:], seed=1)
        assert_close(model.predict(x, verbose=0), oracle(layer, x))


def test_mean_of_a_large_float16_map_is_finite():
    x = np.full((1, 300, 300, 5), 8, "float16")  # sums to 720,000 > 65,504
    layer = built(dtype="mixed_float16", activation=None)
    expected = 8 * npy(layer.conv.conv.kernel)[0, 0].sum(0)
    expected = np_batch_norm(expected, layer.conv.norm)
    actual = npy(layer(x)).astype("float32")
    np.testing.assert_allclose(actual[0, 0, 0], expected, rtol=0.01, atol=0.02)


def test_inference_leaves_batch_norm_alone_and_training_does_not():
    layer = built()
    before = npy(layer.conv.norm.moving_mean)
    layer(sample())  # no `training` argument, on purpose
    np.testing.assert_array_equal(before, npy(layer.conv.norm.moving_mean))
    layer(sample(), training=True)
    assert np.abs(before - npy(layer.conv.norm.moving_mean)).min() > 1e-4


@pytest.mark.parametrize("filters, groups", [(16, 16), (32, 32)])
def test_group_norm_of_one_channel_per_group_warns_when_built(filters, groups):
    layer = ImagePooling(filters, batch_norm="group")
    told = rf"1x1 map .* constant.*{filters} channels in {groups} groups"
    with pytest.warns(UserWarning, match=told):
        layer.build((None, None, None, 5))
    # As said: the same for any input.
    maps = npy(layer(np.stack([np.ones((3, 4, 5)), -np.ones((3, 4, 5))])))
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-6)


def test_group_norm_of_several_channels_per_group_does_not_warn():
    layer = ImagePooling(48, batch_norm="group")  # 16 groups
    layer.build((None, 1, 1, 5))
    maps = npy(layer(np.stack([np.ones((3, 4, 5)), -np.ones((3, 4, 5))])))
    assert np.abs(maps[0] - maps[1]).max() > 0.1


def test_config_round_trip():
    layer = built(
        filters=6,
        activation="gelu",
        batch_norm_momentum=0.7,
        batch_norm_epsilon=1e-4,
        name="global",
        dtype="mixed_bfloat16",
    )
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()
    assert copy.conv.filters == 6
    assert copy.conv.kernel_size == 1
    assert copy.conv.activation is keras.activations.gelu
    assert copy.conv.norm.momentum == 0.7
    assert copy.conv.norm.epsilon == 1e-4
    assert copy.dtype_policy.name == "mixed_bfloat16"
    without = ImagePooling(4, batch_norm=False).get_config()
    assert ImagePooling.from_config(without).conv.norm is None


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_dtype_policy_reaches_every_sublayer(policy):
    layer = built(dtype=policy)
    assert set(compute_dtypes(layer).values()) == {policy[6:]}


def test_error():
    with pytest.raises(ValueError, match="Received: filters=-1"):
        ImagePooling(filters=-1)
