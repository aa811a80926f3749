"""Former and repeated keys, and texts that look like other values."""

import pytest

from keras_aspp.config.load import config_text, load_config
from keras_aspp.config.schema import (
    Config,
    DataConfig,
    ExportConfig,
    TrainConfig,
)

OLD = """
train:
  total_epochs: 1
export:
  verify_images: 3
  calibration_images: 5
"""


def test_a_file_with_former_keys(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OLD)
    with pytest.warns(DeprecationWarning, match="export.num_verify_images"):
        config = load_config(path)
    assert config.export.num_verify_images == 3
    assert config.export.num_calibration_images == 5
    path.write_text(config_text(config))
    assert "\n  verify_images" not in path.read_text()
    assert load_config(path) == config


@pytest.mark.parametrize(
    "words", [["--export.verify_images", "4"], ["--export.verify_images=4"]]
)
def test_a_former_key_on_the_command_line(words, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OLD)
    with pytest.warns(DeprecationWarning, match="--export.num_verify_images"):
        config = load_config(path, words)
    assert config.export.num_verify_images == 4


def test_former_names_in_python():
    with pytest.warns(DeprecationWarning, match="num_calibration_images"):
        config = ExportConfig(calibration_images=7)
    assert config == ExportConfig(num_calibration_images=7)
    with pytest.warns(DeprecationWarning, match="num_verify_images"):
        assert config.verify_images == 8


@pytest.mark.parametrize(
    "content, key",
    [
        ("train:\n  total_epochs: 1\n  seed: 1\n  seed: 2\n", "seed"),
        (
            "train: {total_epochs: 1}\nmodel: {}\ndata: {}\nmodel: {}\n",
            "model",
        ),
        ("train: {total_epochs: 1}\ndata: {label_map: {3: 0, 3: 1}}\n", "3"),
        ("train: {callbacks: [{class: a.b}, {class: c.d, class: e}]}", "class"),
    ],
)
def test_a_repeated_key_is_refused(content, key, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    message = f"{path} .*must occur once in its section; remove one `{key}`"
    with pytest.raises(ValueError, match=message) as raised:
        load_config(path)
    assert "\n" not in str(raised.value)


def test_keys_of_different_sections_and_values_may_be_equal(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "train: {total_epochs: 1, loss: {dice: 1}}\n"
        "data: {train_split: val, validation_split: val, class_names: [a, a]}"
    )
    config = load_config(path)
    assert config.data.train_split == config.data.validation_split == "val"
    assert config.data.class_names == ["a", "a"]


@pytest.mark.parametrize(
    "text",
    [
        *("3e5", "7E1", "-3e+5", "1.5e5", "1_0e2", "12e4", ".5e+3", "._"),
        *("true", "no", "012", "0x1f", "1.10", "1:30", "2026-11-30", ".inf"),
        *("", "-", "=", "a: b", "[1]", "{a: 1}", "\u00e9", "a\nb"),
    ],
)
def test_texts_that_look_like_other_values_are_the_same_after_a_reload(
    text, tmp_path
):
    path = tmp_path / "config.yaml"
    entry = {"class": "a.B", "arguments": {"x": text, "y": [text]}}
    config = Config(
        data=DataConfig(
            root=text, class_names=[text, "b"], validation_groups=[text]
        ),
        train=TrainConfig(total_epochs=1, callbacks=[entry]),
    )
    path.write_text(config_text(config))
    assert load_config(path) == config


def test_numbers_of_a_file_with_former_keys_stay_numbers(tmp_path):
    path = tmp_path / "config.yaml"
    entry = "{class: a.B, arguments: {rate: 3e5, small: 1.5e-3, name: '3e5'}}"
    path.write_text(
        "export: {verify_images: 3, max_int8_loss: 2e-1}\n"
        "train: {total_epochs: 1, learning_rate: 1e-3, "
        f"callbacks: [{entry}]}}"
    )
    with pytest.warns(DeprecationWarning):
        config = load_config(path)
    assert (config.train.learning_rate, config.export.max_int8_loss) == (
        0.001,
        0.2,
    )
    arguments = config.train.callbacks[0]["arguments"]
    assert arguments == {"rate": 300000.0, "small": 0.0015, "name": "3e5"}
