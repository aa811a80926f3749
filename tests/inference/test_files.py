"""Files of predictions: their names, and what they never replace."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from keras_aspp.data.decode import RGB
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.inference.files import predict_files
from keras_aspp.utils.files import WrittenFiles

SPEC = DatasetSpec(["background", "car", "tree"])
OVERLAPPING = DatasetSpec(["cell", "nucleus"], task="multilabel")


class Reader:
    """A predictor that reads labels from red, with all scores."""

    pixels, has_confidence, has_probabilities = RGB, True, True

    def __init__(self, spec=SPEC):
        self.spec, self.num_classes = spec, spec.num_classes
        self.is_multilabel = spec.is_multilabel

    def predict_batch(self, images):
        labels = images[..., 0] // 100
        if not self.is_multilabel:
            return labels
        return (labels[..., None] > np.arange(2)).astype("uint8")

    def predict(self, image, return_confidence, return_probabilities):
        labels = self.predict_batch(image[None])[0]
        probabilities = np.eye(self.num_classes, dtype="float32")[labels]
        if self.is_multilabel:
            return labels, labels.astype("float32")
        return labels, 1 / (1 + labels), probabilities


def write_image(path, red=100, left=4):
    """Writes a box of red on black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((20, 30, 3), "uint8")
    image[3:9, left:16, 0] = red
    Image.fromarray(image).save(path)
    return path


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        # The record grows by each call.
        if path.is_file() and path.name != ".predict.sha256"
    }


# What is never replaced


HAND_MADE = {"version": "5.5.0", "shapes": [], "flags": {"checked": True}}
PLACES = [
    ("a.json", SPEC, {"annotation_format": "labelme"}),
    ("predictions.json", SPEC, {"annotation_format": "coco"}),
    ("a_labels.png", SPEC, {}),
    ("a_color.png", SPEC, {}),
    ("a_overlay.png", SPEC, {}),
    ("a_confidence.png", SPEC, {"scores": True}),
    ("a_probabilities.npz", SPEC, {"scores": True}),
    ("masks/cell/a.png", OVERLAPPING, {}),
    ("masks/nucleus/a.png", OVERLAPPING, {}),
]


@pytest.mark.parametrize("place, spec, options", PLACES)
def test_a_file_of_other_hands_stays_and_nothing_is_predicted(
    place, spec, options, tmp_path
):
    images = [write_image(tmp_path / f"in/{name}.png") for name in "ba"]
    output = tmp_path / "out"
    made = output / place
    made.parent.mkdir(parents=True)
    made.write_text(json.dumps(HAND_MADE))
    message = f"not replaced. Name another.*Received: .*{place}$"
    with pytest.raises(FileExistsError, match=message):
        predict_files(Reader(spec), images, output, **options)
    assert contents(output) == {place: json.dumps(HAND_MADE).encode()}


@pytest.mark.parametrize("place, spec, options", PLACES)
def test_only_predictions_that_nobody_changed_are_replaced(
    place, spec, options, tmp_path
):
    image = write_image(tmp_path / "in/a.png", red=200)
    output = tmp_path / "out"
    predict_files(Reader(spec), [image], output, **options)
    first = contents(output)
    predict_files(Reader(spec), [image], output, **options)
    assert contents(output) == first
    write_image(image, red=200, left=7)
    predict_files(Reader(spec), [image], output, **options)
    second = contents(output)
    assert {*first} == {*second} and place in second
    assert not set(first.values()) & set(second.values())
    corrected = output / place
    corrected.write_bytes(corrected.read_bytes() + b"\n")
    second[place] += b"\n"
    with pytest.raises(FileExistsError, match=f"changed since.*{place}$"):
        predict_files(Reader(spec), [image], output, **options)
    assert contents(output) == second
    corrected.unlink()
    predict_files(Reader(spec), [image], output, **options)
    assert contents(output)[place] == second[place].removesuffix(b"\n")


