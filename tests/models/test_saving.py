"""Saving of models."""

import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample

from keras_aspp.models import DeepLabV3, with_dtype
from keras_aspp.models.precision import compute_dtypes
from keras_aspp.models.saving import save_model


@pytest.mark.parametrize(
    "backbone, head",
    [
        ("float32", "float32"),
        ("mixed_bfloat16", "float32"),
        ("float32", "mixed_bfloat16"),
    ],
)
def test_saved_in_float32_whatever_computed_in_16_bits(
    toy_backbone, tmp_path, backbone, head
):
    model = randomize(
        DeepLabV3(
            3,
            toy_backbone(padding=1, dtype=backbone),
            atrous_rates=(1, 2),
            aspp_filters=8,
            dtype=head,
        )
    )
    save_model(model, tmp_path / "model.keras")
    saved = keras.saving.load_model(tmp_path / "model.keras")
    assert compute_dtypes(saved) == {"float32"}
    x = sample((1, 65, 50, 3))
    exact = with_dtype(model, "float32")
    np.testing.assert_array_equal(npy(saved(x)), npy(exact(x)))


def test_optimizer_state_stays_with_the_run(toy_backbone, tmp_path):
    model = DeepLabV3(3, toy_backbone(), atrous_rates=(1,), aspp_filters=8)
    model.compile("adam", "mse")
    optimizer = model.optimizer
    save_model(model, tmp_path / "model.keras")
    assert model.optimizer is optimizer and model.compiled
    saved = keras.saving.load_model(tmp_path / "model.keras")
    assert not saved.compiled
