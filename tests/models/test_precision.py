"""with_dtype: the same weights, another policy."""

import keras
import numpy as np
import pytest
from helpers import npy, randomize, sample

from keras_aspp.backbones.rebuild import compute_dtypes
from keras_aspp.layers import ASPP
from keras_aspp.models import (
    DeepLabV3,
    DeepLabV3Plus,
    with_dtype,
    with_output_stride,
)
from keras_aspp.models.saving import save_model
from keras_aspp.models.segmenter import load_saved


def tiny(toy_backbone, **arguments):
    return DeepLabV3(
        3,
        toy_backbone(padding=1),
        atrous_rates=(1, 2),
        aspp_filters=8,
        **arguments,
    )


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


def test_frozen_layers_stay_frozen(toy_backbone, tmp_path):
    model = with_dtype(tiny(toy_backbone), "mixed_bfloat16")
    model.get_layer("aspp").trainable = False
    save_model(model, tmp_path / "model.keras")
    copies = [
        with_dtype(model, "float32"),
        with_output_stride(model, 8),
        load_saved(tmp_path / "model.keras"),
    ]
    number = len(model.trainable_variables)
    assert [len(c.trainable_variables) for c in copies] == [number] * 3
    assert number < len(model.variables)


def test_a_context_layer_is_converted_too(toy_backbone):
    context = ASPP(8, (1, 2), dtype="mixed_bfloat16")
    model = with_dtype(tiny(toy_backbone, context=context), "mixed_bfloat16")
    assert model.get_layer("context").compute_dtype == "bfloat16"
    assert compute_dtypes(with_dtype(model, "float32")) == {"float32"}


@keras.saving.register_keras_serializable(package="tests")
class _Context(keras.layers.Layer):
    """A context whose configuration has no dtype."""

    def __init__(self, filters, name=None):
        super().__init__(name=name)
        self.conv = keras.layers.Conv2D(filters, 1, name="conv")

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, inputs):
        return self.conv(inputs)

    def get_config(self):
        return {"filters": self.conv.filters, "name": self.name}


def test_a_context_without_a_dtype_is_left_alone(toy_backbone):
    model = DeepLabV3(3, toy_backbone(padding=1), context=_Context(4))
    copy = with_dtype(with_dtype(model, "mixed_bfloat16"), "float32")
    assert compute_dtypes(copy) == {"float32"}


def test_a_backbone_that_is_a_model_keeps_its_own_dtype(toy_backbone):
    model = tiny(toy_backbone, dtype="mixed_bfloat16")
    assert compute_dtypes(model.backbone) == {"float32"}
    copy = with_dtype(model, "mixed_bfloat16")
    assert compute_dtypes(copy.backbone) == {"bfloat16"}


def test_of_another_model():
    with pytest.raises(TypeError, match="keras_aspp.models"):
        with_dtype("model", "float32")
