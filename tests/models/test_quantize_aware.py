"""QuantizeAware: equal without rounding, int8's numbers with it."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    Counter,
    assert_close,
    make_toy_backbone,
    npy,
    randomize,
    sample,
    set_seed,
    tensorflow_only,
)
from keras import ops

from keras_aspp.layers import DilatedReparamBlock, SkipFusion, rewritable
from keras_aspp.losses import CrossEntropy
from keras_aspp.metrics import ConfusionMatrix
from keras_aspp.models import LRASPP, DeepLabV3, DeepLabV3Plus, QuantizeAware

SHAPE = (2, 33, 50, 3)


def user_model():
    """Convolutions of every kind, gates, a residual and a nested model."""
    layers = keras.layers
    inputs = keras.Input((None, None, 3), name="image")
    x = layers.Rescaling(2.0, -0.3)(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("hard_swish")(x)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1)(x)
    y = layers.BatchNormalization()(y)
    y = layers.ReLU(6.0)(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(8, 1)(gate)
    gate = layers.ReLU(6.0)(gate + 3.0) * (1 / 6)
    y = layers.Multiply()([y, gate])
    x = layers.Add()([x, y])
    a = keras.Input((None, None, 8))
    b = layers.SeparableConv2D(
        6, 3, padding="same", activation="silu", name="silu"
    )(a)
    b = layers.Concatenate()([layers.MaxPooling2D(1)(a), b])
    x = keras.Model(a, b, name="inner")(x)
    x = layers.UpSampling2D(2, interpolation="bilinear")(x)
    outputs = layers.Conv2DTranspose(4, 3, padding="same")(x)
    return randomize(keras.Model(inputs, outputs, name="user"))


def lr_aspp(**kwargs):
    set_seed(1)
    backbone = make_toy_backbone(padding=1, features=True)
    arguments = {"gate_filters": 8, "dropout": 0.0, **kwargs}
    return LRASPP(3, backbone, **arguments)


MODELS = {
    "user": user_model,
    "lr_aspp": lambda: randomize(lr_aspp()),
    "aspp": lambda: randomize(
        DeepLabV3(3, make_toy_backbone(padding=1, features=True), dropout=0.0)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_without_rounding_it_equals_the_model(name):
    model, x = MODELS[name](), sample(SHAPE)
    aware = QuantizeAware(model, bits=None)
    assert aware.ranges() == {}
    assert_close(
        npy(aware(x, training=False)), npy(model(x, training=False)), 1e-4
    )
    assert [id(w) for w in aware.weights] == [id(w) for w in model.weights]


class Scaled(keras.layers.Layer):
    """Computes with its weight before it meets the map."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), name="factor")
        self.activation = keras.activations.silu

    def call(self, inputs):
        return self.activation(inputs * keras.ops.exp(self.factor))


def scaled():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    return keras.Model(inputs, Scaled(name="scaled")(x))


def light(**kwargs):
    backbone = make_toy_backbone(padding=1, features=True)
    return DeepLabV3Plus(3, backbone, decoder="light", dropout=0.0, **kwargs)


def fusion():
    inputs = keras.Input((None, None, 3))
    coarse = keras.layers.AveragePooling2D(2, padding="same")(inputs)
    layer = SkipFusion(4, scale=2, batch_norm=False, activation="silu")
    return keras.Model(inputs, layer([coarse, inputs]))


def ksac():
    backbone = make_toy_backbone(padding=1, features=True)
    return DeepLabV3(3, backbone, context="ksac", dropout=0.0)


