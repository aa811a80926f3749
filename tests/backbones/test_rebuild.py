"""Rebuilt models: what holds for batch norm within a layer, too."""

import math

import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample, tensorflow_only

from keras_aspp.backbones.rebuild import configure, synchronize
from keras_aspp.layers import AtrousConv2D, DilatedReparamBlock
from keras_aspp.models import fold_batch_norm


@pytest.fixture
def model():
    x = inputs = keras.Input((None, None, 3))
    x = DilatedReparamBlock(5, name="block")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = AtrousConv2D(4, batch_norm="freeze", name="frozen")(x)
    return randomize(keras.Model(inputs, x))


def assert_same(model, copy):
    x = sample((1, 9, 11, 3))
    np.testing.assert_array_equal(npy(copy(x)), npy(model(x)))


def test_a_copy_of_a_compiled_model_is_not_compiled():
    inputs = keras.Input((None, None, 3))
    inner = keras.Sequential([keras.layers.Conv2D(4, 3, padding="same")])
    x = keras.layers.Conv2D(3, 3, padding="same")(inner(inputs))
    model = keras.Model(inputs, x)
    # A loss that Keras cannot find by its name.
    for part in (inner, model):
        part.compile(loss=lambda true, predicted: predicted)
    for copy in (configure(model, dtype="float32"), fold_batch_norm(model)):
        assert_same(model, copy)
        assert not copy.compiled
        assert not any(layer.compiled for layer in copy.layers[1:2])
    assert model.compiled and inner.compiled


class Forgetful(keras.layers.Layer):
    """Its configuration lacks an argument that has no default."""

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)

    def call(self, inputs):
        return inputs

    def get_config(self):
        return {"name": self.name}


def test_a_layer_that_cannot_be_copied_is_reported_with_its_error():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, Forgetful(2, name="own")(inputs))
    with pytest.raises(
        ValueError,
        match="(?s)`own` .Forgetful. cannot be copied.*TypeError.*count",
    ) as caught:
        configure(model, dtype="float32")
    assert "Lambda" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_norm_epsilon": -1}, "_epsilon=-1"),
        ({"batch_norm_epsilon": math.nan}, "_epsilon=nan"),
        ({"batch_norm_momentum": "x"}, "_momentum='x'"),
        ({"batch_norm_momentum": 2}, "_momentum=2"),
        ({"dtype": "int32"}, "dtype='int32'"),
        ({"dtype": "foo"}, "dtype='foo'"),
        ({"dtype": 3}, "dtype=3"),
    ],
)
def test_a_configuration_is_checked(model, changes, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        configure(model, **changes)


@tensorflow_only
def test_batch_norm_within_a_layer_is_synchronized(model):
    copy = synchronize(model)
    norms = [copy.get_layer("norm"), *copy.get_layer("block").norms]
    assert [norm.synchronized for norm in norms] == [True] * 4
    frozen = copy.get_layer("frozen").norm
    assert frozen.frozen and not frozen.synchronized
    assert_same(model, copy)


@pytest.mark.parametrize("within", [False, True])
def test_frozen_layers_within_a_layer_stay_frozen(model, within):
    block = model.get_layer("block")
    (block.norms[1] if within else block).trainable = False
    expected = {weight.path for weight in model.weights if weight.trainable}
    copy = configure(model, batch_norm_momentum=0.7)
    assert {w.path for w in copy.weights if w.trainable} == expected
    assert copy.get_layer("block").norms[0].trainable is within
    assert not copy.get_layer("block").norms[1].trainable


def test_batch_norm_within_a_layer_has_the_momentum(model):
    copy = configure(model, batch_norm_momentum=0.7)
    norms = [copy.get_layer("norm"), *copy.get_layer("block").norms]
    norms.append(copy.get_layer("frozen").norm)
    assert [norm.momentum for norm in norms] == [0.7] * 5
    assert {norm.epsilon for norm in norms} == {1e-3}
    assert_same(model, copy)
