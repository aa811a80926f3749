"""Saving of models."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import ROOT, npy, randomize, sample
from model_tester import SMALL_HEADS

from keras_aspp.backbones import with_output_stride
from keras_aspp.models import DeepLabV3, DeepLabV3Plus, with_dtype
from keras_aspp.models.factory import ARCHITECTURES
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


def test_loading_creates_each_weight_once(toy_backbone, tmp_path, monkeypatch):
    model = DeepLabV3(3, toy_backbone(), atrous_rates=(1,), aspp_filters=8)
    path = tmp_path / "model.keras"
    model.save(path)
    shapes = []
    create = keras.Variable.__init__

    def counted(self, initializer, shape=None, *args, **kwargs):
        shapes.append(shape)
        create(self, initializer, shape, *args, **kwargs)

    monkeypatch.setattr(keras.Variable, "__init__", counted)
    loaded = keras.saving.load_model(path)
    created = [tuple(shape) for shape in shapes if shape]
    assert len(created) == len([w for w in model.variables if w.shape.rank])
    monkeypatch.undo()
    other = DeepLabV3(3, loaded.backbone, atrous_rates=(1,), aspp_filters=8)
    theirs = {id(w) for w in loaded.weights}
    assert not theirs & {id(w) for w in other.weights}


@pytest.mark.parametrize("own_layers", [False, True])
def test_a_configuration_whose_backbone_is_not_dense(toy_backbone, own_layers):
    toy = toy_backbone(padding=1, features=True)
    model = randomize(
        DeepLabV3(3, toy, output_stride=8, atrous_rates=(1,), aspp_filters=8)
    )
    config = model.get_config()
    coarse = with_output_stride(toy, 32) if own_layers else toy
    config["backbone"] = keras.saving.serialize_keras_object(coarse)
    loaded = DeepLabV3.from_config(config)
    assert loaded.get_config() == model.get_config()
    loaded.set_weights(model.get_weights())
    x = sample((1, 65, 50, 3))
    np.testing.assert_array_equal(npy(loaded(x)), npy(model(x)))


# Loads models from files with nothing but the package imported, and no more.
_LOAD = """
import gc, sys
gc.disable()
import numpy as np
import keras_aspp
from keras.saving import load_model

def modules():
    return {name for name in sys.modules if name.startswith("keras_aspp")}

image, *paths = sys.argv[1:]
image, imported = np.load(image), modules()
for path in paths:
    np.save(path + ".npy", load_model(path)(image))
# So that no file depends on those before it.
assert modules() == imported, modules() - imported
"""


@pytest.mark.slow  # a second TensorFlow
def test_load_with_nothing_but_the_package_imported(toy_backbone, tmp_path):
    toy = toy_backbone(padding=1, features=True)
    models = {
        name: architecture(5, toy, **SMALL_HEADS.get(architecture, {}))
        for name, architecture in ARCHITECTURES.items()
    }
    models["light"] = DeepLabV3Plus(
        5, toy, decoder="light", **SMALL_HEADS[DeepLabV3Plus]
    )
    x = sample((1, 99, 75, 3))
    np.save(tmp_path / "x.npy", x)
    for name, model in models.items():
        randomize(model).save(tmp_path / f"{name}.keras")
    subprocess.run(
        [
            *(sys.executable, "-c", _LOAD, "x.npy"),
            *(f"{name}.keras" for name in models),
        ],
        check=True,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    for name, model in models.items():
        found = np.load(tmp_path / f"{name}.keras.npy")
        np.testing.assert_array_equal(found, npy(model(x)), err_msg=name)