FOLLOWING = {
    "light": light,
    "light_group": lambda: light(batch_norm="group"),
    "fusion_with_bias": fusion,
    "ksac": ksac,
    "lr_aspp": lr_aspp,
    "scaled": scaled,
    "user": user_model,
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_it_follows_the_weights_of_the_model(name):
    model, x = FOLLOWING[name](), sample(SHAPE)
    aware = QuantizeAware(model, bits=None)
    randomize(model, seed=7)
    assert_close(
        npy(aware(x, training=False)), npy(model(x, training=False)), 1e-4
    )


@pytest.mark.slow
def test_the_parts_of_a_skip_fusion_round_and_train():
    model, x = randomize(light()), sample(SHAPE)
    aware = QuantizeAware(model)
    assert aware.in_float == []
    ends = [path.rsplit("/", 1)[-1] for path in aware.ranges()]
    assert "coarse" in ends and "fine" in ends
    before = {w.path: npy(w) for w in model.trainable_weights}
    aware.compile(keras.optimizers.SGD(0.01), CrossEntropy())
    aware.train_on_batch(x, (x[..., 0] > 0).astype("int32"))
    assert all(
        np.abs(npy(w) - before[w.path]).max() > 0
        for w in model.trainable_weights
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "binary", "num_classes": 1, "threshold": 0.3},
        {"task": "multilabel", "num_classes": 3, "threshold": 0.3},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_threshold_shifts_logits_at_inference_only(arguments, training):
    backbone = make_toy_backbone(padding=1, features=True)
    arguments = {**arguments, "gate_filters": 8, "dropout": 0.0}
    model = randomize(
        LRASPP(backbone=backbone, batch_norm="freeze", **arguments)
    )
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    x = sample(SHAPE)
    expected = npy(model(x, training=training))
    assert np.abs(expected - npy(model(x, training=not training))).max() > 0.5
    for bits, tolerance in ((None, 1e-4), (16, 1e-2)):
        aware = QuantizeAware(model, bits=bits)
        aware(x, training=True)
        assert_close(npy(aware(x, training=training)), expected, tolerance)


@pytest.mark.parametrize("training", [None, False, True])
def test_a_phase_of_the_graph_acts_as_in_the_model(training):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dropout(0.5)(inputs, training=True)
    model = keras.Model(inputs, outputs)
    x = np.ones((2, 8, 8, 3), "float32")
    dropped = [
        bool((npy(m(x, training=training)) == 0).any())
        for m in (model, QuantizeAware(model, bits=None))
    ]
    assert dropped == [training is not False] * 2


@keras.saving.register_keras_serializable("test_quantize_aware")
class Standardized(keras.layers.Conv2D):
    """Convolves with a kernel of mean 0, which batch norm may not scale."""

    def convolution_op(self, inputs, kernel):
        kernel = kernel - ops.mean(kernel, (0, 1, 2), keepdims=True)
        kernel = kernel / ops.std(kernel, (0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable("test_quantize_aware")
class Residual(keras.layers.Conv2D):
    """Adds the input to what the activation returns."""

    def call(self, inputs):
        return super().call(inputs) + inputs


@keras.saving.register_keras_serializable("test_quantize_aware")
class Doubled(keras.layers.BatchNormalization):
    """Batch norm, times two."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training)


@pytest.mark.parametrize(
    "layer, norm, whole",
    [
        (Standardized, keras.layers.BatchNormalization, ["conv"]),
        (Residual, keras.layers.BatchNormalization, ["conv"]),
        (keras.layers.Conv2D, Doubled, []),
    ],
)
def test_a_subclass_computes_as_in_the_model(layer, norm, whole):
    inputs = keras.Input((None, None, 3))
    conv = layer(3, 3, padding="same", activation="relu", name="conv")
    if layer is not Residual:
        conv.activation = keras.activations.linear
    model = randomize(keras.Model(inputs, norm()(conv(inputs))))
    aware, x = QuantizeAware(model, bits=None), sample(SHAPE)
    assert aware.in_float == whole
    assert_close(npy(aware(x, training=False)), npy(model(x, training=False)))


def test_a_kernel_with_lora_is_not_rounded():
    inputs = keras.Input((None, None, 3))
    conv = keras.layers.Conv2D(4, 3, name="conv")
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(conv(inputs)))
    conv.enable_lora(2)
    aware, x = QuantizeAware(randomize(model), bits=None), sample(SHAPE)
    assert aware.in_float == ["conv"]
    assert_close(npy(aware(x, training=False)), npy(model(x, training=False)))


class Whole(keras.layers.Layer):
    """Cannot be traced: it asks for values."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = keras.layers.Conv2D(4, 3, padding="same")
        self.norm = keras.layers.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], 4))

    def call(self, inputs):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("symbolic")
        return self.norm(self.conv(inputs))

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((*inputs.shape[:-1], 4), "float32")


class WholeWithPhases(Whole):
    def call(self, inputs, training=None):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("symbolic")
        return self.norm(self.conv(inputs), training=training)

    def compute_output_spec(self, inputs, training=None):
        return super().compute_output_spec(inputs)


@pytest.mark.parametrize("layer_type", [Whole, WholeWithPhases])
def test_a_layer_that_runs_whole_is_named_and_keeps_statistics(
    layer_type, caplog
):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layer_type(name="whole")(inputs))
    randomize(model)
    with caplog.at_level(logging.INFO):
        aware = QuantizeAware(model)
    assert "Layers whose weights are not rounded: whole" in caplog.messages
    statistics = [npy(w) for w in model.non_trainable_weights]
    aware.compile(keras.optimizers.SGD(0.01), "mse")
    aware.train_on_batch(sample(SHAPE), np.zeros((*SHAPE[:3], 4)))
    for weight, before in zip(
        model.non_trainable_weights, statistics, strict=True
    ):
        np.testing.assert_array_equal(npy(weight), before)


