"""A folder data set as sharded records: the same pictures, in any order."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
from PIL import Image, ImageOps
from tiny_run import write_folder

from keras_aspp.cli.main import main
from keras_aspp.config.schema import DataConfig
from keras_aspp.data import convert, pipeline
from keras_aspp.data import tfds as tfds_source
from keras_aspp.data.augment import AugmentConfig
from keras_aspp.data.convert import convert_folder
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.pipeline import (
    evaluation_dataset,
    images_of_batch,
    training_dataset,
)
from keras_aspp.data.sources import open_source
from keras_aspp.data.tfds import TfdsSource
from keras_aspp.data.upright import write_upright
from keras_aspp.utils.exceptions import InputError

COUNT, SHARDS, BATCH = 23, 5, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """JPEG and PNG pictures; masks that need a label map."""
    root = tmp_path_factory.mktemp("folder") / "set"
    sizes = [(64, 96), (72, 60)] * 12
    write_folder(root, sizes[:COUNT], splits=("train", "val"))
    for i in range(3):
        path = root / "images/train" / f"train_{i}.png"
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    described = json.loads((root / "dataset.json").read_text())
    described |= {"ignore_label": 200, "label_map": {"255": "ignore", "2": 1}}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


@pytest.fixture(scope="module")
def records(folder):
    output = folder.parent / "shapes" / "1.0.0"
    written = convert_folder(FolderSource(folder), output, SHARDS)
    assert written == {"train": (COUNT, SHARDS), "val": (COUNT, SHARDS)}
    return output


def examples(source, split):
    return sorted(
        (image.tobytes(), labels.tobytes(), image.shape)
        for image, labels in (
            source.decode(*record)
            for record in source.records(split).as_numpy_iterator()
        )
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_and_labels_are_those_of_the_folder(folder, records, split):
    ours, theirs = TfdsSource(records), FolderSource(folder)
    assert examples(ours, split) == examples(theirs, split)
    assert ours.size(split) == theirs.size(split) == COUNT
    assert ours.spec.class_names == theirs.spec.class_names
    assert ours.spec.ignore_label == 200
    # The masks hold classes now: mapping them once more would be wrong.
    assert ours.spec.label_map is None


def test_picture_files_are_stored_as_they_are(folder, records):
    stored = {
        image
        for image, *_ in TfdsSource(records)
        .records("train")
        .as_numpy_iterator()
    }
    files = (folder / "images/train").iterdir()
    assert stored == {path.read_bytes() for path in files}


def test_configurations_and_tfds_read_it(records):
    by_root = open_source(DataConfig(root=str(records)))
    by_name = open_source(
        DataConfig(tfds="shapes", data_dir=str(records.parents[1]))
    )
    assert examples(by_root, "val") == examples(by_name, "val")
    assert by_name.spec == by_root.spec
    plain = tfds.load("shapes", data_dir=records.parents[1], split="val")
    masks = [x["segmentation_mask"].numpy()[..., 0] for x in plain]
    expected = [labels for _, labels, _ in examples(by_root, "val")]
    assert sorted(m.astype("int32").tobytes() for m in masks) == sorted(
        expected
    )


def test_messages_name_the_picture(records):
    source = TfdsSource(records)
    _, second, *_ = source.records("val").as_numpy_iterator()
    assert source.name_of(second).startswith(f"{records} val, record 1 (val_")


# Training: the order of the pictures.


def read_by_shard(patch):
    """As with a data set that fits neither memory nor the shuffle buffer."""
    patch.setattr(pipeline, "CACHE_BYTES", 0)
    patch.setattr(tfds_source, "SHUFFLE_RECORDS", 4)
    patch.setattr(tfds_source, "SHARDS_AT_ONCE", 3)


@pytest.fixture
def by_shard(monkeypatch):
    read_by_shard(monkeypatch)


def batches(source, count, **kwargs):
    dataset = training_dataset(
        source,
        "train",
        AugmentConfig(),
        (64, 64),
        BATCH,
        lambda image: image,
        **kwargs,
    )
    return [(x.numpy(), y.numpy()) for x, y in dataset.take(count)]


@pytest.fixture(scope="module")
def whole(records):
    """Batches from the beginning of a run that reads by shard."""
    with pytest.MonkeyPatch.context() as patch:
        read_by_shard(patch)
        return batches(TfdsSource(records), 14)


def names(source, count, seed=0):
    """Names of the first pictures that a run sees."""
    return images_of_batch(source, "train", count, seed, step=0)


def shard_of(records):
    """Name -> number of its shard."""
    source = TfdsSource(records)
    found = {}
    for i, shard in enumerate(source.shards("train")):
        for record in source.read_shard(shard, "train"):
            found[source.name_of(record)] = i
    assert len(found) == COUNT
    return found


@pytest.mark.slow
def test_each_epoch_sees_each_picture_once_in_another_order(records, by_shard):
    seen = names(TfdsSource(records), 3 * COUNT)
    epochs = [seen[i * COUNT : (i + 1) * COUNT] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(shard_of(records))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_pictures_of_several_shards_make_a_batch(records, by_shard):
    shards = shard_of(records)
    seen = [shards[name] for name in names(TfdsSource(records), 20)]
    mixed = [len(set(seen[i : i + BATCH])) for i in range(0, 20, BATCH)]
    assert min(mixed) >= 2
    # In no order of the shards.
    firsts = {
        shards[names(TfdsSource(records), 1, seed)[0]] for seed in range(6)
    }
    assert len(firsts) >= 3


@pytest.mark.parametrize("first", [0, 5, 12])
def test_resumed_run_sees_what_it_would_have_seen(
    records, by_shard, whole, first
):
    rest = batches(TfdsSource(records), 14 - first, first_example=first * BATCH)
    for a, b in zip(whole[first:], rest, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_another_seed_gives_other_batches(records, by_shard, whole):
    other = batches(TfdsSource(records), 3, seed=4)
    for (one, _), (another, _) in zip(whole, other, strict=False):
        assert (one != another).any()


def test_evaluation_sees_each_picture_once(folder, records):
    def counts(source):
        total = np.zeros(256, "int64")
        for _, labels in evaluation_dataset(source, "val", 4):
            total += np.bincount(labels.numpy().ravel(), minlength=256)
        return total[:200]

    np.testing.assert_array_equal(
        counts(TfdsSource(records)), counts(FolderSource(folder))
    )


# Nothing or all of it.


@pytest.fixture
def bad(tmp_path):
    root = write_folder(tmp_path / "bad")
    Image.new("L", (96, 64), 77).save(root / "masks/val/val_1.png")
    return root


def test_a_bad_mask_is_named_and_leaves_nothing(bad, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    output = str(tmp_path / "out")
    arguments = ["--root", str(bad), "--output", output]
    assert main(["data", "convert", *arguments]) == 1
    said = capsys.readouterr().err
    assert "Label value 77 is neither in 0..2" in said
    assert "masks/val/val_1.png" in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    root = write_folder(tmp_path / "set", splits=("train",))
    for part in ("images", "masks"):
        path = root / part / "train/train_0.png"
        path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))
    with pytest.raises(ValueError, match="names of UTF-8; rename"):
        convert_folder(FolderSource(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_convert_leaves_nothing(folder, tmp_path):
    def interrupted(pairs):
        yield from pairs[:5]
        raise KeyboardInterrupt

    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        convert_folder(FolderSource(folder), output, progress=interrupted)
    assert list(tmp_path.iterdir()) == []
    # What a kill leaves goes with the next one.
    (tmp_path / ".out.tmp" / "out").mkdir(parents=True)
    (tmp_path / ".out.tmp" / "out" / "half").write_text("")
    convert_folder(FolderSource(folder), output)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("room", [0, 4096, 20_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    folder, tmp_path, capsys, room
):
    """A limit on the size of files fails writes just as a full disk does."""
    resource = pytest.importorskip(
        "resource", reason="only Unix limits file sizes (2026-11-29)"
    )
    output = tmp_path / "records"
    arguments = ["--root", str(folder), "--output", str(output)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        status = main(["data", "convert", *arguments])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "File too large" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="Received: output=.*out"):
        convert_folder(FolderSource(folder), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("num_shards", [0, -1, COUNT + 1])
def test_impossible_numbers_of_shards(folder, tmp_path, num_shards):
    with pytest.raises(ValueError, match=f"Received: num_shards={num_shards}"):
        convert_folder(FolderSource(folder), tmp_path / "out", num_shards)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_without_a_mask_is_no_silent_loss(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "set")
    (root / "masks/val/val_3.png").unlink()
    with pytest.raises(ValueError, match="Image without a mask. .*val_3.png"):
        convert_folder(FolderSource(root), tmp_path / "out")


def test_without_beam_one_line_says_what_to_install(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    arguments = ["--root", str(folder), "--output", str(tmp_path / "out")]
    assert main(["data", "convert", *arguments, "--beam"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'keras-aspp[beam]'" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_beam_options_need_beam(folder, tmp_path, capsys):
    arguments = ["--root", str(folder), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(["data", "convert", *arguments, "--beam-options", "--runner=X"])
    assert stop.value.code == 2
    assert "--beam-options needs --beam" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("camvid", ("camvid", "1.0.0")),
        ("camvid/2.1.0", ("camvid", "2.1.0")),
        ("My set-3", ("my_set_3", "1.0.0")),
        ("2024", ("data_2024", "1.0.0")),
    ],
)
def test_names(tmp_path, folder, expected):
    assert convert._name_and_version(tmp_path / folder) == expected


@pytest.mark.parametrize("mask_orientation", ["own", "image"])
def test_what_others_would_read_otherwise_is_stored_upright(
    tmp_path, mask_orientation
):
    """As TFDS' own reader, which knows neither EXIF nor WebP."""
    root = write_folder(tmp_path / "set", [(64, 96)], ["train", "val"])
    described = json.loads((root / "dataset.json").read_text())
    described["mask_orientation"] = mask_orientation
    (root / "dataset.json").write_text(json.dumps(described))
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = (
        root / part / "train/train_0.png" for part in ("images", "masks")
    )
    with Image.open(image) as stored:
        stored.save(image.with_suffix(".webp"), lossless=True, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(image.with_suffix(".webp")))
    image.unlink()
    labels = np.rot90(np.array(Image.open(mask)), -1)
    if mask_orientation == "own":
        Image.fromarray(np.ascontiguousarray(labels)).save(mask)
    source = FolderSource(root)
    convert_folder(source, tmp_path / "records")
    builder = tfds.builder_from_directory(tmp_path / "records")
    (read,) = tfds.as_numpy(builder.as_dataset(split="train"))
    np.testing.assert_array_equal(read["image"], np.array(upright))
    np.testing.assert_array_equal(read["segmentation_mask"][..., 0], labels)
    ours = TfdsSource(tmp_path / "records")
    assert examples(ours, "train") == examples(source, "train")


