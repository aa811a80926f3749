"""Saving of models."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import ROOT, npy, randomize, sample
from model_tester import SMALL_HEADS

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


def test_weights_keep_their_names_in_a_file(tmp_path):
    """By which they are found again, as those of ConvNeXt's nested stem."""
    inputs = keras.Input((None, None, 3))
    stem = keras.Sequential(
        [
            keras.layers.Conv2D(4, 3, 4, padding="same"),
            keras.layers.BatchNormalization(),
        ],
        name="stem",
    )
    x = stem(inputs)
    outputs = {"stride_4": x}
    for stride in (8, 16, 32):
        x = keras.layers.Conv2D(4, 3, 2, padding="same")(x)
        outputs[f"stride_{stride}"] = x
    backbone = keras.Model(inputs, outputs)
    model = DeepLabV3(3, backbone, atrous_rates=(1,), aspp_filters=4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    names = [weight.path for weight in model.backbone.weights]
    assert any("stem" in name for name in names)
    assert [weight.path for weight in loaded.backbone.weights] == names
    copied = with_dtype(loaded, "mixed_bfloat16")
    for ours, theirs in zip(copied.weights, model.weights, strict=True):
        np.testing.assert_array_equal(npy(ours), npy(theirs))


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