def test_wrapping_a_model_leaves_a_layer_that_assigns_alone():
    layer = Counter()
    inputs = keras.Input((9, 7, 3))
    x = layer(keras.layers.Conv2D(4, 3)(inputs))
    QuantizeAware(keras.Model(inputs, keras.layers.Conv2D(2, 1)(x)))
    assert float(layer.calls) == 0


def test_batch_norm_without_a_convolution_keeps_statistics():
    inputs = keras.Input((None, None, 3))
    norm = keras.layers.BatchNormalization()
    model = randomize(keras.Model(inputs, norm(inputs)))
    x = sample(SHAPE)
    expected = npy(model(x, training=False))
    aware = QuantizeAware(model, bits=None)
    for _ in range(2):
        assert_close(npy(aware(x, training=True)), expected)


@pytest.mark.parametrize("layers", [keras.layers, rewritable])
def test_a_separable_convolution_rounds_between_its_kernels(layers):
    inputs = keras.Input((None, None, 3))
    separable = layers.SeparableConv2D(
        5, 3, strides=2, padding="same", depth_multiplier=2, name="separable"
    )
    x = keras.layers.BatchNormalization(name="norm")(separable(inputs))
    model, x = randomize(keras.Model(inputs, x)), sample(SHAPE)
    assert_close(npy(QuantizeAware(model, bits=None)(x)), npy(model(x)), 1e-4)
    aware = QuantizeAware(model)
    assert list(aware.ranges())[1:] == ["separable/depthwise", "norm"]
    depthwise = layers.DepthwiseConv2D(
        3, strides=2, padding="same", depth_multiplier=2, use_bias=False
    )
    depthwise(x)
    depthwise.kernel.assign(separable.depthwise_kernel)
    aware(x, training=True)
    found = aware.ranges()["separable/depthwise"]
    np.testing.assert_allclose(found["high"], npy(depthwise(x)).max(), rtol=0.1)


def test_it_takes_the_inputs_that_the_model_takes():
    inputs = {n: keras.Input((None, None, 3), name=n) for n in ("a", "b")}
    conv = keras.layers.Conv2D(2, 3)
    x = conv(inputs["b"]) - 2 * conv(inputs["a"])
    # In another order than that of their names.
    model = randomize(keras.Model([inputs["b"], inputs["a"]], x))
    aware = QuantizeAware(model, bits=None)
    rng = np.random.default_rng(0)
    b, a = rng.integers(0, 256, (2, 1, 9, 8, 3), dtype="uint8")
    expected = npy(model([b, a]))
    for given in ([b, a], {"a": a, "b": b}):
        assert_close(npy(aware(given)), expected, 1e-4)


def test_it_refuses_to_be_saved(tmp_path):
    with pytest.raises(ValueError, match="save the model that it was made"):
        QuantizeAware(scaled()).save(tmp_path / "aware.keras")


