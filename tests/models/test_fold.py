"""fold_batch_norm: the same function, and no batch norm left."""

import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample
from model_tester import SMALL_HEADS

from keras_aspp import layers, models


def assert_same(model, folded, size=(65, 50), tolerance=2e-4):
    x = sample((2, *size, model.input.shape[-1]))
    expected = npy(model(x, training=False))
    actual = npy(folded(x, training=False))
    error = np.abs(actual - expected).max() / expected.std()
    assert error < tolerance, error


def scales(model):
    return [w.path for w in model.weights if w.path.endswith("gamma")]


# Where batch norm stands elsewhere than behind a convolution, it stays.
@pytest.mark.slow
@pytest.mark.usefixtures("no_random_weights")  # `randomize` makes them
@pytest.mark.parametrize(
    "architecture, backbone, arguments, left",
    [
        (models.DeepLabV3Plus, "mobilenet_v2", {"separable": True}, 0),
        (models.DeepLabV3, "resnet50", {"atrous_rates": (2, 3)}, 0),
        (models.LRASPP, "mobilenet_v3_small", {}, 0),
        (models.DAFormer, "toy", {}, 0),
        (models.DenseASPP, "toy", {}, 0),
        (models.DeepLabV2, "toy", {}, 0),
        (models.DeepLabV3, "densenet121", {}, 62),
    ],
)
def test_segmenter(toy_backbone, architecture, backbone, arguments, left):
    fewest = 10
    if backbone == "toy":
        fewest = 5
        backbone = toy_backbone(padding=1, features=True)
        arguments = SMALL_HEADS[architecture]
    model = randomize(
        architecture(4, backbone, backbone_weights=None, **arguments)
    )
    folded = models.fold_batch_norm(model)
    assert len(scales(model)) > fewest
    assert len(scales(folded)) == left
    assert folded.preprocess == model.preprocess
    assert folded.name == model.name
    assert_same(model, folded)


def build(end):
    inputs = keras.Input((None, None, 3))
    return randomize(keras.Model(inputs, end(inputs)))


@pytest.mark.parametrize(
    "convolution",
    [
        keras.layers.Conv2D(4, 3, padding="same", name="conv"),
        keras.layers.Conv2D(4, 3, use_bias=False, strides=2, name="conv"),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="conv"),
        keras.layers.SeparableConv2D(4, 3, name="conv"),
    ],
    ids=["conv", "strided", "depthwise", "separable"],
)
@pytest.mark.parametrize(
    "scale, center", [(True, True), (False, False), (True, False)]
)
def test_kernel_and_bias(convolution, scale, center):
    convolution = type(convolution).from_config(convolution.get_config())
    norm = layers.BatchNormalization(scale=scale, center=center)
    model = build(lambda x: keras.layers.ReLU()(norm(convolution(x))))
    folded = models.fold_batch_norm(model)
    assert [type(layer).__name__ for layer in folded.layers] == [
        "InputLayer",
        type(convolution).__name__,
        "ReLU",
    ]
    assert_same(model, folded, (9, 11))


def test_what_cannot_be_folded_stays():
    conv = keras.layers.Conv2D(4, 3, name="conv")
    norm = keras.layers.BatchNormalization(name="norm")

    def active(x):
        return norm(keras.layers.Conv2D(4, 3, activation="relu")(x))

    def used_twice(x):
        x = conv(x)
        return keras.layers.Concatenate()([norm(x), x])

    def an_output(x):
        x = conv(x)
        return {"before": x, "after": norm(x)}

    def shared(x):
        return norm(conv(x)) + norm(keras.layers.Conv2D(4, 3)(x))

    def more_precise(x):
        conv = keras.layers.Conv2D(4, 3, dtype="mixed_float16")
        return keras.layers.BatchNormalization(dtype="float32")(conv(x))

    for end in (active, used_twice, shared, more_precise):
        model = build(end)
        folded = models.fold_batch_norm(model)
        assert len(scales(folded)) == 1, end.__name__
        assert_same(model, folded, (9, 11))
    folded = models.fold_batch_norm(build(an_output))
    assert len(scales(folded)) == 1
    assert sorted(folded.output) == ["after", "before"]


