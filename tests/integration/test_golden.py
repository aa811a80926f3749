"""Files that commit 13d0402 wrote load and give the same numbers.

`tests/golden/13d0402` holds the data, the workdir and the exported folder of a
tiny run, and what that commit computed from them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import keras_aspp as ka
from keras_aspp.cli.main import main

GOLDEN = Path(__file__).parents[1] / "golden" / "13d0402"
ARTEFACTS = (
    "saved_model",
    "model_float32.tflite",
    "model_float16.tflite",
    "model_dynamic_range.tflite",
    "model_int8.tflite",
    "model_logits.tflite",
)


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def environment(monkeypatch):
    """The configuration of the run names its data by this variable."""
    monkeypatch.setenv("KERAS_ASPP_GOLDEN", str(GOLDEN))


def test_scores_of_a_keras_file(expected):
    predictor = ka.Predictor(GOLDEN / "workdir")
    labels, scores = predictor.predict(expected["image"], return_scores=True)
    assert scores.std() > 0.1
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-4)
    agreement = np.mean(labels == expected["labels_model_float32.tflite"])
    assert agreement > 0.999


@pytest.mark.parametrize("name", ARTEFACTS)
def test_labels_of_an_artefact_under_its_manifest(expected, name):
    predictor = ka.Predictor(GOLDEN / "exported" / name)
    assert predictor.spec.class_names == ("ground", "box", "bar")
    labels = predictor.predict(expected["image"])
    assert len(np.unique(labels)) > 1
    # Processors round differently, int8 above all where two classes tie.
    least = 0.98 if "int8" in name or "dynamic" in name else 0.999
    assert np.mean(labels == expected[f"labels_{name}"]) >= least


def test_evaluation_of_a_workdir(environment, tmp_path):
    file = tmp_path / "metrics.json"
    arguments = ["evaluate", "--model", str(GOLDEN / "workdir")]
    assert main([*arguments, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    recorded = json.loads((GOLDEN / "expected.json").read_text())
    assert found["mean_iou"] == pytest.approx(recorded["mean_iou"], abs=2e-3)
    assert found["per_class_iou"] == pytest.approx(
        recorded["per_class_iou"], abs=5e-3
    )


def test_a_run_is_resumed(environment, tmp_path):
    """From its checkpoint of epoch 1 of 2 to the metrics it had."""
    workdir = tmp_path / "workdir"
    shutil.copytree(GOLDEN / "workdir", workdir)
    arguments = ["train", "--config", str(workdir / "config.yaml")]
    assert main([*arguments, "--workdir", str(workdir), "--resume"]) == 0
    found = json.loads((workdir / "metrics.json").read_text())
    recorded = json.loads((GOLDEN / "expected.json").read_text())
    assert found["mean_iou"] == pytest.approx(recorded["mean_iou"], abs=2e-2)