def write_tiffs(root, described):
    """RGB; RGB with an alpha band of zeros in two rows, turned by 90 degrees.

    Returns the labels of the second image as training reads them.
    """
    pixels = np.random.default_rng(2).integers(1, 255, (6, 10, 4), "uint8")
    pixels[..., 3] = 255
    pixels[:2, :, 3] = 0
    for part in ("images", "masks"):
        (root / part / "train").mkdir(parents=True)
    images = root / "images/train"
    tifffile.imwrite(images / "a.tif", pixels[..., :3], photometric="rgb")
    tifffile.imwrite(
        images / "b.tif",
        pixels,
        photometric="rgb",
        extrasamples=["unassalpha"],
        extratags=[(274, "H", 1, 6, True)],
    )
    (root / "dataset.json").write_text(json.dumps(described))
    masks = root / "masks/train"
    if "task" in described:
        np.save(masks / "a.npy", np.ones((6, 10, 2), "uint8"))
        np.save(masks / "b.npy", np.ones((10, 6, 2), "uint8"))
    else:
        Image.new("L", (10, 6), 1).save(masks / "a.png")
        Image.new("L", (6, 10), 1).save(masks / "b.png")
    upright = np.ones((10, 6), "int32")
    upright[:, 4:] = 255  # the upper rows of the stored image
    return upright


