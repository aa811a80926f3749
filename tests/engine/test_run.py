"""A run end to end, on a tiny folder."""

import csv
import json
import zipfile

import h5py
import numpy as np
import pytest
from tiny_run import replace, small_config, tiny_config, write_folder

from keras_aspp.engine.run import train


def history(workdir):
    with open(workdir / "logs" / "history.csv") as file:
        return list(csv.DictReader(file))


def test_workdir_holds_what_it_should(tiny_workdir):
    for name in ("config.yaml", "model.keras", "metrics.json", "dataset.json"):
        assert (tiny_workdir / name).is_file()
    metrics = json.loads((tiny_workdir / "metrics.json").read_text())
    assert set(metrics) == {
        "mean_iou",
        "per_class_iou",
        "pixel_accuracy",
        "mean_accuracy",
        "frequency_weighted_iou",
        "boundary_iou",
        "num_images",
        "split",
        "artefact",
        "runtime",
        "precision",
        "kept_epoch",
        "advice",
    }
    assert metrics["num_images"] == 3
    assert list(metrics["per_class_iou"]) == ["ground", "box", "bar"]
    assert list((tiny_workdir / "logs" / "train").glob("events*"))
    assert list((tiny_workdir / "logs" / "images").glob("events*"))


def test_metrics_agree_with_the_best_epoch_of_the_curve(tiny_workdir):
    metrics = json.loads((tiny_workdir / "metrics.json").read_text())
    scores = [float(row["val_mean_iou"]) for row in history(tiny_workdir)]
    assert metrics["mean_iou"] == pytest.approx(max(scores), abs=1e-4)
    assert metrics["kept_epoch"] == 1 + scores.index(max(scores))


def test_model_has_no_optimizer_state(tiny_workdir):
    with zipfile.ZipFile(tiny_workdir / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
        archive.extract("model.weights.h5", tiny_workdir / "logs")
    assert not config["compile_config"]
    with h5py.File(tiny_workdir / "logs" / "model.weights.h5") as weights:
        assert "optimizer" not in weights


@pytest.mark.slow
def test_damaged_checkpoint_is_skipped(tmp_path, tiny_folder, capsys):
    config = small_config(tiny_folder, total_epochs=2)
    train(config, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "epoch_00002"
    (newest / "variables.npz").write_bytes(b"not a zip")
    before = history(tmp_path / "run")
    evaluated = []
    train(
        config,
        tmp_path / "run",
        resume=True,
        progress=lambda *of: evaluated.append(of),
    )
    assert evaluated[-1] == (3, 3)
    said = capsys.readouterr().out
    assert "Compiling the first step" in said
    assert said.count("Steps traced: train_step 1, test_step") == 2
    assert "\nEpoch 2/2  2 steps in " in said
    assert "Skipped a damaged checkpoint" in said
    assert "Resumed after epoch 1" in said
    assert history(tmp_path / "run") == before
    with pytest.raises(ValueError, match="train.seed: 0 -> 1"):
        train(replace(config, train={"seed": 1}), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_early_stopping(tmp_path, tiny_folder, capsys):
    config = small_config(
        tiny_folder,
        total_epochs=4,
        learning_rate=1e-9,
        early_stopping_epochs=1,
    )
    # Statistics that move would move the score, too.
    train(replace(config, model={"batch_norm": "freeze"}), tmp_path)
    assert "Stopped early" in capsys.readouterr().out
    assert len(history(tmp_path)) == 2


def test_a_used_workdir_is_refused(tiny_workdir, tiny_folder):
    with pytest.raises(FileExistsError, match="--resume"):
        train(tiny_config(tiny_folder), tiny_workdir)


def test_bad_label_is_found_before_training(tmp_path):
    from PIL import Image

    root = write_folder(tmp_path / "data")
    mask = root / "masks" / "train" / "train_1.png"
    labels = np.array(Image.open(mask))
    labels[5, 5] = 9
    Image.fromarray(labels).save(mask)
    with pytest.raises(ValueError, match=r"value 9 .*train_1\.png \(1 pixels"):
        train(tiny_config(root), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_missing_split_is_named(tmp_path, tiny_folder):
    config = replace(tiny_config(tiny_folder), data={"validation_split": "dev"})
    with pytest.raises(ValueError, match=r"Split `dev` .*'train': 3"):
        train(config, tmp_path)
