"""with_dtype: the same weights, another policy."""

import numpy as np
import pytest
from helpers import npy, randomize, sample

from keras_aspp.models import DeepLabV3Plus, with_dtype


def test_of_a_mixed_segmenter(toy_backbone):
    model = randomize(
        DeepLabV3Plus(
            3,
            toy_backbone(padding=1),
            atrous_rates=(1, 2),
            aspp_filters=8,
            decoder_filters=8,
            batch_norm="freeze",
        )
    )
    model = with_dtype(model, "mixed_bfloat16")
    plain = with_dtype(model, "float32")
    assert {layer.compute_dtype for layer in plain._flatten_layers()} == {
        "float32"
    }
    assert plain.get_config()["batch_norm"] == "freeze"
    x = sample((1, 65, 50, 3))
    rough, exact = npy(model(x)), npy(plain(x))
    assert 0 < np.abs(rough - exact).max() < 0.1 * exact.std()
    again = with_dtype(plain, "mixed_bfloat16")
    np.testing.assert_array_equal(npy(again(x)), rough)


def test_of_another_model():
    with pytest.raises(TypeError, match="keras_aspp.models"):
        with_dtype("model", "float32")
