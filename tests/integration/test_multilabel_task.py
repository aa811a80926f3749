"""A multilabel task from two overlapping shapes to exported files."""

import json
import shutil

import numpy as np
import pytest
from helpers import make_small_backbone
from multilabel_folder import NAMES, make_folder
from PIL import Image
from tiny_run import small_config

from keras_aspp.cli.main import main
from keras_aspp.data.folder import FolderSource
from keras_aspp.engine import run
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.inference import Predictor
from keras_aspp.models import DeepLabV3Plus
from keras_aspp.models.segmenter import load_saved

pytestmark = pytest.mark.usefixtures("saved_models_run_in_forks")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = make_folder(tmp_path_factory.mktemp("data"))
    workdir = tmp_path_factory.mktemp("run")
    config = small_config(root, threshold="auto", total_epochs=6)
    # The start is a model of three classes.
    with pytest.warns(UserWarning, match="except for the classifier"):
        metrics = run.train(config, workdir)
    return root, workdir, metrics


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained[1])


def image_of(root):
    return np.asarray(Image.open(root / "images/val/val_0.png"))


def test_labels_are_probabilities_above_the_thresholds_of_classes(
    trained, predictor
):
    root, _, metrics = trained
    assert predictor.is_multilabel and not predictor.has_confidence
    found = metrics["multilabel"]["per_class"]
    thresholds = [found[name]["threshold"] for name in NAMES]
    assert list(predictor.threshold) == thresholds
    best = [found[name]["best_threshold"] for name in NAMES]
    np.testing.assert_allclose(best, thresholds, atol=1e-6)
    assert set(thresholds) != {0.5}
    labels, probabilities = predictor.predict(
        image_of(root), return_probabilities=True
    )
    assert labels.shape == probabilities.shape == (64, 96, 2)
    assert labels.dtype == np.uint8 and 0 < labels.mean() < 1
    near = abs(probabilities - thresholds) < 1e-5
    assert ((labels == 1) == (probabilities > thresholds))[~near].all()
    scores = predictor.score_batch(image_of(root)[None])[0]
    odds = np.array(thresholds) / (1 - np.array(thresholds))
    np.testing.assert_allclose(
        probabilities, 1 / (1 + np.exp(-scores) / odds), atol=1e-5
    )


def test_measures_of_classes_equal_numpy(trained, predictor):
    root, _, metrics = trained
    source = FolderSource(root)
    hit, union, both = np.zeros(2), np.zeros(2), np.zeros(2)
    for record in source.records("val").as_numpy_iterator():
        image, labels = source.decode(*record)
        truth, found = labels == 1, predictor.predict(image) == 1
        hit += (truth & found).sum((0, 1))
        union += (truth | found).sum((0, 1))
        both += truth.sum((0, 1)) + found.sum((0, 1))
    per_class = metrics["multilabel"]["per_class"]
    for i, name in enumerate(NAMES):
        iou, dice = hit[i] / union[i], 2 * hit[i] / both[i]
        assert metrics["per_class_iou"][name] == pytest.approx(iou, abs=1e-6)
        assert per_class[name]["dice"] == pytest.approx(dice, abs=1e-6)
    assert metrics["mean_iou"] == pytest.approx((hit / union).mean(), abs=1e-6)


def test_the_file_keeps_task_and_thresholds(trained, tmp_path):
    _, workdir, _ = trained
    model = load_saved(workdir)
    assert (model.task, model.num_classes) == ("multilabel", 2)
    model.threshold = (0.2, 0.7)
    model.save(tmp_path / "m.keras")
    assert load_saved(tmp_path / "m.keras").threshold == (0.2, 0.7)
    config = model.get_config()
    assert config["threshold"] == [0.2, 0.7]
    with pytest.raises(ValueError, match="one probability, or 2"):
        model.threshold = (0.2, 0.7, 0.1)
    one = DeepLabV3Plus(1, make_small_backbone(), task="multilabel")
    assert one.output.shape[-1] == 1 and one.threshold == (0.5,)


def test_averages_and_windows_keep_the_thresholds(trained, predictor):
    root, workdir, _ = trained
    image = image_of(root)
    windows = Predictor(workdir, window=48, flip=True)
    probabilities = windows.probability_batch(image[None])[0]
    labels = windows.predict(image)
    near = abs(probabilities - predictor.threshold) < 1e-4
    above = probabilities > np.array(predictor.threshold)
    assert (labels == above)[~near].all()
    assert windows.has_probabilities and not windows.has_confidence


