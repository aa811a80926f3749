"""A run end to end, on a tiny folder."""

import csv
import json
import math
import os
import types
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import event_steps, make_small_backbone, randomize
from multilabel_folder import make_folder
from PIL import Image
from tiny_run import replace, small_config, tiny_config, write_folder

from keras_aspp.config.load import dump_config
from keras_aspp.data.folder import FolderSource
from keras_aspp.data.sources import open_source
from keras_aspp.engine import run as engine_run
from keras_aspp.engine.evaluate import evaluate
from keras_aspp.engine.run import _check_workdir, train
from keras_aspp.engine.states import CheckpointStore
from keras_aspp.engine.train import _validation_data
from keras_aspp.models import DeepLabV3
from keras_aspp.models.saving import save_model
from keras_aspp.models.segmenter import load_saved
from keras_aspp.workdir import Workdir, open_data


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
@pytest.mark.parametrize(
    ("factor", "iterations"),
    [
        (1.0, [1, 2]),  # updates, of two batches each
        (0.1, [2, 4]),  # batches: Keras' optimizer of two rates counts them
    ],
)
def test_damaged_checkpoint_is_skipped(
    factor, iterations, tmp_path, tiny_folder, capsys
):
    config = small_config(
        tiny_folder,
        total_epochs=2,
        accumulate_steps=2,
        backbone_learning_rate_factor=factor,
    )
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
    events = event_steps(tmp_path / "run" / "logs" / "validation")
    assert events["evaluation_loss_vs_iterations"] == iterations
    with pytest.raises(ValueError, match="train.seed: 0 -> 1"):
        train(replace(config, train={"seed": 1}), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_run_begun_with_options_of_no_effect_goes_on(
    tmp_path, monkeypatch, capsys
):
    """Earlier versions ignored those that differ from dataset.json."""
    root = write_folder(tmp_path / "data")
    config = replace(
        small_config(root, total_epochs=1), data={"ignore_label": 7}
    )
    with pytest.raises(ValueError, match="`data.ignore_label` differs"):
        train(config, tmp_path / "run", resume=True)
    with monkeypatch.context() as earlier:
        earlier.setattr(
            engine_run,
            "open_source",
            lambda data, **_: open_source(data, False),
        )
        before = train(config, tmp_path / "run")
    capsys.readouterr()
    assert train(config, tmp_path / "run", resume=True) == before
    note = "Note: `data.ignore_label` differs from the data set's dataset.json"
    assert note in capsys.readouterr().out
    assert Workdir(tmp_path / "run").source.spec.ignore_label == 255
    source, _ = open_data(None, tmp_path / "run")
    assert source.spec.ignore_label == 255


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


def test_a_run_that_a_callback_stopped_is_not_trained_on(tmp_path, tiny_folder):
    # Stops when the loss is no lower by 1e9 than in the epoch before.
    early = {
        "class": "keras.callbacks.EarlyStopping",
        "arguments": {"monitor": "loss", "patience": 1, "min_delta": 1e9},
    }
    config = tiny_config(tiny_folder, total_epochs=4)
    config = replace(config, train={"callbacks": [early]})
    train(config, tmp_path / "run")
    stopped = history(tmp_path / "run")
    assert len(stopped) == 2
    train(config, tmp_path / "run", resume=True)
    assert history(tmp_path / "run") == stopped


def test_a_used_workdir_is_refused(tiny_workdir, tiny_folder):
    with pytest.raises(FileExistsError, match="--resume"):
        train(tiny_config(tiny_folder), tiny_workdir)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "a finished run without checkpoints"),
        ("manifest.json", "an exported model"),
    ],
)
def test_a_workdir_whose_model_would_be_lost_is_refused(
    name, content, resume, tmp_path, tiny_folder
):
    files = sorted(["model.keras", name])
    for file in files:
        (tmp_path / file).write_text("{}")
    message = f"holds {content}, .*choose another workdir.*Received: workdir="
    with pytest.raises(FileExistsError, match=message) as raised:
        train(small_config(tiny_folder), tmp_path, resume)
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == files
    assert (tmp_path / "model.keras").read_text() == "{}"


def test_a_run_killed_before_its_first_checkpoint_may_begin_again(
    tmp_path, tiny_folder
):
    """The best model is saved before the state that refers to it."""
    store = CheckpointStore(tmp_path, 2)
    config = small_config(tiny_folder)
    for name in ("model.keras", "config.yaml", "fingerprint.json"):
        (tmp_path / name).touch()
    for resume in (False, True):
        _check_workdir(store, config, resume)
    store.save(1, 0, {}, {})
    (tmp_path / "metrics.json").touch()
    _check_workdir(store, config, resume=True)
    with pytest.raises(FileExistsError, match="Continue it with --resume"):
        _check_workdir(store, config, resume=False)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name", ["model.keras", "config.yaml", "dataset.json", "logs/history.csv"]
)
def test_files_of_no_run_are_not_replaced(name, resume, tmp_path, tiny_folder):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    message = f"a {name} that belongs to no run.*workdir. Received: workdir="
    with pytest.raises(FileExistsError, match=message) as raised:
        train(small_config(tiny_folder), tmp_path, resume)
    assert "\n" not in str(raised.value)
    assert path.read_text() == "mine"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_workdir_may_hold_the_configuration_of_the_run(tmp_path, tiny_folder):
    """As a killed run of an earlier version left it, without fingerprint."""
    config = small_config(tiny_folder)
    dump_config(config, tmp_path / "config.yaml")
    store = CheckpointStore(tmp_path, 2)
    _check_workdir(store, config, resume=False)
    with pytest.raises(FileExistsError, match="holds a config.yaml"):
        _check_workdir(store, replace(config, train={"seed": 1}), resume=False)


