"""What needs TensorFlow says so on another backend."""

import keras
import pytest

import keras_aspp as ka
from keras_aspp.engine.run import Run
from keras_aspp.export.saved_model import write_saved_model


@pytest.mark.parametrize(
    "start",
    [
        lambda model, path: write_saved_model(model, path),
        lambda model, path: Run(None),
    ],
    ids=["export", "train"],
)
def test_another_backend_is_named(start, toy_backbone, tmp_path, monkeypatch):
    model = ka.models.DeepLabV3(2, toy_backbone(padding=1), aspp_filters=8)
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="TensorFlow.*Received.*backend jax"):
        start(model, tmp_path / "saved_model")
    assert not list(tmp_path.iterdir())
