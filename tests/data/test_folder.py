import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_aspp.data.folder import HELD_OUT, FolderSource, check_folder
from keras_aspp.data.spec import DatasetSpec

NAMES = ["ground", "box", "bar"]
RNG = np.random.default_rng(1)


def write_image(path, size=(8, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = RNG.integers(0, 256, (*size, 3)).astype("uint8")
    Image.fromarray(image).save(path, **options)
    return image


def write_mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)


def mask_of(*values, size=(8, 12)):
    """Vertical stripes, one per value."""
    columns = np.arange(size[1]) * len(values) // size[1]
    row = np.array(values, "uint8")[columns]
    return np.broadcast_to(row, size).copy()


def write_pair(root, name, split="train", suffix=".png", values=(0, 1, 2)):
    write_image(root / "images" / split / f"{name}{suffix}")
    write_mask(root / "masks" / split / f"{name}.png", mask_of(*values))


def describe(root, **content):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(
        json.dumps({"class_names": NAMES, **content})
    )


@pytest.fixture
def good(tmp_path):
    """Two splits without fault."""
    root = tmp_path / "set"
    describe(root)
    write_pair(root, "a", suffix=".jpg", values=(0, 0, 1, 255))
    write_pair(root, "b", suffix=".JPEG")
    write_pair(root, "c", "val", suffix=".PNG")
    return root


def problems_of(root):
    return check_folder(FolderSource(root)).problems


# Opening.


def test_pairs_by_name_whatever_the_suffix(good):
    source = FolderSource(good)
    assert list(source.pairs) == ["train", "val"]
    assert source.size("train") == 2
    assert source.size("val") == 1
    names = [
        (i.split("/")[-1], m.split("/")[-1]) for i, m in source.pairs["train"]
    ]
    assert names == [("a.jpg", "a.png"), ("b.JPEG", "b.png")]
    records = list(source.records("train").as_numpy_iterator())
    assert records == [
        (i.encode(), m.encode()) for i, m in source.pairs["train"]
    ]


def test_decode(good):
    source = FolderSource(good)
    image, labels = source.decode(*source.pairs["train"][0])
    assert image.shape == (8, 12, 3)
    assert image.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, mask_of(0, 0, 1, 255))


def test_split_names_are_the_data_sets_own(tmp_path):
    describe(tmp_path)
    write_pair(tmp_path, "a", "Training Set")
    write_pair(tmp_path, "a", "held-out")
    source = FolderSource(tmp_path)
    assert sorted(source.pairs) == ["Training Set", "held-out"]


@pytest.mark.parametrize("missing", ["images", "masks"])
def test_folder_without_images_or_masks(tmp_path, missing):
    other = {"images": "masks", "masks": "images"}[missing]
    (tmp_path / other).mkdir()
    with pytest.raises(FileNotFoundError, match=f"which has no {missing}/"):
        FolderSource(tmp_path)


def test_folder_without_pictures(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="No images .* Received: root="):
        FolderSource(tmp_path)


def test_folder_without_a_pair_says_why(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="Image without a mask. File: .*a.p"):
        FolderSource(tmp_path)


