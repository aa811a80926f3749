"""Configurations, dataset.json and manifest.json from anywhere."""

import json
import os
import shutil
import time

import corpus
import pytest
from helpers import ROOT

from keras_aspp.cli.main import main
from keras_aspp.config.load import load_config
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.utils.errors import MAX_MESSAGE, one_line
from keras_aspp.utils.text import printable

EXPORT = ROOT / "saved_models/multiscale_shapes"
SPECS = corpus.specs()
MARKER = "marker"
CONFIGURATIONS = corpus.configurations(MARKER)


def write(path, content):
    path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    return path


def said_by(arguments, capsys):
    """The one line that a command fails with."""
    start = time.process_time()
    assert main([str(argument) for argument in arguments]) == 1
    assert time.process_time() - start < 10
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("keras-aspp: error: ")
    assert len(line) < MAX_MESSAGE + 100
    return line


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = CONFIGURATIONS[name]
    path = write(tmp_path / "mine.yaml", content)
    arguments = ["train", "--config", path, "--workdir", "run"]
    said = said_by(arguments, capsys)
    assert message in said
    assert "mine.yaml" in said
    assert os.listdir() == ["mine.yaml"]


def test_commands_that_read_a_configuration(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = CONFIGURATIONS["billion_laughs"]
    path = write(tmp_path / "config.yaml", content)
    for arguments in (
        ("inspect", "--config", path),
        ("data", "preview", path, "--output", "sheet.png"),
        ("evaluate", "--model", EXPORT, "--data", path),
        ("evaluate", "--model", tmp_path),
        ("export", "--model", tmp_path, "--output", "out"),
    ):
        assert message in said_by(arguments, capsys)
    assert os.listdir() == ["config.yaml"]


def test_every_configuration_of_ours_passes():
    for path in (ROOT / "keras_aspp/configs").glob("*.yaml"):
        load_config(path)


@pytest.mark.parametrize("value", ["9" * 400, "[" * 2000, "nan", "null"])
def test_values_of_the_command_line(value, capsys):
    arguments = ["train", "--config", "multiscale_shapes", "--print_config"]
    said = said_by([*arguments, "--model.dropout", value], capsys)
    assert "multiscale_shapes" not in said


@pytest.mark.parametrize("name", SPECS)
def test_dataset_json(name, tmp_path, capsys):
    content, message = SPECS[name]
    path = write(tmp_path / "dataset.json", content)
    start = time.process_time()
    with pytest.raises(ValueError, match="dataset.json") as error:
        DatasetSpec.from_file(path)
    assert time.process_time() - start < 2
    assert message in one_line(error.value)


def odd_file(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "endless": "/dev/zero"}[kind])


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "endless"])
def test_what_is_no_file(kind, tmp_path, capsys):
    for part in ("images", "masks"):
        (tmp_path / part / "train").mkdir(parents=True)
        picture = corpus.encoded(corpus.noise()[..., 0], "PNG")
        (tmp_path / part / "train" / "a.png").write_bytes(picture)
    odd_file(tmp_path / "dataset.json", kind)
    assert "dataset.json" in said_by(["data", "check", tmp_path], capsys)
    config = tmp_path / "mine.yaml"
    odd_file(config, kind)
    arguments = ["train", "--config", config, "--workdir", tmp_path / "run"]
    assert "mine.yaml" in said_by(arguments, capsys)
    assert not (tmp_path / "run").exists()


GOOD = json.loads((EXPORT / "manifest.json").read_text())
MANIFESTS = {
    "empty": "",
    "list": "[]",
    "deep": "[" * 100_000,
    "binary": bytes(range(256)),
    "no_artefacts": json.dumps({"class_names": ["a", "b"]}),
    "artefacts_numbers": json.dumps({**GOOD, "artefacts": [1]}),
    "no_names": json.dumps({**GOOD, "class_names": None}),
    "other_names": json.dumps({**GOOD, "class_names": [1, 2]}),
    "escape": json.dumps({**GOOD, "class_names": ["\x1b[1m"]}),
    "ignore_label": json.dumps({**GOOD, "ignore_label": "x"}),
    "colormap": json.dumps({**GOOD, "colormap": "red"}),
    "hash": json.dumps(
        {
            **GOOD,
            "artefacts": [{**a, "sha256": "0"} for a in GOOD["artefacts"]],
        }
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest(name, tmp_path, capsys):
    folder = tmp_path / "export"
    shutil.copytree(EXPORT, folder)
    write(folder / "manifest.json", MANIFESTS[name])
    picture = tmp_path / "a.png"
    picture.write_bytes(corpus.encoded(corpus.noise(), "PNG"))
    output = tmp_path / "out"
    arguments = ["predict", "--model", folder, "--output", output, picture]
    assert "manifest.json" in said_by(arguments, capsys)
    assert not output.exists()


def test_manifest_of_fewer_classes_than_the_model_answers(tmp_path, capsys):
    folder = tmp_path / "export"
    shutil.copytree(EXPORT, folder)
    content = {**GOOD, "class_names": ["a", "b"], "colormap": None}
    (folder / "manifest.json").write_text(json.dumps(content))
    picture = EXPORT / "preview.png"  # it has shapes
    arguments = ["predict", "--model", folder, "--output", tmp_path / "out"]
    assert main([*map(str, arguments), str(picture)]) == 1
    assert "not in 0..1" in capsys.readouterr().err


def test_printable():
    assert printable("plain \u00e9 text") == "plain \u00e9 text"
    assert printable("a\nb\x1b\udce9\u202e") == r"a\nb\x1b\udce9\u202e"
