"""Masks of classes that overlap: layouts, labels, checks, batches."""

import itertools
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from multilabel_folder import NAMES, make_folder, save_masks
from PIL import Image

from keras_aspp.cli.main import main
from keras_aspp.config.schema import DataConfig
from keras_aspp.data.augment import Augment, AugmentConfig
from keras_aspp.data.convert import convert_folder
from keras_aspp.data.folder import FolderSource, check_folder
from keras_aspp.data.multilabel import (
    find_class_masks,
    mask_folders,
    read_stored_masks,
)
from keras_aspp.data.pipeline import evaluation_dataset, training_dataset
from keras_aspp.data.sources import open_source
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.data.statistics import count_classes
from keras_aspp.engine.fingerprint import fingerprint
from keras_aspp.plots.labels import overlay
from keras_aspp.preprocess import Preprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("overlapping"))


def decoded(root):
    source = FolderSource(root)
    return [
        source.decode(*record)[1]
        for record in source.records("train").as_numpy_iterator()
    ]


@pytest.mark.parametrize("layout", ["npy", "pages", "bands"])
def test_every_layout_holds_the_same_labels(layout, folder, tmp_path):
    if layout != "npy":
        pytest.importorskip("tifffile", reason="extra `tiff` (2026-11-30)")
    expected = decoded(folder)
    assert expected[0].shape == (64, 96, 2) and expected[0].dtype == np.uint8
    assert (expected[0] == 1).all(-1).any(), "the shapes must overlap"
    found = decoded(make_folder(tmp_path, layout))
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_folders_of_classes_need_no_split_folders(tmp_path):
    make_folder(tmp_path, splits=("",))
    source = FolderSource(tmp_path, validation_fraction=0.5)
    assert sum(map(len, source.pairs.values())) == 3
    assert not check_folder(source).problems


def test_a_missing_file_means_that_the_class_is_absent(tmp_path):
    make_folder(tmp_path)
    for name in NAMES:
        (tmp_path / f"masks/train/{name}/train_0.png").unlink()
    (tmp_path / f"masks/train/{NAMES[1]}/train_1.png").unlink()
    labels = decoded(tmp_path)
    assert not labels[0].any()
    assert labels[1].any((0, 1)).tolist() == [True, False]
    report = check_folder(FolderSource(tmp_path))
    assert not report.problems
    assert any("1 images" in n and "no mask of any" in n for n in report.notes)


def test_shares_are_of_all_pixels_since_classes_overlap(folder):
    report = check_folder(FolderSource(folder))
    shares, ignored = report.shares("train")
    labels = np.stack(decoded(folder))
    np.testing.assert_allclose(shares, (labels == 1).mean((0, 1, 2)))
    assert ignored == 0
    assert any("masks show their class as 255" in n for n in report.notes)
    counts = count_classes(FolderSource(folder), "train")
    assert counts.pixels.tolist() == (labels == 1).sum((0, 1, 2)).tolist()
    assert counts.pixels_of_images.tolist() == [3 * 64 * 96] * 2


def test_255_is_ignored_where_the_specification_names_it(tmp_path):
    make_folder(tmp_path, value=1)
    path = tmp_path / f"masks/train/{NAMES[0]}/train_0.png"
    mask = np.array(Image.open(path))
    mask[0, :5] = 255
    Image.fromarray(mask).save(path)
    (problem,) = check_folder(FolderSource(tmp_path)).problems
    assert "holds 1 and 255. If 255 is ignored" in problem
    content = {"class_names": NAMES, "task": "multilabel", "ignore_label": 255}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    labels = decoded(tmp_path)[0]
    assert (labels == 255).sum((0, 1)).tolist() == [5, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda m: (m / "cat").mkdir(),
            "must be named as one of `class_names`",
        ),
        (
            lambda m: np.save(
                m / "train_0.npy", np.zeros((64, 96, 2), "uint8")
            ),
            "Masks of all classes beside folders",
        ),
        (
            lambda m: Image.new("L", (9, 9)).save(m / NAMES[0] / "train_0.png"),
            "Mask is 9x9, its image 64x96",
        ),
        (
            lambda m: Image.new("L", (96, 64)).save(m / NAMES[0] / "new.png"),
            "Mask without an image",
        ),
    ],
)
def test_what_does_not_fit_is_one_problem(change, message, tmp_path):
    make_folder(tmp_path)
    change(tmp_path / "masks/train")
    (problem,) = check_folder(FolderSource(tmp_path)).problems
    assert message in problem


