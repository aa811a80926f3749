import dataclasses
import errno
import json
import shlex
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_run import write_folder

from keras_aspp.cli import data as command
from keras_aspp.cli.main import main
from keras_aspp.config.schema import DataConfig
from keras_aspp.data.sources import open_source
from keras_aspp.engine.run import _check_data
from keras_aspp.plots import labels as plots


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set")


def lines_of(capsys):
    return capsys.readouterr().out.strip().splitlines()


# import


@pytest.mark.parametrize("name", ["photos", "my photos; '1'"])
def test_the_next_command_is_quoted_for_a_shell(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    square = [2, 2, 22, 2, 22, 22, 2, 22]
    annotation = {"image_id": 0, "category_id": 1, "segmentation": [square]}
    content = {
        "images": [{"id": 0, "file_name": "a.png", "height": 40, "width": 48}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "bbox": [2, 2, 20, 20], **annotation}],
    }
    (tmp_path / "source").mkdir()
    Image.new("RGB", (48, 40)).save("source/a.png")
    (tmp_path / "source" / "coco.json").write_text(json.dumps(content))
    assert main(["data", "import", "source", name]) == 0
    (line,) = (x for x in lines_of(capsys) if x.startswith("next "))
    words = shlex.split(line)[1:]
    assert words[:4] == ["keras-aspp", "train", "--config", "folder"]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    assert given.pop("--data.root") == name
    assert given.pop("--workdir") == f"runs/{name}"
    assert given in ({}, {"--data.validation_split": "null"})
    assert main([*words[1:], "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["root"] == name


# check


def test_check_of_a_good_folder(folder, capsys, tmp_path):
    report = tmp_path / "report.json"
    assert main(["data", "check", str(folder), "--json", str(report)]) == 0
    lines = lines_of(capsys)
    assert lines[-1] == "No problems."
    assert "train  3       64x96 (2), 72x60 (1)" in lines
    written = json.loads(report.read_text())
    assert written["problems"] == written["notes"] == []
    train = written["splits"]["train"]
    assert train["num_images"] == 3
    assert train["sizes"][0] == {"height": 64, "width": 96, "num_images": 2}
    masks = [
        np.array(Image.open(file))
        for file in (folder / "masks" / "train").iterdir()
    ]
    pixels = np.sum([np.bincount(m.ravel(), minlength=256) for m in masks], 0)
    assert train["class_pixels"] == {
        "ground": pixels[0],
        "box": pixels[1],
        "bar": pixels[2],
    }
    assert train["ignored_pixels"] == pixels[255] == 21
    # Shares of classes are shares of what is labeled, and so add up to 1.
    share = pixels[1] / pixels[:3].sum()
    assert train["class_shares"]["box"] == pytest.approx(share, abs=1e-6)
    assert sum(train["class_shares"].values()) == pytest.approx(1, abs=1e-5)
    everything = pixels.sum()
    assert train["ignored_share"] == pytest.approx(21 / everything, abs=1e-6)
    (row,) = (line for line in lines if "box" in line)
    assert row.split()[:3] == ["1", "box", f"{100 * share:.2f}"]


def test_check_lists_all_problems_one_line_each(folder, capsys, tmp_path):
    (folder / "images/train/train_0.png").write_text("hello")
    Image.new("L", (96, 64), 77).save(folder / "masks/train/train_1.png")
    (folder / "masks/val/val_2.png").unlink()
    report = tmp_path / "report.json"
    assert main(["data", "check", str(folder), "--json", str(report)]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.strip().splitlines()
    assert lines[-1] == "3 problems."
    for file in ("train_0.png", "train_1.png", "val_2.png"):
        assert sum(file in line for line in lines) == 1
    assert lines[:3] == json.loads(report.read_text())["problems"]


def test_check_names_one_problem_and_classes_that_never_occur(folder, capsys):
    names = ["ground", "box", "bar", "pole"]
    (folder / "dataset.json").write_text(json.dumps({"class_names": names}))
    (folder / "masks/val/val_2.png").unlink()
    assert main(["data", "check", str(folder)]) == 1
    lines = lines_of(capsys)
    assert lines[-1] == "1 problem."
    assert "Note: classes that never occur: pole." in lines


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ([], 1),
        (["--data.validation_split", "test"], 1),
        (["--data.validation_split", "train"], 0),
        (["--data.validation_split", "null"], 0),
        (["--data.train_split", "x", "--data.validation_split", "train"], 1),
    ],
)
def test_check_refuses_the_splits_that_training_refuses(
    folder, capsys, flags, status
):
    for part in ("images", "masks"):
        shutil.rmtree(folder / part / "val")
    assert main(["data", "check", str(folder), *flags]) == status
    lines = lines_of(capsys)
    problems = [line for line in lines if "is empty or missing" in line]
    assert len(problems) == status
    config = DataConfig(root=str(folder))
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    for flag, value in given.items():
        name = flag.removeprefix("--data.")
        value = None if value == "null" else value
        config = dataclasses.replace(config, **{name: value})
    source = open_source(config)
    if status:
        with pytest.raises(ValueError, match="is empty or missing") as error:
            _check_data(source, config)
        assert problems == [str(error.value)]
    else:
        _check_data(source, config)


def test_training_prints_what_check_notes(folder, capsys):
    """The same lines, and that crops are padding."""
    (folder / "images/train/notes.txt").write_text("x")
    shutil.copy(
        folder / "images/train/train_0.png", folder / "images/val/val_0.png"
    )
    blank = np.full((64, 96), 255, "uint8")
    Image.fromarray(blank).save(folder / "masks/val/val_0.png")
    assert main(["data", "check", str(folder)]) == 0
    notes = [line for line in lines_of(capsys) if line.startswith("Note: ")]
    assert len(notes) == 3
    config = DataConfig(root=str(folder), crop_size=(96, 96))
    _check_data(open_source(config), config)
    assert lines_of(capsys) == notes
    config = dataclasses.replace(config, crop_size=(320, 320))
    _check_data(open_source(config), config)
    *same, padding = lines_of(capsys)
    assert same == notes
    # 96 x 1.25 = 120, so 128, and 64 x 1.25 = 80, so 96: 8.3 times.
    assert padding == (
        "Note: images of 64x96 (median), 80x120 after an average "
        "`data.augment.scale`, leave crops of 320x320 mostly padding; a step "
        "takes about 8.3 times as long as with 96x128: "
        "`--data.crop_size [96,128]`."
    )


def test_check_of_a_configuration(folder, tmp_path, capsys):
    (folder / "dataset.json").unlink()
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"data: {{root: {folder}, class_names: [a, b], test_split: test}}\n"
        "train: {total_epochs: 1}\n"
    )
    assert main(["data", "check", str(config)]) == 1
    out = capsys.readouterr().out
    assert "Label value 2 is neither in 0..1" in out
    assert "Split `test` is empty or missing" in out
    assert "`--data.crop_size [96,128]`" in out


