"""Thresholds of classes in logits."""

import numpy as np
import pytest
from helpers import npy

from keras_aspp.layers import ClassThresholds
from keras_aspp.layers.class_thresholds import check_thresholds


def test_a_score_is_above_0_where_the_probability_exceeds_the_threshold():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 9, 7, 3)).astype("float32")
    thresholds = np.array([0.2, 0.5, 0.9])
    layer = ClassThresholds(thresholds.tolist())
    wanted = 1 / (1 + np.exp(-logits)) > thresholds
    assert 0.1 < wanted.mean() < 0.9
    np.testing.assert_array_equal(npy(layer(logits)) > 0, wanted)
    # Losses learn the probability.
    np.testing.assert_array_equal(npy(layer(logits, training=True)), logits)
    again = ClassThresholds.from_config(layer.get_config())
    np.testing.assert_array_equal(npy(again(logits)), npy(layer(logits)))


def test_one_threshold_serves_all_classes_and_others_are_refused():
    assert check_thresholds(0.3, 2) == (0.3, 0.3)
    assert check_thresholds([0.3, 0.4], 2) == (0.3, 0.4)
    for wrong in ([0.3], [0.3, 1.0], 0.0, "auto"):
        with pytest.raises(ValueError, match="Received: threshold="):
            check_thresholds(wrong, 2)
    assert ClassThresholds(np.array([0.5, 0.25])).thresholds == (0.5, 0.25)
    with pytest.raises(ValueError, match="Received: thresholds=0.5"):
        ClassThresholds(0.5)
