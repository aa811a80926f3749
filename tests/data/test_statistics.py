import numpy as np
import pytest
from PIL import Image

from keras_aspp.data.folder import FolderSource
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.statistics import count_classes, sizes_of


def test_count_classes(tmp_path):
    masks = {"a": [[0, 0, 2]], "b": [[0, 255, 255]], "c": [[255, 255, 255]]}
    for part in ("images", "masks"):
        (tmp_path / part / "train").mkdir(parents=True)
    for name, mask in masks.items():
        mask = np.array(mask, "uint8")
        Image.fromarray(mask).save(tmp_path / f"masks/train/{name}.png")
        Image.new("RGB", (3, 1)).save(tmp_path / f"images/train/{name}.png")
    source = FolderSource(tmp_path, DatasetSpec(["x", "y", "z"]))
    counts = count_classes(source, "train")
    assert counts.pixels.tolist() == [3, 0, 1]
    assert counts.images.tolist() == [2, 0, 1]
    assert counts.pixels_of_images.tolist() == [4, 0, 3]
    with pytest.raises(ValueError, match="Split `val`"):
        count_classes(source, "val")


def test_sizes_of_the_first_images(tmp_path):
    for part, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / part / "train").mkdir(parents=True)
        for i, size in enumerate([(3, 1), (3, 1), (5, 2), (9, 9)]):
            Image.new(mode, size).save(tmp_path / f"{part}/train/{i}.png")
    source = FolderSource(tmp_path, DatasetSpec(["x", "y"]))
    assert sizes_of(source, "train", 3) == {(1, 3): 2, (2, 5): 1}
