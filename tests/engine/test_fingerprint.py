"""A run goes on with the data that it had, and says what changed."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tiny_run import replace, small_config, tiny_config, write_folder

from keras_aspp.data.convert import convert_folder
from keras_aspp.data.sources import open_source
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.engine.fingerprint import (
    FINGERPRINT_FILE,
    check_fingerprint,
    data_changes,
    fingerprint,
    write_fingerprint,
)
from keras_aspp.engine.run import train

SPLITS = ("train", "val")


def of(root, teacher=None):
    return fingerprint(open_source(tiny_config(root).data), SPLITS, teacher)


def describe(root, **fields):
    file = root / "dataset.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **fields}))


def flip_mask(root):
    """Moves a mask by a pixel: another picture of as many bytes or more."""
    path = root / "masks" / "train" / "train_1.png"
    Image.fromarray(np.roll(np.array(Image.open(path)), 1, 1)).save(path)


def rename(root):
    for part in ("images", "masks"):
        folder = root / part / "train"
        (folder / "train_0.png").rename(folder / "train_9.png")


def swap_bytes(root):
    """Two images change places: names and sizes may stay what they are."""
    folder = root / "images" / "val"
    a, b = folder / "val_0.png", folder / "val_1.png"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    for path in (a, b):
        os.utime(path, (0, 0))


def remove(root):
    for part in ("images", "masks"):
        (root / part / "val" / "val_2.png").unlink()


def add(root):
    for part in ("images", "masks"):
        folder = root / part / "val"
        shutil.copy(folder / "val_2.png", folder / "val_3.png")


CHANGES = [
    (
        lambda root: describe(root, class_names=["bar", "box", "ground"]),
        ["class_names: 2 of 3 entries, first number 0: ground -> bar"],
    ),
    (
        lambda root: describe(root, class_names=["a", "b", "c", "d"]),
        ["class_names: 3 entries -> 4"],
    ),
    (
        lambda root: describe(root, label_map={"2": 1}),
        ["label_map: None -> {'2': 1}"],
    ),
    (
        lambda root: describe(root, ignore_label=254),
        ["ignore_label: 255 -> 254"],
    ),
    (
        flip_mask,
        ["1 files of split train changed, first masks/train/train_1.png"],
    ),
    (
        swap_bytes,
        ["2 files of split val changed, first images/val/val_0.png"],
    ),
    (
        rename,
        [
            "2 files of split train renamed, first images/train/train_0.png "
            "-> images/train/train_9.png"
        ],
    ),
    (remove, ["2 files of split val missing, first images/val/val_2.png"]),
    (add, ["2 files of split val new, first images/val/val_3.png"]),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_each_change_is_named(tmp_path, tiny_folder, change, expected):
    root = shutil.copytree(tiny_folder, tmp_path / "data")
    before = of(root)
    # The same elsewhere, with other dates, and what only people read.
    assert before == of(tiny_folder)
    describe(root, license="CC0", name="tiny")
    os.utime(root / "masks" / "train" / "train_1.png", (0, 0))
    assert data_changes(before, of(root)) == []
    change(root)
    assert data_changes(before, of(root)) == expected


def test_records_are_compared_example_by_example(tmp_path, tiny_folder):
    """Converted anew after a mask changed, files have the same names."""
    root = shutil.copytree(tiny_folder, tmp_path / "data")

    def converted(name):
        convert_folder(open_source(tiny_config(root).data), tmp_path / name)
        return of(tmp_path / name)

    before = converted("a")
    assert data_changes(before, converted("b")) == []
    (name,) = before["files"]["train"]
    assert name == "train.tfrecord-00000-of-00001 from 0 to 3"
    flip_mask(root)
    assert data_changes(before, converted("c")) == [
        f"1 files of split train changed, first {name}"
    ]


def test_a_byte_of_a_record_changes_its_checksum(tmp_path):
    from keras_aspp.engine.fingerprint import _digest_of_records

    path = str(tmp_path / "a.tfrecord")

    def written(*records):
        with tf.io.TFRecordWriter(path) as writer:
            for record in records:
                writer.write(record)
        return _digest_of_records(path)

    one = written(b"abc", b"defg")
    assert one == written(b"abc", b"defg")
    assert one[0] == 2 * 16 + 7 == os.path.getsize(path)
    for other in ((b"abd", b"defg"), (b"defg", b"abc"), (b"abc", b"deff")):
        assert written(*other)[0] == one[0]
        assert written(*other) != one
    # No records: it ends, and says so by the digest.
    (tmp_path / "a.tfrecord").write_bytes(b"\xff" * 40)
    assert _digest_of_records(path)[0] == 40


def test_a_field_that_an_earlier_version_lacked_had_its_default(tiny_folder):
    found = of(tiny_folder)
    old = json.loads(json.dumps(found))
    del old["specification"]["mask_orientation"]
    assert data_changes(old, found) == []
    found["specification"]["mask_orientation"] = "image"
    assert data_changes(old, found) == ["mask_orientation: own -> image"]
    assert DatasetSpec(("a", "b")).mask_orientation == "own"


def test_the_teacher_is_compared_by_content(tmp_path, tiny_folder):
    teacher = tmp_path / "teacher.keras"
    teacher.write_bytes(b"abc")
    found = of(tiny_folder, teacher)
    moved = shutil.copy(teacher, tmp_path / "moved.keras")
    assert data_changes(found, of(tiny_folder, moved)) == []
    teacher.write_bytes(b"abd")
    expected = ["the file of train.distill_from"]
    assert data_changes(found, of(tiny_folder, teacher)) == expected
    assert data_changes(found, of(tiny_folder)) == expected
    # An earlier version did not record it.
    write_fingerprint(tmp_path, of(tiny_folder))
    assert not check_fingerprint(tmp_path, found)


def test_a_damaged_fingerprint_is_named(tmp_path, tiny_folder):
    found = of(tiny_folder)
    assert not check_fingerprint(tmp_path, found)
    write_fingerprint(tmp_path, found)
    assert check_fingerprint(tmp_path, found)
    for content in ("{", "[]", "{}", '{"specification": {}, "files": 3}'):
        (tmp_path / FINGERPRINT_FILE).write_text(content)
        with pytest.raises(ValueError, match="is damaged.*Received"):
            check_fingerprint(tmp_path, found)


@pytest.mark.slow
def test_a_run_whose_data_changed_is_not_resumed(tmp_path, capsys):
    root, workdir = write_folder(tmp_path / "data"), tmp_path / "run"
    train(small_config(root, total_epochs=1), workdir)
    saved = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    flip_mask(root)
    with pytest.raises(
        ValueError,
        match="data has changed since the run began.*1 files of split train",
    ):
        train(small_config(root, total_epochs=1), workdir, resume=True)
    assert saved == {p: p.read_bytes() for p in saved}
    # A workdir of an earlier version, and the data in another place.
    (workdir / FINGERPRINT_FILE).unlink()
    root = shutil.move(root, tmp_path / "moved")
    config = replace(
        small_config(root, total_epochs=1),
        model={"weights": str(tmp_path / "data" / "small.keras")},
    )
    shutil.copytree(root, tmp_path / "data")
    capsys.readouterr()
    train(config, workdir, resume=True)
    assert f"has no complete {FINGERPRINT_FILE}" in capsys.readouterr().out
    assert check_fingerprint(workdir, of(root))