@pytest.mark.parametrize(
    "values, message",
    [
        (np.zeros((64, 96, 3), "uint8"), "one for each of the 2"),
        (np.zeros((64, 96, 2), "float32"), "must be uint8"),
        (np.zeros((60, 96, 2), "uint8"), "Mask is 60x96"),
        (np.full((64, 96, 2), 7, "uint8"), "must hold 0 and 255, or 0 and 1"),
        (np.array([{}]), "Not a readable .npy"),
    ],
)
def test_arrays_of_masks_are_checked(values, message, tmp_path):
    make_folder(tmp_path, "npy")
    np.save(tmp_path / "masks/train/train_0.npy", values, allow_pickle=True)
    (problem,) = check_folder(FolderSource(tmp_path)).problems
    assert message in problem and "train_0.npy" in problem


def test_batches_carry_the_masks_through_every_augmentation(folder):
    source = FolderSource(folder)
    augment = AugmentConfig(
        vertical_flip=True,
        rotation=20.0,
        erasing=0.5,
        rare_class_crops=0.5,
        cutmix=0.5,
        classmix=0.5,
    )
    data = training_dataset(
        source, "train", augment, (64, 64), 2, Preprocess(), seed=1
    )
    images, labels = next(iter(data))
    assert images.shape == (2, 64, 64, 3)
    assert labels.shape == (2, 64, 64, 2) and labels.dtype == "uint8"
    assert set(np.unique(labels)) == {0, 1, 255}
    sizes = [
        labels.shape for _, labels in evaluation_dataset(source, "train", 2)
    ]
    assert sizes == [(2, 64, 96, 2), (1, 64, 96, 2)]


def test_masks_move_with_their_image(folder):
    source = FolderSource(folder)
    record = next(source.records("train").take(1).as_numpy_iterator())
    _, labels = source.decode(*record)
    # Drawn as an image, the masks must stay equal to themselves.
    image = np.repeat(labels[..., :1], 3, -1) * np.uint8(200)
    config = AugmentConfig(
        brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, rotation=30.0
    )
    import tensorflow as tf

    crop = Augment(config, (64, 64), 255)
    image, moved = crop(tf.constant(image), tf.constant(labels), [3, 4])
    image, moved = image.numpy()[..., 0], moved.numpy()[..., 0]
    assert 0.05 < (moved == 1).mean() < 0.9
    valid = moved != 255
    # Bilinear and nearest differ at outlines only.
    assert ((image > 100) == (moved == 1))[valid].mean() > 0.97


def test_files_of_all_classes_are_in_the_fingerprint(folder):
    files = fingerprint(FolderSource(folder), ["train"])["files"]["train"]
    assert len(files) == 3 + 2 * 3
    assert f"masks/train/{NAMES[1]}/train_2.png" in files


def test_an_overlay_shows_both_classes_where_they_overlap(folder):
    spec = FolderSource(folder).spec
    first, second = (np.array(color) for color in spec.colors())
    assert first.any() and second.any(), "no class is black"
    labels = np.zeros((9, 9, 2), "uint8")
    labels[:7, :7, 0] = labels[2:, 2:, 1] = 1
    shown = overlay(np.zeros((9, 9, 3), "uint8"), labels, spec, opacity=1.0)
    assert shown[4, 4].tolist() == ((first + second) / 2).round().tolist()
    assert shown[2, 4].tolist() == second.tolist()  # its outline
    assert shown[8, 0].tolist() == [0, 0, 0]


def examples(source, split):
    return sorted(
        (image.tobytes(), labels.tobytes(), labels.shape, labels.dtype)
        for image, labels in (
            source.decode(*record)
            for record in source.records(split).as_numpy_iterator()
        )
    )