def test_folders_of_masks_beside_loose_images_may_be_classes(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    for name in ("roof", "ball"):
        (tmp_path / "masks" / name).mkdir(parents=True)
    content = '{"class_names": ["ball", "roof"], "task": "multilabel"}'
    with pytest.raises(ValueError, match="overlap others.*") as caught:
        FolderSource(tmp_path)
    assert str(caught.value).endswith(f"write dataset.json: {content}")
    for name in ("roof", "ball"):
        mask = tmp_path / "masks" / name / "a.png"
        Image.new("L", (16, 16)).save(mask)
    (tmp_path / "dataset.json").write_text(content)
    assert FolderSource(tmp_path).spec.is_multilabel


def test_hidden_files_and_folders_do_not_count(good):
    (good / "images" / ".cache").mkdir()
    (good / "images" / "train" / ".DS_Store").write_text("x")
    (good / "masks" / "val" / "._c.png").write_text("x")
    assert list(FolderSource(good).pairs) == ["train", "val"]
    assert problems_of(good) == []


@pytest.mark.parametrize("split", ["test", "Train"])
def test_split_that_is_not_there(good, split):
    for ask in ("require", "size", "records"):
        with pytest.raises(
            ValueError,
            match=rf"Split `{split}` is empty .*{{'train': 2, 'val': 1}}",
        ):
            getattr(FolderSource(good), ask)(split)


# Without split folders.


def flat(root, count):
    describe(root)
    for i in range(count):
        write_pair(root, f"p{i:03}", "")
    return root


def names_in(source, split):
    return {image for image, _ in source.pairs[split]}


def test_hash_splits_pictures_without_split_folders(tmp_path):
    root = flat(tmp_path, 60)
    source = FolderSource(root, validation_fraction=0.25)
    held_out = names_in(source, "val")
    assert 6 <= len(held_out) <= 24
    assert len(held_out | names_in(source, "train")) == 60
    assert held_out.isdisjoint(names_in(source, "train"))
    assert (
        names_in(FolderSource(root, validation_fraction=0.25), "val")
        == held_out
    )
    # A larger fraction only adds, and so does another picture.
    more = names_in(FolderSource(root, validation_fraction=0.5), "val")
    assert held_out < more
    write_pair(root, "another", "")
    later = names_in(FolderSource(root, validation_fraction=0.25), "val")
    assert later - {str(root / "images/another.png")} == held_out


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_parts_of_a_small_set_have_a_picture(tmp_path, fraction):
    source = FolderSource(flat(tmp_path, 5), validation_fraction=fraction)
    assert {source.size("train"), source.size("val")} == {1, 4}


def test_hash_split_takes_the_names_of_the_configuration(tmp_path):
    source = FolderSource(
        flat(tmp_path, 5), train_split="fit", validation_split="tune"
    )
    assert list(source.pairs) == ["fit", "tune"]


# What the numbers mean.


def test_dataset_json_goes_before_the_configuration(good):
    spec = DatasetSpec(["x", "y", "z", "w"])
    assert FolderSource(good, spec).spec.class_names == tuple(NAMES)
    (good / "dataset.json").unlink()
    source = FolderSource(good, spec)
    assert source.spec is spec
    assert not source.guessed


def test_classes_are_guessed_from_the_masks(good):
    (good / "dataset.json").unlink()
    write_pair(good, "d", values=(0, 5, 255))
    write_mask(good / "masks/train/a.png", np.zeros((8, 12, 3), "uint8"))
    source = FolderSource(good)
    assert source.guessed
    # 255 is ignored; the RGB mask is for check_folder to report.
    assert source.spec.class_names == tuple(f"class_{i}" for i in range(6))
    report = check_folder(source)
    assert any("no dataset.json: 6 classes" in n for n in report.notes)
    assert any("class_3, class_4" in n for n in report.notes)


def test_fault_of_dataset_json_shows_when_opening(good):
    (good / "dataset.json").write_text("{")
    with pytest.raises(
        ValueError, match="Not valid JSON. File: .*dataset.json"
    ):
        FolderSource(good)


# Checking.


def test_report_of_a_good_folder(good):
    write_image(good / "images/train/b.JPEG", (10, 6))
    write_mask(good / "masks/train/b.png", mask_of(1, 2, size=(10, 6)))
    report = check_folder(FolderSource(good))
    assert report.problems == []
    assert report.num_images == {"train": 2, "val": 1}
    assert report.sizes == {
        "train": {(8, 12): 1, (10, 6): 1},
        "val": {(8, 12): 1},
    }
    np.testing.assert_array_equal(
        report.class_pixels["train"], [48, 24 + 30, 30, 24]
    )
    np.testing.assert_array_equal(report.class_pixels["val"], [32, 32, 32, 0])
    assert report.notes == []


def test_only_the_splits_asked_for(good):
    (good / "images/val/c.PNG").write_text("no picture")
    # Pictures kept for prediction have no masks; training does not mind.
    write_image(good / "images" / "test" / "t.png")
    source = FolderSource(good)
    report = check_folder(source, ["train"])
    assert report.problems == []
    assert list(report.num_images) == ["train"]
    assert len(check_folder(source, ["train", "val"]).problems) == 1
    everything = check_folder(source).problems
    assert len(everything) == 2
    assert "images/test has no partner masks/test" in everything[0]


def break_size(root):
    write_mask(root / "masks/train/a.png", np.zeros((8, 13), "uint8"))


def break_range(root):
    write_mask(root / "masks/train/a.png", mask_of(0, 77))


def break_partner(root):
    (root / "masks/train/a.png").unlink()


def break_other_partner(root):
    (root / "images/train/a.jpg").unlink()


def break_image(root):
    (root / "images/train/a.jpg").write_text("hello")


def break_image_end(root):
    file = root / "images/train/a.jpg"
    file.write_bytes(file.read_bytes()[:-60])


def break_mask_end(root):
    file = root / "masks/train/a.png"
    file.write_bytes(file.read_bytes()[:50])


def break_depth(root):
    write_mask(root / "masks/train/a.png", np.full((8, 12), 300, "uint16"))


def break_colors(root):
    write_mask(root / "masks/train/a.png", np.zeros((8, 12, 3), "uint8"))


def break_split(root):
    (root / "images/val/c.PNG").unlink()
    (root / "masks/val/c.png").unlink()


def break_name(root):
    write_image(root / "images/train/a.png")


@pytest.mark.parametrize(
    ("fault", "message", "file"),
    [
        (break_size, "Mask is 8x13, its image 8x12", "masks/train/a.png"),
        (break_range, "Label value 77 is neither in 0..2", "masks/train/a.png"),
        (break_partner, "Image without a mask", "images/train/a.jpg"),
        (break_other_partner, "Mask without an image", "masks/train/a.png"),
        (break_image, "Unreadable image", "images/train/a.jpg"),
        (break_image_end, "truncated image", "images/train/a.jpg"),
        (break_mask_end, "truncated mask", "masks/train/a.png"),
        (break_depth, "16 bits per value", "masks/train/a.png"),
        (break_colors, "RGB mask, but no `colormap`", "masks/train/a.png"),
        (break_split, "Split `val` is empty", ""),
        (break_name, "Two files of one name", "images/train/a.png"),
    ],
)
def test_each_fault_is_one_line_that_names_the_file(good, fault, message, file):
    assert problems_of(good) == []
    fault(good)
    (problem,) = problems_of(good)
    assert message in problem
    assert str(good / file) in problem
    assert "\n" not in problem


def test_links_without_a_target_are_at_fault(good):
    # As git-annex leaves files that were not fetched.
    files = good / "images/train/d.jpg", good / "masks/train/d.png"
    for file in files:
        file.symlink_to(good / "not_fetched")
    for file, problem in zip(files, problems_of(good), strict=True):
        assert f"Unreadable image. File: {file} (No such file" in problem


def test_all_faults_at_once(good):
    write_pair(good, "d")
    write_pair(good, "e")
    break_range(good)
    (good / "masks/train/b.png").unlink()
    (good / "images/train/d.png").write_text("hello")
    write_mask(good / "masks/train/e.png", np.full((8, 12), 300, "uint16"))
    break_split(good)
    problems = problems_of(good)
    assert len(problems) == 5
    for part in ("77", "b.JPEG", "d.png", "e.png", "`val`"):
        assert sum(part in p for p in problems) == 1


def test_a_picture_and_its_mask_may_both_be_at_fault(good):
    break_image(good)
    break_range(good)
    assert len(problems_of(good)) == 2


# Binary masks.


def binary(root, values=(0, 255), **content):
    describe(root, class_names=["ground", "box"], **content)
    write_pair(root, "a", values=values)
    write_pair(root, "b", "val", values=values)
    return root


def test_binary_masks_under_ignore_255_would_lose_the_foreground(tmp_path):
    (problem,) = problems_of(binary(tmp_path))
    assert "only 0 and 255" in problem
    assert '"label_map": {"255": 1}' in problem
    assert str(tmp_path / "masks/train/a.png") in problem


def test_binary_masks_without_dataset_json(tmp_path):
    (binary(tmp_path) / "dataset.json").unlink()
    (problem,) = problems_of(tmp_path)
    assert "only 0 and 255" in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"label_map": {"255": 1}},
        {"values": (0, 1, 255)},  # 255 is ignored on purpose
        {"values": (0, 1)},
    ],
)
def test_no_false_alarm_about_binary_masks(tmp_path, changes):
    assert problems_of(binary(tmp_path, **changes)) == []


