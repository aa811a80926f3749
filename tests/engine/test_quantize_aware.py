"""The rounded part of a run: begun, kept, resumed; refusals."""

import json
import shutil

import keras
import numpy as np
import pytest
from tiny_run import small_config

from keras_aspp.config.schema import TrainConfig
from keras_aspp.engine.run import train

SETTINGS = {
    "total_epochs": 2,
    "learning_rate": 0.01,
    "quantize_aware": True,
    "quantize_aware_epochs": 1,
    "ema_momentum": 0.5,
}


@pytest.mark.slow
def test_a_run_rounds_its_last_epochs_and_resumes(tmp_path, tiny_folder):
    config = small_config(tiny_folder, **SETTINGS)
    metrics = train(config, tmp_path / "a")
    # Scores without rounding do not count.
    assert metrics["kept_epoch"] == 2
    ranges = json.loads((tmp_path / "a" / "ranges.json").read_text())
    assert len(ranges) > 8
    assert all(r["scale"] > 0 for r in ranges.values())
    model = keras.saving.load_model(tmp_path / "a" / "model.keras")
    assert not model.is_quantized

    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "epoch_00002")
    train(config, tmp_path / "b", resume=True)
    resumed = json.loads((tmp_path / "b" / "ranges.json").read_text())
    assert resumed == ranges
    again = keras.saving.load_model(tmp_path / "b" / "model.keras")
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "field, value",
    [
        ("precision", "mixed_bfloat16"),
        ("rematerialize", True),
        ("strategy", "mirrored"),
        ("recalibrate_steps", 5),
        ("lr_finder", True),
        ("early_stopping_epochs", 2),
    ],
)
def test_what_it_refuses_is_named(field, value):
    with pytest.raises(ValueError, match=f"Received: {field}={value}"):
        TrainConfig(**{**SETTINGS, field: value})


def test_last_epochs_need_the_setting():
    with pytest.raises(ValueError, match="needs `quantize_aware: true`"):
        TrainConfig(total_epochs=2, quantize_aware_epochs=1)