@pytest.fixture(scope="module")
def records(folder):
    """Of masks that hold 0, 1 and ignored pixels, and one absent class."""
    root = shutil.copytree(folder, folder.parent / "ignoring")
    described = {"class_names": NAMES, "task": "multilabel"}
    described |= {"ignore_label": 200, "label_map": {"255": 1, "9": "ignore"}}
    (root / "dataset.json").write_text(json.dumps(described))
    path = root / f"masks/train/{NAMES[0]}/train_0.png"
    values = np.asarray(Image.open(path)).copy()
    values[:5] = 9
    Image.fromarray(values).save(path)
    (root / f"masks/train/{NAMES[1]}/train_1.png").unlink()
    output = folder.parent / "overlapping_records" / "1.0.0"
    written = convert_folder(FolderSource(root), output, 2)
    assert written == {"train": (3, 2), "val": (3, 2)}
    return root, output


def test_records_hold_the_masks_of_the_folder(records):
    root, output = records
    expected = examples(FolderSource(root), "train")
    by_root = open_source(DataConfig(root=str(output)))
    assert examples(by_root, "train") == expected
    assert any(b"\xc8" in labels for _, labels, *_ in expected)
    assert by_root.spec.task == "multilabel"
    # Without the dataset.json, as data sets of others come.
    by_name = open_source(
        DataConfig(
            tfds="overlapping_records",
            data_dir=str(output.parents[1]),
            task="multilabel",
            class_names=NAMES,
        )
    )
    assert examples(by_name, "train") == expected
    read = tfds.builder_from_directory(output).as_dataset(split="train")
    masks = [x["segmentation_mask"].numpy()[..., 0] for x in read]
    labels = [np.moveaxis(one, 0, -1).tobytes() for one in masks]
    assert sorted(labels) == sorted(one for _, one, *_ in expected)
    augment = AugmentConfig(flip=False)
    data = training_dataset(
        by_root, "train", augment, (64, 64), 2, Preprocess()
    )
    images, labels = next(iter(data))
    assert labels.shape == (2, 64, 64, 2) and labels.dtype == "uint8"


@pytest.mark.parametrize(
    "config, message",
    [
        ({"mask_key": "image"}, "no sequence of masks `image`, one for"),
        ({"class_names": ["a", "b", "c"]}, "as many classes as the data set"),
    ],
)
def test_records_without_these_masks_are_refused(config, message, records):
    config = DataConfig(
        tfds="overlapping_records",
        data_dir=str(records[1].parents[1]),
        **{"task": "multilabel", "class_names": NAMES, **config},
    )
    with pytest.raises(ValueError, match=message):
        open_source(config)


def test_bytes_are_not_printed_in_messages():
    spec = DatasetSpec(NAMES, task="multilabel")
    with pytest.raises(ValueError, match=r"masks \(box\)") as error:
        read_stored_masks([b"secret", None], spec)
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match=r"File: masks \(1 masks\)"):
        read_stored_masks([b"secret"], spec)


def test_a_record_of_too_few_masks_is_named(records):
    source = open_source(DataConfig(root=str(records[1])))
    image, masks, where = next(
        source.records("train").take(1).as_numpy_iterator()
    )
    with pytest.raises(ValueError, match=r"each of the 2 .*\(1 masks\)"):
        source.decode(image, masks[:1], where)
    with pytest.raises(ValueError, match=r"record 0 .*segmentation_mask \(box"):
        source.decode(image, [b"", masks[1]], where)


@pytest.mark.parametrize(
    "layout, drawn_on",
    [("folders", "own"), ("folders", "image"), ("npy", "image")],
)
def test_upright_copies_turn_the_masks_of_all_classes(
    layout, drawn_on, tmp_path
):
    root = make_folder(tmp_path / "a", layout, count=2)
    path = root / "images/train/train_0.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right
    with Image.open(path) as image:
        pixels = np.rot90(np.asarray(image), -1)
        image.save(path, exif=exif)
    labels = decoded(make_folder(tmp_path / "same", count=2))
    if drawn_on == "own":
        save_masks(
            root / "masks/train", "train_0", np.rot90(labels[0], -1), layout
        )
    flags = [str(root), str(tmp_path / "b"), "--masks", drawn_on]
    assert main(["data", "fix", *flags]) == 0
    source = FolderSource(tmp_path / "b")
    assert not check_folder(source).problems
    first, second = source.pairs["train"]
    image, found = source.decode(*first)
    np.testing.assert_array_equal(image, pixels)
    np.testing.assert_array_equal(found, np.rot90(labels[0], -1))
    np.testing.assert_array_equal(source.decode(*second)[1], labels[1])
    (tmp_path / f"b/masks/train/{NAMES[1]}/train_1.png").unlink()
    assert main(["data", "fix", str(tmp_path / "b"), str(tmp_path / "c")]) == 0
    again = FolderSource(tmp_path / "c")
    _, found = again.decode(*again.pairs["train"][1])
    assert not found[..., 1].any() and found[..., 0].any()


