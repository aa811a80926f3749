"""Command `evaluate`: its outputs are checked before the work."""

import json

import pytest

from keras_aspp.cli.main import main


@pytest.fixture
def command(tiny_folder):
    model = ["--model", str(tiny_folder / "toy.keras")]
    return ["evaluate", *model, "--data", str(tiny_folder), "--split", "val"]


def test_the_folder_of_the_metrics_is_made(command, tmp_path):
    path = tmp_path / "new" / "folder" / "metrics.json"
    assert main([*command, "--json", str(path)]) == 0
    assert json.loads(path.read_text())["num_images"] == 3


@pytest.mark.parametrize(
    "flag, place, message",
    [
        ("--json", "folder", "must be a file, and a folder has its name"),
        ("--json", "file/metrics.json", "must be a folder, and a file has"),
        ("--figures", "file", "must be a folder, and a file has"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    flag, place, message, command, tmp_path, capsys, monkeypatch
):
    from keras_aspp.engine import evaluate as engine

    def work(*_, **__):
        pytest.fail("images are read")

    monkeypatch.setattr(engine, "evaluation_dataset", work)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert main([*command, flag, str(tmp_path / place)]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert message in said
