"""Former keys of configurations."""

import pytest

from keras_aspp.config.load import config_text, load_config
from keras_aspp.config.schema import ExportConfig

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
