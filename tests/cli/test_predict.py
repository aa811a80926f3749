"""Command `predict`: what it prints."""

import re

import numpy as np
import pytest
from PIL import Image

import keras_aspp as ka
from keras_aspp.cli.main import main


@pytest.mark.slow
def test_predict_says_the_runtime_and_how_far_labels_agree(
    tiny_export, tmp_path, capsys
):
    image = tmp_path / "a.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (70, 85, 3)).astype("uint8")).save(
        image
    )
    model = str(tiny_export / "model.keras")
    arguments = ["predict", "--model", model, "--output", str(tmp_path / "out")]
    assert main([*arguments, str(image)]) == 0
    assert not capsys.readouterr().out.startswith("runtime ")
    arguments += ["--precision", "bfloat16", str(image)]
    assert main(arguments) == 0
    line = capsys.readouterr().out.splitlines()[0]
    found = re.fullmatch(
        r"runtime  keras \(bfloat16\), model.keras; on the first image "
        r"(\d+\.\d\d)% of the labels are those of keras \(float32\)",
        line,
    )
    exact, coarse = (
        ka.Predictor(model, precision=p).predict(image)
        for p in ("float32", "bfloat16")
    )
    expected = 100 * (exact == coarse).mean()
    assert float(found[1]) == pytest.approx(expected, abs=0.011)
    assert main([*arguments, "--runtime", "tensorrt"]) == 1
    assert "`runtime` must be one of" in capsys.readouterr().err
