"""A network that we did not write, like a user's own."""

from fractions import Fraction

import keras
import numpy as np
import pytest
from equality import assert_dense
from helpers import npy, randomize, sample

from keras_aspp.backbones import feature_strides, stage_ends, with_output_stride
from keras_aspp.litert import describe


def users_own():
    """A bit of everything, strides 2 to 32."""
    k = keras.layers

    def stage(x, filters, name):
        inputs = keras.Input(x.shape[1:])
        y = k.SeparableConv2D(filters, 3, padding="same")(inputs)
        y = k.BatchNormalization()(y)
        y = k.MaxPooling2D(3, strides=2, padding="same")(y)
        short = k.Conv2D(filters, 1, strides=2, padding="same")(inputs)
        y = keras.ops.relu(y + short)
        return keras.Model(inputs, y, name=name)(x)

    inputs = keras.Input((None, None, 4))
    x = k.Conv2D(8, 7, strides=2, padding="same", activation="relu")(inputs)
    x = stage(k.MaxPooling2D()(x), 12, "stage1")
    x = stage(x, 16, "stage2")
    x = k.Conv2D(16, (1, 5), padding="same")(k.AveragePooling2D(2)(x))
    x = k.concatenate(
        [k.AveragePooling2D(3, 1, "same")(x), k.LayerNormalization()(x)]
    )
    return randomize(keras.Model(inputs, x, name="own"))


def test_a_users_own(tmp_path):
    model = users_own()
    dense = with_output_stride(model, 4)
    for size in ((64, 96), (77, 107)):
        x = sample((1, *size, 4))
        assert_dense(dense(x), model(x), 8)
    dense.save(tmp_path / "own.keras")
    loaded = keras.saving.load_model(tmp_path / "own.keras")
    np.testing.assert_array_equal(npy(loaded(x)), npy(dense(x)))
    back = with_output_stride(loaded, 32)
    np.testing.assert_array_equal(npy(back(x)), npy(model(x)))


