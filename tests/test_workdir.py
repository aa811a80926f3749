"""Examples of a split, and what an export prints."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_aspp.config.load import dump_config
from keras_aspp.config.schema import Config, DataConfig
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.fingerprint import write_fingerprint
from keras_aspp.utils.exceptions import InputError
from keras_aspp.workdir import CONFIG, Examples, Workdir, open_data


class Numbers:
    """A source whose image `i` is `i`, and each of another width."""

    def __init__(self, count):
        self.count = count

    def size(self, split):
        return self.count

    def records(self, split):
        return tf.data.Dataset.range(self.count).map(lambda i: (i, i))

    def decode(self, image, mask):
        return np.full((4, 4 + image, 3), image, "uint8"), None


@pytest.mark.parametrize(
    "total, count, expected",
    [
        (12, 3, [0, 4, 8]),
        (5, 4, [0, 1, 2, 3]),
        # Of a split with fewer images, all are taken.
        (5, 8, [0, 1, 2, 3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_images_are_spread_over_the_split(total, count, expected):
    examples = Examples(Numbers(total), "train")
    found = [int(image[0, 0, 0]) for image in examples.first(count)]
    assert found == expected
    _, sizes = examples.survey(count)
    assert sizes == {(4, 4 + i): 1 for i in range(total)}


@pytest.mark.parametrize("described", ["there", "by the run", "by options"])
def test_the_options_of_a_run_describe_no_other_described_folder(
    described, tmp_path
):
    options = {
        "class_names": ["ground", "box"],
        "label_map": {7: 1},
        "ignore_label": 9,
    }
    if described == "by the run":
        options = {}
    data = DataConfig(tfds="pets", crop_size=(96, 96), **options)
    dump_config(Config(data=data), tmp_path / CONFIG)
    (tmp_path / "model.keras").touch()
    root = folder_of(tmp_path / "folder", 7)
    if described == "by the run":
        colors = [[0, 0, 0], [9, 9, 9]]
        write_run(tmp_path, DatasetSpec(["a", "b"], 5, colors, {7: 1}))
    if described == "there":
        names = {"class_names": ["box", "ground"], "label_map": {"7": 0}}
        (root / "dataset.json").write_text(json.dumps(names))
    source, data = open_data(root, tmp_path)
    spec = source.spec
    assert data.crop_size == (96, 96)
    found = spec.class_names, spec.label_map, spec.ignore_label
    if described == "there":
        assert found == (("box", "ground"), {7: 0}, 255)
    elif described == "by the run":
        assert found == (("a", "b"), {7: 1}, 5)
        assert [*map(list, spec.colormap)] == [[0, 0, 0], [9, 9, 9]]
    else:
        assert found == (("ground", "box"), {7: 1}, 9)


def folder_of(root, *values):
    """A folder data set, one image for each value of its masks."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
        for i, value in enumerate(values):
            Image.new("L", (6, 4), value).save(root / part / f"{i}.png")
    return root


def write_run(workdir, spec, files=()):
    """What a run leaves beside its model of the data that it read."""
    (workdir / "model.keras").touch()
    specification = json.loads(json.dumps(dataclasses.asdict(spec)))
    files = {"train": dict.fromkeys(files, [1, "abc"])}
    write_fingerprint(workdir, {"specification": specification, "files": files})


@pytest.mark.parametrize(
    "options, object_label", [({}, 1), ({"label_map": {}}, 255)]
)
def test_masks_of_a_binary_run_are_read_as_its_own(
    options, object_label, tmp_path
):
    spec = DatasetSpec(["background", "box"], task="binary", **options)
    write_run(tmp_path, spec)
    dump_config(Config(data=DataConfig(root="mine")), tmp_path / CONFIG)
    source, _ = open_data(folder_of(tmp_path / "other", 0, 255), tmp_path)
    labels = {int(mask.max()) for _, mask in Examples(source, "train")}
    labels |= {int(mask.max()) for _, mask in Examples(source, "val")}
    assert source.spec.task == "binary" and labels == {0, object_label}


@pytest.mark.parametrize("own", [True, False])
def test_images_that_a_run_held_out_are_of_its_own_data(own, tmp_path):
    root = folder_of(tmp_path / "data", 0, 1, 0, 1)
    for part in ("images", "masks"):
        (root / part / "train").mkdir()
        for path in (root / part).glob("*.png"):
            path.rename(root / part / "train" / path.name)
    (root / "dataset.json").write_text('{"class_names": ["a", "b"]}')
    # The data may have moved since, or its path be relative.
    files = ["images/train/2.png", "images/train/3.png"]
    write_run(tmp_path, DatasetSpec(["a", "b"]), files)
    if not own:
        (root / files[1]).unlink()
        (root / "masks/train/3.png").unlink()
    data = DataConfig(
        root="mine",
        group_by="[0-9]",
        validation_split=None,
        validation_groups=["2"],
    )
    dump_config(Config(data=data), tmp_path / CONFIG)
    source, data = open_data(root, tmp_path)
    assert source.size("train") == 3
    assert (data.validation_split == "val") is not own


def test_the_chosen_size_is_told_before_the_phase_begins(
    tiny_workdir, tmp_path, monkeypatch, capsys
):
    def explain_int8(*_):
        raise InputError("far enough")

    monkeypatch.setattr("keras_aspp.workdir.explain_int8", explain_int8)
    workdir = Workdir(tiny_workdir)
    settings = workdir.config_with(["--export.image_size", "null"]).export
    with pytest.raises(InputError, match="far enough"):
        workdir.explain_int8(tmp_path, settings)
    size, phase = capsys.readouterr().out.splitlines()
    assert size.startswith("Files of one size take images of 128x128")
    assert phase.startswith("operators of int8: measuring ... ")