def test_255_is_out_of_range_where_another_label_is_ignored(tmp_path):
    problems = problems_of(binary(tmp_path, ignore_label=100))
    assert len(problems) == 2
    assert all("Label value 255 is neither" in p for p in problems)


def test_color_masks_of_one_class_and_black_are_no_binary_masks(tmp_path):
    describe(
        tmp_path,
        class_names=["ground", "box"],
        colormap=[[9, 9, 9], [50, 60, 70]],
        ignore_colors=[[0, 0, 0]],
    )
    write_image(tmp_path / "images/a.png")
    rgb = np.zeros((8, 12, 3), "uint8")
    rgb[2:] = 9
    write_mask(tmp_path / "masks/a.png", rgb)
    report = check_folder(FolderSource(tmp_path), ["train"])
    assert report.problems == []
    np.testing.assert_array_equal(report.class_pixels["train"], [72, 0, 24])


# Notes.


def test_classes_that_never_occur_are_named(good):
    describe(good, class_names=[*NAMES, "pole", "sign"])
    write_mask(good / "masks/val/c.png", mask_of(0, 2))
    notes = check_folder(FolderSource(good)).notes
    assert notes == [
        "classes that never occur: pole, sign",
        "classes that do not occur in `val`: box",
    ]


def test_masks_without_a_valid_pixel_are_noted(good):
    masks = sorted((good / "masks" / "train").glob("*.png"))
    with Image.open(masks[0]) as mask:
        blank = np.full(mask.size[::-1], 255, "uint8")
    Image.fromarray(blank).save(masks[0])
    (note,) = (
        n for n in check_folder(FolderSource(good)).notes if "valid" in n
    )
    assert note.startswith("1 masks have no valid pixel")
    assert str(masks[0]) in note