@pytest.mark.parametrize(
    "described",
    [
        {"class_names": ["ground", "box"]},
        {"class_names": ["cell", "core"], "task": "multilabel"},
    ],
    ids=["semantic", "multilabel"],
)
@pytest.mark.parametrize("command", ["convert", "fix"])
def test_copies_of_tiffs_ignore_the_same_pixels(command, described, tmp_path):
    root, output = tmp_path / "set", tmp_path / "out"
    upright = write_tiffs(root, described)
    source = FolderSource(root)
    if command == "convert":
        convert_folder(source, output)
        copy = TfdsSource(output)
    else:
        assert write_upright(source, output) == 1
        copy = FolderSource(output)
        first = "images/train/a.tif"
        assert (output / first).read_bytes() == (root / first).read_bytes()
    assert examples(copy, "train") == examples(source, "train")
    labels = [
        copy.decode(*record)[1]
        for record in copy.records("train").as_numpy_iterator()
    ]
    (labels,) = [one for one in labels if one.shape[:2] == (10, 6)]
    if "task" in described:
        upright = np.stack([upright] * 2, -1)
    np.testing.assert_array_equal(labels, upright)


def test_a_copy_keeps_the_labels_of_images_that_are_not_turned(tmp_path):
    """Their alpha band may be read as data later, by `channels`."""
    root = tmp_path / "set"
    write_tiffs(root, {"class_names": ["ground", "box"]})
    path = root / "images/train/b.tif"
    pixels = tifffile.imread(path)
    rgba = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(path, pixels, **rgba)
    Image.new("L", (10, 6), 1).save(root / "masks/train/b.png")
    assert write_upright(FolderSource(root), tmp_path / "out") == 0
    with Image.open(tmp_path / "out/masks/train/b.png") as mask:
        assert np.unique(np.array(mask)).tolist() == [1]