def test_the_message_counts_the_files(tmp_path):
    images = [write_image(tmp_path / f"in/{name}.png") for name in "abc"]
    output = tmp_path / "out"
    output.mkdir()
    for name in ("b_labels.png", "c_labels.png", "c_color.png", "d_color.png"):
        (output / name).touch()
    with pytest.raises(FileExistsError, match=r"b_labels.png and 2 more$"):
        predict_files(Reader(), images, output)


def test_images_without_a_prediction_do_not_hinder_the_next_call(tmp_path):
    """Neither one that fails, nor a call that ended in the middle."""
    images = [write_image(tmp_path / f"in/{name}.png") for name in "abc"]
    images[1].write_text("hello")
    output = tmp_path / "out"

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(Reader(), images, output, stop)
    assert (output / "a_labels.png").exists()
    assert not (output / "c_labels.png").exists()
    with open(output / ".predict.sha256", "a") as file:
        file.write("\n0123")  # of a process that was killed
    for _ in range(2):
        rows, messages = predict_files(Reader(), images, output)
        assert [row[0] for row in rows] == ["a.png", "c.png"]
        assert len(messages) == 1 and "b.png" in messages[0]


def test_a_killed_call_goes_on_and_keeps_what_was_corrected(
    tmp_path, monkeypatch
):
    images = [write_image(tmp_path / f"in/{name}.png") for name in "ab"]
    output = tmp_path / "out"
    predict_files(Reader(), images[:1], output)
    corrected = output / "a_labels.png"
    corrected.write_bytes(corrected.read_bytes() + b"\n")
    # Files are there, and the process ended before it recorded them.
    with monkeypatch.context() as killed:
        killed.setattr(WrittenFiles, "add", lambda *_: None)
        predict_files(Reader(), images[1:], output)
    with pytest.raises(FileExistsError, match="Received: .*a_labels.png$"):
        predict_files(Reader(), images, output)
    corrected.unlink()
    predict_files(Reader(), images, output)
    # The next correction is told from what was written.
    (output / "b_color.png").write_bytes(b"")
    with pytest.raises(FileExistsError, match="Received: .*b_color.png$"):
        predict_files(Reader(), images, output)


def test_masks_are_not_added_to_a_data_set(tmp_path):
    """There, a missing mask says that the class is absent."""
    image = write_image(tmp_path / "set/images/a.png")
    (tmp_path / "set/dataset.json").write_text("{}")
    before = contents(tmp_path / "set")
    message = "a data set reads as its own; name a folder without dataset.json"
    with pytest.raises(FileExistsError, match=f"{message}. Received: .*set$"):
        predict_files(Reader(OVERLAPPING), [image], tmp_path / "set")
    assert contents(tmp_path / "set") == before
    predict_files(Reader(), [image], tmp_path / "set")


@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_the_output_is_a_folder(name, tmp_path):
    image = write_image(tmp_path / "a.png")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=f"be a folder.*{name}'$"):
        predict_files(Reader(), [image], tmp_path / name)


# Names


def test_a_name_belongs_to_its_only_image_in_any_order(tmp_path):
    reds = {"mon/img": 0, "tue/img": 100, "tue/img_2": 200, "wed/img": 210}
    images = {
        write_image(tmp_path / f"in/{name}.png", red): red
        for name, red in reds.items()
    }
    expected = {"img": 0, "img_2": 200, "img_3": 100, "img_4": 210}
    for number, order in enumerate(itertools.permutations(images)):
        output = tmp_path / f"out_{number}"
        rows, _ = predict_files(
            Reader(), order, output, annotation_format="labelme"
        )
        shown = {path.name: name for name, path, _ in rows}
        assert shown["img_2_overlay.png"] == "img_2.png"
        for name, red in expected.items():
            labels = np.array(Image.open(output / f"{name}_labels.png"))
            assert labels.max() == red // 100, name
            annotated = json.loads((output / f"{name}.json").read_text())
            image = (output / annotated["imagePath"]).resolve()
            assert images[image] == red