@pytest.mark.parametrize(
    ("split", "is_problem"), [("train", True), ("val", True), ("test", False)]
)
def test_a_split_without_a_valid_pixel_is_a_problem(split, is_problem, good):
    write_pair(good, "d", "test")
    masks = sorted((good / "masks" / split).glob("*.png"))
    blank = mask_of(255)
    for path in masks:
        write_mask(path, blank)
    last = blank.copy()
    last[3, 5] = 1
    write_mask(masks[-1], last)
    assert problems_of(good) == []
    write_mask(masks[-1], blank)
    problems = problems_of(good)
    assert len(problems) == is_problem
    for problem in problems:
        assert problem.startswith(f"Split `{split}` has no valid pixel")
        assert str(masks[0]) in problem


def test_exif_orientation_is_noted(good):
    exif = Image.Exif()
    exif[0x0112] = 3
    write_image(good / "images/train/a.jpg", exif=exif)
    report = check_folder(FolderSource(good))
    assert report.problems == []
    (note,) = report.notes
    assert note.startswith("1 images and 0 masks carry an EXIF orientation")
    assert 'put "mask_orientation": "image" into dataset.json' in note
    assert "keras-aspp data fix --masks image" in note
    assert str(good / "images/train/a.jpg") in note


@pytest.mark.parametrize("mask_orientation", ["own", "image"])
def test_training_gets_upright_images_with_their_masks(good, mask_orientation):
    exif = Image.Exif()
    exif[0x0112] = 6
    describe(good, mask_orientation=mask_orientation)
    path = good / "images/train/b.JPEG"
    write_image(path, exif=exif, quality=95)
    labels = mask_of(0, 1, 2)
    if mask_orientation == "own":
        labels = np.rot90(labels, -1)
    write_mask(good / "masks/train/b.png", labels)
    source = FolderSource(good)
    assert check_folder(source).problems == []
    image, read = source.decode(*source.pairs["train"][1])
    expected = ImageOps.exif_transpose(Image.open(path))
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(read, np.rot90(mask_of(0, 1, 2), -1))