@pytest.mark.parametrize("name", MODELS)
def test_rounding_shrinks_with_bits(name):
    model, x = MODELS[name](), sample(SHAPE)
    exact = npy(model(x, training=False))
    errors = []
    for bits in (6, 8, 12):
        aware = QuantizeAware(model, bits)
        aware(x, training=True)
        found = npy(aware(x, training=False))
        errors.append(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
    assert 0 < errors[2] < errors[1] / 4 < errors[0] / 8


def test_ranges_are_where_int8_stores_activations():
    # Not: what ReLU clips in place, a constant that the bias absorbs, and
    # what keeps the values or the range of its input.
    found = QuantizeAware(user_model()).ranges()
    names = [name.rstrip("_0123456789") for name in found]
    assert names == [
        "image",
        "rescaling",
        "batch_normalization",  # hard swish does not fuse
        "activation",
        "re_lu",
        "global_average_pooling2d",
        "re_lu",
        "multiply",
        "multiply",
        "add",
        "inner/silu/depthwise",
        "inner/silu/linear",
        "inner/silu/sigmoid",
        "inner/concatenate",
        "conv2d_transpose",
    ]


def test_training_tunes_the_model_and_keeps_statistics():
    model, x = MODELS["lr_aspp"](), sample(SHAPE)
    y = (x[..., 0] > 0).astype("int32")
    before = {w.path: npy(w) for w in model.weights}
    aware = QuantizeAware(model, observe_steps=2)
    aware.compile(keras.optimizers.SGD(0.01), CrossEntropy())
    losses = [float(aware.train_on_batch(x, y)) for _ in range(6)]
    assert losses[-1] < losses[0]
    changed = {
        w.path: np.abs(npy(w) - before[w.path]).max() > 0 for w in model.weights
    }
    assert all(
        done == ("moving_" not in path) for path, done in changed.items()
    )


def test_a_stateless_call_observes_ranges():
    # As Keras trains on JAX.
    aware = QuantizeAware(MODELS["lr_aspp"]())
    states = [
        [ops.copy(v.value) for v in variables]
        for variables in (
            aware.trainable_variables,
            aware.non_trainable_variables,
        )
    ]
    _, updated = aware.stateless_call(*states, sample(SHAPE), training=True)
    counts = [
        float(value)
        for variable, value in zip(
            aware.non_trainable_variables, updated, strict=True
        )
        if variable.name == "count"
    ]
    assert len(counts) > 10 and set(counts) == {1.0}


@pytest.mark.slow
@tensorflow_only
def test_xla_equals_graph_mode():
    x = sample(SHAPE)
    y = (x[..., 0] > 0).astype("int32")
    results = []
    for jit in (False, True):
        model = MODELS["lr_aspp"]()
        aware = QuantizeAware(model)
        aware.compile(
            keras.optimizers.SGD(0.01), CrossEntropy(), jit_compile=jit
        )
        results.append([float(aware.train_on_batch(x, y)) for _ in range(2)])
    np.testing.assert_allclose(*results, rtol=1e-2)


@pytest.mark.slow
def test_a_segmenter_trains_rounded_with_its_auxiliary_head():
    model = lr_aspp(auxiliary_weight=0.4, batch_norm="freeze")
    x = sample(SHAPE)
    y = (x[..., 0] > 0).astype("int32")
    size = len(model.variables)
    exact = npy(model(x, training=False))
    model.prepare_quantized(observe_steps=3)
    assert len(model.variables) > size and len(model.weights) < size
    np.testing.assert_array_equal(npy(model(x, training=False)), exact)
    model.is_quantized = True
    model.compile(
        keras.optimizers.SGD(0.01), CrossEntropy(), metrics=[ConfusionMatrix(3)]
    )
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["auxiliary_loss"] > 0
    # By hand it has its logits only.
    assert model(x, training=True).shape == exact.shape
    rounded = npy(model(x, training=False))
    assert rounded.shape == exact.shape
    model.is_quantized = False
    error = np.abs(npy(model(x, training=False)) - rounded).max()
    assert 0 < error < exact.std()


def test_refusals_name_the_layer():
    half = DeepLabV3(3, make_toy_backbone(padding=1), dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match="dtype='mixed_bfloat16'"):
        QuantizeAware(half)
    inputs = keras.Input((None, None, 4))
    block = DilatedReparamBlock(7, name="large")
    with pytest.raises(ValueError, match="Received: layer `large`"):
        QuantizeAware(keras.Model(inputs, block(inputs)))
    with pytest.raises(TypeError, match="functional"):
        QuantizeAware(keras.layers.Dense(3))


def int8_file(model, folder, images):
    model.export(folder, verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: ([i[None]] for i in images)
    return converter.convert()


def run_file(content, images):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (start,) = interpreter.get_input_details()
    (end,) = interpreter.get_output_details()
    found = []
    for image in images:
        interpreter.set_tensor(start["index"], image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(end["index"])[0])
    return np.stack(found)


def gated():
    """A network without additions.

    The converter's calibration widens ranges of what is added to that of the
    sum, which lies in the same memory.
    """
    layers = keras.layers
    inputs = x = keras.Input((64, 96, 3), name="image")
    for strides in (2, 1):
        x = layers.Conv2D(8, 3, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("hard_swish")(x)
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU(6.0)(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    x = layers.Conv2D(3, 1)(x)
    outputs = layers.UpSampling2D(2, interpolation="bilinear")(x)
    return keras.Model(inputs, outputs)


@tensorflow_only
@pytest.mark.parametrize(
    "build, share",
    [(lambda: lr_aspp(input_shape=(64, 96, 3)), 1), (gated, 0.5)],
)
@pytest.mark.slow
def test_it_computes_what_the_int8_file_computes(build, share, tmp_path):
    model = randomize(build())
    images = sample((4, 64, 96, 3)).astype("float32")
    content = int8_file(model, tmp_path, images)
    stored = run_file(content, images)
    # The converter calibrates on extreme values, and without rounding.
    fine, aware = QuantizeAware(model, bits=16), QuantizeAware(model)
    fine(images, training=True)
    for a, b in zip(aware.quantizers, fine.quantizers, strict=True):
        a.set_weights(b.get_weights())
    rounded = npy(aware(images, training=False))
    exact = npy(model(images, training=False))
    labels = [found.argmax(-1) for found in (stored, rounded, exact)]
    assert len(np.unique(labels[0])) > 1
    agrees, exact_agrees = ((labels[0] == o).mean() for o in labels[1:])
    assert agrees >= 0.99 and agrees > exact_agrees
    error, exact_error = (
        np.sqrt(np.mean((stored - o) ** 2)) for o in (rounded, exact)
    )
    assert error < share * exact_error
