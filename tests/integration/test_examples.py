"""The examples, as their readers run them."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import keras_aspp as ka

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (9, 12, 3)).astype("uint8")
    image = Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)
    image.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.slow
def test_python_runtime_needs_no_keras_and_answers_like_predictor(
    tiny_export, picture, tmp_path
):
    model = tiny_export / "model_float32.tflite"
    # A module that is None cannot be imported.
    code = (
        "import runpy, sys\n"
        "for name in ('tensorflow', 'keras', 'keras_aspp'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    output = tmp_path / "labels.png"
    done = subprocess.run(
        [
            *(sys.executable, "-c", code),
            *(EXAMPLES / "python_runtime.py", model, picture),
            *("--output", output),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = ka.Predictor(model).predict(picture)
    with Image.open(output) as labels:
        np.testing.assert_array_equal(np.asarray(labels), expected)
    kinds, shares = zip(
        *(line.split() for line in done.stdout.splitlines()), strict=True
    )
    names = ka.Predictor(model).spec.class_names
    assert kinds == tuple(names[i] for i in np.unique(expected))
    assert sum(float(s.rstrip("%")) for s in shares) == pytest.approx(
        100, abs=1
    )