def test_pasted_classes_bring_the_labels_of_all_classes():
    """ClassMix of masks against a loop over pixels."""
    import tensorflow as tf

    rng = np.random.default_rng(2)
    labels = (rng.random((6, 8, 9, 4)) < 0.3).astype("uint8")
    labels[1, ..., 2] = 0  # an absent class
    labels[2] = 0  # none at all
    labels[:, :2, :3, 3] = 255
    images = np.arange(6, dtype="float32")[:, None, None, None]
    images = np.broadcast_to(images, (6, 8, 9, 3))
    augment = Augment(AugmentConfig(classmix=1.0), (8, 9), 255)
    seeds = tf.constant([[i, 7] for i in range(6)])
    mixed, found = (
        x.numpy() for x in augment.mix(tf.constant(images), labels, seeds)
    )
    assert not (mixed[..., 0] == images[..., 0]).all()
    for i in range(6):
        other = (i + 1) % 6
        pasted = mixed[i, ..., 0] == other
        expected = np.where(pasted[..., None], labels[other], labels[i])
        np.testing.assert_array_equal(found[i], expected)
        shown = labels[other] == 1
        present = shown.any((0, 1)).sum()
        # The union of exactly one choice of half of the classes.
        unions = [
            shown[..., list(chosen)].any(-1)
            for chosen in itertools.combinations(
                np.flatnonzero(shown.any((0, 1))), (present + 1) // 2
            )
        ]
        assert [union.tolist() for union in unions].count(pasted.tolist()) == 1


def test_what_takes_one_mask_refuses_several(folder, tmp_path):
    config = DataConfig(root=str(tmp_path), task="multilabel")
    with pytest.raises(ValueError, match="needs `data.class_names`"):
        open_source(config)
    for wrong in (
        {"ignore_label": 1},
        {"class_names": [str(i) for i in range(256)]},
        {"label_map": {3: 2}},
    ):
        with pytest.raises(ValueError, match="Received"):
            DatasetSpec(**{"class_names": NAMES, "task": "multilabel", **wrong})


def test_masks_are_saved_and_read_alike(tmp_path):
    masks = np.zeros((4, 6, 2), "uint8")
    masks[1:3, :, 0] = masks[:, 2:4, 1] = 1
    save_masks(tmp_path / "masks/train", "a", masks, "folders")
    stored = np.array(Image.open(tmp_path / f"masks/train/{NAMES[0]}/a.png"))
    np.testing.assert_array_equal(stored, masks[..., 0] * 255)


@pytest.mark.parametrize(
    "names",
    [
        ["../up", "a/b", "..", "a_b"],
        ["a_b_2", "a_b", "a/b"],
        ["x_2", "x", "x."],
        ["Car", "car", "car_1", "CAR_1"],
        ["a/b", "A_b", "a_b_0"],
    ],
)
def test_folders_of_masks_are_no_paths_and_lead_back(names, tmp_path):
    spec = DatasetSpec(names, task="multilabel")
    found = mask_folders(spec)
    assert len({name.casefold() for name in found}) == len(names)
    assert not any("/" in name or name.startswith(".") for name in found)
    folders = [tmp_path / name for name in found]
    masks, messages = find_class_masks(
        folders, spec, lambda folder: [folder / "i.png"]
    )
    assert masks == {"i": tuple(str(f / "i.png") for f in folders)}
    assert not messages
    # A name that is safe alone is a class's own folder.
    assert all(
        name == own
        for name, own in zip(found, names, strict=True)
        if name in names
    )
