"""Against Keras' layer, gradients and moving statistics included."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ON_TENSORFLOW,
    assert_close,
    npy,
    randomize,
    sample,
    tensorflow_only,
)
from test_lowering import operations

from keras_aspp.layers import (
    AtrousConv2D,
    BatchNormalization,
    GroupNormalization,
    lowering,
)

# One part in 2^n of the largest number, and its sums.
TOLERANCE = {
    "float32": 2e-5,
    "mixed_bfloat16": 2e-2,
    "mixed_float16": 2e-3,
    # Weights and statistics too.
    "bfloat16": 3e-2,
    "float16": 4e-3,
}


def both(**arguments):
    """Keras' layer and ours, with the same weights."""
    layers = []
    for kind in (keras.layers.BatchNormalization, BatchNormalization):
        layer = kind(**arguments)
        layer.build((None, None, None, 5))
        layers.append(randomize(layer))
    return layers


def trained(layer, x, jit_compile):
    """A step: result, gradients, statistics after it, and inference."""

    @tf.function(jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(layer(x, training=True), "float32")
            order = tf.reshape(tf.range(tf.size(y)), tf.shape(y))
            loss = tf.reduce_sum(y**2 * tf.sin(tf.cast(order, "float32")))
        return y, tape.gradient(loss, [x, *layer.trainable_variables])

    y, gradients = step(tf.cast(x, layer.compute_dtype))
    inference = layer(x, training=False)
    assert inference.dtype == layer.compute_dtype
    statistics = [layer.moving_mean, layer.moving_variance]
    return [
        npy(tf.cast(a, "float32"))
        for a in (y, *gradients, *statistics, inference)
    ]


@tensorflow_only
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize(
    "arguments, jit_compile",
    [
        ({}, False),
        ({"scale": False}, False),
        ({"center": False}, False),
        ({"trainable": False}, False),
        ({}, True),  # XLA gets Keras' own operations
    ],
    ids=["plain", "no scale", "no center", "frozen", "xla"],
)
def test_equals_keras(arguments, jit_compile, dtype):
    x = 2 + 3 * sample((2, 9, 7, 5))
    theirs, ours = both(**arguments, dtype=dtype, momentum=0.7, epsilon=0.01)
    for a, e in zip(
        trained(ours, x, jit_compile),
        trained(theirs, x, jit_compile),
        strict=True,
    ):
        assert_close(a, e, TOLERANCE[dtype])


def test_statistics_of_one_cell():
    # The op corrects a sample's variance by n / (n - 1).
    theirs, ours = both()
    x = sample((1, 1, 1, 5))
    for layer in (theirs, ours):
        layer(x, training=True)
    assert np.all(np.isfinite(npy(ours.moving_variance)))
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance)


@tensorflow_only
def test_graph_form_is_one_operation():
    layer = BatchNormalization()
    layer.build((None, None, None, 5))

    def call(x):
        return layer(x, training=True)

    x = sample((2, 9, 7, 5))
    assert "FusedBatchNormV3" in operations(call, x)
    assert "FusedBatchNormV3" not in operations(call, x, how="xla")
    assert "FusedBatchNormV3" not in operations(call, x, how="export")


@pytest.mark.parametrize(
    "shape, arguments, options",
    [
        ((4, 5), {}, {}),
        ((2, 5, 9, 7), {"axis": 1}, {}),
        ((2, 9, 7, 5), {}, {"mask": np.ones((2, 9, 7), bool)}),
        ((2, 9, 7, 5), {"renorm": True}, {}),
        ((2, 9, 7, 5), {"dtype": "float64"}, {}),
    ],
    ids=["vector", "axis", "mask", "renorm", "float64"],
)
def test_what_the_kernel_cannot_do_is_left_to_keras(shape, arguments, options):
    x, results = sample(shape), []
    for kind in (keras.layers.BatchNormalization, BatchNormalization):
        layer = kind(**arguments)
        results.append(npy(layer(x, training=True, **options)))
        results.append(npy(layer.moving_variance))
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[3])


def test_saved_and_loaded(tmp_path):
    inputs = keras.Input((None, None, 5))
    model = keras.Model(inputs, BatchNormalization(momentum=0.9)(inputs))
    randomize(model)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.layers[-1]) is BatchNormalization
    x = sample((2, 4, 3, 5))
    np.testing.assert_array_equal(again(x), model(x))
    assert lowering.form() == ("graph" if ON_TENSORFLOW else "xla")


def test_frozen_stays_so_whatever_trainable_is_set_to():
    inputs = keras.Input((None, None, 5))
    layer = BatchNormalization(frozen=True, momentum=0.5)
    model = randomize(keras.Model(inputs, layer(inputs)))
    x = 2 + 3 * sample()
    before = [npy(w) for w in layer.weights]
    model.trainable = False
    model.trainable = True
    layer.trainable = True
    assert not layer.trainable and not model.trainable_variables
    found = npy(model(x, training=True))
    gamma, beta, mean, variance = before
    expected = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(npy(weight), value)
    copy = keras.Model.from_config(model.get_config())
    copy.trainable = True
    assert copy.layers[-1].frozen and not copy.layers[-1].trainable
    layer.frozen = False
    model(x, training=True)
    assert len(model.trainable_variables) == 2
    np.testing.assert_allclose(
        npy(layer.moving_mean), 0.5 * (mean + x.mean((0, 1, 2))), rtol=1e-4
    )


def test_frozen_within_a_block_comes_back_from_its_configuration():
    block = AtrousConv2D(4, separable=True, batch_norm="freeze")
    copy = AtrousConv2D.from_config(block.get_config())
    copy.build((None, None, None, 5))
    copy.trainable = True
    assert {w.path.split("/")[-2] for w in copy.trainable_variables} == {
        *("depthwise", "conv")
    }


@pytest.mark.parametrize(
    "shape", [(None, None, None, 16), (2, 1, 3, 16), (None, 1, 1, 48)]
)
def test_group_norm_that_is_not_constant_does_not_warn(shape):
    """Of more cells than one, or of more channels than one in a group."""
    GroupNormalization().build(shape)  # a warning would be an error


def test_group_norm_of_no_groups_is_refused():
    """Keras' -1, one group for each channel, would be one group of all."""
    with pytest.raises(ValueError, match="Received: groups=-1"):
        GroupNormalization(-1)
