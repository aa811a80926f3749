"""recalibrate: means over batches, and nothing else moves."""

import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample

from keras_aspp.models import DeepLabV3, recalibrate


def two_norms(frozen=False):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.BatchNormalization(name="first")(inputs)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    x = keras.layers.Conv2D(4, 1, name="conv")(x)
    outputs = keras.layers.BatchNormalization(name="second")(x)
    model = randomize(keras.Model(inputs, outputs))
    model.get_layer("first").trainable = not frozen
    return model


def moments(batches):
    """Means over batches of each batch's mean and variance."""
    return tuple(
        np.mean([f(b, axis=(0, 1, 2)) for b in batches], axis=0)
        for f in (np.mean, np.var)
    )


def test_statistics_are_those_of_the_batches():
    model = two_norms()
    batches = [3 + i * sample((2, 5, 4, 3), seed=i) for i in (1, 2, 3)]
    assert recalibrate(model, batches) == 2
    first, conv, second = map(model.get_layer, ("first", "conv", "second"))
    for found, expected in zip(
        (first.moving_mean, first.moving_variance),
        moments(batches),
        strict=True,
    ):
        np.testing.assert_allclose(npy(found), expected, rtol=1e-4)
    # What the second sees: batches normalized by themselves, no dropout.
    seen = []
    for batch in batches:
        mean, variance = moments([batch])
        x = (batch - mean) / np.sqrt(variance + first.epsilon)
        seen.append(npy(conv(x * npy(first.gamma) + npy(first.beta))))
    for found, expected in zip(
        (second.moving_mean, second.moving_variance), moments(seen), strict=True
    ):
        np.testing.assert_allclose(npy(found), expected, rtol=1e-3)


class NoisyNorm(keras.layers.Layer):
    """Noise and batch norm in one layer."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, inputs, training=None):
        if training:
            inputs += keras.random.normal(inputs.shape[1:], seed=self.seeds)
        return self.norm(inputs, training=training)


def test_noise_beside_batch_norm_is_not_in_the_statistics():
    inputs = keras.Input((8, 8, 3))
    layer = NoisyNorm()
    batch = sample((2, 8, 8, 3))
    recalibrate(keras.Model(inputs, layer(inputs)), [batch])
    found = npy(layer.norm.moving_variance)
    np.testing.assert_allclose(found, moments([batch])[1], rtol=1e-4)


@pytest.mark.parametrize(
    "noise",
    [
        keras.layers.GaussianDropout(0.5),
        keras.layers.AlphaDropout(0.5),
        keras.layers.GaussianNoise(1.0),
        keras.layers.SpatialDropout2D(0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_noise_is_not_in_the_statistics(noise):
    inputs = keras.Input((None, None, 3))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(noise(inputs)))
    batch = sample((2, 8, 8, 3))
    recalibrate(model, [batch])
    np.testing.assert_allclose(npy(norm.moving_variance), moments([batch])[1])
    assert not np.allclose(npy(noise(batch, training=True)), batch)


def test_calls_of_a_shared_layer_have_equal_weight():
    inputs = keras.Input((None, None, 3))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, [norm(inputs), norm(4 * inputs + 1)])
    batches = [3 + i * sample((2, 5, 4, 3), seed=i) for i in (1, 2, 3)]
    assert recalibrate(model, batches) == 1
    mean, variance = moments([*batches, *(4 * b + 1 for b in batches)])
    np.testing.assert_allclose(npy(norm.moving_mean), mean, rtol=1e-4)
    np.testing.assert_allclose(npy(norm.moving_variance), variance, rtol=1e-4)
    # Training then goes on as usual.
    norm.momentum = 0.5
    norm(batches[0], training=True)
    expected = (mean + batches[0].mean(axis=(0, 1, 2))) / 2
    np.testing.assert_allclose(npy(norm.moving_mean), expected, rtol=1e-4)


def test_nothing_else_moves():
    model = two_norms(frozen=True)
    before = [npy(w).copy() for w in model.weights]
    assert recalibrate(model, [sample((2, 5, 4, 3))]) == 1
    for weight, old in zip(model.weights, before, strict=True):
        moved = weight.path.startswith("second/moving")
        assert np.array_equal(npy(weight), old) != moved, weight.path
    assert model.get_layer("drop").rate == 0.5
    assert model.get_layer("second").momentum == 0.99


def test_an_error_on_the_way_leaves_the_layers_as_they_were():
    model = two_norms()
    with pytest.raises(ValueError):
        recalibrate(model, [sample((2, 5, 4, 7))])
    assert model.get_layer("drop").rate == 0.5
    assert model.get_layer("first").momentum == 0.99


def test_of_a_segmenter(toy_backbone):
    model = DeepLabV3(3, toy_backbone(padding=1), atrous_rates=(1, 2))
    norms = [w for w in model.weights if w.path.endswith("moving_mean")]
    assert recalibrate(model, [sample((2, 64, 64, 3))]) == len(norms) > 5
    assert all(npy(w).any() for w in norms)


def test_no_batches():
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(two_norms(), [])
