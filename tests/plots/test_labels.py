"""Sheets of pictures beside their label maps."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.tensorboard import ValidationImages
from keras_aspp.plots.labels import (
    _cell,
    _legend,
    caption,
    color_labels,
    draw_sheet,
    ignored_color,
    overlay,
    unpainted_classes,
)
from keras_aspp.plots.preview import _places, write_preview

RNG = np.random.default_rng(3)


def size_of(file):
    with Image.open(file) as image:
        return image.size


def test_sheets_of_one_picture_many_classes_and_all_ignored(tmp_path):
    spec = DatasetSpec([f"class number {i}" for i in range(150)])
    image = np.zeros((900, 400, 3), "uint8")
    labels = np.full((900, 400), 255)
    sheet = tmp_path / "sheet.png"
    draw_sheet(sheet, "one", [(caption("a" * 90, labels), image, labels)], spec)
    before = size_of(sheet)
    labels = np.arange(900 * 400).reshape(900, 400) % 150
    draw_sheet(sheet, "one", [("a", image, labels)], spec)
    assert size_of(sheet)[1] > before[1]  # the legend has grown


def test_ignored_pixels_look_like_no_class():
    spec = DatasetSpec(["black", "red"])
    image = np.full((40, 60, 3), 90, "uint8")
    labels = np.zeros((40, 60), "int32")
    labels[:, 30:] = 255
    cell = _cell(image, [labels], spec)
    right = cell[:, -60:]
    assert (right[:, :25] == 90).all()
    assert right[:, 35:].min() > 120
    assert right[:, 35:].std() > 10  # hatched


def test_the_ignore_label_of_masks_blackens_no_class():
    colors = [[9, 0, 0], [0, 9, 0], [0, 0, 9], [7, 8, 9]]
    masks, one = (
        DatasetSpec(list("abcd"), 3 + i, colormap=colors, task=task)
        for i, task in enumerate(("multilabel", "semantic"))
    )
    assert color_labels(np.array([3, 2]), masks).tolist() == colors[:1:-1]
    assert color_labels(np.array([3, 4]), one).tolist() == [[7, 8, 9], [0] * 3]


def test_ignored_pixels_get_a_color_that_no_class_has():
    spec = DatasetSpec(["a", "b"])
    other = DatasetSpec(["a", "b"], colormap=[ignored_color(spec), (0, 0, 0)])
    for one in (spec, other):
        color = ignored_color(one)
        assert color not in one.colors() and min(color) > 150
        found = color_labels(np.array([0, 255]), one, color).tolist()
        assert found == [list(one.colors()[0]), list(color)]


def test_the_legend_of_a_preview_flows_in_even_rows():
    one, four = _places([40] * 5, 210), _places([40] * 5, 199)
    assert one == ([(0, 0), (40, 0), (80, 0), (120, 0), (160, 0)], 1)
    assert four == ([(0, 0), (40, 0), (80, 0), (0, 1), (40, 1)], 2)
    # Columns are as wide as their own entries; one too wide has its row.
    assert _places([90, 10, 10, 10], 100)[0][1::2] == [(90, 0), (90, 1)]
    assert _places([300, 20], 100) == ([(0, 0), (0, 1)], 2)
    assert _places([], 100) == ([], 0)


def test_a_cell_has_the_picture_and_every_map():
    spec = DatasetSpec(["black", "red"])
    image = np.full((40, 60, 3), 90, "uint8")
    labels = np.zeros((40, 60), "int32")
    one, two = _cell(image, [labels], spec), _cell(image, [labels] * 2, spec)
    gap = one.shape[1] - 120
    assert two.shape == (40, 180 + 2 * gap, 3)


def test_caption_is_short():
    labels = np.zeros((4, 6))
    assert caption("a/b/c.png", labels) == "c.png  4x6"
    assert caption("shapes test, record 7", labels) == "record 7  4x6"
    assert len(caption("x" * 200, labels)) < 60


def test_the_background_is_not_painted():
    spec = DatasetSpec(["background", "red", "green"])
    image = RNG.integers(0, 256, (6, 7, 3)).astype("uint8")
    labels = np.zeros((6, 7), "int32")
    labels[1], labels[2], labels[3] = 1, 2, 255
    found = overlay(image, labels, spec)
    np.testing.assert_array_equal(found[[0, 3, 4, 5]], image[[0, 3, 4, 5]])
    for row, color in ((1, (128, 0, 0)), (2, (0, 128, 0))):
        expected = np.round(0.45 * image[row] + 0.55 * np.array(color))
        assert np.abs(found[row] - expected).max() <= 1  # float32


@pytest.mark.parametrize(
    ("names", "colormap", "expected"),
    [
        (["background", "cat"], None, [0]),
        (["cat", "__Background__"], None, [1]),  # as torchvision names it
        # A name says more than a color.
        (["crack", "background"], [(0, 0, 0), (255, 255, 255)], [1]),
        (["other", "cat"], None, [0]),  # black by the palette of VOC
        (["road", "car"], [(128, 64, 128), (0, 0, 142)], []),
        (["road", "backgrounds"], [(9, 9, 9), (0, 0, 0)], [1]),
    ],
)
def test_classes_that_are_not_painted(names, colormap, expected):
    spec = DatasetSpec(names, colormap=colormap)
    assert unpainted_classes(spec) == expected


def test_the_background_of_a_binary_task_is_class_0():
    spec = DatasetSpec(
        ["paper", "ink"],
        colormap=[(255, 255, 255), (0, 0, 0)],
        task="binary",
    )
    assert unpainted_classes(spec) == [0]
    image, labels = np.full((4, 6, 3), 200, "uint8"), np.zeros((4, 6), "int32")
    labels[1, 2:4] = 1
    found = overlay(image, labels, spec)
    np.testing.assert_array_equal((found != image).any(-1), labels == 1)


def test_legends_say_what_is_not_painted(tmp_path):
    spec = DatasetSpec(["background", "a name of more than one column", "x"])
    labels = np.arange(3).repeat(400).reshape(30, 40)
    image = np.full((30, 40, 3), 200, "uint8")
    background, *painted = _legend([("", image, labels)], spec)
    assert background.get_label() == "background (not painted)"
    assert background.get_facecolor()[3] == 0
    assert [p.get_label() for p in painted] == list(spec.class_names[1:])
    write_preview(tmp_path / "preview.png", image, labels, spec)
    with Image.open(tmp_path / "preview.png") as file:
        sheet = np.asarray(file)
    left, right = sheet[:240, :320], sheet[:240, 328:648]
    np.testing.assert_array_equal(left[:80], right[:80])
    assert (left[80:] != right[80:]).any(-1).all()
    assert (sheet[:240, 320:328] == 255).all()
    legend = sheet[240:]
    assert (legend[12, 12] == 255).all()  # the swatch of the background


class Scores:
    """A model that predicts class 1 in the upper half."""

    def preprocess(self, images):
        return np.asarray(images, "float32")

    def __call__(self, images, training):
        scores = np.zeros((*images.shape[:3], 2), "float32")
        scores[:, : images.shape[1] // 2, :, 1] = 1
        return scores


def test_tensorboard_shows_labels_over_the_image(tmp_path, monkeypatch):
    spec = DatasetSpec(["background", "red"])
    images = RNG.integers(0, 256, (2, 8, 6, 3)).astype("uint8")
    labels = np.zeros((2, 8, 6), "int32")
    labels[:, -4:], labels[0, 0] = 1, 255
    callback = ValidationImages(images, labels, spec, tmp_path)
    callback.set_model(Scores())
    shown = {}

    def image(name, rows, step, max_outputs):
        shown[name] = np.asarray(rows)

    monkeypatch.setattr(tf.summary, "image", image)
    callback.on_test_end()
    (rows,) = shown.values()
    assert rows.shape == (2, 8, 18, 3)
    np.testing.assert_array_equal(rows[:, :, :6], images)
    label, prediction = rows[:, :, 6:12], rows[:, :, 12:]
    np.testing.assert_array_equal(label[1, :4], images[1, :4])
    np.testing.assert_array_equal(prediction[:, 4:], images[:, 4:])
    for painted, i in ((label, slice(4, 8)), (prediction, slice(0, 4))):
        np.testing.assert_array_equal(
            painted[1, i], overlay(images[1, i], np.ones((4, 6), int), spec)
        )
    assert label[0, 0].min() >= 150  # hatched: ignored
