"""A segmenter made denser draws its cells where its head learned them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy, randomize, sample

import keras_aspp as ka
from keras_aspp.layers import BilinearResize
from keras_aspp.models.segmenter import load_saved

SIZE = (75, 61)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("stride", "result", "trained"),
    [(8, 1, 16), (32, 1, 16), (8, 4, 16), (8, 8, 16), (4, 4, 16)],
)
def test_ramps_of_every_stride_lie_on_one_line(
    stride, result, trained, jit_compile
):
    # Each cell says at which pixel it looks; so does what is drawn, but for
    # what upsampling adds at the stride of training.
    cells = [-(-n // stride) + 1 for n in SIZE]
    y, x = np.meshgrid(*(np.arange(n) * stride for n in cells), indexing="ij")
    ramp = np.stack([y, x], -1)[None].astype("float32")
    shift = (trained - stride) / 2 / result
    layer = BilinearResize(scale=stride // result, shift=(shift, shift))
    rows, columns = (-(-n // result) for n in SIZE)
    reference = np.zeros((1, rows, columns, 1), "float32")

    @tf.function(jit_compile=jit_compile)
    def drawn():
        return layer(tf.constant(ramp), reference=tf.constant(reference))

    got = npy(drawn())[0]
    # At the stride of the result, a pixel is in the middle of its cell.
    middle = (result - 1) / 2
    y, x = (np.arange(n) * result + middle for n in (rows, columns))
    expected = np.stack(np.meshgrid(y, x, indexing="ij"), -1)
    expected = expected - (trained - 1) / 2
    margin = max(stride, trained) // result + 1
    inner = (slice(margin, -margin),) * 2
    np.testing.assert_allclose(got[inner], expected[inner], atol=1e-4)
    # The edge is repeated.
    assert got[0, 0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("architecture", "layer", "result", "padding", "down_px"),
    [
        ("DeepLabV3", "logits", 1, 1, 4),
        # Keras' own padding keeps the odd cells: the even ones are new and
        # lie before them.
        ("DeepLabV3Plus", "resize", 4, ((0, 1), (0, 1)), -4),
    ],
)
def test_where_a_denser_map_goes(
    architecture, layer, result, padding, down_px, toy_backbone, tmp_path
):
    model = getattr(ka.models, architecture)(
        3, toy_backbone(padding=padding), atrous_rates=(2,), aspp_filters=8
    )
    dense = ka.models.with_output_stride(model, 8)
    assert dense.trained_output_stride == 16
    shift = down_px / result
    assert dense.get_layer(layer).shift == (shift, shift)
    moved = [
        found
        for found in dense.layers
        if isinstance(found, BilinearResize) and any(found.shift)
    ]
    assert len(moved) == 1
    dense.save(tmp_path / "dense.keras")
    again = load_saved(tmp_path / "dense.keras")
    x = sample((1, *SIZE, 3))
    np.testing.assert_array_equal(npy(again(x)), npy(dense(x)))
    # Weights that are taken along bring what their head has learned.
    tuned = type(model)(
        3,
        "toy",
        output_stride=8,
        atrous_rates=(4,),
        aspp_filters=8,
        weights=str(tmp_path / "dense.keras"),
    )
    np.testing.assert_array_equal(npy(tuned(x)), npy(dense(x)))


def in_one(backbone):
    """A backbone as one layer of another, of several outputs."""
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, backbone(inputs), name="in_one")


def with_laterals(shared):
    """Features of as many channels, by a convolution of their own or one."""
    inputs = x = keras.Input((None, None, 3))
    features = {}
    one = keras.layers.Conv2D(8, 1, name="lateral")
    for stride in (2, 4, 8, 16, 32):
        x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
        x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
        if stride > 4:
            lateral = one if shared else keras.layers.Conv2D(8, 1)
            features[f"stride_{stride}"] = lateral(x)
        elif stride == 4:
            features["stride_4"] = x
    return keras.Model(inputs, features, name="laterals")


@pytest.mark.parametrize("architecture", ["DeepLabV3", "DAFormer"])
@pytest.mark.parametrize("stride", [8, 16])
def test_cells_of_a_nested_backbone_go_where_those_of_a_plain_one_do(
    architecture, stride, toy_backbone
):
    backbone = toy_backbone(features=True)
    arguments = {"atrous_rates": (1, 2), "aspp_filters": 4}
    if architecture == "DAFormer":
        arguments["embed_filters"] = 4
    plain, nested = (
        getattr(ka.models, architecture)(3, features, 32, **arguments)
        for features in (backbone, in_one(backbone))
    )
    randomize(plain)
    for weight, value in zip(nested.weights, plain.weights, strict=True):
        weight.assign(value)
    x = sample((1, 96, 64, 3))
    expected, got = (
        npy(ka.models.with_output_stride(model, stride)(x))
        for model in (plain, nested)
    )
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_features_of_a_shared_layer_go_where_those_of_several_do():
    def shifts(shared):
        model = ka.models.DAFormer(
            3, with_laterals(shared), 32, aspp_filters=4, embed_filters=4
        )
        dense = ka.models.with_output_stride(model, 16)
        found = (x for x in dense.layers if isinstance(x, BilinearResize))
        return [layer.shift for layer in found]

    several = shifts(shared=False)
    assert any(any(shift) for shift in several)
    assert shifts(shared=True) == several


class Scale(keras.layers.Layer):
    """LayerScale of `keras.applications`, whose weight has no name."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],))

    def call(self, inputs):
        return inputs * self.gamma


def test_weights_without_a_name_are_taken_along(toy_backbone):
    """Keras numbers them over all models: `variable_7`, then `variable_9`."""
    backbone = toy_backbone()
    scaled = Scale(name="scale")(backbone.output)
    model = randomize(
        ka.models.DeepLabV3(
            3,
            keras.Model(backbone.input, scaled),
            atrous_rates=(2,),
            aspp_filters=8,
        )
    )
    dense = ka.models.with_output_stride(model, 8)
    np.testing.assert_array_equal(
        npy(dense.backbone.get_layer("scale").gamma),
        npy(model.backbone.get_layer("scale").gamma),
    )
    back = ka.models.with_output_stride(dense, 16)
    x = sample((1, *SIZE, 3))
    np.testing.assert_allclose(npy(back(x)), npy(model(x)), atol=1e-5)
