"""Dense features, subsampled, are the original features."""

import keras
import numpy as np
import pytest
from equality import assert_dense
from helpers import assert_close, npy, randomize, sample
from keras import ops

from keras_aspp.backbones import feature_strides, stage_ends, with_output_stride
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


@pytest.mark.parametrize("rate, dense_rate", [(2, (4, 4)), ((1, 3), (2, 6))])
def test_original_dilation_is_multiplied(rate, dense_rate):
    layers = keras.layers
    model = model_of(
        layers.Conv2D(8, 3, strides=2, padding="same"),
        layers.Conv2D(8, 3, dilation_rate=rate, padding="same", name="wide"),
    )
    dense = with_output_stride(model, 1)
    assert dense.get_layer("wide").dilation_rate == dense_rate
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


def check_dense(model, output_stride, *sizes, tolerance=1e-5):
    """Dense features contain the original ones at one offset, at any size."""
    dense = with_output_stride(model, output_stride)
    step = max(feature_strides(model).values()) // output_stride
    for size in sizes:
        x = sample((2, *size, model.inputs[0].shape[-1]))
        assert_dense(dense(x), model(x), step, tolerance)
    return dense


# The strided layers that there are, each behind and before a convolution.
KINDS = {
    "conv": lambda k: [same(strides=2)],
    "conv_valid": lambda k: [k.Conv2D(4, 3, strides=2)],
    "conv_padded": lambda k: [
        k.ZeroPadding2D(((0, 1), (0, 1))),
        k.Conv2D(4, 3, strides=2),
    ],
    "conv_padded_more": lambda k: [
        k.ZeroPadding2D(2),
        k.Conv2D(4, 3, strides=2),
    ],
    "conv_even": lambda k: [same(size=4, strides=2), same(size=2)],
    "conv_uneven": lambda k: [same(size=(1, 5), strides=2), same(size=(4, 1))],
    "conv_holes": lambda k: [
        k.Conv2D(4, 1, strides=2),
        same(size=2, dilation_rate=3),
    ],
    "patches": lambda k: [k.Conv2D(4, 2, strides=2)],
    "depthwise": lambda k: [
        k.DepthwiseConv2D(5, strides=2, padding="same", depth_multiplier=2)
    ],
    "separable": lambda k: [
        k.SeparableConv2D(4, 3, strides=2, padding="same"),
        k.SeparableConv2D(4, 3, padding="same", activation="relu"),
    ],
    "separable_valid": lambda k: [
        k.SeparableConv2D(4, 3, strides=2),
        k.SeparableConv2D(4, 3, use_bias=False),
    ],
    "max_pool": lambda k: [k.MaxPooling2D(), k.MaxPooling2D(3, 1, "same")],
    "max_pool_valid": lambda k: [k.MaxPooling2D(3, 2), k.MaxPooling2D(2, 1)],
    "max_pool_same": lambda k: [k.MaxPooling2D(3, 2, "same")],
    "max_pool_even": lambda k: [
        k.MaxPooling2D(2, 2, "same"),
        k.MaxPooling2D(4, 1, "same"),
    ],
    "max_pool_padded": lambda k: [k.ZeroPadding2D(1), k.MaxPooling2D(3, 2)],
    "average_pool": lambda k: [
        k.AveragePooling2D(2),
        k.AveragePooling2D(3, 1, "same"),
    ],
    "average_pool_same": lambda k: [
        k.AveragePooling2D(3, 2, "same"),
        k.AveragePooling2D(2, 1, "same"),
    ],
    "average_pool_padded": lambda k: [
        k.ZeroPadding2D(((0, 1), (0, 1))),
        k.AveragePooling2D(3, 2),
    ],
    "subsampled": lambda k: [
        k.ZeroPadding2D(((0, 1), (0, 1))),
        k.Cropping2D(((1, 0), (1, 0))),
        k.AveragePooling2D(1, 2),
    ],
    "frame": lambda k: [
        k.MaxPooling2D(1, 2),
        k.ZeroPadding2D(((2, 1), (0, 3))),
        k.Conv2D(4, 1),
        k.Cropping2D(((0, 1), (1, 0))),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind, tmp_path):
    layers = keras.layers
    model = model_of(
        same(), *KINDS[kind](layers), same(), same(strides=2), same()
    )
    dense = check_dense(model, 1, (24, 30), (23, 29))
    assert max(feature_strides(model).values()) == 4
    # What was traded is in the file.
    dense.save(tmp_path / "dense.keras")
    loaded = keras.saving.load_model(tmp_path / "dense.keras")
    x = sample((1, 23, 29, 3))
    np.testing.assert_array_equal(npy(loaded(x)), npy(dense(x)))
    back = with_output_stride(loaded, 4)
    # Keras' dilated convolution takes another kernel on some processors.
    assert_close(back(x), model(x), 1e-5)
    assert with_output_stride(loaded, 1).get_config() == dense.get_config()


def xception_block(x, filters, layer=same):
    """A strided pool beside a strided 1x1 convolution."""
    short = layer(filters, 1, strides=2)(x)
    x = keras.layers.SeparableConv2D(filters, 3, padding="same")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same")(x)
    return keras.layers.Add()([x, short])


def test_joined_maps_stay_aligned():
    """Pool and shortcut of Xception start at different cells by nature."""
    inputs = keras.Input((None, None, 3))
    x = xception_block(same()(inputs), 8)
    model = randomize(keras.Model(inputs, same()(xception_block(x, 8))))
    dense = check_dense(model, 1, (24, 32), (23, 29), (25, 26), (22, 27))
    # Both start at cell 0, at sizes known only when it runs, too.
    x = sample((1, 22, 27, 3))
    features = dense.predict(x, verbose=0)
    assert_close(features[:, ::4, ::4], model(x), 1e-5)


def test_a_chain_before_joined_maps():
    """The pool's padding follows the size of the map that it once had."""
    inputs = keras.Input((None, None, 3))
    x = keras.layers.MaxPooling2D()(same(8)(inputs))
    x = same()(same(strides=2)(x))
    model = randomize(keras.Model(inputs, same()(xception_block(x, 8))))
    check_dense(model, 1, *((n, n + 5) for n in range(16, 24)))


def test_joined_maps_of_different_size(tmp_path):
    """NASNet's: one map loses a cell that the other one keeps."""
    inputs = keras.Input((None, None, 3))
    x = same()(inputs)
    a = keras.layers.AveragePooling2D(1, strides=2)(x)
    b = keras.layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    b = keras.layers.MaxPooling2D(3, strides=2)(b)
    c = keras.layers.ZeroPadding2D(((1, 2), (1, 2)))(x)
    c = keras.layers.DepthwiseConv2D(5, strides=2)(c)
    x = same()(keras.layers.Concatenate(name="join")([a, b, c]))
    model = randomize(keras.Model(inputs, x + a))
    dense = check_dense(model, 1, (24, 32), (22, 36))
    assert dense.get_layer("join_trim")
    dense.save(tmp_path / "dense.keras")
    loaded = keras.saving.load_model(tmp_path / "dense.keras")
    assert with_output_stride(loaded, 1).get_config() == dense.get_config()
    back = with_output_stride(loaded, 2)
    assert [layer.name for layer in back.layers[1:]] == [
        layer.name for layer in model.layers[1:]
    ]
    x = sample((1, 24, 32, 3))
    np.testing.assert_array_equal(npy(back(x)), npy(model(x)))


def nested(channels, name, size=(None, None)):
    """A functional model in a Sequential one."""
    inputs = keras.Input((*size, channels))
    x = xception_block(inputs, channels)
    inner = keras.Model(inputs, x, name=f"{name}_inner")
    return keras.Sequential(
        [
            keras.Input((*size, channels)),
            inner,
            keras.layers.Conv2D(channels, 2, strides=2, name="patches"),
        ],
        name=name,
    )


def test_nested_models(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = nested(8, "second")(nested(8, "first")(same(8)(inputs)))
    model = randomize(keras.Model(inputs, same()(x), name="outer"))
    dense = check_dense(model, 4, (64, 80), (63, 85))
    second = dense.get_layer("second")
    assert type(second) is keras.Sequential
    assert second.get_layer("patches").strides == (1, 1)
    assert dense.get_layer("first").get_layer("patches").strides == (2, 2)
    for a, b in zip(dense.weights, model.weights, strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(npy(a), npy(b))
    dense.save(tmp_path / "dense.keras")
    loaded = keras.saving.load_model(tmp_path / "dense.keras")
    x = sample((1, 63, 85, 3))
    np.testing.assert_array_equal(npy(loaded(x)), npy(dense(x)))
    back = with_output_stride(loaded, 16)
    np.testing.assert_array_equal(npy(back(x)), npy(model(x)))


@pytest.mark.parametrize("size", [(64, 80), (63, 85)])
def test_nested_models_made_for_one_size(size, tmp_path):
    """Those whose maps become larger than they were built for let go of it."""
    inputs = keras.Input((*size, 3))
    x = nested(8, "first", size)(same(8)(inputs))
    x = nested(8, "second", x.shape[1:3])(x)
    model = randomize(keras.Model(inputs, same()(x), name="outer"))
    dense = check_dense(model, 2, size)
    assert dense.output.shape[1:3] == tuple(-(-n // 2) for n in size)
    assert dense.get_layer("first").inputs[0].shape[1:3] == size
    assert dense.get_layer("second").inputs[0].shape[1:3] == (None, None)
    dense.save(tmp_path / "dense.keras")
    loaded = keras.saving.load_model(tmp_path / "dense.keras")
    x = sample((1, *size, 3))
    np.testing.assert_array_equal(npy(loaded(x)), npy(dense(x)))
    back = with_output_stride(loaded, 16)
    np.testing.assert_array_equal(npy(back(x)), npy(model(x)))


def test_a_sequential_model():
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            same(strides=2),
            keras.layers.MaxPooling2D(),
            same(name="last"),
        ],
        name="chain",
    )
    dense = check_dense(randomize(model), 2, (24, 32), (23, 29))
    assert dense.name == "chain"
    assert list(stage_ends(model)) == ["stride_2", "stride_4"]
    # Of a Sequential model these two cannot be had.
    assert dense.input.shape == (None, None, None, 3)
    assert dense.output is stage_ends(dense)["stride_4"]
    assert dense.get_layer("last").dilation_rate == (2, 2)


def test_a_shared_layer_of_one_density():
    inputs = keras.Input((None, None, 3))
    x = same(strides=2)(inputs)
    shared = same(name="shared")
    model = randomize(keras.Model(inputs, shared(shared(x))))
    dense = check_dense(model, 1, (24, 32), (23, 29))
    assert dense.get_layer("shared").dilation_rate == (2, 2)


def test_a_shared_padding():
    """It must go on padding for the pool, which does not take it over."""
    inputs = keras.Input((None, None, 3))
    pad = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")
    x = keras.layers.Conv2D(4, 3, strides=2, name="conv")(pad(same()(inputs)))
    y = keras.layers.MaxPooling2D(3, strides=2)(pad(same()(inputs)))
    model = randomize(keras.Model(inputs, same()(x + y)))
    check_dense(model, 1, (24, 32), (23, 29))


def test_a_shared_nested_model():
    k = keras.layers
    inner = keras.Sequential(
        [keras.Input((None, None, 4)), k.ZeroPadding2D(1), k.Conv2D(4, 3)],
        name="inner",
    )
    inputs = keras.Input((None, None, 3))
    x = inner(inner(same(strides=2)(inputs)))
    model = randomize(keras.Model(inputs, x))
    dense = check_dense(model, 1, (24, 32), (23, 29))
    assert dense.get_layer("inner").layers[1].dilation_rate == (2, 2)


@pytest.mark.parametrize("output_stride", [1, 2])
def test_a_layer_of_several_nested_models_stays_shared(output_stride):
    shared = same(name="shared")

    def nested(name):
        inputs = keras.Input((None, None, 4))
        x = same(name="own")(inputs)
        return keras.Model(inputs, shared(x), name=name)

    inputs = keras.Input((None, None, 3))
    x = nested("a")(same(strides=2)(inputs))
    model = randomize(keras.Model(inputs, nested("b")(x) + shared(x)))
    dense = check_dense(model, output_stride, (24, 32), (23, 29))
    assert [w.path for w in dense.weights] == [w.path for w in model.weights]
    (copy,) = {
        id(layer): layer
        for layer in dense._flatten_layers()
        if layer.name == "shared"
    }.values()
    rate = 2 // output_stride
    assert copy is not shared and copy.dilation_rate == (rate, rate)


def test_a_layer_of_nested_models_of_two_strides_is_refused():
    inputs = keras.Input((None, None, 4))
    shared = same(name="shared")
    inner = keras.Model(inputs, shared(inputs), name="inner")
    x = keras.layers.GlobalAveragePooling2D()(inner(same(strides=2)(inputs)))
    model = keras.Model(inputs, [shared(inputs), x])
    with pytest.raises(ValueError, match="`(inner/)?shared` is shared between"):
        with_output_stride(model, 1)


def test_operations_that_are_no_layers():
    inputs = keras.Input((None, None, 3))
    x = same(8, strides=2)(inputs)
    gate = keras.ops.mean(x, axis=(1, 2), keepdims=True) * 0.0 + 0.7
    x = same()(x[..., :4] * gate[..., :4] + x[..., 4:])
    model = randomize(keras.Model(inputs, x))
    check_dense(model, 1, (24, 32), (23, 29))


class Own(keras.layers.Conv2D):
    """A convolution that we do not know."""


class Block(keras.layers.Layer):
    def __init__(self, size, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.conv = same(4, size, strides=strides)

    def call(self, inputs):
        return self.conv(inputs)


@pytest.mark.parametrize(
    "layers, message",
    [
        (
            lambda k: [same(strides=2), k.UpSampling2D(2, name="up")],
            "`up` .UpSampling2D.* cannot be made dense",
        ),
        (
            lambda k: [
                same(strides=2),
                k.Conv2DTranspose(4, 3, padding="same", name="back"),
            ],
            "`back` .Conv2DTranspose. moves cells and cannot be made dense to "
            "output stride 1. Its stride in the original network is 2",
        ),
        (
            lambda k: [same(strides=2), k.Flatten(name="flat")],
            "`flat` .Flatten. moves cells",
        ),
        (
            lambda k: [same(strides=(2, 1), name="skew")],
            r"`skew` has unequal strides. Received: strides=\(2, 1\)",
        ),
        (
            lambda k: [Own(4, 3, strides=2, name="own")],
            "`own` cannot be made dense.* only Keras' own.*type Own",
        ),
        (
            lambda k: [same(strides=2), Block(3, name="block")],
            "`block` .Block. holds a Conv2D that a rewrite cannot reach",
        ),
        (
            lambda k: [Block(1, strides=2, name="block")],
            "`block` .Block. holds a Conv2D",
        ),
        (
            lambda k: [
                keras.Sequential(
                    [same(strides=2), k.UpSampling2D(name="up")], name="inner"
                )
            ],
            "`inner/up` .UpSampling2D. moves cells",
        ),
    ],
)
def test_what_cannot_be_made_dense(layers, message):
    model = model_of(*layers(keras.layers), shape=(32, 48, 3))
    with pytest.raises(ValueError, match=message):
        with_output_stride(model, 1)


def test_a_lambda_is_named():
    model = model_of(
        keras.layers.Lambda(lambda x: x * 2, name="twice"), same(strides=2)
    )
    with pytest.raises(
        ValueError, match="`twice` .Lambda. cannot be copied.* its function by"
    ):
        with_output_stride(model, 1)


def test_channels_first():
    inputs = keras.Input((3, 32, 48))
    x = same(strides=2, data_format="channels_first", name="first")(inputs)
    with pytest.raises(
        ValueError, match="`first` must have.*data_format='channels_first'"
    ):
        with_output_stride(keras.Model(inputs, x), 1)


def test_layers_of_their_own_before_the_trade(toy_backbone):
    """Before the output stride anything goes, and is left as it is."""
    model = model_of(
        Own(4, 3, strides=4, name="own"),
        Block(1),
        Block(3),
        keras.layers.UpSampling2D(2, name="up"),
        same(strides=2),
        same(strides=2),
    )
    assert feature_strides(model)["up"] == 2
    dense = check_dense(model, 4, (48, 64), (45, 59))
    assert type(dense.get_layer("own")) is Own


class Places(keras.layers.Layer):
    """Adds a weight of its own to each cell."""

    def build(self, input_shape):
        self.place = self.add_weight(shape=input_shape[1:], name="place")

    def call(self, inputs):
        return inputs + self.place


def test_a_layer_made_for_one_size():
    model = model_of(
        Places(), same(strides=2), Places(name="late"), shape=(24, 32, 3)
    )
    assert with_output_stride(model, 2).output.shape == model.output.shape
    with pytest.raises(ValueError, match="`late` .Places. moves cells"):
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


def test_stage_ends():
    inputs = keras.Input((None, None, 3))
    x = same(name="a")(inputs)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="b")(x)
    x = same(name="c_end")(x)
    x = keras.layers.ZeroPadding2D(1, name="pad")(same(name="d")(x))
    x = same(strides=4, name="e_end")(x)
    model = keras.Model(inputs, same(name="f")(x))

    def names(**kwargs):
        return {
            key: map_._keras_history.operation.name
            for key, map_ in stage_ends(model, **kwargs).items()
        }

    assert names() == {"stride_2": "d", "stride_8": "f"}
    assert names(preferred="_end$") == {"stride_2": "c_end", "stride_8": "f"}
    assert names(preferred="_end$", output=False) == {
        "stride_2": "c_end",
        "stride_8": "e_end",
    }


def test_stage_ends_of_nested_models():
    inputs = keras.Input((None, None, 4))
    x = same(strides=2)(inputs)
    outputs = {"fine": x, "coarse": same(strides=2)(x)}
    inner = keras.Model(inputs, outputs, name="inner")
    inputs = keras.Input((None, None, 3))
    features = inner(same(name="before")(inputs))
    last = keras.Sequential([keras.Input((None, None, 4)), same(strides=4)])
    model = keras.Model(inputs, last(features["coarse"]))
    ends = stage_ends(model)
    assert list(ends) == ["stride_2", "stride_4", "stride_16"]
    assert ends["stride_2"] is features["fine"]
    assert ends["stride_4"] is features["coarse"]
    assert ends["stride_16"] is model.output
    copy = keras.Model(model.input, ends)
    x = sample((1, 48, 32, 3))
    assert copy(x)["stride_2"].shape == (1, 24, 16, 4)


def test_global_pooling_stays():
    inputs = keras.Input((32, 48, 3))
    x = same(8, strides=2)(inputs)
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = same(8, 1, activation="sigmoid")(gate)
    x = same(8)(keras.layers.Multiply()([x, gate]))
    model = randomize(keras.Model(inputs, x))
    assert with_output_stride(model, 1).output.shape == (None, 32, 48, 8)


def through(operation):
    """Two strides, an operation, and a convolution that wants it dense."""
    inputs = x = keras.Input((None, None, 3))
    for _ in range(2):
        x = keras.layers.Conv2D(
            4, 3, strides=2, padding="same", activation="tanh"
        )(x)
    x = keras.layers.Conv2D(4, 3, padding="same")(operation(x))
    return randomize(keras.Model(inputs, x))


def atrous(rate, taps=slice(None)):
    """A convolution of all taps, or of the one in the corner."""
    kernel = np.zeros((3, 3, 4, 4), "float32")
    kernel[taps, taps] = 1
    return lambda x: ops.conv(x, kernel, padding="same", dilation_rate=rate)


@keras.saving.register_keras_serializable("test_output_stride")
class And(keras.layers.Layer):
    """Returns a map and its blur, or twice the map."""

    def __init__(self, blurs=True, **kwargs):
        super().__init__(**kwargs)
        self.blurs = blurs

    def call(self, inputs):
        if self.blurs:
            return inputs, ops.average_pool(inputs, 3, 1, "same")
        return inputs, 2 * inputs

    def get_config(self):
        return {**super().get_config(), "blurs": self.blurs}


@keras.saving.register_keras_serializable("test_output_stride")
class Blur(keras.layers.ReLU):
    def call(self, inputs):
        return super().call(ops.average_pool(inputs, 3, 1, "same"))


@keras.saving.register_keras_serializable("test_output_stride")
class Twice(keras.layers.ReLU):
    def call(self, inputs):
        return 2 * super().call(inputs)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: ops.max_pool(x, 3, 1, "same"),
        Blur(),
        lambda x: ops.average_pool(x, 3, 1, "same"),
        lambda x: ops.conv(x, ops.ones((3, 3, 4, 4)), padding="same"),
        *(atrous(rate) for rate in (2, 6, 12, 18, 36)),
        lambda x: ops.roll(x, 1, 1),
        lambda x: ops.roll(x, 7, 1),
        lambda x: ops.roll(x, 9, 2),
        atrous(9, taps=0),
        lambda x: ops.flip(x, 2),
        lambda x: And()(x)[1],
        lambda x: ops.cumsum(x, 1),
        lambda x: ops.softmax(x, 2),
        lambda x: keras.layers.UnitNormalization(axis=1)(x),
        lambda x: keras.layers.TimeDistributed(
            keras.layers.Conv1D(4, 3, padding="same")
        )(x),
    ],
)
def test_what_mixes_cells_out_of_sight_is_refused(operation):
    model = through(operation)
    with pytest.raises(ValueError, match="mixes cells and cannot be dilated"):
        with_output_stride(model, 2)
    # Where the map is as it was, nothing is wrong with it.
    with_output_stride(model, 4)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: ops.gelu(x) * 2 + 1,
        lambda x: ops.softmax(x, -1),
        lambda x: And(blurs=False)(x)[1],
        Twice(),
        lambda x: keras.layers.PReLU(shared_axes=[1, 2])(x),
        lambda x: keras.layers.TimeDistributed(
            keras.layers.TimeDistributed(keras.layers.Dense(4))
        )(x),
    ],
)
def test_what_keeps_to_its_cell_is_exact(operation):
    model = through(operation)
    dense = with_output_stride(model, 2)
    x = sample((2, 64, 48, 3))
    assert_close(npy(dense(x))[:, 1::2, 1::2], model(x))