@pytest.mark.parametrize("described", [False, True])
def test_the_data_set_is_no_workdir(described, tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data")
    config = replace(small_config(tmp_path), data={"root": "$PLACE/data"})
    monkeypatch.setenv("PLACE", str(tmp_path))
    if not described:
        (root / "dataset.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(root)
    for workdir in (root, tmp_path / "link"):
        with pytest.raises(FileExistsError, match="must not be the data set"):
            train(config, workdir)
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_statistics_are_compared_at_one_half_also_when_resumed(
    tmp_path, monkeypatch
):
    """Not at the threshold that `auto` has stored before."""
    root = make_folder(tmp_path / "data", count=2)
    keras.utils.set_random_seed(3)
    model = randomize(
        DeepLabV3(
            2,
            make_small_backbone(),
            atrous_rates=(1,),
            aspp_filters=4,
            image_pooling=False,
            dropout=0.0,
            task="multilabel",
        )
    )
    store = CheckpointStore(tmp_path / "run", 1)
    store.workdir.mkdir()
    save_model(model, store.best_model)
    config = small_config(root, threshold="auto", recalibrate_steps=1)
    source = FolderSource(root)
    images = np.stack([source.decode(*r)[0] for r in records_of(source)])
    run = types.SimpleNamespace(
        config=config,
        source=source,
        spec=source.spec,
        epochs=1,
        batches=lambda: tf.data.Dataset.from_tensors(
            (model.preprocess(images), 0)
        ),
    )
    checkpoints = types.SimpleNamespace(store=store, best=0.5, best_epoch=1)
    owner = types.SimpleNamespace(check=lambda: None)
    thresholds = []

    def recorded(predictor, *args):
        thresholds.append(predictor.threshold)
        return evaluate(predictor, *args)

    monkeypatch.setattr(engine_run, "evaluate", recorded)
    monkeypatch.setattr(engine_run, "_advise", lambda *_: [])
    ends = []
    for _ in range(2):
        metrics = engine_run._finish(run, checkpoints, owner, None)
        ends.append([metrics, load_saved(store.best_model).get_weights()])
    half, chosen = (0.5, 0.5), thresholds[2]
    assert 0.5 not in chosen
    assert thresholds == [half, half, chosen] * 2
    assert ends[0][0] == ends[1][0]
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        np.testing.assert_array_equal(a, b)


def records_of(source):
    return source.records("train").as_numpy_iterator()


def test_bad_label_is_found_before_training(tmp_path):
    root = write_folder(tmp_path / "data")
    mask = root / "masks" / "train" / "train_1.png"
    labels = np.array(Image.open(mask))
    labels[5, 5] = 9
    Image.fromarray(labels).save(mask)
    with pytest.raises(ValueError, match=r"value 9 .*train_1\.png \(1 pixels"):
        train(tiny_config(root), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_validation_of_ignored_labels_is_refused_before_training(tmp_path):
    """Also of records, whose labels are not checked when the data is opened."""
    root = write_folder(tmp_path, sizes=((64, 64), (64, 96)))
    run = types.SimpleNamespace(
        config=small_config(root),
        source=FolderSource(root),
        spec=FolderSource(root).spec,
        model=types.SimpleNamespace(jit_compile=False),
    )
    for name in ("val_0", "val_1"):
        assert int(_validation_data(run).cardinality()) == 2
        path = root / "masks" / "val" / f"{name}.png"
        Image.fromarray(np.full_like(Image.open(path), 255)).save(path)
    with pytest.raises(ValueError, match="`val` has no valid pixel.*=255"):
        _validation_data(run)


def test_a_run_without_a_validated_epoch_ends_in_one_line(tmp_path):
    run = types.SimpleNamespace(config=small_config(tmp_path), epochs=2)
    checkpoints = types.SimpleNamespace(best=-math.inf, best_epoch=0)
    owner = types.SimpleNamespace(check=lambda: None)
    with pytest.raises(ValueError, match="No epoch has a validation") as raised:
        engine_run._finish(run, checkpoints, owner, None)
    assert "\n" not in str(raised.value)


def test_missing_split_is_named(tmp_path, tiny_folder):
    config = replace(tiny_config(tiny_folder), data={"validation_split": "dev"})
    with pytest.raises(ValueError, match=r"Split `dev` .*'train': 3"):
        train(config, tmp_path)
