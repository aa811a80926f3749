import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_aspp.config.schema import DataConfig
from keras_aspp.data.convert import convert_folder
from keras_aspp.data.folder import HELD_OUT, FolderSource
from keras_aspp.data.sources import open_source
from keras_aspp.data.tfds import TfdsSource

NAMES = ["ground", "box"]


@pytest.fixture
def root(tmp_path):
    """Ten pictures without split folders and without dataset.json."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(10):
        Image.new("RGB", (6, 4)).save(tmp_path / f"images/{i}.png")
        Image.new("L", (6, 4), i % 2).save(tmp_path / f"masks/{i}.png")
    return tmp_path


def describe(root, **content):
    (root / "dataset.json").write_text(
        json.dumps({"class_names": ["x", "y", "z"], **content})
    )


@pytest.mark.parametrize(
    "fields", [{}, {"root": "a", "tfds": "b"}], ids=["none", "both"]
)
def test_exactly_one_of_root_and_tfds(fields):
    with pytest.raises(ValueError, match="Exactly one of .* Received: root="):
        open_source(DataConfig(**fields))


def test_tfds_needs_class_names():
    with pytest.raises(ValueError, match="`data.class_names` must be given"):
        open_source(DataConfig(tfds="multiscale_shapes"))


def test_every_field_reaches_the_folder(root):
    source = open_source(
        DataConfig(
            root=str(root),
            class_names=NAMES,
            ignore_label=200,
            label_map={7: 1},
            license="cc0",
            train_split="fit",
            validation_split="tune",
            validation_fraction=0.4,
        )
    )
    assert isinstance(source, FolderSource)
    assert source.spec.class_names == tuple(NAMES)
    assert source.spec.ignore_label == 200
    assert source.spec.label_map == {7: 1}
    assert source.spec.license == "cc0"
    assert source.size("fit") + source.size("tune") == 10
    default = open_source(DataConfig(root=str(root)))
    assert default.size("val") < source.size("tune") <= 7


def test_null_holds_out_images_of_a_folder(root):
    source = open_source(DataConfig(root=str(root), validation_split=None))
    assert {k: len(v) for k, v in source.pairs.items()} == {
        "train": source.size("train"),
        HELD_OUT: source.size(HELD_OUT),
    }
    assert source.size("train") + source.size(HELD_OUT) == 10


@pytest.mark.parametrize(
    "fields",
    [
        {"validation_split": "train"},
        {"train_split": "val"},
        {"train_split": HELD_OUT, "validation_split": None},
    ],
)
def test_held_out_images_are_no_training_images(fields, root):
    with pytest.raises(ValueError, match=r"must differ. Received: '\w+' for"):
        open_source(DataConfig(root=str(root), **fields))


def test_null_of_records_names_slices():
    with pytest.raises(
        ValueError, match=r"train\[90%:\]. Received: tfds='multiscale_shapes'"
    ):
        config = DataConfig(tfds="multiscale_shapes", validation_split=None)
        open_source(config)


def test_groups_reach_the_folder_and_are_refused_of_records(root):
    groups = {"group_by": "[0-4]|(.)", "validation_groups": ["3", "7"]}
    source = open_source(
        DataConfig(root=str(root), validation_split=None, **groups)
    )
    names = [name for name, _ in source.pairs[HELD_OUT]]
    assert names == [str(root / f"images/{i}.png") for i in (3, 7)]
    for name, value in groups.items():
        with pytest.raises(ValueError, match=f"no names.*{name}=.[^o]"):
            open_source(DataConfig(tfds="multiscale_shapes", **{name: value}))


def test_environment_variables_in_a_root(root, monkeypatch):
    monkeypatch.setenv("WHERE", str(root.parent))
    source = open_source(DataConfig(root="${WHERE}/" + root.name))
    assert source.root == root


@pytest.mark.parametrize("fields", [{"label_map": {1: 0}}, {"ignore_label": 1}])
def test_label_values_without_class_names_are_no_silent_loss(root, fields):
    with pytest.raises(ValueError, match="need `data.class_names`, or a data"):
        open_source(DataConfig(root=str(root), **fields))
    describe(root, ignore_label=9)
    assert open_source(DataConfig(root=str(root))).spec.ignore_label == 9


def test_every_field_reaches_tfds(tmp_path, monkeypatch):
    from keras_aspp.data.datasets.multiscale_shapes import MultiscaleShapes

    few = {"train": 2, "validation": 1, "test": 1}
    monkeypatch.setattr(MultiscaleShapes, "NUM_EXAMPLES", few)
    source = open_source(
        DataConfig(
            tfds="multiscale_shapes",
            data_dir=str(tmp_path),
            mask_key="instances",
            class_names=NAMES,
            ignore_label=9,
            label_map={i: "ignore" for i in range(2, 9)},
        )
    )
    assert isinstance(source, TfdsSource)
    assert (tmp_path / "multiscale_shapes").is_dir()
    record = next(source.records("train").as_numpy_iterator())
    _, labels = source.decode(*record)
    assert 1 in np.unique(labels)  # the first figure; kinds may be others
    assert set(np.unique(labels)) <= {0, 1, 9}


def test_names_and_dataset_json_agree_about_the_number_of_classes(root):
    describe(root)
    config = DataConfig(root=str(root), class_names=NAMES)
    with pytest.raises(ValueError, match=r"as many classes.*\['x', 'y', 'z'\]"):
        open_source(config)
    open_source(DataConfig(root=str(root), class_names=["x", "y", "z"]))


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize(
    ("fields", "received"),
    [
        (
            {"class_names": ["y", "x", "z"]},
            "class_names=['y', 'x', 'z'], dataset.json: ['x', 'y', 'z']",
        ),
        (
            {"label_map": {"1": "ignore"}},
            "label_map={1: 'ignore'}, dataset.json: {}",
        ),
        ({"ignore_label": 7}, "ignore_label=7, dataset.json: 9"),
    ],
)
def test_options_that_dataset_json_contradicts_are_refused(
    fields, received, converted, root, tmp_path, caplog
):
    describe(root, ignore_label=9)
    if converted:
        convert_folder(FolderSource(root), tmp_path / "records")
        root = tmp_path / "records"
    (name,) = fields
    config = DataConfig(root=str(root), **fields)
    if not (converted and name == "label_map"):
        with pytest.raises(ValueError) as error:
            open_source(config)
        assert str(error.value).endswith(f"Received: {received}")
        assert str(error.value).startswith(f"`data.{name}` differs")
        assert ("change it there" in str(error.value)) == (not converted)
    # Runs of earlier versions used dataset.json.
    caplog.set_level("INFO", "keras_aspp")
    spec = open_source(config, strict=False).spec
    assert spec.class_names == ("x", "y", "z")
    assert (spec.ignore_label, spec.label_map) == (9, None)
    (message,) = (
        record.getMessage()
        for record in caplog.records
        if record.name == "keras_aspp.data.sources"
    )
    assert message.startswith(f"Note: `data.{name}` ")
    assert message.endswith(f"Received: {received}")
    agreeing = {"class_names": ["x", "y", "z"], "ignore_label": 9}
    spec = open_source(DataConfig(root=str(root), **agreeing)).spec
    assert (spec.ignore_label, spec.label_map) == (9, None)


@pytest.mark.parametrize("key", [1, "1", "01"])
def test_a_label_map_may_be_given_as_dataset_json_has_it(key, root):
    describe(root, label_map={"1": "ignore"})
    config = DataConfig(root=str(root), label_map={key: "ignore"})
    assert open_source(config).spec.label_map == {1: "ignore"}


def test_records_are_read_by_the_configuration_they_were_converted_with(
    root, tmp_path
):
    # Applied twice, this map would ignore the pixels of class 0.
    fields = {"class_names": NAMES, "label_map": {1: 0, 0: "ignore"}}
    folder = open_source(DataConfig(root=str(root), **fields))
    convert_folder(folder, tmp_path / "records")
    source = open_source(DataConfig(root=str(tmp_path / "records"), **fields))
    examples = source.records("train").as_numpy_iterator()
    found = [np.unique(source.decode(*record)[1]) for record in examples]
    # The number of an image is its name, and its masks hold it modulo 2.
    odd = [int(Path(name).stem) % 2 for name, _ in folder.pairs["train"]]
    assert set(odd) == {0, 1}
    assert sorted(map(list, found)) == sorted([0 if n else 255] for n in odd)


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_another_task_than_that_of_the_data_is_refused(
    task, converted, root, tmp_path
):
    describe(root)
    if converted:
        convert_folder(FolderSource(root), tmp_path / "records")
        root = tmp_path / "records"
    with pytest.raises(ValueError) as error:
        open_source(DataConfig(root=str(root), task=task))
    assert str(error.value).endswith(
        f"Received: data.task={task}, dataset.json: semantic"
    )
    assert open_source(DataConfig(root=str(root))).spec.task == "semantic"


def test_one_class_is_no_task(root):
    config = DataConfig(root=str(root), class_names=["box"], label_map={255: 1})
    with pytest.raises(ValueError, match=r"background.*class_names=\['box'\]"):
        open_source(config)
