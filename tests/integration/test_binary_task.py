"""A binary task from masks of 0 and 255 to exported files."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_run import small_config, write_folder

from keras_aspp.cli.main import main
from keras_aspp.config.schema import LossConfig
from keras_aspp.data.decode import read_mask
from keras_aspp.data.folder import FolderSource, check_folder
from keras_aspp.data.sources import open_source
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine import run
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.engine.loss import build_loss
from keras_aspp.inference import Predictor

pytestmark = pytest.mark.usefixtures("saved_models_run_in_forks")


def make_binary(root, value=255, **spec):
    """Keeps the boxes of the tiny data set, drawn with `value`."""
    write_folder(root)
    for path in (root / "masks").rglob("*.png"):
        labels = np.asarray(Image.open(path))
        mask = np.where(labels == 1, value, 0).astype("uint8")
        Image.fromarray(mask).save(path)
    content = {"class_names": ["box"], "task": "binary", **spec}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_255_and_of_1_are_both_read(value, tmp_path):
    source = FolderSource(make_binary(tmp_path, value))
    assert source.spec.class_names == ("background", "box")
    report = check_folder(source)
    assert not report.problems
    assert any(f"show the object (box) as {value}" in n for n in report.notes)
    assert report.class_pixels["train"].tolist()[1:] == [3 * 30 * 30, 0]


def save_mask(path, *values):
    Image.fromarray(np.array([values], "uint8")).save(path)
    return path


def test_a_mask_that_could_mean_two_things_is_refused(tmp_path):
    mask = save_mask(tmp_path / "m.png", 0, 1, 255)
    spec = DatasetSpec(["box"], task="binary")
    with pytest.raises(ValueError, match="holds 1 and 255. If 255 is ignored"):
        read_mask(mask, spec)
    described = tmp_path / "dataset.json"
    for more, labels in (
        ({"ignore_label": 255}, [0, 1, 255]),
        ({"label_map": {"255": 1, "1": 1}}, [0, 1, 1]),
    ):
        content = {"class_names": ["box"], "task": "binary", **more}
        described.write_text(json.dumps(content))
        spec = DatasetSpec.from_file(described)
        assert read_mask(mask, spec).tolist() == [labels]


def test_smoothed_edges_are_refused_with_the_fix(tmp_path):
    mask = save_mask(tmp_path / "m.png", 0, 128, 255)
    with pytest.raises(ValueError, match="1 other values, first 128"):
        read_mask(mask, DatasetSpec(["box"], task="binary"))


@pytest.mark.parametrize(
    "names, task",
    [(["a", "b", "c"], "binary"), (["a"], "multi"), ("a", "binary")],
)
def test_wrong_specifications_are_refused(names, task):
    with pytest.raises(ValueError, match="Received"):
        DatasetSpec(names, task=task)


def test_the_written_specification_is_the_same(tmp_path):
    spec = DatasetSpec(["box"], task="binary")
    spec.to_file(tmp_path / "dataset.json")
    again = DatasetSpec.from_file(tmp_path / "dataset.json")
    assert again.task == "binary"
    assert again.class_names == spec.class_names
    # What this library writes holds class ids, so 255 is ignored there.
    mask = save_mask(tmp_path / "m.png", 0, 1, 255)
    assert read_mask(mask, again).tolist() == [[0, 1, 255]]


def test_dice_is_on_by_default_and_counts_the_object_alone():
    semantic = build_loss(LossConfig(), 255)
    assert type(semantic).__module__.startswith("keras.")
    parts = build_loss(LossConfig(), 255, task="binary").losses
    assert [type(p).__name__ for p in parts] == ["CrossEntropy", "Dice"]
    assert parts[1].class_weights == (0, 1)
    only = build_loss(LossConfig(dice=0.0, lovasz=1.0), 255, task="binary")
    assert [type(p).__name__ for p in only.losses] == [
        "CrossEntropy",
        "LovaszHinge",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = make_binary(tmp_path_factory.mktemp("data"))
    workdir = tmp_path_factory.mktemp("run")
    config = small_config(root, threshold="auto")
    # The start is a model of three classes.
    with pytest.warns(UserWarning, match="except for the classifier"):
        metrics = run.train(config, workdir)
    return root, workdir, config, metrics


def test_training_stores_the_best_threshold_and_reports_the_object(trained):
    root, workdir, config, metrics = trained
    predictor = Predictor(workdir)
    found = metrics["binary"]
    assert predictor.threshold == pytest.approx(found["threshold"])
    assert found["best_threshold"] == pytest.approx(
        found["threshold"], abs=1e-6
    )
    assert metrics["per_class_iou"]["box"] == pytest.approx(
        found["iou"], abs=1e-6
    )
    assert found["dice"] == pytest.approx(
        2 * found["iou"] / (1 + found["iou"]), abs=1e-5
    )
    # Independently: labels are the probabilities above the threshold.
    image = np.asarray(Image.open(root / "images/val/val_0.png"))
    probability = predictor.probability_batch(image[None])[0, ..., 1]
    labels = predictor.predict(image)
    near = abs(probability - predictor.threshold) < 1e-5
    above = probability > predictor.threshold
    assert (labels == above)[~near].all()
    scores = predictor.score_batch(image[None])[0]
    np.testing.assert_allclose(
        probability, 1 / (1 + np.exp(-scores[..., 1])), atol=1e-5
    )


def test_figures_and_tables_show_precision_and_recall(
    trained, tmp_path, capsys
):
    root, workdir, *_ = trained
    arguments = ["--model", str(workdir), "--figures", str(tmp_path)]
    assert main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "object: average_precision" in printed
    assert (tmp_path / "precision_recall.png").stat().st_size > 5000


def test_exported_files_label_by_the_threshold(trained, tmp_path):
    root, workdir, *_ = trained
    out = tmp_path / "out"
    formats = '["saved_model","tflite_float32","tflite_int8","tflite_logits"]'
    arguments = ["--model", str(workdir), "--output", str(out)]
    status = main(
        ["export", *arguments, "--export.formats", formats]
        + ["--export.image_size", "[64,96]", "--export.max_int8_loss", "100"]
    )
    assert status == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["task"] == "binary"
    assert manifest["threshold"] == Predictor(workdir).threshold
    source = open_source(small_config(root).data)
    for name in ("saved_model", "model_float32.tflite", "model_logits.tflite"):
        predictor = Predictor(out / name)
        assert predictor.spec.task == "binary"
        assert predictor.threshold == manifest["threshold"]
        found = evaluate(predictor, source, "val")["binary"]
        assert 0 <= found["iou"] <= 1


def test_pixels_without_data_in_a_mask_are_ignored(tmp_path):
    tifffile = pytest.importorskip(
        "tifffile", reason="extra `tiff` (2026-11-30)"
    )
    values = np.array([[0, 255, 7]], "uint8")
    path = tmp_path / "m.tif"
    # Tag 42113 is GDAL's, which declares 7 as no data.
    tifffile.imwrite(path, values, extratags=[(42113, "s", 0, "7", True)])
    spec = DatasetSpec(["box"], task="binary")
    assert read_mask(path, spec).tolist() == [[0, 1, 255]]
