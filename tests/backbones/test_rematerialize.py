"""rematerialize: the same training, from fewer activations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import npy, randomize, sample

from keras_aspp.backbones import create_backbone, rematerialize
from keras_aspp.backbones.rematerialize import LONGEST, Rematerialized, parts_of
from keras_aspp.models import DeepLabV3


def step(model, x, jit_compile=False):
    """Loss, gradients, and every weight after a step in training."""
    before = [npy(w) for w in model.weights]

    @tf.function(jit_compile=jit_compile)
    def run(x):
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(model(x, training=True))
            loss = sum(tf.reduce_sum(tf.sin(y)) for y in outputs)
        return loss, tape.gradient(loss, model.trainable_variables)

    loss, gradients = run(tf.constant(x))
    after = [npy(w) for w in model.weights]
    for weight, value in zip(model.weights, before, strict=True):
        weight.assign(value)
    return [npy(loss), *map(npy, gradients)], after


def assert_same_training(model, x, jit_compile=False):
    (numbers, weights), (ours, our_weights) = (
        step(m, x, jit_compile) for m in (model, rematerialize(model))
    )
    assert len(ours) == len(numbers) > 10
    for a, e in zip(ours, numbers, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4 * max(np.abs(e).max(), 1))
    # Statistics have moved, and once.
    for a, e in zip(our_weights, weights, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
    moved = zip(weights, model.weights, strict=True)
    assert any(np.any(value != npy(weight)) for value, weight in moved)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_training_is_the_same(toy_backbone, jit_compile):
    assert_same_training(
        randomize(toy_backbone()), sample((2, 32, 48, 3)), jit_compile
    )


@pytest.mark.slow
def test_training_of_mobilenet():
    model = create_backbone("mobilenet_v2_0.35", 16, None)
    assert_same_training(model, sample((2, 32, 48, 3)))


def test_random_layers_draw_once():
    inputs = x = keras.Input((None, None, 3))
    for i in range(4):
        x = keras.layers.Conv2D(4, 3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.Dropout(0.5, seed=i)(x)
    model = randomize(keras.Model(inputs, x))
    parts = parts_of(rematerialize(model))
    alone = [p for p in parts if "dropout" in p.nodes[0].operation.name]
    assert [len(p.nodes) for p in alone] == [1] * 4
    seeds = [layer.seed_generator for layer in model.layers[4::4]]
    results = []
    for m in (model, rematerialize(model)):
        for seed in seeds:
            seed.state.assign([7, 0])
        results.append(step(m, sample((2, 8, 8, 3)))[0])
    for a, e in zip(*results, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4)


class Noise(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.sources = [keras.random.SeedGenerator(1)]

    def call(self, inputs):
        shape = keras.ops.shape(inputs)
        return inputs * keras.random.uniform(shape, seed=self.sources[0])


@pytest.mark.parametrize(
    "layer", [lambda: keras.layers.RandomContrast(0.5, seed=1), Noise]
)
def test_generators_of_any_name_are_found(layer):
    inputs = x = keras.Input((None, None, 3))
    for _ in range(4):
        x = keras.layers.Conv2D(4, 3, padding="same")(x)
        x = keras.layers.ReLU()(x)
    random = layer()
    x = keras.layers.ReLU()(random(x))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(x))
    (alone,) = (
        part
        for part in parts_of(rematerialize(model))
        if any(node.operation is random for node in part.nodes)
    )
    assert len(alone.nodes) == 1


def test_parts_end_at_blocks():
    model = rematerialize(create_backbone("resnet50", 16, None))
    parts = parts_of(model)
    assert sum(len(p.nodes) for p in parts) == len(model.layers) - 1
    assert all(len(part.nodes) <= LONGEST + 1 for part in parts)
    last = [part.nodes[-1].operation.name for part in parts]
    assert all(name.endswith(("_add", "_out")) for name in last), last
    # One tensor goes in; what comes out is that of the block, or a feature.
    assert all(len(part.needed) == 1 for part in parts)


def test_inference_and_saving(toy_backbone, tmp_path):
    plain = randomize(toy_backbone(features=True))
    model = rematerialize(plain)
    x = sample((1, 32, 48, 3))
    expected = plain(x, training=False)
    for key, value in model(x, training=False).items():
        np.testing.assert_array_equal(value, expected[key])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is Rematerialized
    for key, value in again(x, training=False).items():
        np.testing.assert_array_equal(value, expected[key])


def test_segmenter(toy_backbone, tmp_path):
    model = DeepLabV3(4, toy_backbone(), rematerialize=True)
    assert type(model.backbone) is Rematerialized
    model.compile("sgd", "mse")
    model.train_on_batch(sample((2, 32, 32, 3)), sample((2, 32, 32, 4)))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert type(again.backbone) is Rematerialized
    x = sample((1, 32, 48, 3))
    np.testing.assert_array_equal(again(x), model(x))


def test_of_a_subclass():
    class Net(keras.Model):
        pass

    with pytest.raises(TypeError, match="functional Keras model.*of type Net"):
        rematerialize(Net())


def test_of_another_backend(toy_backbone, monkeypatch):
    model = rematerialize(toy_backbone())
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(NotImplementedError, match="Received: backend=jax"):
        model(sample((1, 32, 32, 3)), training=True)
