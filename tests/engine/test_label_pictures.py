"""Sheets of pictures beside their label maps."""

import numpy as np
from PIL import Image

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.pictures import _cell, caption, draw_sheet


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
    assert right[:, :25].max() < 60
    assert right[:, 35:].min() > 120
    assert right[:, 35:].std() > 10  # hatched


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
