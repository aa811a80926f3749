import json

import pytest

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.utils.text import printable

NAMES = ["sky", "road", "car"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": []}, r"Received: class_names=\[\]"),
        ({"class_names": ["a", "a"]}, r"Received: class_names=\['a', 'a'\]"),
        ({"class_names": "sky"}, r"Received: class_names='sky'"),
        (
            {"class_names": ["sky"], "label_map": {255: 1}},
            r"background is a class.*Received: class_names=\['sky'\]",
        ),
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
        ({"ignore_colors": 5}, "Received: ignore_colors=5"),
        ({"ignore_colors": [[1, 2]]}, r"`ignore_colors` .*Received: \[1, 2\]"),
        ({"ignore_colors": [[1, 2, 3]]}, "beside those of `colormap`, which"),
        (
            {
                "colormap": [[0, 0, 0], [1, 1, 1], [2, 2, 2]],
                "ignore_colors": [[9, 9, 9], [1, 1, 1]],
            },
            r"beside those of `colormap`.*Received: \[1, 1, 1\]",
        ),
        ({"mask_orientation": 6}, "Received: mask_orientation=6"),
        ({"class_names": ["a\u202eb"]}, "overrides of the writing direction"),
        ({"class_names": ["a\u2066b"]}, "overrides of the writing direction"),
        ({"class_names": ["a\tb"]}, "control characters"),
        ({"class_names": ["a\u2028b"]}, "line breaks"),
        ({"license": "a\x7f"}, "a line of text. Received: license="),
    ],
)
def test_wrong_value_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DatasetSpec(**{"class_names": NAMES, **arguments})


NAMES_OF_THE_WORLD = [
    "\u0646\u06cc\u0645\u200c\u0641\u0627\u0635\u0644\u0647",  # Persian
    "\U0001f468\u200d\U0001f33e",  # an emoji of two
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e007f",  # a flag
    "\u9053\u3000\u8def",  # an ideographic space
    "voie\u00a0ferr\u00e9e",
]


def test_names_of_all_languages_are_names(tmp_path):
    spec = DatasetSpec(NAMES_OF_THE_WORLD, license="\u00a9\u3000\u66f8")
    spec.to_file(tmp_path / "dataset.json")
    assert DatasetSpec.from_file(tmp_path / "dataset.json") == spec
    # Messages show them as they are.
    for name in NAMES_OF_THE_WORLD:
        assert printable(name) == name


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
        ignore_colors=[[0, 0, 0]],
        mask_orientation="image",
        label_map={7: 1, 8: "ignore"},
        name="streets",
        license="cc0",
    )
    spec.to_file(tmp_path / "dataset.json")
    read = DatasetSpec.from_file(tmp_path / "dataset.json")
    assert read.label_map is None
    assert read.mask_orientation == "own"
    assert read.ignore_colors == ((0, 0, 0),)
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
        ('{"class_names": ["a", "b"], "clas": 1}', r"Unknown keys \['clas'\]"),
        ('{"class_names": ["a", "b"], "num_classes": 3}', "`num_classes` is 3"),
        ('{"class_names": ["a", "b"], "ignore_label": -1}', "ignore_label=-1"),
        ('{"class_names": ["a", "b"], "label_map": [1]}', r"label_map=\[1\]"),
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