@keras.saving.register_keras_serializable("test_fold")
class Standardized(keras.layers.Conv2D):
    """Convolves with a kernel of mean 0, which batch norm may not scale."""

    def convolution_op(self, inputs, kernel):
        kernel = kernel - keras.ops.mean(kernel, (0, 1, 2), keepdims=True)
        kernel = kernel / keras.ops.std(kernel, (0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable("test_fold")
class Doubled(layers.BatchNormalization):
    """Batch norm, times two."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


@keras.saving.register_keras_serializable("test_fold")
class Residual(layers.AtrousConv2D):
    """A block whose batch norm acts on a sum."""

    def call(self, inputs, training=None):
        x = self.norm(self.conv(inputs) + inputs, training=training)
        return self.activation(x)


@keras.saving.register_keras_serializable("test_fold")
class Halved(layers.DilatedReparamBlock):
    """A block of parallel branches, by a half."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=training) / 2


@pytest.mark.parametrize(
    "layer, norm, left",
    [
        (Standardized(4, 3), layers.BatchNormalization(), 1),
        (keras.layers.Conv2D(4, 3), Doubled(), 1),
        (Residual(3), layers.BatchNormalization(), 2),
        (Halved(5, name="block"), keras.layers.BatchNormalization(), 4),
    ],
    ids=["convolution", "batch norm", "atrous", "reparam"],
)
def test_a_subclass_is_left_as_it_is(layer, norm, left):
    # A clone, so that no test reads the weights of another.
    layer, norm = (type(x).from_config(x.get_config()) for x in (layer, norm))
    model = build(lambda x: norm(layer(x)))
    folded = models.fold_batch_norm(model)
    assert len(scales(folded)) == left
    assert_same(model, folded, (9, 11))


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
        layers.Conv2D(4, 3, name="conv"),
    ],
    ids=["keras", "ours"],
)
def test_a_kernel_with_lora_is_left_as_it_is(layer):
    def adapted(rank):
        conv = type(layer).from_config(layer.get_config())
        norm = keras.layers.BatchNormalization()
        model = build(lambda x: norm(conv(x)))
        if rank:
            conv.enable_lora(rank)
        return randomize(model)

    for rank, left in ((0, 0), (2, 1)):
        model = adapted(rank)
        folded = models.fold_batch_norm(model)
        assert len(scales(folded)) == left
        assert_same(model, folded, (9, 11))


def in_two_models(conv, x):
    return [nested(conv, "a")(x), nested(conv, "b")(x)]


def in_one_and_outside(conv, x):
    return [nested(conv, "a")(x), conv(x)]


def in_two_chains(conv, x):
    return [
        keras.Sequential(
            [keras.Input((None, None, 3)), conv, norm_of(name)], name=name
        )(x)
        for name in "ab"
    ]


def nested(conv, name):
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, norm_of(name)(conv(inputs)), name=name)


def norm_of(name):
    return keras.layers.BatchNormalization(name=f"{name}_norm")


@pytest.mark.parametrize(
    "end, left",
    [(in_two_models, 2), (in_one_and_outside, 1), (in_two_chains, 2)],
)
def test_a_convolution_of_two_graphs_is_left_as_it_is(end, left):
    conv = keras.layers.Conv2D(4, 3, name="conv")
    model = build(lambda x: keras.layers.Concatenate()(end(conv, x)))
    folded = models.fold_batch_norm(model)
    assert len(scales(folded)) == left
    assert_same(model, folded, (9, 11))


def test_a_convolution_of_a_model_called_twice_is_folded():
    inner = nested(keras.layers.Conv2D(4, 3), "a")
    model = build(lambda x: inner(x) + inner(2 * x))
    folded = models.fold_batch_norm(model)
    assert scales(folded) == []
    assert_same(model, folded, (9, 11))