def test_transparent_masks_are_noted(tmp_path):
    colormap = [[0, 0, 0], [10, 0, 0], [0, 10, 0]]
    describe(tmp_path, colormap=colormap)
    write_image(tmp_path / "images/train/a.png")
    rgba = np.full((8, 12, 4), 255, "uint8")
    rgba[..., :3] = colormap[1]
    rgba[:2, :, 3] = 0
    write_mask(tmp_path / "masks/train/a.png", rgba)
    report = check_folder(FolderSource(tmp_path))
    assert report.problems == []
    np.testing.assert_array_equal(report.class_pixels["train"], [24, 72, 0, 0])
    (note,) = (n for n in report.notes if "transparent" in n)
    assert note.startswith("1 masks have transparent pixels")


@pytest.mark.parametrize(
    ("values", "wrong"),
    [((0, 255), True), ((0, 128, 255), True), ((0, 1, 2), False)],
)
def test_gray_masks_that_hold_colors_are_a_fault(tmp_path, values, wrong):
    """A tool stores colors that are all gray as a gray image."""
    colormap = [[255, 255, 255], [128, 128, 128], [0, 0, 0]]
    describe(tmp_path, colormap=colormap)
    write_pair(tmp_path, "a", values=values)
    problems = problems_of(tmp_path)
    assert any("Gray masks hold the levels" in p for p in problems) == wrong
    describe(tmp_path, colormap=[[255, 255, 255], [0, 0, 0], [1, 2, 3]])
    bits = Image.fromarray(mask_of(0, 255)).convert("1")
    bits.save(tmp_path / "masks/train/a.png")
    (problem,) = problems_of(tmp_path)
    assert "Gray masks hold the levels [0, 255]" in problem


# What is not read.


def test_files_in_folders_of_a_split_are_counted_and_named(good):
    for name in ("x", "y"):
        write_image(good / f"images/train/city/{name}.png")
    write_mask(good / "masks/train/city/deep/x.png", mask_of(0))
    source = FolderSource(good)
    assert source.size("train") == 2
    images, masks = check_folder(source).notes
    assert images.startswith(
        f"2 files in folders within {good / 'images/train'} are not used"
    )
    assert images.endswith(str(good / "images/train/city/x.png"))
    assert masks.startswith("1 files in folders within")
    # Training on another split does not mind.
    assert check_folder(source, ["val"]).notes == []


def test_a_split_all_in_folders_says_so(good):
    (good / "images/val/c.PNG").unlink()
    (good / "masks/val/c.png").unlink()
    write_image(good / "images/val/city/x.png")
    with pytest.raises(ValueError, match="`val` is empty .*; 1 files in folde"):
        FolderSource(good).require("val")


def test_files_of_other_suffixes_are_counted_and_named(good):
    for name in ("d.gif", "e.GIF", "notes.txt"):
        (good / "images/train" / name).write_text("x")
    (good / "masks/train/labels.json").write_text("{}")
    report = check_folder(FolderSource(good))
    assert report.problems == []
    images, masks = report.notes
    assert images.startswith("3 files of ")
    assert "(2 .gif, 1 .txt)" in images
    assert ".jpg, .jpeg, .jfif, .png, .bmp, .webp" in images
    assert images.endswith("d.gif")
    assert "none of .png" in masks


def test_what_file_managers_leave_is_no_file(good):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "ehthumbs.db"):
        for part in ("images", "masks"):
            (good / part / "train" / name).write_bytes(b"x")
    (good / "images/__MACOSX").mkdir()
    source = FolderSource(good)
    assert list(source.pairs) == ["train", "val"]
    report = check_folder(source)
    assert report.problems == report.notes == []


