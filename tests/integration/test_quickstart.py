"""The README's paths, shortened."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from training import quickstart


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # third parties' on the whole path
def test_make_train_in_a_few_steps(tmp_path, monkeypatch, capsys):
    from keras_aspp.data.datasets import multiscale_shapes

    few = {"train": 8, "validation": 4, "test": 4}
    builder = multiscale_shapes.MultiscaleShapes
    monkeypatch.setattr(builder, "NUM_EXAMPLES", few)
    workdir = tmp_path / "run"
    arguments = [
        *("--workdir", str(workdir)),
        *("--data.data_dir", str(tmp_path / "data")),
        *("--train.total_epochs", "1"),
        *("--train.batch_size", "4"),
    ]
    assert quickstart.run(arguments) == 0
    said = capsys.readouterr().out
    # Each step's table stands below its heading, the result in the last line.
    order = (
        "Step 1 of 3: train",
        "Compiling the first step",
        "mean_iou",
        f"tensorboard --logdir {workdir / 'logs'}",
        "Step 2 of 3: export",
        "model_float32.tflite: converting ...",
        "Keras at its size",
        "Step 3 of 3: predict",
        "image_0_overlay.png",
        "Mean IoU ",
    )
    found = [said.index(text) for text in order]
    assert found == sorted(found)
    manifest = json.loads((workdir / "exported/manifest.json").read_text())
    assert len(manifest["artefacts"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run"]


def test_make_train_writes_only_to_a_folder_that_git_ignores():
    (command,) = (
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if "training.quickstart" in line
    )
    assert command.split("training.quickstart")[1] == " --workdir $(RUN)"
    makefile = (ROOT / "Makefile").read_text()
    run = re.search(r"^RUN := (\S+)$", makefile, re.M)[1]
    assert run.startswith("runs/")
    assert "/runs/" in (ROOT / ".gitignore").read_text().splitlines()


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