@keras.saving.register_keras_serializable("test_fold")
class Plain(keras.layers.Layer):
    """A layer of one's own, whose configuration has no batch norm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.AtrousConv2D(4, name="inner")

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


@keras.saving.register_keras_serializable("test_fold")
class Tied(layers.ASPP):
    """Two rates of one kernel, which no argument gives each rate."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _, first, second, *_ = self.branches
        second.tie_kernels(first)


@keras.saving.register_keras_serializable("test_fold")
class Gated(Plain):
    """A block beside a gate, with batch norm as its configuration says."""

    def __init__(self, batch_norm=True, **kwargs):
        super().__init__(**kwargs)
        self.batch_norm = batch_norm
        self.inner = layers.AtrousConv2D(4, batch_norm=batch_norm)
        self.gate = keras.layers.Dense(4, activation="sigmoid")

    def build(self, input_shape):
        super().build(input_shape)
        self.gate.build(input_shape)

    def call(self, inputs, training=None):
        return super().call(inputs, training=training) * self.gate(inputs)

    def get_config(self):
        return {**super().get_config(), "batch_norm": self.batch_norm}


@keras.saving.register_keras_serializable("test_fold")
class Stubborn(Plain):
    """Has batch norm, whatever its configuration says."""

    def __init__(self, batch_norm=True, **kwargs):
        super().__init__(**kwargs)

    def get_config(self):
        return {**super().get_config(), "batch_norm": True}


@keras.saving.register_keras_serializable("test_fold")
class Mixed(Plain):
    """Two blocks, of which an argument leaves one without batch norm."""

    def __init__(self, batch_norm=True, **kwargs):
        super().__init__(**kwargs)
        self.batch_norm = batch_norm
        self.inner = layers.AtrousConv2D(
            4, batch_norm=batch_norm, separable=True
        )
        self.fixed = self.second()

    def second(self):
        return layers.AtrousConv2D(4, batch_norm=True, separable=True)

    def build(self, input_shape):
        super().build(input_shape)
        self.fixed.build((*input_shape[:3], 4))

    def call(self, inputs, training=None):
        inputs = super().call(inputs, training=training)
        return self.fixed(inputs, training=training)

    def get_config(self):
        return {**super().get_config(), "batch_norm": self.batch_norm}


@keras.saving.register_keras_serializable("test_fold")
class Fewer(Mixed):
    """Has a block that goes with batch norm."""

    def second(self):
        if self.batch_norm:
            return layers.AtrousConv2D(4)
        return keras.layers.Activation("linear")


@keras.saving.register_keras_serializable("test_fold")
class Instead(Mixed):
    """Has batch norm in one block or in the other."""

    def second(self):
        return layers.AtrousConv2D(4, batch_norm=not self.batch_norm)


@pytest.mark.parametrize(
    "layer, left",
    [
        (Plain(), 1),
        (Tied(4, (1, 2)), 5),
        (Gated(), 1),
        (Stubborn(), 1),
        (Mixed(), 2),
        (Fewer(), 3),
        (Instead(), 2),
    ],
    ids=["plain", "tied", "gated", "stubborn", "mixed", "fewer", "instead"],
)
def test_a_layer_of_ones_own_that_cannot_be_folded_stays(layer, left):
    model = build(layer)
    folded = models.fold_batch_norm(model)
    assert len(scales(folded)) == left
    assert_same(model, folded, (9, 11))


def test_the_model_is_left_as_it_is():
    model = randomize(models.DeepLabV3(4, backbone_weights=None))
    before = [npy(w) for w in model.weights]
    models.fold_batch_norm(model)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_of_a_subclass():
    class Net(keras.Model):
        pass

    with pytest.raises(TypeError, match="functional Keras model.*of type Net"):
        models.fold_batch_norm(Net())
