"""The README's paths; `.ci/run` runs `make train` itself."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT
from tiny_run import replace, small_config

from keras_aspp.cli.main import guarded
from keras_aspp.config.load import dump_config
from keras_aspp.engine import run as engine_run
from training import quickstart

OWN = ("notes.txt", "logs/mine/events", "predictions/mine.png")
WRITTEN = (
    *("config.yaml", "model.keras", "metrics.json", "dataset.json"),
    *("logs/history.csv", "logs/train/events", "fingerprint.json"),
    *("checkpoints/epoch_00001/state.json", "exported/manifest.json"),
)


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def files_of(folder):
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in found)


@pytest.fixture
def begun(tiny_folder, tmp_path, monkeypatch):
    """Command line of a run, and the files that `train` finds."""
    found = []

    def train(config, workdir, progress):
        engine_run._check_workdir(
            engine_run.CheckpointStore(workdir, 1), config, resume=False
        )
        found.append(files_of(workdir))
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_run, "train", train)
    config = small_config(tiny_folder)
    for name, root in (("here", config.data.root), ("missing", "missing")):
        dump_config(
            replace(config, data={"root": root}), tmp_path / f"{name}.yaml"
        )

    def command(data, workdir):
        words = ["--config", str(tmp_path / f"{data}.yaml")]
        return guarded(quickstart.run, [*words, "--workdir", str(workdir)])

    return command, found


@pytest.mark.parametrize("is_link", [False, True])
def test_the_quickstart_replaces_the_run_of_before(is_link, begun, tmp_path):
    command, found = begun
    folder = workdir = tmp_path / "run"
    write(folder, [*OWN, *WRITTEN])
    if is_link:
        workdir = tmp_path / "link"
        workdir.symlink_to(folder)
    assert command("missing", workdir) == 1
    assert files_of(folder) == sorted([*OWN, *WRITTEN])
    assert command("here", workdir) == 130
    # The export replaces its own folder.
    assert found == [sorted([*OWN, "exported/manifest.json"])]
    assert files_of(folder) == found[0]


def test_the_quickstart_removes_no_folder_of_another(begun, tmp_path, capsys):
    command, found = begun
    folder = tmp_path / "project"
    write(folder, [*OWN, "config.yaml"])
    for data in ("missing", "here"):
        assert command(data, folder) == 1
    assert "config.yaml that belongs to no run" in capsys.readouterr().err
    assert files_of(folder) == sorted([*OWN, "config.yaml"])
    assert not found


def test_make_train_writes_only_to_a_folder_that_git_ignores():
    (command,) = (
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if "training.quickstart" in line
    )
    assert command.split("training.quickstart")[1] == " --workdir $(RUN)"
    makefile = (ROOT / "Makefile").read_text()
    run = re.search(r"^RUN := (\S+)$", makefile, re.M)[1]
    assert run.startswith("runs/")
    assert "/runs/" in (ROOT / ".gitignore").read_text().splitlines()


def test_exported_tflite_needs_only_the_interpreter(tiny_export):
    """The README's ten lines, in a process without TensorFlow and Keras."""
    path = str(tiny_export / "model_float32.tflite")
    code = f"""
import sys
for name in ("tensorflow", "keras", "keras_aspp"):
    sys.modules[name] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path={path!r})
segment = interpreter.get_signature_runner()
labels = segment(image=np.zeros((1, 64, 96, 3), "uint8"))["labels"]
assert labels.shape == (1, 64, 96) and labels.dtype == np.int32
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