def test_images_of_more_than_8_bits_are_refused(tmp_path):
    root = tmp_path / "set"
    write_tiffs(root, {"class_names": ["ground", "box"]})
    deep = np.ones((6, 10, 3), "uint16")
    tifffile.imwrite(root / "images/train/a.tif", deep, photometric="rgb")
    with pytest.raises(ValueError, match="3 bands of uint16"):
        convert_folder(FolderSource(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["my val", "a.b", "all", "train+x", "v[1]"])
def test_splits_that_tfds_cannot_name_are_refused_undecoded(name, tmp_path):
    root = write_folder(tmp_path / "set", splits=("train", name))
    for path in (root / "images").glob("*/*"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError) as error:
        convert_folder(FolderSource(root), tmp_path / "out")
    assert f"Received: split={name!r}, root={str(root)!r}" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_splits_with_a_hyphen_and_letters_of_any_language_are_read(tmp_path):
    splits = ("val-hard_2", "grün")
    root = write_folder(tmp_path / "set", splits=splits)
    convert_folder(FolderSource(root), tmp_path / "out")
    for split in splits:
        found = examples(TfdsSource(tmp_path / "out"), split)
        assert found == examples(FolderSource(root), split)


def test_records_of_a_split_that_tfds_cannot_name_are_refused(
    tmp_path, monkeypatch
):
    """Those that were written before names were checked."""
    monkeypatch.setattr(convert, "check_split_name", lambda *_: None)
    root = write_folder(tmp_path / "set", splits=("train", "my val"))
    convert_folder(FolderSource(root), tmp_path / "out")
    source = TfdsSource(tmp_path / "out")
    for read in (source.size, source.records):
        with pytest.raises(InputError, match="Received: split='my val'"):
            read("my val")
    assert source.size("train") == 3
