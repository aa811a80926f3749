"""Help on fields of the configuration."""

import dataclasses

import docstring_parser
import pytest

from keras_aspp.cli.fields import describe, paths
from keras_aspp.cli.main import main
from keras_aspp.config.schema import Config, LossConfig, TrainConfig
from keras_aspp.data.augment import AugmentConfig


def sections(section=Config):
    yield section
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type):
            yield from sections(field.type)


def test_every_field_is_described_and_nothing_else_is():
    found = list(sections())
    assert {AugmentConfig, LossConfig, TrainConfig} < set(found)
    for section in found:
        texts = docstring_parser.parse(section.__doc__).params
        names = [field.name for field in dataclasses.fields(section)]
        assert sorted(text.arg_name for text in texts) == sorted(names)
        assert all(len(text.description) > 5 for text in texts)


def test_every_path_can_be_asked_for():
    assert len(paths()) > 80
    for path in paths():
        lines = describe(path).splitlines()
        assert lines[0].startswith(path)
        assert max(map(len, lines)) < 80


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        (
            "train.loss.dice",
            [
                "train.loss.dice  float | null; default null",
                "    Weight of the Dice loss, >= 0; helps classes of few "
                "pixels. `null` is 1 for",
                "    a binary or multilabel task, which learns thin objects "
                "late or never",
                "    without it, and 0 otherwise.",
            ],
        ),
        (
            "data.crop_size",
            [
                "data.crop_size  [int, int]; default [320, 320]",
                "    `[height, width]` of training crops, multiples of 32.",
            ],
        ),
        (
            "train.strategy",
            [
                "train.strategy  none | mirrored | multi_worker; default none",
                "    Devices that share each batch: `none`, one; `mirrored`, "
                "all of this",
                "    machine; `multi_worker`, all of several machines.",
            ],
        ),
    ],
)
def test_help_of_a_field_has_type_default_and_text(path, lines, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help", path])
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_help_of_a_section_has_all_fields(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config", "folder", "-h", "train"])
    said = capsys.readouterr().out
    assert said.startswith("train: Optimization settings.\n\n")
    for field in dataclasses.fields(TrainConfig):
        assert f"\ntrain.{field.name}" in said
    assert "\ntrain.loss.*  (see --help train.loss)\n" in said


@pytest.mark.parametrize("path", ["train.los", "train.loss.", "train.loss.x.y"])
def test_help_of_no_field_is_wrong_usage(path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help", path])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Did you mean train.loss? Received: " + path in said
    assert said.count("\n") == 1