@pytest.mark.parametrize("kind", ["webp", "bmp", "jfif"])
def test_images_of_other_suffixes(good, kind):
    options = {"format": "JPEG"} if kind == "jfif" else {}
    write_image(good / f"images/train/d.{kind}", **options)
    write_mask(good / "masks/train/d.png", mask_of(0, 1))
    source = FolderSource(good)
    assert source.size("train") == 3
    assert check_folder(source).problems == []
    assert source.decode(*source.pairs["train"][-1])[0].shape == (8, 12, 3)


@pytest.mark.parametrize(
    ("image", "mask", "messages"),
    [
        ("d.gif", "d.png", ["d.gif is not read, convert it to PNG"]),
        ("d.png", "d.gif", ["d.gif is not read, convert it to PNG"]),
        ("in/d.png", "d.png", ["in/d.png is not read, it lies in a folder"]),
        ("d.png", "d .png", ["d .png differs in case", "d.png differs in ca"]),
        ("caf\u00e9.png", "cafe\u0301.png", ["Unicode", "Unicode"]),
    ],
)
def test_a_missing_partner_that_is_near_is_named(good, image, mask, messages):
    write_image(good / "images/train" / image)
    write_mask(good / "masks/train" / mask, mask_of(0))
    problems = problems_of(good)
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert message in problem


def test_names_that_look_alike_are_noted(good):
    for name in ("caf\u00e9", "cafe\u0301", "x", "x "):
        write_pair(good, name)
    (note,) = check_folder(FolderSource(good)).notes
    assert note.startswith("2 names of images/train come in spellings")


def test_images_that_are_in_two_splits_are_noted(good):
    shutil.copy(good / "images/train/b.JPEG", good / "images/val/d.jpg")
    write_mask(good / "masks/val/d.png", mask_of(0))
    report = check_folder(FolderSource(good))
    assert report.problems == []
    (note,) = report.notes
    assert note.startswith("1 images of `val` are in `train`, too")
    assert str(good / "images/val/d.jpg") in note
    assert str(good / "images/train/b.JPEG") in note
    assert check_folder(FolderSource(good), ["train", "train"]).notes == []


def test_dataset_json_that_may_be_meant_otherwise_is_noted(good):
    (good / "dataset.json").write_text(
        '{"class_names": ["x"], "class_names": ["a", "a ", "caf\u00e9", '
        '"Cafe\u0301", "b"], "label_map": {"7": 1, "07": 2, "9": 1, "9": 0}}'
    )
    notes = FolderSource(good).notes
    assert [note.split(". File")[0] for note in notes] == [
        "`9` is given more than once, the last counts",
        "`class_names` is given more than once, the last counts",
        "`label_map` has '7' and '07' for 7, the last counts",
        "class names that look alike: 'a', 'a '",
        "class names that look alike: 'caf\u00e9', 'Cafe\u0301'",
    ]
    assert check_folder(FolderSource(good)).notes[:5] == notes


def test_rare_and_absent_classes_are_told_apart(tmp_path):
    """A tenth of an equal share of 20 classes: 0.5 %, 50 of 10,000 pixels."""
    describe(tmp_path, class_names=[f"c{i}" for i in range(20)])
    mask = np.arange(10_000).reshape(100, 100) % 17
    mask[mask == 5] = 6
    mask[mask == 7] = 6
    mask[mask == 8] = 6
    mask[0, :49], mask[1, :51] = 7, 8  # below and above 0.5 %
    for split, labels in (("train", mask), ("val", np.full((100, 100), 19))):
        write_image(tmp_path / f"images/{split}/a.png", (100, 100))
        write_mask(tmp_path / f"masks/{split}/a.png", labels.astype("uint8"))
    counts = np.bincount(mask.ravel(), minlength=20)
    assert (counts[7], counts[8], counts[19]) == (49, 51, 0)
    notes = check_folder(FolderSource(tmp_path)).notes
    assert notes[0] == "classes that never occur: c5, c17, c18"
    assert notes[1] == (
        "classes that do not occur in `train`: c19; they cannot be learned"
    )
    (rare,) = (n for n in notes if n.startswith("rare"))
    assert "below 0.50% of the labeled pixels: c7 (0.49%); " in rare


# Without a validation split.


