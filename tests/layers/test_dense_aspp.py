"""DenseASPP against NumPy."""

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

from keras_aspp.layers import AtrousConv2D, DenseASPP

X = sample() + sample(SHAPE[-1:], seed=1)


def built(**kwargs):
    layer = DenseASPP(
        **{
            "filters": 4,
            "bottleneck_filters": 6,
            "atrous_rates": (1, 2, 3),
            **kwargs,
        }
    )
    layer.build(SHAPE)
    return randomize(layer)


@pytest.mark.parametrize("separable", [False, True])
def test_values(separable):
    layer = built(separable=separable, batch_norm_epsilon=0.1)
    x = X
    for i, rate in enumerate((1, 2, 3)):
        first, second = layer.bottlenecks[i], layer.atrous[i]
        y = x @ npy(first.conv.kernel)[0, 0]
        y = relu(np_batch_norm(y, first.norm, 0.1))
        if separable:
            y = np_depthwise(y, npy(second.depthwise.kernel), rate)
            y = relu(np_batch_norm(y, second.depthwise_norm, 0.1))
            rate = 1
        y = np_dilated_conv(y, npy(second.conv.kernel), rate)
        y = relu(np_batch_norm(y, second.norm, 0.1))
        x = np.concatenate([x, y], axis=-1)
    assert x.shape == (*SHAPE[:3], 5 + 3 * 4)
    assert_close(layer(X), x)


def test_training_reaches_every_sublayer_and_inference_none():
    layer = built(separable=True)
    moving = [v for v in layer.non_trainable_variables if "moving_" in v.path]
    assert len(moving) == 3 * 3 * 2
    before = [npy(v) for v in moving]
    layer(X)  # no `training` argument, on purpose
    for a, b in zip(before, moving, strict=True):
        np.testing.assert_array_equal(a, npy(b))
    layer(X, training=True)
    for a, b in zip(before, moving, strict=True):
        assert np.abs(a - npy(b)).max() > 1e-4, b.path


def test_dropout_is_for_training_only():
    layer = built(dropout=0.5, activation="softplus")  # so 0 is dropped
    assert (npy(layer(X)) == 0).mean() == 0
    dropped = (npy(layer(X, training=True)) == 0).mean()
    assert 0.3 < dropped < 0.7


def test_config_round_trip():
    layer = built(
        atrous_rates=[3, 5],
        separable=True,
        dropout=0.3,
        activation="gelu",
        batch_norm_momentum=0.7,
        batch_norm_epsilon=1e-4,
        name="dense",
        dtype="mixed_bfloat16",
    )
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is DenseASPP
    assert copy.get_config() == layer.get_config()
    assert (copy.filters, copy.bottleneck_filters) == (4, 6)
    assert copy.atrous_rates == (3, 5)
    assert copy.drop.rate == 0.3
    for inner in (*copy.bottlenecks, *copy.atrous):
        assert inner.activation is keras.activations.gelu
        assert inner.norm.momentum == 0.7
        assert inner.norm.epsilon == 1e-4
    assert all(inner.separable for inner in copy.atrous)
    without = DenseASPP(atrous_rates=(1,), batch_norm=False).get_config()
    assert DenseASPP.from_config(without).atrous[0].norm is None


def test_dtype_policy_reaches_every_sublayer():
    layer = built(separable=True, dtype="mixed_bfloat16")
    dtypes = compute_dtypes(layer)
    assert len(dtypes) > 20
    assert set(dtypes.values()) == {"bfloat16"}
    assert layer(X).dtype == "bfloat16"


def test_dynamic_size():
    layer = built()
    inputs = keras.Input((None, None, SHAPE[-1]))
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == (None, None, None, 17)
    assert_close(model.predict(X, verbose=0), layer(X))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"atrous_rates": (6, 0)}, r"Received: atrous_rates=\(6, 0\)"),
        ({"atrous_rates": ()}, r"Received: atrous_rates=\(\)"),
        ({"dropout": 1.0}, r"Received: dropout=1\.0"),
        ({"filters": 0}, "Received: filters=0"),
        ({"bottleneck_filters": 0.5}, r"Received: filters=0\.5"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DenseASPP(**kwargs)


def test_a_seed_gives_the_weights_of_layers_created_rate_by_rate():
    keras.utils.set_random_seed(1)
    layer = DenseASPP(4, 6, (1, 2))
    layer.build(SHAPE)
    keras.utils.set_random_seed(1)
    for i, channels in enumerate((SHAPE[-1], SHAPE[-1] + 4)):
        narrow, wide = AtrousConv2D(6, 1), AtrousConv2D(4, 3, i + 1)
        narrow.build((*SHAPE[:-1], channels))
        wide.build((*SHAPE[:-1], 6))
        for found, alone in (
            (layer.bottlenecks[i], narrow),
            (layer.atrous[i], wide),
        ):
            np.testing.assert_array_equal(
                npy(found.conv.kernel), npy(alone.conv.kernel)
            )
