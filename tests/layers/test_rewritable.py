"""Our subclasses are Keras' layers, with a memory."""

import keras
import numpy as np
import pytest
from helpers import assert_close, npy, randomize, sample

from keras_aspp.layers import (
    AveragePooling2D,
    Conv2D,
    Cropping2D,
    DepthwiseConv2D,
    MaxPooling2D,
    SeparableConv2D,
    Trim,
    ZeroPadding2D,
)

CONVOLUTIONS = [
    (Conv2D, keras.layers.Conv2D, {"filters": 4}),
    (Conv2D, keras.layers.Conv2D, {"filters": 10, "groups": 5}),
    (DepthwiseConv2D, keras.layers.DepthwiseConv2D, {}),
    (DepthwiseConv2D, keras.layers.DepthwiseConv2D, {"depth_multiplier": 2}),
    (SeparableConv2D, keras.layers.SeparableConv2D, {"filters": 4}),
    (
        SeparableConv2D,
        keras.layers.SeparableConv2D,
        {"filters": 4, "depth_multiplier": 2},
    ),
]


@pytest.mark.parametrize(
    "layer, arguments",
    [
        *[(ours, (4, 3)) for ours in (Conv2D, SeparableConv2D)],
        *[(o, (3,)) for o in (DepthwiseConv2D, MaxPooling2D, AveragePooling2D)],
    ],
)
def test_channels_first_is_refused(layer, arguments):
    with pytest.raises(ValueError, match="data_format='channels_first'"):
        layer(*arguments, data_format="channels_first")


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
        Cropping2D(2, original={"cropping": ((1, 1), (1, 1))}),
        SeparableConv2D(4, 3, pads=((1, 0), (2, 3)), original={"strides": 2}),
        MaxPooling2D(3, 1, "same", anchor=(1, 2), original={"strides": [2, 2]}),
        AveragePooling2D(
            2, 1, dilation_rate=(2, 3), original={"strides": [2, 2]}
        ),
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


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (MaxPooling2D, keras.layers.MaxPooling2D),
        (AveragePooling2D, keras.layers.AveragePooling2D),
    ],
)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size, strides", [(2, 2), (3, 2), (3, 1), (1, 2)])
def test_pooling_of_keras(ours, theirs, padding, size, strides):
    x = sample()
    np.testing.assert_array_equal(
        npy(ours(size, strides, padding)(x)),
        npy(theirs(size, strides, padding)(x)),
    )


@pytest.mark.parametrize("pooling", [MaxPooling2D, AveragePooling2D])
def test_dilated_pooling_has_strides_of_one(pooling):
    layer = pooling(2, dilation_rate=2)
    assert layer(sample((1, 9, 8, 3))).shape == (1, 7, 6, 3)
    assert layer(keras.Input((9, 8, 3))).shape == (None, 7, 6, 3)
    with pytest.raises(ValueError, match="strides=2, dilation_rate=2"):
        pooling(2, 2, dilation_rate=2)
    with pytest.raises(ValueError, match="Received: dilation_rate=0"):
        pooling(2, dilation_rate=0)


WINDOWS = [
    lambda **kw: Conv2D(4, 3, **kw),
    lambda **kw: DepthwiseConv2D(3, **kw),
    lambda **kw: SeparableConv2D(4, 3, **kw),
    lambda **kw: MaxPooling2D(3, 1, **kw),
    lambda **kw: AveragePooling2D(3, 1, **kw),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rate", [1, 2])
def test_pads(window, rate):
    """Cells around the map, as many as are asked for at each side."""
    pads = ((0, 3), (2, 1))
    layer = window(pads=pads, dilation_rate=rate)
    x = sample()
    features = npy(randomize(layer)(x)) if layer.built else npy(layer(x))
    # What no padding touches is what it is without.
    bare = window(dilation_rate=rate)
    bare.build(x.shape)
    bare.set_weights(layer.get_weights())
    height, width = bare(x).shape[1:3]
    assert features.shape[1:3] == (height + 3, width + 3)
    assert_close(features[:, :height, 2 : 2 + width], bare(x), 1e-5)
    assert layer.compute_output_shape(x.shape) == features.shape
    dynamic = layer.compute_output_shape((None, None, 7, 5))
    assert dynamic == (None, None, *features.shape[2:])


@pytest.mark.parametrize("height", range(7, 12))
def test_anchored_padding_is_the_original_one(height):
    """A pool of 3, stride 2: sample 0 stays at cell 1, whatever the size."""
    x = sample((1, 3 * height - 1, 20, 5))
    original = keras.layers.MaxPooling2D(3, 2, "same")
    dense = MaxPooling2D(
        3,
        1,
        "same",
        dilation_rate=3,
        anchor=(1, 2),
        original={"strides": [2, 2], "dilation_rate": [1, 1]},
    )
    kept = npy(dense(x))[:, 1::6, 2::6]
    np.testing.assert_array_equal(kept, npy(original(x[:, 1::3, 2::3])))
    inputs = keras.Input((None, None, 5))
    model = keras.Model(inputs, dense(inputs))
    kept = model.predict(x, verbose=0)[:, 1::6, 2::6]
    np.testing.assert_array_equal(kept, npy(original(x[:, 1::3, 2::3])))


def test_trim():
    a, b = sample((1, 9, 7, 2)), sample((1, 8, 8, 3))
    trim = Trim()
    for actual, expected in zip(trim([a, b]), (a, b), strict=True):
        np.testing.assert_array_equal(npy(actual), expected[:, :8, :7])
    shapes = trim.compute_output_shape([a.shape, (None, None, 8, 3)])
    assert shapes == [(1, None, 7, 2), (None, None, 7, 3)]
    inputs = [keras.Input((None, None, n)) for n in (2, 3)]
    model = keras.Model(inputs, trim(inputs))
    for actual, expected in zip(
        model.predict([a, b], verbose=0), (a, b), strict=True
    ):
        np.testing.assert_array_equal(actual, expected[:, :8, :7])
