"""What is trained on JAX is evaluated and exported on TensorFlow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers import npy
from tiny_run import CLASS_NAMES, write_folder

import keras_aspp as ka
from keras_aspp.config.schema import DataConfig
from keras_aspp.data.pipeline import evaluation_dataset
from keras_aspp.data.sources import open_source
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.models.segmenter import load_saved

pytestmark = [
    pytest.mark.usefixtures("saved_models_run_in_forks"),
    pytest.mark.skipif(
        importlib.util.find_spec("jax") is None,
        reason="JAX is not installed: pip install '.[jax]'",
    ),
]
ROOT = Path(ka.__path__[0]).parent
# IMAGES LOGITS EXAMPLE ARGUMENTS: runs the example on a backbone of few layers,
# which JAX compiles sooner, then predicts with the file that it wrote.
PROGRAM = """
import runpy, sys
import keras, numpy as np
from helpers import make_small_backbone
from keras_aspp.backbones.rebuild import configure
from keras_aspp.models import features
from keras_aspp.preprocess import Preprocess

def small(name, output_stride, weights, input_shape, **changes):
    backbone = features.as_features(make_small_backbone(), output_stride)
    backbone = configure(backbone, **changes)
    backbone.preprocess = Preprocess()
    return backbone

features.create_backbone = small
_, images, logits, *sys.argv = sys.argv
runpy.run_path(sys.argv[0], run_name="__main__")
assert keras.backend.backend() == "jax"
keras.distribution.set_distribution(None)
model = keras.saving.load_model(sys.argv[sys.argv.index("--output") + 1])
images = model.preprocess(np.load(images))
np.save(logits, model.predict(images, verbose=0))
"""


def on_jax(*arguments):
    """Runs Python on JAX, with two devices; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "KERAS_BACKEND": "jax",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_trained_on_jax_used_on_tensorflow(tmp_path):
    folder = write_folder(tmp_path / "data")
    path = tmp_path / "model.keras"
    source = open_source(DataConfig(root=str(folder)))
    images, _ = next(iter(evaluation_dataset(source, "val", 2)))
    files = tmp_path / "images.npy", tmp_path / "logits.npy"
    np.save(files[0], images)
    printed = on_jax(
        *("-c", PROGRAM, *files),
        *(ROOT / "examples" / "train_on_jax.py", folder, "--output", path),
        *("--epochs", "1", "--steps", "3", "--batch-size", "2"),
        *("--crop", "64"),
    )
    assert "2 devices, XLA on" in printed
    expected = np.load(files[1])
    labels = expected.argmax(-1)
    assert expected.std() > 1e-3 and len(np.unique(labels)) > 1

    model = load_saved(path)
    logits = npy(model(model.preprocess(images), training=False))
    np.testing.assert_allclose(
        logits, expected, atol=1e-4 * expected.std(), rtol=0
    )
    predictor = ka.Predictor(path)
    same = predictor.predict_batch(images.numpy()) == labels
    assert same.mean() > 0.9999
    metrics = evaluate(predictor, source, "val", 2)
    assert metrics["num_images"] == 3 and metrics["mean_iou"] > 0
    ka.export.export_model(
        model,
        tmp_path / "exported",
        image_size=(64, 96),
        class_names=CLASS_NAMES,
        verify_images=list(images.numpy()),
        formats=("saved_model", "tflite_float32"),
    )
    serve = tf.saved_model.load(str(tmp_path / "exported" / "saved_model"))
    served = serve.signatures["serving_default"](images)["labels"]
    assert np.mean(npy(served) == labels) > 0.9999
