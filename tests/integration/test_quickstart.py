"""The README's paths; `.ci/run` runs `make train` itself."""

import os
import re
import subprocess
import sys

from helpers import ROOT


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
