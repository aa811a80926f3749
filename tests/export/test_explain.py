"""Costs of the operators of an int8 file."""

import keras
import numpy as np
import pytest
from helpers import randomize

from keras_aspp.export.explain import operator_costs
from tests.export.test_quantize import SIZE, labels_of, pictures


@pytest.mark.slow
def test_costs_name_the_operator_that_rounds_most(tmp_path):
    """One channel, which nothing reads, is 300 times as large as the others."""
    layers = keras.layers
    image = keras.Input((*SIZE, 3), batch_size=1)
    x = layers.Conv2D(8, 3, padding="same", name="first")(image / 255)
    x = layers.Conv2D(8, 1, activation="tanh", name="calm")(x)
    x = layers.Conv2D(8, 1, name="loud")(x)
    x = layers.Activation("hard_swish", name="swish")(x)
    x = layers.Conv2D(8, 1, activation="tanh", name="again")(x)
    model = randomize(keras.Model(image, layers.Conv2D(5, 1, name="scores")(x)))
    kernel, bias = model.get_layer("loud").get_weights()
    wide = np.float32([300] + 7 * [1])
    model.get_layer("loud").set_weights([kernel * wide, bias * wide])
    kernel, bias = model.get_layer("again").get_weights()
    kernel[:, :, 0] = 0
    model.get_layer("again").set_weights([kernel, bias])
    content = labels_of(model, tmp_path / "model")
    names = {layer.name for layer in model.layers}
    costs = operator_costs(content, pictures(), True, names, 2, 4)
    # The one that rounds the loud map, and the one that reads it so.
    assert [c.name.split("/")[0] for c in costs[:2]] == ["swish", "again"]
    assert costs[0].alone_db < costs[2].alone_db - 10
    assert [c.alone_db is None for c in costs[:5]] == [False] * 4 + [True]
