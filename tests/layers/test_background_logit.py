"""Two logits of which one is fixed: the sigmoid, as a softmax."""

import keras
import numpy as np
import pytest

from keras_aspp.layers import BackgroundLogit


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.93])
def test_the_object_is_larger_where_its_probability_exceeds_it(threshold):
    z = np.linspace(-5, 5, 101, dtype="float32").reshape(1, 1, -1, 1)
    scores = keras.ops.convert_to_numpy(BackgroundLogit(threshold)(z))
    assert scores.shape == (1, 1, 101, 2)
    np.testing.assert_array_equal(scores[..., 1:], z)
    probability = 1 / (1 + np.exp(-z[..., 0]))
    np.testing.assert_array_equal(scores.argmax(-1), probability > threshold)


def test_losses_learn_the_probability_whatever_the_threshold():
    z = np.full((1, 2, 2, 1), 0.7, "float32")
    scores = keras.ops.convert_to_numpy(BackgroundLogit(0.2)(z, training=True))
    np.testing.assert_array_equal(scores[..., 0], 0)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, "a", None, True])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match=r"`threshold` must be in \(0, 1\)"):
        BackgroundLogit(threshold)


def test_its_configuration_is_equal_after_a_round_trip():
    layer = BackgroundLogit(0.25, name="b")
    again = BackgroundLogit.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.compute_output_shape((None, 3, 4, 1)) == (None, 3, 4, 2)