@keras.saving.register_keras_serializable(package="test_users")
class Scale(keras.layers.Layer):
    """A weight per channel, as ConvNeXt's LayerScale."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=input_shape[-1:], name="scale")

    def call(self, inputs):
        return inputs * self.scale


def convnext_like(size):
    """Nested stem and downsampling of one size, blocks between them."""
    k = keras.layers

    def patches(x, filters, width, name, norm_first):
        layers = [k.Conv2D(filters, width, strides=width)]
        layers.insert(0 if norm_first else 1, k.LayerNormalization())
        shape = keras.Input(x.shape[1:])
        return keras.Sequential([shape, *layers], name=name)(x)

    def block(x):
        y = k.Conv2D(x.shape[-1], 7, padding="same", groups=x.shape[-1])(x)
        y = k.Dense(2 * x.shape[-1], activation="gelu")(
            k.LayerNormalization()(y)
        )
        return k.Add()([x, Scale()(k.Dense(x.shape[-1])(y))])

    inputs = keras.Input((*size, 3))
    x = block(patches(inputs, 8, 4, "stem", norm_first=False))
    for i, filters in enumerate((12, 16, 20)):
        x = block(patches(x, filters, 2, f"down_{i}", norm_first=True))
    return randomize(keras.Model(inputs, k.LayerNormalization()(x)))


@pytest.mark.parametrize("size", [(160, 128), (131, 163)])
def test_a_convnext_of_one_size(size, tmp_path):
    model = convnext_like(size)
    x = sample((1, *size, 3))
    dense = with_output_stride(model, 8)
    assert_dense(dense(x), model(x), 4)
    height, width = model.output.shape[1:3]
    assert dense.output.shape == (None, 4 * height, 4 * width, 20)
    dense.save(tmp_path / "dense.keras")
    loaded = keras.saving.load_model(tmp_path / "dense.keras")
    np.testing.assert_array_equal(npy(loaded(x)), npy(dense(x)))


@keras.saving.register_keras_serializable(package="test_users")
class Closed(keras.layers.Layer):
    """A strided block of convolutions that no rewrite reaches.

    As some of keras-hub's, it builds another name than the one it was given.
    """

    def __init__(self, filters, name=None, **kwargs):
        super().__init__(name=name and f"{name}_0", **kwargs)
        self.filters = filters
        self.conv = keras.layers.Conv2D(filters, 3, 2, "same", name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, inputs):
        return self.conv(inputs)

    def compute_output_shape(self, input_shape):
        return self.conv.compute_output_shape(input_shape)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def chain(*layers, size=(48, 64)):
    inputs = x = keras.Input((*size, 3))
    for layer in layers:
        x = layer(x)
    return randomize(keras.Model(inputs, x))


def strided(filters=6, strides=2):
    return keras.layers.Conv2D(filters, 3, strides=strides, padding="same")


def test_a_closed_block_may_stride_before_the_trade():
    model = chain(Closed(6, name="block"), strided(), strided())
    assert list(feature_strides(model).values()) == [1, 2, 4, 8]
    assert list(stage_ends(model)) == ["stride_2", "stride_4", "stride_8"]
    x = sample((2, 48, 64, 3))
    np.testing.assert_array_equal(
        npy(with_output_stride(model, 8)(x)), npy(model(x))
    )
    assert_dense(with_output_stride(model, 2)(x), model(x), 4)
    with pytest.raises(ValueError, match="`block_0` .Closed. holds a Conv2D"):
        with_output_stride(model, 1)


def transposed(strides):
    return keras.layers.Conv2DTranspose(
        6, 3, strides=strides, padding="same", use_bias=False
    )


FRACTIONS = {
    "upsampled": lambda: [
        keras.layers.UpSampling2D(2),
        strided(),
        strided(),
    ],
    "transposed": lambda: [transposed(2), strided(), strided()],
    "thirds": lambda: [transposed(3), strided(), strided(strides=3)],
    "halves": lambda: [
        strided(strides=3),
        keras.layers.UpSampling2D(2),
        strided(),
    ],
}


def fractional(name):
    return chain(*FRACTIONS[name](), strided(), size=(48, 96))


@pytest.mark.parametrize("name", FRACTIONS)
def test_strides_that_are_not_whole(name):
    model = fractional(name)
    rows = [layer.output.shape[1] for layer in model.layers]
    strides = [Fraction(48, n) for n in rows]
    assert any(stride.denominator > 1 for stride in strides)
    found = list(feature_strides(model).values())
    assert found == strides
    assert {type(s) for s in found if s.denominator == 1} == {int}
    whole = sorted({s for s in strides if s > 1 and s.denominator == 1})
    assert list(stage_ends(model)) == [f"stride_{stride}" for stride in whole]


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("upsampled", 1), ("upsampled", 2), ("transposed", 1), ("thirds", 2)],
)
def test_dense_after_a_stride_that_is_not_whole(name, output_stride):
    model = fractional(name)
    x = sample((1, 48, 96, 3))
    dense = with_output_stride(model, output_stride)(x)
    assert dense.shape[1:3] == (48 // output_stride, 96 // output_stride)
    assert_dense(dense, model(x), 4 // output_stride)


def test_a_stride_that_a_network_of_halves_steps_over_is_refused():
    model = fractional("halves")
    with pytest.raises(ValueError, match=r"has the strides 3/2, 3, 6\. "):
        with_output_stride(model, 4)
    with pytest.raises(ValueError, match=r"`up_sampling2d.*` .*moves cells"):
        with_output_stride(model, 2)


@keras.saving.register_keras_serializable(package="test_users")
class Peak(keras.layers.Layer):
    """Doubles its input, and remembers the largest one as a quantizer does."""

    def build(self, input_shape):
        self.peak = self.add_weight(shape=(), trainable=False, name="peak")

    def call(self, inputs):
        self.peak.assign(keras.ops.maximum(self.peak, keras.ops.max(inputs)))
        self.add_loss(keras.ops.mean(inputs))
        return inputs * 2


@pytest.mark.parametrize("refused", [False, True])
def test_the_given_network_is_left_alone_by_layers_that_assign(refused):
    last = Closed(6, name="last") if refused else keras.layers.Conv2D(6, 1)
    model = chain(strided(), Peak(name="peak"), last)
    peak = model.get_layer("peak")
    peak.peak.assign(0.25)
    losses = len(model.losses)
    if refused:
        with pytest.raises(ValueError, match="Closed"):
            with_output_stride(model, 1)
    else:
        dense = with_output_stride(model, 1)
        assert float(dense.get_layer("peak").peak) == 0.25
    assert float(peak.peak) == 0.25
    assert len(model.losses) == losses


def test_the_probe_of_spectral_normalization_leaves_its_kernel_alone():
    layer = keras.layers.SpectralNormalization(keras.layers.Conv2D(6, 1))
    inputs = keras.Input((48, 64, 3))
    x = strided()(inputs)
    model = randomize(keras.Model(inputs, layer(x, training=True)))
    before = model.get_weights()
    # Each call in training estimates the norm anew.
    with pytest.raises(ValueError, match="mixes cells"):
        with_output_stride(model, 1)
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)


def test_an_adapted_normalization_keeps_its_statistics():
    norm = keras.layers.Normalization()
    model = chain(norm, strided(), strided())
    norm.adapt(3 * sample((4, 8, 8, 3)) + 1)
    x = 3 * sample((2, 48, 64, 3)) + 1
    assert_dense(with_output_stride(model, 2)(x), model(x), 2)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.LayerNormalization(axis=[1, 2, 3], name="late"),
        keras.layers.LayerNormalization(
            axis=[1, 2], center=False, scale=False, name="late"
        ),
        keras.layers.BatchNormalization(axis=1, name="late"),
    ],
)
def test_a_norm_of_other_axes_than_channels_is_refused(layer):
    model = chain(strided(), strided(), layer, strided())
    with pytest.raises(ValueError, match="`late` .*(mixes|moves) cells"):
        with_output_stride(model, 2)
    # Before the trade it stays as it is.
    x = sample((2, 48, 64, 3))
    assert_dense(with_output_stride(model, 4)(x), model(x), 2)


def test_maps_joined_along_rows_are_refused():
    inputs = keras.Input((61, 75, 3))
    x = strided()(strided()(inputs))
    x = keras.layers.Concatenate(axis=1, name="stack")([x, x])
    model = randomize(keras.Model(inputs, strided()(x)))
    with pytest.raises(ValueError, match="`stack` .Concatenate. moves cells"):
        with_output_stride(model, 2)


@pytest.mark.parametrize(
    "layers",
    [
        lambda k: [k.Flatten(name="fixed"), k.Dense(4)],
        lambda k: [k.Reshape((6 * 8, 6), name="fixed"), k.Dense(4)],
        lambda k: [k.Reshape((6, 8, 2, 3), name="fixed"), k.Dense(4)],
        lambda k: [k.Resizing(9, 7, name="fixed")],
        lambda k: [k.CenterCrop(4, 4, name="fixed")],
        lambda k: [k.Permute((3, 1, 2), name="fixed")],
    ],
)
def test_numbers_of_one_size_are_refused_by_name(layers):
    model = chain(strided(), strided(), strided(), *layers(keras.layers))
    with pytest.raises(ValueError, match="`fixed` .* moves cells") as caught:
        with_output_stride(model, 4)
    assert "\n" not in str(caught.value)
    copy = with_output_stride(model, 8)
    x = sample((2, 48, 64, 3))
    np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))


def test_a_permuted_map_of_unknown_size_has_a_stride():
    k = keras.layers
    swap = [k.Permute((3, 1, 2)), k.Permute((2, 3, 1))]
    model = chain(strided(), *swap, strided(), size=(None, None))
    assert max(feature_strides(model).values()) == 4


def test_a_classifiers_pooled_cell_is_no_feature():
    k = keras.layers
    pool = k.GlobalAveragePooling2D(keepdims=True)
    model = chain(strided(), strided(4), pool, k.Conv2D(9, 1), k.Flatten())
    ends = stage_ends(model)
    assert ends["stride_4"].shape == (None, 12, 16, 4)


class Forgetful(keras.layers.Dense):
    """Its configuration does not have all of its arguments."""

    def get_config(self):
        return {**super().get_config(), "units": 5}


def test_a_copy_with_other_weights_is_refused_in_one_line():
    model = chain(strided(), Forgetful(7, name="own"))
    with pytest.raises(ValueError, match="`own` .Forgetful. cannot be copied"):
        with_output_stride(model, 2)


@pytest.mark.slow
def test_a_users_own_in_tflite(tmp_path):
    """Dense pooling takes builtin operators, no detour over batches."""
    import tensorflow as tf

    from keras_aspp.export import tflite
    from keras_aspp.layers.lowering import export_form
    from keras_aspp.utils.native_log import filtered_stderr

    dense = with_output_stride(users_own(), 8)
    x = sample((1, 64, 96, 4))
    archive = keras.export.ExportArchive()
    archive.track(dense)
    archive.add_endpoint(
        "serving_default",
        lambda image: {"features": dense(image, training=False)},
        input_signature=[tf.TensorSpec(x.shape, name="image")],
    )
    with export_form(), filtered_stderr():
        archive.write_out(tmp_path, verbose=False)
        content = tflite._convert_one(str(tmp_path), "tflite_float32")
    path = tmp_path / "own.tflite"
    path.write_bytes(content)
    describe.check_operators(describe.operators(path), path)
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner("serving_default")
    actual = run(image=x)["features"]
    expected = npy(dense(x))
    assert np.abs(actual - expected).max() < 1e-4 * expected.std()
