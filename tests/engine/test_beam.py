"""evaluate and predict on Apache Beam's runners of this machine."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from channels_folder import RANGE, write_bands
from helpers import make_toy_backbone, randomize
from multilabel_folder import make_folder
from PIL import Image
from tiny_run import CLASS_NAMES, toy_segmenter, write_folder

from keras_aspp.cli.main import main
from keras_aspp.data import beam_io
from keras_aspp.data.convert import convert_folder
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tfds import TfdsSource
from keras_aspp.engine import beam as engine
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.inference import Predictor
from keras_aspp.models import DeepLabV3
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError

beam = pytest.importorskip(
    "apache_beam",
    reason="extra `beam`, which .ci/run tries in its own environment "
    "(2026-11-25: it wants protobuf 6)",
)

# Beam's runner that does a failed bundle again; the other one gives up.
RETRYING = (
    "--runner=apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"
)
SIZES = ((64, 96), (64, 96), (72, 60), (60, 72), (64, 96))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("beam") / "set", SIZES)


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    return toy_segmenter(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(folder, model):
    return evaluate(Predictor(model), FolderSource(folder), "val")


def test_evaluation_is_the_ordinary_one(folder, model, expected, tmp_path):
    numbers = tmp_path / "numbers.json"
    arguments = ["--model", model, "--data", str(folder), "--split", "val"]
    assert main(["evaluate", *arguments, "--json", str(numbers), "--beam"]) == 0
    assert json.loads(numbers.read_text()) == expected
    assert os.listdir(tmp_path) == ["numbers.json"]
    assert expected["num_images"] == len(SIZES)
    assert 0 < expected["mean_iou"] < 1


def test_evaluation_of_shards(folder, model, expected, tmp_path):
    source = FolderSource(folder)
    convert_folder(source, tmp_path / "records", num_shards=2)
    source = TfdsSource(tmp_path / "records")
    path = tmp_path / "numbers.json"
    found = engine.evaluate_with_beam({"path": model}, source, "val", path)
    assert found == expected


def test_masks_that_overlap_are_counted_and_written(tmp_path, capsys):
    root, path = make_folder(tmp_path / "set"), tmp_path / "model.keras"
    model = DeepLabV3(
        2,
        make_toy_backbone(),
        atrous_rates=(1,),
        aspp_filters=4,
        task="multilabel",
        threshold=(0.4, 0.6),
    )
    randomize(model).save(path)
    expected = evaluate(Predictor(path), FolderSource(root), "val")
    data = ["--data", str(root), "--split", "val"]
    numbers = str(tmp_path / "numbers.json")
    arguments = ["evaluate", "--model", str(path), *data, "--json", numbers]
    assert main([*arguments, "--beam"]) == 0
    assert json.loads(Path(numbers).read_text()) == expected
    assert 0 < expected["multilabel"]["mean"]["average_precision"] < 1
    image = str(root / "images/val/val_0.png")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    arguments = ["predict", "--model", str(path), "--output"]
    assert main([*arguments, str(theirs), image]) == 0
    assert main([*arguments, str(ours), image, "--beam"]) == 0
    written = [p for p in theirs.rglob("[!.]*") if p.is_file()]
    assert len(written) == 3
    for file in written:
        own = ours / file.relative_to(theirs)
        assert own.read_bytes() == file.read_bytes()
    assert main([*arguments, str(root), image, "--beam"]) == 1
    assert "without dataset.json" in capsys.readouterr().err
    assert sorted(p.name for p in (root / "masks").iterdir()) == [
        "train",
        "val",
    ]


def test_evaluation_of_a_binary_task_of_four_bands(tmp_path):
    path = tmp_path / "model.keras"
    root = write_bands(
        tmp_path / "set",
        spec={**RANGE, "class_names": ["box"], "task": "binary"},
    )
    source = FolderSource(root)
    model = DeepLabV3(
        1,
        make_toy_backbone(channels=4),
        atrous_rates=(1,),
        aspp_filters=4,
        task="binary",
        threshold=0.4,
    )
    model.preprocess = model.preprocess.of_images(source.spec.pixels)
    randomize(model).save(path)
    expected = evaluate(Predictor(path), source, "val")
    arguments = ["--model", str(path), "--data", str(root), "--split", "val"]
    numbers = str(tmp_path / "numbers.json")
    assert main(["evaluate", *arguments, "--json", numbers, "--beam"]) == 0
    assert json.loads(Path(numbers).read_text()) == expected
    binary = expected["binary"]
    assert binary["threshold"] == 0.4
    assert 0 < binary["average_precision"] < 1
    assert 0 < binary["iou"] < 1
    # Predictions too.
    images = sorted(str(p) for p in (root / "images/val").iterdir())
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    arguments = ["predict", "--model", str(path), "--scores", "--output"]
    assert main([*arguments, str(theirs), *images]) == 0
    assert main([*arguments, str(ours), *images, "--beam"]) == 0
    names = {p.name for p in theirs.glob("[!.]*")}
    assert {p.name for p in ours.iterdir()} == {*names, engine.PREDICTIONS}
    assert any(name.endswith("_confidence.png") for name in names)
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_convert_gives_the_records_of_the_ordinary_one(folder, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    arguments = ["data", "convert", "--root", str(folder), "--shards", "2"]
    assert main([*arguments, "--output", str(theirs)]) == 0
    assert main([*arguments, "--output", str(ours), "--beam"]) == 0
    ours, theirs = (
        [record[:2] for record in source.records("val").as_numpy_iterator()]
        for source in map(TfdsSource, (ours, theirs))
    )
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == len(SIZES)


def test_counts_are_int64_and_sum_beyond_int32():
    spec = DatasetSpec(["a", "b"])
    labels = np.array([[0, 1, 1, 255]], "int32")
    predicted = np.array([[0, 0, 1, 1]], "int32")
    predicted = (predicted, None)
    counts, curve, one = engine._count((labels, (None, predicted)), spec)
    assert curve == 0
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, [[1, 0], [1, 1]])
    element = counts * 2**31, curve, one
    total, _, pictures = engine._total([element] * 3)
    assert total[1, 0] == 3 * 2**31
    assert pictures == 3
    assert engine._total([]) is None


class Flaky:
    """A predictor that fails at three pictures, once each, its work done."""

    num_classes, spec = len(CLASS_NAMES), None
    min_confidence, threshold = 0.0, None
    runtime, precision = "keras", "float32"

    def __init__(self, path):
        self.path, self.markers = path["model"], Path(path["markers"])
        self.inner = Predictor(self.path)

    def predict_batch(self, images):
        labels = self.inner.predict_batch(images)
        marker = self.markers / str(hash(images.tobytes()))
        if not marker.exists() and len(list(self.markers.iterdir())) < 3:
            marker.touch()
            raise OSError("the connection was lost")
        return labels


def test_retries_count_nothing_twice(
    folder, model, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, "Predictor", Flaky)
    markers = tmp_path / "markers"
    markers.mkdir()
    found = engine.evaluate_with_beam(
        {"path": {"model": model, "markers": str(markers)}},
        FolderSource(folder),
        "val",
        tmp_path / "numbers.json",
        [RETRYING],
    )
    assert found == expected
    assert len(list(markers.iterdir())) == 3


def test_a_failure_after_the_counting_counts_nothing_twice(
    folder, model, expected, tmp_path, monkeypatch
):
    """What a bundle has given is dropped when it fails later."""
    count, tries = engine._count, tmp_path / "tries"

    def fails_late(element, spec):
        counted = count(element, spec)
        with open(tries, "a") as file:
            file.write("x")
        if len(tries.read_text()) in (3, 6):
            raise RuntimeError("out of memory")
        return counted

    monkeypatch.setattr(engine, "_count", fails_late)
    path = tmp_path / "numbers.json"
    found = engine.evaluate_with_beam(
        {"path": model}, FolderSource(folder), "val", path, [RETRYING]
    )
    assert found == expected
    assert len(tries.read_text()) > len(SIZES)


def test_a_record_that_is_listed_twice_counts_once(
    folder, model, expected, tmp_path
):
    source = FolderSource(folder)
    source.size = lambda split: len(SIZES)
    source.pairs["val"] = source.pairs["val"] * 2
    path = tmp_path / "numbers.json"
    model = {"path": model}
    # A function of an instance does not travel; nothing asks workers for it.
    records = engine._records(source, "val")
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | records
            | beam.combiners.Count.Globally()
            | beam.Map(beam_io.write_json_file, str(path))
        )
    assert json.loads(path.read_text()) == len(SIZES)


def test_pictures_that_went_away_are_no_result(folder, model, tmp_path):
    source = FolderSource(folder)
    source.pairs["val"] = source.pairs["val"] + source.pairs["val"][:1]
    with pytest.raises(ValueError, match="has 6 images, but 5 were counted"):
        engine.evaluate_with_beam(
            {"path": model}, source, "val", tmp_path / "numbers.json"
        )


def test_bad_mask_is_one_line(folder, model, tmp_path, capsys):
    data = write_folder(tmp_path / "set", SIZES[:2])
    Image.new("L", (96, 64), 77).save(data / "masks/val/val_1.png")
    numbers = tmp_path / "numbers.json"
    arguments = ["--model", model, "--data", str(data), "--split", "val"]
    assert main(["evaluate", *arguments, "--json", str(numbers), "--beam"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Label value 77 is neither in 0..2" in said
    assert "masks/val/val_1.png" in said
    assert not numbers.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--beam needs --json"),
        (["--json", "x", "--boundaries"], "--boundaries is not for --beam"),
    ],
)
def test_flags_that_beam_does_not_take(folder, model, capsys, more, message):
    arguments = ["--model", model, "--data", str(folder), "--beam", *more]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# predict


def test_predictions_are_the_ordinary_ones(folder, model, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    images = sorted(str(p) for p in (folder / "images/val").iterdir())
    arguments = ["predict", "--model", model, "--output"]
    assert main([*arguments, str(theirs), *images]) == 0
    pattern = str(folder / "images/val/*.png")
    assert main([*arguments, str(ours), pattern, images[0], "--beam"]) == 0
    written = json.loads((ours / engine.PREDICTIONS).read_text())
    assert written == {"num_images": len(SIZES), "failed": []}
    names = {p.name for p in theirs.glob("[!.]*")}
    assert {p.name for p in ours.iterdir()} == {*names, engine.PREDICTIONS}
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_annotations_are_no_report_and_stay(folder, model, tmp_path, capsys):
    image = str(folder / "images/val/val_0.png")
    arguments = ["predict", "--model", model, "--output", str(tmp_path), image]
    assert main([*arguments, "--format", "coco"]) == 0
    path = tmp_path / engine.PREDICTIONS
    before = path.read_bytes()
    assert main([*arguments, "--beam"]) == 1
    assert "--beam` did not write" in capsys.readouterr().err
    assert path.read_bytes() == before
    path.unlink()
    for _ in range(2):
        assert main([*arguments, "--beam"]) == 0


def test_a_bad_picture_does_not_stop_the_others(
    folder, model, tmp_path, capsys
):
    (tmp_path / "bad.png").write_text("hello")
    (tmp_path / "val_0.png").write_bytes(
        (folder / "images/val/val_1.png").read_bytes()
    )
    images = [
        str(tmp_path / "*.png"),
        str(folder / "images/val/val_0.png"),
        str(tmp_path / "nowhere.png"),
    ]
    output = tmp_path / "out"
    arguments = ["--model", model, "--output", str(output), *images, "--beam"]
    assert main(["predict", *arguments]) == 1
    said = capsys.readouterr().err
    for name in ("bad.png", "nowhere.png"):
        assert sum(name in line for line in said.splitlines()) == 1
    # Two pictures of one name.
    names = sorted(p.name for p in output.glob("val_0_*_labels.png"))
    assert len(names) == 2
    assert len(list(output.iterdir())) == 2 * 3 + 1


class Choosy:
    """A predictor that takes no picture of one pixel's width."""

    num_classes, spec = len(CLASS_NAMES), None
    pixels, ignore_label = PixelFormat(), 255

    def __init__(self, path, min_confidence, **options):
        self.path, self.inner = path, Predictor(path, **options)

    def predict_batch(self, images):
        if images.shape[2] == 1:
            raise InputError("The model cannot take an image of 48x1.")
        return self.inner.predict_batch(images)


def test_a_picture_that_the_model_cannot_take(
    model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(engine, "Predictor", Choosy)
    for name, size in (("wide", (64, 48)), ("thin", (1, 48))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    output, images = str(tmp_path / "out"), str(tmp_path / "*.png")
    arguments = ["--model", model, "--output", output, images, "--beam"]
    assert main(["predict", *arguments]) == 1
    *_, first, last = capsys.readouterr().err.strip().splitlines()
    assert first.endswith("cannot take an image of 48x1. Image: thin")
    assert last.endswith("1 of 2 images failed")
    assert (tmp_path / "out" / "wide_labels.png").exists()


def test_a_pattern_without_files(model, tmp_path, capsys):
    images = str(tmp_path / "*.jpg")
    arguments = ["--model", model, "--output", str(tmp_path / "out"), images]
    assert main(["predict", *arguments, "--beam"]) == 1
    assert images in capsys.readouterr().err.strip().splitlines()[-1]
