"""Dense features, subsampled, are the original features."""

import keras
import numpy as np
import pytest
from helpers import assert_close, npy, randomize, sample

from keras_aspp.backbones import feature_strides, with_output_stride
from keras_aspp.layers import Conv2D, DepthwiseConv2D

SYMMETRIC = 1
KERAS = ((0, 1), (0, 1))


def model_of(*layers, shape=(None, None, 3)):
    """A chain of layers as a functional model with random weights."""
    inputs = x = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return randomize(keras.Model(inputs, x))


def offset_and_step(size, output_stride, symmetric):
    """Which dense samples the original network keeps, along one axis.

    Symmetric padding keeps sample 0 of every pair. Keras keeps sample 1
    behind ZeroPadding2D ((0, 1)) and, in a `same` convolution, where its
    input is even (layers `stem`, `block2` and `block4` of the toy).
    """
    offset, step = 0, 1
    for stride in (2, 4, 8, 16, 32):
        same = stride in (2, 8, 32)
        odd = not symmetric and (size % 2 == 0 or not same)
        if stride > output_stride:
            offset, step = offset + step * odd, 2 * step
        size = -(-size // 2) if symmetric or same else size // 2
    return offset, step


@pytest.mark.parametrize("padding", [SYMMETRIC, KERAS])
@pytest.mark.parametrize("output_stride", [16, 8, 4])
@pytest.mark.parametrize("size", [(64, 96), (100, 75)])
def test_dense_subsampled_equals_the_original(
    toy_backbone, size, output_stride, padding
):
    model = randomize(toy_backbone(padding=padding))
    dense = with_output_stride(model, output_stride)
    x = sample((2, *size, 3))
    features = npy(dense(x))
    (top, step), (left, _) = (
        offset_and_step(n, output_stride, padding == SYMMETRIC) for n in size
    )
    assert features.shape[1] >= size[0] // output_stride
    assert_close(features[:, top::step, left::step], model(x), 1e-4)


@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
def test_what_a_rewrite_keeps(toy_backbone, dtype):
    model = randomize(toy_backbone(features=True, dtype=dtype))
    dense = with_output_stride(model, 8)
    assert [layer.name for layer in dense.layers] == [
        layer.name for layer in model.layers
    ]
    assert dense.name == model.name
    assert list(dense.output) == list(model.output)
    for a, b in zip(dense.weights, model.weights, strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(npy(a), npy(b))
    for a, b in zip(dense.layers, model.layers, strict=True):
        assert a.dtype_policy.name == b.dtype_policy.name
    # Up to the output stride nothing changes.
    x = sample((1, 64, 96, 3))
    for key in ("stride_2", "stride_4", "stride_8"):
        np.testing.assert_array_equal(npy(dense(x)[key]), npy(model(x)[key]))
    assert dense(x)["stride_32"].shape == (1, 8, 12, 24)
    assert model(x)["stride_32"].shape == (1, 2, 3, 24)


def test_the_given_model_is_left_alone(toy_backbone):
    model = randomize(toy_backbone())
    before = model.get_config()
    x = sample((1, 64, 96, 3))
    expected = npy(model(x))
    dense = with_output_stride(model, 8)
    randomize(dense, seed=1)
    assert model.get_config() == before
    np.testing.assert_array_equal(npy(model(x)), expected)


def test_rates(toy_backbone):
    dense = with_output_stride(toy_backbone(), 8)
    found = {
        layer.name: (layer.strides[0], layer.dilation_rate[0])
        for layer in dense.layers
        if isinstance(layer, (Conv2D, DepthwiseConv2D))
    }
    # What strides keeps the rate of its input; what follows is dilated.
    assert found == {
        "stem": (2, 1),
        "block1_depthwise": (2, 1),
        "block1": (1, 1),
        "block2": (2, 1),
        "block3_depthwise": (1, 1),
        "block3": (1, 1),
        "block3_inner": (1, 2),
        "block4": (1, 2),
        "block4_inner": (1, 4),
    }


@pytest.mark.parametrize("padding", [SYMMETRIC, KERAS])
def test_idempotent(toy_backbone, padding):
    model = randomize(toy_backbone(padding=padding))
    once = with_output_stride(model, 8)
    twice = with_output_stride(once, 8)
    assert twice.get_config() == once.get_config()
    x = sample((1, 65, 97, 3))
    np.testing.assert_array_equal(npy(twice(x)), npy(once(x)))


@pytest.mark.parametrize(
    "padding, reload", [(SYMMETRIC, False), (KERAS, False), (KERAS, True)]
)
def test_reversible(toy_backbone, tmp_path, reload, padding):
    model = randomize(toy_backbone(padding=padding))
    x = sample((1, 65, 97, 3))
    dense = with_output_stride(model, 4)
    if reload:
        dense.save(tmp_path / "dense.keras")
        dense = keras.saving.load_model(tmp_path / "dense.keras")
    np.testing.assert_array_equal(
        npy(with_output_stride(dense, 32)(x)), npy(model(x))
    )
    assert feature_strides(dense) == feature_strides(model)
    # By way of another density is the same as directly.
    np.testing.assert_array_equal(
        npy(with_output_stride(dense, 16)(x)),
        npy(with_output_stride(model, 16)(x)),
    )


def test_dynamic_size(toy_backbone):
    model = randomize(toy_backbone(padding=SYMMETRIC))
    dense = with_output_stride(model, 8)
    assert dense.output.shape == (None, None, None, 24)
    x = sample((1, 65, 75, 3))
    features = dense.predict(x, verbose=0)
    assert_close(features[:, ::4, ::4], model.predict(x, verbose=0), 1e-4)


def test_feature_strides(toy_backbone):
    strides = feature_strides(toy_backbone())
    assert strides["picture"] == 1
    assert strides["stem"] == 2
    assert strides["block1_relu"] == 4
    assert strides["block3_add"] == 16
    assert strides["block4_inner_relu"] == 32


def test_original_dilation_is_multiplied():
    layers = keras.layers
    model = model_of(
        layers.Conv2D(8, 3, strides=2, padding="same"),
        layers.Conv2D(8, 3, dilation_rate=2, padding="same", name="wide"),
    )
    dense = with_output_stride(model, 1)
    assert dense.get_layer("wide").dilation_rate == (4, 4)
    x = sample((1, 15, 21, 3))
    assert_close(dense(x)[:, ::2, ::2], model(x), 1e-5)


def test_five_wide_kernels():
    layers = keras.layers
    model = model_of(
        layers.ZeroPadding2D(((1, 2), (1, 2))),
        layers.DepthwiseConv2D(5, strides=2),
        layers.ZeroPadding2D(2),
        layers.Conv2D(8, 5),
    )
    dense = with_output_stride(model, 1)
    x = sample((1, 16, 22, 3))
    # Padding (1, 2) keeps the odd samples, as (0, 1) does for a 3x3.
    assert_close(dense(x)[:, 1::2, 1::2], model(x), 1e-5)


def test_strided_1x1():
    layers = keras.layers
    model = model_of(
        layers.Conv2D(8, 1, strides=2),
        layers.Conv2D(8, 3, padding="same", groups=4),
    )
    dense = with_output_stride(model, 1)
    for size in ((15, 22), (16, 21)):
        x = sample((1, *size, 3))
        assert_close(dense(x)[:, ::2, ::2], model(x), 1e-5)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_only_functional_models():
    with pytest.raises(TypeError, match="Received: model=.*Subclassed"):
        with_output_stride(Subclassed(), 8)
    with pytest.raises(TypeError, match="of type Dense"):
        feature_strides(keras.layers.Dense(1))


@pytest.mark.parametrize("output_stride", [0, 3, 12, 8.0, "8"])
def test_no_power_of_two(toy_backbone, output_stride):
    with pytest.raises(
        ValueError, match=f"Received: output_stride={output_stride!r}"
    ):
        with_output_stride(toy_backbone(), output_stride)


def test_larger_than_the_models_own(toy_backbone):
    with pytest.raises(
        ValueError, match="own stride 32.*Received: output_stride=64"
    ):
        with_output_stride(toy_backbone(), 64)


def same(filters=4, size=3, **kwargs):
    return keras.layers.Conv2D(filters, size, padding="same", **kwargs)


@pytest.mark.parametrize(
    "layers, message",
    [
        (
            lambda k: [same(strides=2), k.MaxPooling2D(2, name="pool")],
            "`pool` .MaxPooling2D.* cannot be made dense",
        ),
        (
            lambda k: [
                same(strides=2),
                k.AveragePooling2D(3, 1, padding="same", name="pool"),
            ],
            "`pool` .AveragePooling2D.* cannot be made dense",
        ),
        (
            lambda k: [same(strides=2), k.UpSampling2D(2, name="up")],
            "`up` .UpSampling2D.* cannot be made dense",
        ),
        (
            lambda k: [same(strides=2), same(size=4, name="even")],
            r"`even` \(Conv2D, kernel \(4, 4\)\) cannot be made dense",
        ),
        (
            lambda k: [same(strides=(2, 1), name="skew")],
            r"`skew` has unequal strides. Received: strides=\(2, 1\)",
        ),
        (
            lambda k: [same(strides=2), k.Conv2D(4, 3, name="shrinks")],
            "`shrinks` has `valid` padding.*kernel_size=.3, 3., zero padding",
        ),
        (
            lambda k: [
                k.ZeroPadding2D(2),
                k.Conv2D(4, 3, strides=2, name="wide"),
            ],
            r"`wide` has `valid` padding.*\(\(2, 2\), \(2, 2\)\)",
        ),
        (
            lambda k: [
                same(strides=2),
                k.ZeroPadding2D(1, name="frame"),
                k.Conv2D(4, 1),
            ],
            "`frame` pads a map for no convolution",
        ),
        (
            lambda k: [
                keras.Sequential([same(strides=2, name="a")], name="inner")
            ],
            "`inner` is a nested model",
        ),
    ],
)
def test_what_cannot_be_made_dense(layers, message):
    model = model_of(*layers(keras.layers), shape=(32, 48, 3))
    with pytest.raises(ValueError, match=message):
        with_output_stride(model, 1)


def test_a_stride_of_three():
    model = model_of(same(strides=3, name="third"), same(8, name="next"))
    dense = with_output_stride(model, 1)
    x = sample((1, 15, 21, 3))
    # `same` adds nothing to a multiple of three: the centre is sample 1.
    assert_close(dense(x)[:, 1::3, 1::3], model(x), 1e-5)
    with pytest.raises(ValueError, match="own stride 3"):
        with_output_stride(model, 4)


@pytest.mark.parametrize("strides", [3, 4])
def test_a_stride_that_the_network_steps_over(strides):
    model = model_of(same(strides=strides), same(strides=2))
    with pytest.raises(
        ValueError, match=f"strides {strides}, {2 * strides}.*stride=2"
    ):
        with_output_stride(model, 2)


def test_maps_of_different_density_cannot_be_joined():
    inputs = keras.Input((32, 48, 3))
    a = same(strides=2)(inputs)
    a = same(strides=2)(a)
    b = same(strides=4, size=1)(inputs)
    model = keras.Model(inputs, keras.layers.Add(name="join")([a, b]))
    dense = with_output_stride(model, 1)
    assert dense.output.shape == (None, 32, 48, 4)
    with pytest.raises(ValueError, match="`join` joins"):
        with_output_stride(model, 2)


def test_a_shared_layer_of_two_strides():
    inputs = keras.Input((32, 48, 4))
    shared = same(name="shared")
    a = shared(inputs)
    b = keras.layers.GlobalAveragePooling2D()(shared(same(strides=2)(inputs)))
    model = keras.Model(inputs, [a, b])
    with pytest.raises(ValueError, match="`shared` is shared"):
        with_output_stride(model, 1)


def test_global_pooling_stays():
    inputs = keras.Input((32, 48, 3))
    x = same(8, strides=2)(inputs)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = same(8, 1, activation="sigmoid")(gate)
    x = same(8)(keras.layers.Multiply()([x, gate]))
    model = randomize(keras.Model(inputs, x))
    assert with_output_stride(model, 1).output.shape == (None, 32, 48, 8)
