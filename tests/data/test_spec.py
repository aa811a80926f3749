import json

import pytest

from keras_aspp.data.spec import DatasetSpec

NAMES = ["sky", "road", "car"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": []}, r"Received: class_names=\[\]"),
        ({"class_names": ["a", "a"]}, r"Received: class_names=\['a', 'a'\]"),
        ({"class_names": "sky"}, r"Received: class_names='sky'"),
        ({"class_names": [0, 1]}, r"Received: class_names=\[0, 1\]"),
        ({"ignore_label": 256}, "Received: ignore_label=256"),
        ({"ignore_label": 2}, "one of the 3 classes. Received: ignore_label=2"),
        ({"ignore_label": 7.0}, "Received: ignore_label=7.0"),
        ({"colormap": [[0, 0, 0]]}, "must hold 3 RGB.* Received: 1 entries"),
        ({"colormap": 5}, "Received: 0 entries"),
        (
            {"colormap": [[0, 0, 0], [1, 2, 256], [9, 9, 9]]},
            r"Received: \[1, 2, 256\]",
        ),
        (
            {"colormap": [[0, 0, 0], [1, 2], [9, 9, 9]]},
            r"Received: \[1, 2\]",
        ),
        (
            {"colormap": [[0, 0, 0], [9, 9, 9], [9, 9, 9]]},
            r"Received: \[9, 9, 9\] more than once",
        ),
        ({"label_map": {4: 3}}, "0..2 or 'ignore'. Received: 4: 3"),
        ({"label_map": {4: "void"}}, "Received: 4: 'void'"),
        ({"label_map": {"sky": 1}}, "Received: sky: 1"),
        ({"label_map": [1, 2]}, r"Received: label_map=\[1, 2\]"),
    ],
)
def test_wrong_value_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DatasetSpec(**{"class_names": NAMES, **arguments})


def test_255_classes_fit_and_256_do_not():
    assert DatasetSpec([str(i) for i in range(255)]).num_classes == 255
    with pytest.raises(ValueError, match="one of the 256 classes"):
        DatasetSpec([str(i) for i in range(256)])


def test_file_round_trip_keeps_everything_but_the_label_map(tmp_path):
    # Masks that we write hold class ids: a label map would turn them again.
    spec = DatasetSpec(
        NAMES,
        ignore_label=0x0B,
        colormap=[[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        label_map={7: 1, 8: "ignore"},
        name="streets",
        license="cc0",
    )
    spec.to_file(tmp_path / "dataset.json")
    read = DatasetSpec.from_file(tmp_path / "dataset.json")
    assert read.label_map is None
    for name in ("class_names", "ignore_label", "colormap", "name", "license"):
        assert getattr(read, name) == getattr(spec, name)
    assert [p.name for p in tmp_path.iterdir()] == ["dataset.json"]


def test_file_with_string_keys_notes_and_byte_order_mark(tmp_path):
    file = tmp_path / "dataset.json"
    content = {
        "class_names": NAMES,
        "label_map": {"7": 1, "8": "ignore"},
        "num_classes": 3,
        "source": "a camera",
    }
    file.write_text(json.dumps(content), encoding="utf-8-sig")
    spec = DatasetSpec.from_file(file)
    assert spec.label_map == {7: 1, 8: "ignore"}
    assert spec.ignore_label == 255


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Not valid JSON"),
        ("[]", "`class_names` is missing"),
        ('{"ignore_label": 0}', "`class_names` is missing"),
        ('{"class_names": ["a"], "clas": 1}', r"Unknown keys \['clas'\]"),
        ('{"class_names": ["a"], "num_classes": 2}', "`num_classes` is 2"),
        ('{"class_names": ["a"], "ignore_label": -1}', "ignore_label=-1"),
        ('{"class_names": ["a"], "label_map": [1]}', r"label_map=\[1\]"),
    ],
)
def test_fault_of_a_file_names_the_file(tmp_path, text, message):
    file = tmp_path / "dataset.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        DatasetSpec.from_file(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_colors():
    given = ((9, 8, 7), (1, 2, 3), (0, 0, 0))
    assert DatasetSpec(NAMES, colormap=given).colors() == given
    made = DatasetSpec([str(i) for i in range(255)]).colors()
    assert len(set(made)) == 255
    # The first of PASCAL VOC's own table.
    voc = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert made[:5] == voc
    assert made[15] == (192, 128, 128)
