"""Our subclasses are Keras' layers, with a memory."""

import keras
import numpy as np
import pytest
from helpers import assert_close, npy, randomize, sample

from keras_aspp.layers import Conv2D, DepthwiseConv2D, ZeroPadding2D

CONVOLUTIONS = [
    (Conv2D, keras.layers.Conv2D, {"filters": 4}),
    (Conv2D, keras.layers.Conv2D, {"filters": 10, "groups": 5}),
    (DepthwiseConv2D, keras.layers.DepthwiseConv2D, {}),
    (DepthwiseConv2D, keras.layers.DepthwiseConv2D, {"depth_multiplier": 2}),
]


@pytest.mark.parametrize("ours, theirs, kwargs", CONVOLUTIONS)
@pytest.mark.parametrize(
    "how",
    [
        {"strides": 2, "padding": "same"},
        {"strides": 2, "padding": "valid"},
        {"dilation_rate": 2, "padding": "same"},
        {"use_bias": False, "padding": "same"},
        {"activation": "relu", "padding": "valid"},
    ],
)
def test_equals_the_layer_of_keras(ours, theirs, kwargs, how):
    x = sample()
    layer, reference = (
        kind(kernel_size=3, name="layer", **kwargs, **how)
        for kind in (ours, theirs)
    )
    expected = reference(x)
    layer(x)
    randomize(reference)
    expected = reference(x)
    assert [w.name for w in layer.weights] == [
        w.name for w in reference.weights
    ]
    layer.set_weights(reference.get_weights())
    assert_close(layer(x), expected, 1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(4, 3, original={"strides": [2, 2], "padding": "valid"}),
        DepthwiseConv2D(3, original={"dilation_rate": [1, 1]}),
        ZeroPadding2D(0, original={"padding": [[0, 1], [0, 1]]}),
    ],
)
def test_remembers_what_it_was(layer):
    layer.build((None, 9, 7, 5))
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(layer)
    assert copy.original == layer.original != {}
    assert copy.get_config() == layer.get_config()


def test_a_layer_of_keras_has_nothing_to_remember():
    config = keras.layers.Conv2D(4, 3, strides=2).get_config()
    assert Conv2D.from_config(config).original == {}


def test_padding_of_zero_is_no_operation():
    x = keras.ops.convert_to_tensor(sample())
    assert ZeroPadding2D(0)(x) is x
    padded = ZeroPadding2D(((0, 1), (2, 3)))(x)
    expected = np.pad(npy(x), ((0, 0), (0, 1), (2, 3), (0, 0)))
    np.testing.assert_array_equal(npy(padded), expected)
