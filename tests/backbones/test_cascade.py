"""Multi-grid and cascade, where a toy of plain layers does not show them."""

import keras
import pytest
from helpers import assert_close, npy, randomize, sample

from keras_aspp.backbones import with_output_stride
from keras_aspp.backbones.cascade import with_cascade, with_multi_grid
from keras_aspp.layers import DilatedReparamBlock

X = sample((1, 99, 131, 3))


def valid_backbone(padding):
    """Its last convolution is `valid`, as ResNetV2's are."""
    inputs = x = keras.Input((None, None, 3))
    features = {}
    for stride in (16, 32):
        x = keras.layers.Conv2D(
            6, 1, strides=16 if stride == 16 else 2, activation="relu"
        )(x)
        features[f"stride_{stride}"] = x
    if padding:
        x = keras.layers.ZeroPadding2D(padding)(x)
    x = keras.layers.Conv2D(5, 3, name="last")(x)
    features["stride_32"] = x
    return randomize(keras.Model(inputs, features))


def test_multi_grid_of_a_valid_convolution_keeps_the_map():
    model = valid_backbone(1)
    dense = with_multi_grid(model, (2,), 16)
    coarse = with_output_stride(dense, 32)
    assert coarse.get_layer("last").dilation_rate == (2, 2)
    assert dense.get_layer("last").dilation_rate == (4, 4)
    y = npy(coarse(X)["stride_32"])
    assert y.shape == model(X)["stride_32"].shape
    assert_close(npy(dense(X)["stride_32"])[:, ::2, ::2], y)
    assert with_multi_grid(dense, (2,), 16) is dense


@pytest.mark.parametrize("padding", [0, 2])
def test_a_valid_convolution_that_shrinks_the_map(padding):
    with pytest.raises(ValueError, match="Layer `last` has `valid` padding"):
        with_multi_grid(valid_backbone(padding), (2,), 16)


def test_a_block_within_a_nested_model_is_refused_in_one_line():
    inner = valid_backbone(1)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, inner(inputs), name="outer")
    with pytest.raises(
        ValueError, match="one nested model that returns both.*'outer'"
    ):
        with_cascade(model, 1, 16)
    with pytest.raises(ValueError, match="last block: it has none"):
        with_multi_grid(model, (2,), 16)


def test_multi_grid_reaches_a_convolution_after_a_nested_model():
    inner = valid_backbone(1)
    inputs = keras.Input((None, None, 3))
    features = dict(inner(inputs))
    last = keras.layers.Conv2D(4, 3, padding="same", name="after")
    features["stride_32"] = last(features["stride_32"])
    model = keras.Model(inputs, features)
    dense = with_multi_grid(model, (3,), 16)
    assert dense.get_layer("after").dilation_rate == (6, 6)


def test_copies_of_a_frozen_layer_are_frozen():
    inputs = x = keras.Input((None, None, 3))
    features = {}
    for stride, step in ((16, 16), (32, 2)):
        x = keras.layers.Conv2D(6, 1, strides=step)(x)
        features[f"stride_{stride}"] = x
    layer = DilatedReparamBlock(5, name="last")
    features["stride_32"] = layer(x)
    layer.trainable = False
    model = with_cascade(keras.Model(inputs, features), 1, 16)
    for name in ("last", "cascade_1_last"):
        weights = model.get_layer(name).weights
        assert weights and not any(weight.trainable for weight in weights)


def test_a_copy_sees_the_block_at_half_its_size():
    """At its own stride the cascade is what the paper draws in figure 3a."""
    model = with_cascade(valid_backbone(1), 2, 128)
    features = model(X)
    sizes = [features[f"stride_{s}"].shape[1:3] for s in (32, 64, 128)]
    assert [tuple(s) for s in sizes] == [(4, 5), (2, 3), (1, 2)]
    dense = with_output_stride(model, 16)
    assert dense(X)["stride_128"].shape[1:3] == (7, 9)
    assert_close(
        npy(dense(X)["stride_128"])[:, ::8, ::8], features["stride_128"]
    )
    assert dense.get_layer("cascade_2_last").dilation_rate == (8, 8)
