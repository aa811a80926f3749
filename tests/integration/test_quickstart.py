"""The README's paths, shortened."""

import json
import os
import subprocess
import sys

import pytest

from training import quickstart


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # third parties' on the whole path
def test_make_train_in_a_few_steps(tmp_path, monkeypatch, capsys):
    from keras_aspp.data.datasets import multiscale_shapes

    few = {"train": 8, "validation": 4, "test": 4}
    builder = multiscale_shapes.MultiscaleShapes
    monkeypatch.setattr(builder, "NUM_EXAMPLES", few)
    arguments = [
        *("--workdir", str(tmp_path / "run")),
        *("--output", str(tmp_path / "out")),
        *("--data.data_dir", str(tmp_path / "data")),
        *("--train.total_epochs", "1"),
        *("--train.batch_size", "4"),
    ]
    assert quickstart.run(arguments) == 0
    said = capsys.readouterr().out
    for line in ("mean_iou", "model_float32.tflite", "picture_0_overlay.png"):
        assert line in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["artefacts"]) == 4


@pytest.mark.slow
def test_exported_tflite_needs_only_the_interpreter(tiny_export):
    """The README's ten lines, in a process without TensorFlow and Keras."""
    path = str(tiny_export / "model_float32.tflite")
    code = f"""
import sys
for name in ("tensorflow", "keras", "keras_aspp"):
    sys.modules[name] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path={path!r})
segment = interpreter.get_signature_runner()
labels = segment(image=np.zeros((1, 64, 96, 3), "uint8"))["labels"]
assert labels.shape == (1, 64, 96) and labels.dtype == np.int32
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