def test_check_of_an_empty_split(folder, capsys):
    for part in ("images", "masks"):
        (folder / part / "test").mkdir()
    assert main(["data", "check", str(folder)]) == 1
    lines = lines_of(capsys)
    assert lines[0].startswith("Split `test` is empty")
    assert any(line.split() == ["test", "0"] for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Neither a folder nor a configuration"),
        ("{", "Not valid JSON"),
        ('{"class_names": "box"}', "Received: class_names='box'"),
    ],
)
def test_what_shows_when_opening_is_one_line(
    folder, tmp_path, capsys, content, message
):
    root = folder if content else tmp_path / "nowhere"
    if content:
        (folder / "dataset.json").write_text(content)
    assert main(["data", "check", str(root)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_counter_on_a_terminal_only(folder, capsys, monkeypatch):
    main(["data", "check", str(folder)])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    main(["data", "check", str(folder)])
    assert "3/3 images\n" in capsys.readouterr().err


def test_many_sizes_are_cut_short(folder, capsys):
    for i in range(3):
        size = (20 + i, 30)
        Image.new("RGB", size).save(folder / f"images/val/more_{i}.png")
        Image.new("L", size).save(folder / f"masks/val/more_{i}.png")
    assert main(["data", "check", str(folder)]) == 0
    (row,) = (line for line in lines_of(capsys) if line.startswith("val"))
    assert row.endswith("64x96 (2), 30x20 (1), 30x21 (1), 2 more sizes")


# preview


def size_of(file):
    with Image.open(file) as image:
        return image.size


def test_preview_of_a_folder(folder, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["data", "preview", str(folder), "--output", str(sheet)]) == 0
    assert str(sheet) in lines_of(capsys)[-1]
    # Nothing else is left behind.
    assert list(sheet.parent.iterdir()) == [sheet]
    pixels = np.array(Image.open(sheet).convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def test_preview_shows_the_examples_asked_for(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        plots, "draw_sheet", lambda *arguments: drawn.append(arguments)
    )
    output = ["--output", str(tmp_path / "x.png")]
    root = ["data", "preview", str(folder)]
    assert main([*root, *output, "--split", "val", "--count", "2"]) == 0
    _, title, examples, spec = drawn[0]
    assert title == "set, val: 2 of 3"
    names = [text.split()[0] for text, *_ in examples]
    assert names == ["val_0.png", "val_1.png"]
    assert spec.class_names == ("ground", "box", "bar")
    for name, (text, image, labels) in zip(names, examples, strict=True):
        assert text.endswith(f"{labels.shape[0]}x{labels.shape[1]}")
        expected = np.array(Image.open(folder / "images/val" / name))
        np.testing.assert_array_equal(image, expected)
        mask = np.array(Image.open(folder / "masks/val" / name))
        np.testing.assert_array_equal(labels, mask)


def test_preview_of_training_crops(folder, tmp_path, monkeypatch):
    """As the network gets them: crop size and scale of the configuration."""
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"data:\n  root: {folder}\n  crop_size: [96, 128]\n"
        "  augment: {scale: [1.0, 1.0], flip: false}\n"
        "train: {total_epochs: 1}\n"
    )
    drawn = []
    monkeypatch.setattr(
        plots, "draw_sheet", lambda *arguments: drawn.append(arguments)
    )
    arguments = [str(config), "--augmented", "--output", "x.png"]
    assert main(["data", "preview", *arguments]) == 0
    _, title, examples, _ = drawn[0]
    assert title == "mine.yaml, train: 3 of 3, as crops of 96x128"
    for text, image, labels in examples:
        name = text.split()[0]
        assert image.shape == (96, 128, 3)
        assert image.dtype == np.uint8
        mask = np.array(Image.open(folder / "masks/train" / name))
        height, width = mask.shape
        top, left = (96 - height) // 2, (128 - width) // 2
        inside = labels[top : top + height, left : left + width]
        np.testing.assert_array_equal(inside, mask)
        outside = 96 * 128 - mask.size
        assert np.sum(labels == 255) == outside + np.sum(mask == 255)


def test_preview_of_mixed_crops(folder, tmp_path, monkeypatch):
    """CutMix pastes a rectangle of the next crop of the sheet."""
    config = tmp_path / "mine.yaml"
    drawn = []
    monkeypatch.setattr(
        plots, "draw_sheet", lambda *arguments: drawn.append(arguments)
    )
    for cutmix in (0.0, 1.0):
        config.write_text(
            f"data:\n  root: {folder}\n  crop_size: [96, 128]\n"
            f"  augment: {{cutmix: {cutmix}}}\ntrain: {{total_epochs: 1}}\n"
        )
        arguments = [str(config), "--augmented", "--output", "x.png"]
        assert main(["data", "preview", *arguments]) == 0
    plain, mixed = ([cell[1:] for cell in sheet[2]] for sheet in drawn)
    for i, (image, labels) in enumerate(mixed):
        own, own_labels = plain[i]
        other, other_labels = plain[(i + 1) % len(plain)]
        pasted = (image != own).any(-1)
        assert pasted.any()
        np.testing.assert_array_equal(image[pasted], other[pasted])
        np.testing.assert_array_equal(labels[pasted], other_labels[pasted])
        np.testing.assert_array_equal(
            labels != own_labels, pasted & (other_labels != own_labels)
        )


def test_preview_of_a_configuration_by_name(tmp_path, monkeypatch):
    from keras_aspp.data.datasets.multiscale_shapes import MultiscaleShapes

    few = {"train": 3, "validation": 1, "test": 1}
    monkeypatch.setattr(MultiscaleShapes, "NUM_EXAMPLES", few)
    loaded = command.load_config

    def here(path):
        config = loaded(path)
        data = dataclasses.replace(config.data, data_dir=str(tmp_path / "tfds"))
        return dataclasses.replace(config, data=data)

    monkeypatch.setattr(command, "load_config", here)
    sheet = tmp_path / "sheet.png"
    arguments = ["multiscale_shapes", "--output", str(sheet), "--count", "2"]
    assert main(["data", "preview", *arguments]) == 0
    assert size_of(sheet)[0] > 800


def test_failed_preview_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def full_disk(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    sheet = tmp_path / "out" / "sheet.png"
    assert main(["data", "preview", str(folder), "--output", str(sheet)]) == 1
    assert list(sheet.parent.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["look"],
        ["check"],
        ["check", "a", "b"],
        ["preview", "x"],
        ["preview", "x", "--output", "y.jpg"],
        ["preview", "x", "--output", "y.png", "--count", "0"],
        ["preview", "x", "--output", "y.png", "--count", "few"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "--help" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "Neither a folder nor a configuration. Received: 'now"),
        (["folder"], "Exactly one of `data.root`"),
        (["{folder}", "--split", "dev"], "Split `dev` is empty or missing"),
    ],
)
def test_bad_input_is_one_line_and_status_1(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    arguments = [a.format(folder=folder) for a in arguments]
    assert main(["data", "preview", *arguments, "--output", "x.png"]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_one_class_name_and_255_is_refused_by_check_and_training(
    folder, tmp_path, capsys
):
    content = {"class_names": ["box"], "label_map": {"255": 1}}
    (folder / "dataset.json").write_text(json.dumps(content))
    message = "Received: class_names=['box']. File: "
    assert main(["data", "check", str(folder)]) == 1
    assert message in capsys.readouterr().err
    workdir = tmp_path / "run"
    arguments = ["train", "--config", "folder", "--data.root", str(folder)]
    arguments += ["--model.backbone_weights", "null"]
    assert main([*arguments, "--workdir", str(workdir)]) == 1
    printed = capsys.readouterr().err
    assert "background is a class" in printed and message in printed
