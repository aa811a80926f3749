import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_aspp.data.datasets import multiscale_shapes as shapes
from keras_aspp.data.pipeline import evaluation_dataset
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.tfds import TfdsSource

FEW = {"train": 10, "validation": 2, "test": 3}
SPEC = DatasetSpec(shapes.CLASS_NAMES)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A TFDS data directory with a few drawn examples."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes.MultiscaleShapes, "NUM_EXAMPLES", FEW)
        TfdsSource("multiscale_shapes", SPEC, data_dir=folder)
    return folder


@pytest.fixture
def source(data_dir):
    return TfdsSource("multiscale_shapes", SPEC, data_dir=data_dir)


def decoded(source, split):
    records = source.records(split).as_numpy_iterator()
    return [source.decode(*record) for record in records]


def test_drawing_says_once_what_goes_where_and_is_silent_otherwise(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(shapes.MultiscaleShapes, "NUM_EXAMPLES", FEW)
    said = []
    for _ in range(2):
        source = TfdsSource("multiscale_shapes", SPEC, data_dir=tmp_path)
        said.append(capfd.readouterr())
    folder = tmp_path / "multiscale_shapes" / "1.0.0"
    assert os.fspath(source.builder.data_path) == str(folder)
    drawing = "Drawing the 15 images of multiscale_shapes (once, about 1 s)"
    assert said == [(f"{drawing} into {folder} ...\n", ""), ("", "")]


def stored_as(file_format, data_dir, folder):
    """A copy of the data set whose files are said to be of a format."""
    shutil.copytree(data_dir / "multiscale_shapes" / "1.0.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = file_format
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.slow
def test_array_records_are_read_like_tfrecords(source, data_dir, tmp_path):
    array_record_module = pytest.importorskip(
        "array_record.python.array_record_module",
        reason="array_record is for Linux only (2026-11-29)",
    )
    folder = stored_as("array_record", data_dir, tmp_path / "set" / "1.0.0")
    for file in folder.glob("*.tfrecord-*"):
        path = str(file).replace(".tfrecord-", ".array_record-")
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            writer.write(record)
        writer.close()
        file.unlink()
    found = TfdsSource(folder, SPEC)
    for split in ("train", "train[20%:70%]"):
        expected = list(source.records(split).as_numpy_iterator())
        actual = list(found.records(split).as_numpy_iterator())
        assert len(actual) == found.size(split)
        assert [r[:2] for r in actual] == [r[:2] for r in expected]
    shuffled = [
        [(number, record[:2]) for number, record in ds.as_numpy_iterator()]
        for ds in (found.shuffled("train", 3), source.shuffled("train", 3))
    ]
    assert shuffled[0] == shuffled[1]
    (shard,) = found.shards("test")
    assert len(list(found.read_shard(shard, "test"))) == FEW["test"]


@pytest.mark.parametrize("file_format", ["parquet", "riegeli"])
def test_data_of_another_format_is_refused_when_opened(
    file_format, data_dir, tmp_path
):
    folder = stored_as(file_format, data_dir, tmp_path / "set" / "1.0.0")
    with pytest.raises(
        ValueError,
        match="stored as tfrecord or array_record; .*converts it. "
        f"Received: file_format='{file_format}'",
    ):
        TfdsSource(folder, SPEC)


def test_array_records_without_their_package_are_refused_when_opened(
    data_dir, tmp_path, monkeypatch
):
    folder = stored_as("array_record", data_dir, tmp_path / "set" / "1.0.0")
    monkeypatch.setattr("keras_aspp.data.tfds.is_installed", lambda name: False)
    with pytest.raises(ValueError, match="needs `pip install array_record`"):
        TfdsSource(folder, SPEC)


def test_examples_are_the_stored_ones(source):
    stored = list(tfds.as_numpy(source.builder.as_dataset(split="train")))
    ours = decoded(source, "train")
    assert len(ours) == source.size("train") == 10
    for (image, labels), example in zip(ours, stored, strict=True):
        assert image.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(image, example["image"])
        np.testing.assert_array_equal(
            labels, example["segmentation_mask"][..., 0]
        )


def test_records_are_encoded_and_hold_nothing_else(source):
    dataset = source.records("test")
    assert [s.dtype for s in dataset.element_spec] == [tf.string] * 3
    image, mask, where = next(dataset.as_numpy_iterator())
    (stored, *_) = tfds.as_numpy(source.builder.as_dataset(split="test"))
    assert image.startswith(b"\x89PNG")
    assert mask.startswith(b"\x89PNG")
    assert where == b"multiscale_shapes test, record 0 (%b)" % stored["id"]


def test_order_is_the_same_every_time(source):
    once, again = (
        list(source.records("train").as_numpy_iterator()) for _ in "ab"
    )
    assert once == again


def test_slices_of_a_split_are_disjoint_and_complete(source):
    parts = [
        [r[0] for r in source.records(s).as_numpy_iterator()]
        for s in ("train[:70%]", "train[70%:]", "train")
    ]
    assert [source.size(s) for s in ("train[:70%]", "train[70%:]")] == [7, 3]
    assert parts[0] + parts[1] == parts[2]


@pytest.mark.parametrize("split", ["val", "train[:10"])
def test_unknown_split(source, split):
    for ask in (source.size, source.records):
        with pytest.raises(ValueError, match="Received: split=.*'validation'"):
            ask(split)


def test_empty_slice(source):
    with pytest.raises(ValueError, match=r"empty. Received: split='train\[:0"):
        source.size("train[:0%]")


def test_unknown_data_set():
    with pytest.raises(ValueError, match="Received: name='no_such_thing'"):
        TfdsSource("no_such_thing", SPEC)


@pytest.mark.parametrize("keys", [("picture", "instances"), ("image", "id")])
def test_feature_that_is_no_picture(data_dir, keys):
    with pytest.raises(ValueError, match="has no image .* Received: feature"):
        TfdsSource("multiscale_shapes", SPEC, *keys, data_dir=data_dir)


def test_data_that_cannot_be_had_is_one_line(tmp_path):
    # Cityscapes wants its archives put there by hand.
    with pytest.raises(ValueError, match="could not be prepared") as error:
        TfdsSource(
            "cityscapes/semantic_segmentation",
            SPEC,
            "image_left",
            "segmentation_label",
            data_dir=tmp_path,
        )
    assert str(tmp_path / "downloads/manual") in str(error.value)
    assert "\n" not in str(error.value)


def test_label_map_is_applied(data_dir):
    mapped = DatasetSpec(
        ["ground", "round", "other"],
        ignore_label=99,
        label_map={
            0: 0,
            1: 1,
            6: 1,
            7: "ignore",
            **dict.fromkeys(range(2, 6), 2),
        },
    )
    name, key = "multiscale_shapes", "segmentation_mask"
    plain = decoded(TfdsSource(name, SPEC, data_dir=data_dir), "train")
    ours = decoded(TfdsSource(name, mapped, "image", key, data_dir), "train")
    table = np.array([0, 1, 2, 2, 2, 2, 1, 99])
    stored = np.concatenate([labels for _, labels in plain])
    labels = np.concatenate([labels for _, labels in ours])
    assert len(np.unique(stored)) > 5
    np.testing.assert_array_equal(labels, table[stored])


def test_label_out_of_range_names_the_record(data_dir):
    source = TfdsSource(
        "multiscale_shapes", DatasetSpec(["ground", "box"]), data_dir=data_dir
    )
    with pytest.raises(
        tf.errors.OpError,
        match=(
            r"Label value \d.* neither in 0..1 .*File: multiscale_shapes "
            r"validation, record 0 \(validation_0000\d\), segmentation_mask "
            r"\(\d+ pixels\)"
        ),
    ):
        list(evaluation_dataset(source, "validation", 1))