def test_a_missing_validation_split_names_the_ways_out(tmp_path):
    describe(tmp_path)
    write_pair(tmp_path, "a")
    with pytest.raises(
        ValueError,
        match="`val` is empty or missing; .*`--data.validation_split null`.*"
        r"`--data.validation_fraction` says \(0.3\)",
    ):
        FolderSource(tmp_path, validation_fraction=0.3).require("val")
    with pytest.raises(ValueError, match="by `--data.train_split NAME`"):
        FolderSource(tmp_path, train_split="fit").require("fit")


def test_null_holds_out_images_of_the_training_split(tmp_path):
    describe(tmp_path)
    for i in range(30):
        write_pair(tmp_path, f"p{i}")
    write_pair(tmp_path, "other", "val")
    everything = set(FolderSource(tmp_path).pairs["train"])
    source = FolderSource(tmp_path, None, 0.25, "train", HELD_OUT)
    train, held_out = (set(source.pairs[s]) for s in ("train", HELD_OUT))
    assert train | held_out == everything
    assert train.isdisjoint(held_out)
    assert 2 <= len(held_out) <= 14
    assert source.size("val") == 1
    assert check_folder(source, ["train", HELD_OUT]).problems == []


def test_pictures_beside_split_folders_are_noted(good):
    write_image(good / "images/left_over.png")
    (note,) = check_folder(FolderSource(good)).notes
    assert "1 images lie beside the split folders" in note
    assert "left_over.png" in note


@pytest.mark.slow
def test_camvid_is_without_fault(shared):
    report = check_folder(FolderSource(shared / "data/camvid"))
    assert report.problems == []
    (note,) = report.notes
    assert note.startswith("rare classes, below 0.91% of the labeled pixels: ")
    assert "pedestrian (0.67%), bicyclist (0.30%);" in note
    assert report.num_images == {"train": 367, "val": 101}
    assert report.sizes == {
        "train": {(360, 480): 367},
        "val": {(360, 480): 101},
    }
    assert report.class_pixels["val"].sum() == 101 * 360 * 480
    assert (report.class_pixels["train"] > 0).all()


def make_videos(root):
    """Frames of three videos, of which one is in both splits."""
    describe(root)
    for video in "abc":
        for frame in range(3):
            write_pair(root, f"{video}_{frame}")
    write_pair(root, "c_3", "val")
    return root


def test_frames_of_a_video_are_held_out_together(tmp_path):
    root = make_videos(tmp_path)
    source = FolderSource(root, None, 0.4, "train", HELD_OUT, "[a-z]_")
    train, held_out = (
        {Path(image).stem[0] for image, _ in source.pairs[split]}
        for split in ("train", HELD_OUT)
    )
    assert train | held_out == set("abc")
    assert train.isdisjoint(held_out)


def test_few_images_that_are_held_out_are_noted(tmp_path):
    root = make_videos(tmp_path)
    few = FolderSource(root, None, 0.1, "train", HELD_OUT)
    found = few.size(HELD_OUT)
    assert 0 < found < 5
    (note,) = check_folder(few).notes
    assert note.startswith(f"only {found} of 9 images are held out")
    assert "than 0.1 holds" in note
    more = FolderSource(root, None, 0.9, "train", HELD_OUT)
    assert more.size(HELD_OUT) >= 5
    assert check_folder(more).notes == []


def test_named_videos_are_held_out(tmp_path):
    root = make_videos(tmp_path)
    source = FolderSource(root, None, 0.1, "train", HELD_OUT, "(.)_", ["b"])
    images = [Path(image).stem for image, _ in source.pairs[HELD_OUT]]
    assert images == ["b_0", "b_1", "b_2"]
    assert source.size("train") == 6


def test_a_video_in_two_splits_is_noted(tmp_path):
    source = FolderSource(make_videos(tmp_path), group_by="(.)_")
    (note,) = check_folder(source).notes
    assert "several splits: 1 (first c in train and val)" in note


def test_groups_to_hold_out_need_images_to_be_held_out(tmp_path):
    with pytest.raises(ValueError, match="--data.validation_split null"):
        FolderSource(
            make_videos(tmp_path), group_by="(.)_", validation_groups=["b"]
        )