def test_commands_write_masks_of_classes(trained, predictor, tmp_path, capsys):
    root, workdir, _ = trained
    model, figures = ["--model", str(workdir)], tmp_path / "figures"
    more = ["--figures", str(figures), "--worst", "2"]
    assert main(["evaluate", *model, *more]) == 0
    printed = capsys.readouterr().out
    assert "average_precision" in printed and "mean " in printed
    for name in ("precision_recall_bar.png", "worst_images.png"):
        assert (figures / name).stat().st_size > 5000
    out = tmp_path / "out"
    image = root / "images/val/val_0.png"
    more = ["--scores", "--format", "coco"]
    arguments = [*model, "--output", str(out), *more, str(image)]
    assert main(["predict", *arguments]) == 0
    labels = predictor.predict(image)
    for i, name in enumerate(NAMES):
        mask = np.asarray(Image.open(out / "masks" / name / "val_0.png"))
        np.testing.assert_array_equal(mask, labels[..., i] * 255)
    with np.load(out / "val_0_probabilities.npz") as found:
        assert found["probabilities"].shape == (64, 96, 2)
    assert (out / "val_0_overlay.png").is_file()
    written = json.loads((out / "predictions.json").read_text())
    assert [one["name"] for one in written["categories"]] == NAMES
    regions = {i: one for i, one in enumerate(NAMES) if labels[..., i].any()}
    assert {one["category_id"] for one in written["annotations"]} <= {*regions}


@pytest.mark.parametrize(
    "command, message",
    [
        (["evaluate", "--objects"], "`objects` measures labels of which"),
        (["predict", "--min_confidence", "0.5"], "no common confidence"),
    ],
)
def test_what_needs_one_label_is_refused(
    command, message, trained, tmp_path, capsys
):
    root, workdir, _ = trained
    name, *flags = command
    arguments = ["--model", str(workdir)]
    if name != "evaluate":
        arguments += ["--output", str(tmp_path / "out")]
    images = [str(root / "images/val/val_0.png")] if name == "predict" else []
    assert main([name, *arguments, *flags, *images]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_files_of_scores_contain_the_thresholds(trained, tmp_path):
    """A class is where its logit is above 0, with a manifest or without."""
    root, workdir, _ = trained
    out = tmp_path / "out"
    flags = ["--export.formats", "[tflite_logits,tflite_gpu]"]
    flags += ["--export.image_size", "[64,96]"]
    arguments = ["--model", str(workdir), "--output", str(out)]
    assert main(["export", *arguments, *flags]) == 0
    entries = json.loads((out / "manifest.json").read_text())["artefacts"]
    described = {entry["path"]: entry["output"] for entry in entries}
    image = image_of(root)
    model = Predictor(out / "model.keras")
    expected = model.predict(image, True, return_probabilities=True)
    for name, output, shape, atol in (
        ("model_logits.tflite", "mask_logits", [1, 64, 96, 2], 1e-4),
        ("model_gpu.tflite", "coarse_mask_logits", [1, 4, 6, 2], 0.1),
    ):
        assert described[name]["name"] == output
        assert described[name]["shape"] == shape
        predictor = Predictor(out / name)
        assert predictor.threshold == model.threshold
        found = predictor.predict(image, True, return_probabilities=True)
        for values, wanted in zip(found[1:], expected[1:], strict=True):
            assert np.quantile(abs(values - wanted), 0.99) < atol
        assert (found[0] == expected[0]).mean() > 0.99
        np.testing.assert_array_equal(found[0] == 1, found[1] > 0)
        # Alone, a file says by the name of its output what it holds.
        alone = shutil.copy(out / name, tmp_path / name)
        alone = Predictor(alone)
        assert alone.is_multilabel and alone.threshold is None
        assert alone.has_scores and not alone.has_probabilities
        np.testing.assert_array_equal(alone.predict(image), found[0])


@pytest.mark.parametrize("coarse", [False, True])
def test_exported_files_answer_as_the_model(coarse, trained, tmp_path):
    root, workdir, _ = trained
    out = tmp_path / "out"
    formats = ["saved_model", "tflite_float32", "tflite_int8"]
    formats += ["tflite_any_size", "onnx"]
    settings = {
        "formats": json.dumps(formats),
        "image_size": "[64,96]",
        "outputs": "[labels,probabilities]" if coarse else "[labels]",
        "coarse_labels": str(coarse).lower(),
        "max_int8_loss": "100",
    }
    flags = [x for k, v in settings.items() for x in (f"--export.{k}", v)]
    arguments = ["--model", str(workdir), "--output", str(out)]
    assert main(["export", *arguments, *flags]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["task"] == "multilabel"
    assert tuple(manifest["threshold"]) == Predictor(workdir).threshold
    output = manifest["artefacts"][2]["output"]
    assert output["shape"] == [1, 64, 96, 2]
    assert (output["dtype"], output["range"]) == ("uint8", [0, 1])
    keras_labels, file_labels = (
        Predictor(out / name).predict(image_of(root))
        for name in ("model.keras", "model_float32.tflite")
    )
    # Coarse labels are those of cells of 16 pixels.
    assert (file_labels == keras_labels).mean() > (0.8 if coarse else 0.999)
    for name in ("saved_model", "model_any_size.tflite", "model.onnx"):
        predictor = Predictor(out / name)
        assert predictor.is_multilabel
        assert predictor.has_probabilities == coarse
        labels = predictor.predict(image_of(root))
        assert labels.dtype == np.uint8
        expected = file_labels if name == "model.onnx" else keras_labels
        assert (labels == expected).mean() > 0.999
        found = evaluate(predictor, FolderSource(root), "val")
        assert set(found["multilabel"]["per_class"]) == set(NAMES)
