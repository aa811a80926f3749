"""evaluate: one pass, every number from it, and its figures."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf
from multilabel_folder import make_folder
from PIL import Image
from tiny_run import write_folder

from keras_aspp.cli.output import print_metrics
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine import evaluate as engine
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.inference import Predictor
from keras_aspp.pixels import PixelFormat


class Guesser:
    """A predictor that finds nothing but ground, and is sure of it."""

    threshold = None
    num_classes, path = 3, "nothing"
    has_scores, min_confidence = True, 0.0

    def predict_batch(self, images):
        return np.zeros(images.shape[:3], "int32")

    def score_batch(self, images):
        return np.broadcast_to([9.0, 0.0, 0.0], (*images.shape[:3], 3))


@pytest.fixture
def source(tmp_path):
    return FolderSource(write_folder(tmp_path / "data"))


def test_numbers_of_a_known_predictor(source):
    found = evaluate(Guesser(), source, "val", objects=True, calibration=True)
    masks = [np.array(Image.open(mask)) for _, mask in source.pairs["val"]]
    labels = np.concatenate([m[m != 255] for m in masks])
    right = np.mean(labels == 0)
    assert found["pixel_accuracy"] == pytest.approx(right, abs=1e-6)
    assert found["mean_iou"] == pytest.approx(right / 3, abs=1e-6)
    assert found["calibration_error"] == pytest.approx(1 - right, abs=1e-3)
    # Boxes and bars, 30x30 and 12 rows, are missed; the ground is found.
    assert found["recall_by_size_px"]["16-32"] == 0
    assert found["recall_by_size_px"]["0-16"] is None


def test_the_background_is_no_object(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part / "val").mkdir(parents=True)
    mask = np.zeros((200, 200), "uint8")
    mask[20:30, 20:30] = mask[80:130, 80:130] = 1
    Image.fromarray(mask).save(tmp_path / "masks/val/a.png")
    Image.new("RGB", (200, 200)).save(tmp_path / "images/val/a.png")
    (tmp_path / "dataset.json").write_text(
        json.dumps({"class_names": ["background", "box", "bar"]})
    )
    source = FolderSource(tmp_path, train_split="val", validation_split=None)
    found = evaluate(Guesser(), source, "val", objects=True)
    assert found["recall_by_size_px"] == {
        **{"0-16": 0, "16-32": None, "32-96": 0},
        "96 and more": None,
    }


class Thresholded(Guesser):
    """A binary predictor whose probabilities are red, with a threshold."""

    threshold, num_classes, image_size = 0.3, 2, None

    def to_probabilities(self, scores):
        scores = scores - [np.log(0.3 / 0.7), 0]
        return 1 / (1 + np.exp(scores[..., ::-1] - scores))

    def score_batch(self, images):
        p = (images[..., 0] + 1.0) / 257
        logits = np.log(p / (1 - p))
        return np.stack([np.full_like(p, np.log(0.3 / 0.7)), logits], -1)


def test_calibration_is_that_of_the_labels_of_the_threshold(tmp_path):
    root, rng = tmp_path / "data", np.random.default_rng(2)
    error = np.zeros((2, 15))
    for i in range(3):
        red = rng.integers(0, 256, (20, 30), "uint8")
        mask = rng.random((20, 30)) < red / 300
        for part, values in (
            ("images", np.stack([red] * 3, -1)),
            ("masks", np.uint8(255) * mask),
        ):
            path = root / part / "val" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
        p = (red + 1.0) / 257
        label = p > 0.3
        confidence = np.where(label, p, 1 - p)
        assert confidence.min() < 0.5
        bins = np.minimum((15 * confidence).astype(int), 14)
        np.add.at(error[0], bins, label == mask)
        np.add.at(error[1], bins, confidence)
    (root / "dataset.json").write_text(
        '{"class_names": ["background", "thing"], "task": "binary"}'
    )
    found = evaluate(Thresholded(), FolderSource(root), "val", calibration=True)
    rows = found["calibration"]
    right = sum(row["pixels"] * (row["accuracy"] or 0) for row in rows)
    # As many as the confusion matrix counts.
    assert right / 1800 == pytest.approx(found["pixel_accuracy"], abs=1e-6)
    assert right == error[0].sum()
    expected = abs(error[0] - error[1]).sum() / 1800
    assert found["calibration_error"] == pytest.approx(expected, abs=1e-5)


def test_figures_in_place_of_a_file_fail_before_the_work(source, tmp_path):
    (tmp_path / "out").touch()
    steps = []
    with pytest.raises(FileExistsError, match="be a folder.*out'$"):
        evaluate(
            Guesser(),
            source,
            "val",
            progress=lambda *step: steps.append(step),
            figures=tmp_path / "out",
        )
    assert steps == []


def test_the_worst_pictures_come_first(source, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(engine, "NUM_WORST", 2)
    monkeypatch.setattr(engine, "draw_sheet", lambda *a: drawn.append(a))
    evaluate(Guesser(), source, "val", figures=tmp_path / "out")
    ((path, title, cells, _),) = drawn
    assert path == tmp_path / "out" / "worst_images.png"
    assert title.startswith("val, ")
    scores = {}
    for image, mask in source.pairs["val"]:
        labels = np.array(Image.open(mask))
        share = np.mean(labels[labels != 255] == 0)
        scores[image.rsplit("/")[-1]] = share / 3
    names = sorted(scores, key=scores.get)[:2]
    for name, (text, image, labels, predicted) in zip(
        names, cells, strict=True
    ):
        assert text.startswith(name)
        assert text.endswith(f"mean IoU {scores[name]:.3f}")
        folder = source.root / "images" / "val"
        np.testing.assert_array_equal(image, Image.open(folder / name))
        assert labels.shape == predicted.shape == image.shape[:2]


def test_the_worst_pictures_are_listed_for_labeling(source, tmp_path):
    found = evaluate(Guesser(), source, "val", figures=tmp_path, worst=3)
    shares = {}
    for image, mask in source.pairs["val"]:
        labels = np.array(Image.open(mask))
        shares[image] = np.mean(labels[labels != 255] == 0)
    names = sorted(shares, key=shares.get)[:3]
    assert [row["image"] for row in found["worst"]] == names
    with open(tmp_path / "worst.csv") as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, names, strict=True):
        assert row["image"] == name
        share = shares[name]
        assert float(row["mean_iou"]) == pytest.approx(share / 3, abs=1e-6)
        assert float(row["wrong_share"]) == pytest.approx(1 - share, abs=1e-6)
        # The first of those that are missed.
        assert row["worst_class"] == source.spec.class_names[1]
        assert float(row["worst_class_iou"]) == 0
    assert Image.open(tmp_path / "worst_images.png").size[0] > 0


@pytest.mark.parametrize("worst", [0, 101, 2.5, "3"])
def test_a_number_of_worst_pictures_out_of_range_is_refused(source, worst):
    with pytest.raises(ValueError, match=f"Received: worst={worst}"):
        evaluate(Guesser(), source, "val", worst=worst)


@pytest.mark.parametrize("size", [0, 2.5])
def test_a_batch_of_no_images_is_refused(source, size):
    with pytest.raises(ValueError, match="`batch_size` must be an int > 0"):
        evaluate(Guesser(), source, "val", batch_size=size)


def write_tflite(path, labels):
    """A `.tflite` that answers every image with the same labels."""

    @tf.function(
        input_signature=[tf.TensorSpec((1, *labels.shape, 3), tf.uint8)]
    )
    def answer(image):
        zero = tf.cast(image[..., 0], tf.int32) * 0
        return {"labels": zero + tf.constant(labels, tf.int32)}

    convert = tf.lite.TFLiteConverter.from_concrete_functions(
        [answer.get_concrete_function()]
    )
    path.write_bytes(convert.convert())
    return path


def test_bands_of_model_and_data_set_must_be_equal(source):
    guesser = Guesser()
    guesser.pixels = PixelFormat(channels=4)
    message = "images of 4 bands of uint8, .* have 3 bands of uint8. Received"
    with pytest.raises(ValueError, match=message):
        evaluate(guesser, source, "val")


def test_the_same_classes_in_another_order_are_refused(source):
    guesser = Guesser()
    guesser.spec = DatasetSpec(["ground", "bar", "box"])
    message = r"another order.*`label_map`.*nothing; class 1 is 'bar' there"
    with pytest.raises(ValueError, match=message):
        evaluate(guesser, source, "val")


def test_classes_of_other_names_are_noted(source, capsys):
    guesser = Guesser()
    guesser.spec = DatasetSpec(["ground", "box", "pole"])
    found = evaluate(guesser, source, "val")
    (note,) = found["notes"]
    assert note.endswith("class 2 is 'pole' there, 'bar' here")
    print_metrics(found)
    assert f"Note: {note}." in capsys.readouterr().out
    guesser.spec = source.spec
    assert "notes" not in evaluate(guesser, source, "val")


def test_a_file_that_does_not_say_its_classes_has_the_data_sets(
    source, tmp_path
):
    labels = np.arange(32 * 48).reshape(32, 48) % 3
    predictor = Predictor(write_tflite(tmp_path / "three.tflite", labels))
    assert predictor.num_classes is None
    assert evaluate(predictor, source, "val")["num_images"] == 3
    labels[16:] = 7
    predictor = Predictor(write_tflite(tmp_path / "eight.tflite", labels))
    with pytest.raises(ValueError, match=r"labels 0 to 7, not in 0..2"):
        evaluate(predictor, source, "val")


def test_figures_of_a_split_without_valid_pixels(source, tmp_path):
    for _, mask in source.pairs["val"]:
        with Image.open(mask) as opened:
            blank = np.full(opened.size[::-1], 255, "uint8")
        Image.fromarray(blank).save(mask)
    found = evaluate(
        Guesser(),
        source,
        "val",
        figures=tmp_path / "out",
        calibration=True,
        objects=True,
        boundaries=True,
    )
    assert found["mean_iou"] is None
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["confidence.png", "confusion_matrix.png"]


def test_figures_of_classes_of_a_predictor_without_thresholds(tmp_path):
    class Overlapping(Guesser):
        num_classes, image_size, is_multilabel = 2, None, True

        def predict_batch(self, images):
            return np.ones((*images.shape[:3], 2), "int32")

        def score_batch(self, images):
            return np.full((*images.shape[:3], 2), 2.0)

        def to_probabilities(self, scores):
            return 1 / (1 + np.exp(-scores))

    source = FolderSource(make_folder(tmp_path / "data", splits=("val",)))
    found = evaluate(Overlapping(), source, "val", figures=tmp_path / "out")
    rows = found["multilabel"]["per_class"]
    assert [row["threshold"] for row in rows.values()] == [None, None]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"precision_recall_box.png", "precision_recall_bar.png"}


def test_a_figure_of_a_class_with_a_long_name_goes_by_number(tmp_path):
    spec = DatasetSpec(["a", "b" * 240], task="multilabel")
    engine._draw_curves(tmp_path, engine.new_curves(spec), spec, (None, None))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "precision_recall_1.png",
        "precision_recall_a.png",
    ]
