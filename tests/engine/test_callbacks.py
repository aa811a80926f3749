"""Callbacks by class path: built, called as Keras calls them, and named."""

import csv
import shutil

import keras
import numpy as np
import pytest
from tiny_run import replace, small_config

from keras_aspp.config.load import config_text, load_config
from keras_aspp.config.schema import Config, TrainConfig
from keras_aspp.engine.callbacks import (
    build_callbacks,
    reading_params,
    skipping,
)
from keras_aspp.engine.run import train


class Failing(keras.callbacks.Callback):
    """Fails at the end of an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        raise RuntimeError("the server is down")


class Recording(keras.callbacks.Callback):
    """Records its calls, and may stop the training after an epoch."""

    calls = []

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at = stop_at

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(epoch)
        self.model.stop_training |= epoch == self.stop_at

    def on_train_end(self, logs=None):
        self.calls.append("end")


FAILING = {"class": f"{__name__}.Failing"}


def fit_with(callbacks):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    x = np.ones((4, 1), "float32")
    return model.fit(x, x, epochs=2, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"class": "keras.callbacks.CSVLoger"},
            r"`train.callbacks\[0\].class` cannot be imported.*CSVLoger",
        ),
        ({"class": "no_such_package.Callback"}, "no_such_package"),
        ({"class": "keras.layers.Dense"}, "must be a subclass"),
        (
            {"class": "keras.callbacks.CSVLogger", "arguments": {"file": "x"}},
            r"`train.callbacks\[0\].arguments` are refused .*file",
        ),
    ],
)
def test_what_cannot_be_built_is_named(entry, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_callbacks([entry], tmp_path)


@pytest.mark.parametrize(
    "entry",
    [{}, {"class": "CSVLogger"}, {"class": "a.b", "arguments": [1]}, {"a": 1}],
)
def test_a_malformed_entry_is_refused(entry):
    with pytest.raises(ValueError, match=r"`callbacks\[0\]` must be `class`"):
        TrainConfig(total_epochs=1, callbacks=[entry])


def test_a_configuration_of_callbacks_is_the_same_after_a_reload(tmp_path):
    entry = {
        "class": "keras.callbacks.CSVLogger",
        "arguments": {"append": True},
    }
    config = Config(train=TrainConfig(total_epochs=1, callbacks=[entry]))
    path = tmp_path / "config.yaml"
    path.write_text(config_text(config))
    assert load_config(path) == config


def test_the_workdir_stands_in_for_its_name(tmp_path):
    entry = {
        "class": "keras.callbacks.CSVLogger",
        "arguments": {"filename": "{workdir}/log.csv"},
    }
    history = fit_with(build_callbacks([entry], tmp_path)).history
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == history["loss"]


def test_an_error_names_the_callback_and_the_hook(tmp_path):
    callbacks = build_callbacks([FAILING], tmp_path)
    message = r"callbacks\[0\]` .*Failing\) failed in on_epoch_end: .* is down"
    with pytest.raises(ValueError, match=message):
        fit_with(callbacks)


def test_hooks_that_are_not_overridden_are_not_wrapped(tmp_path):
    (callback,) = build_callbacks([FAILING], tmp_path)
    assert [name for name in vars(callback) if name.startswith("on_")] == [
        "on_epoch_end"
    ]


def test_two_fits_are_one_training(tmp_path):
    Recording.calls.clear()
    entry = {"class": f"{__name__}.Recording"}
    callbacks = build_callbacks([entry], tmp_path)
    with skipping(callbacks, "on_train_end"):
        fit_with(callbacks)
    with skipping(callbacks, "on_train_begin"):
        fit_with(callbacks)
    assert Recording.calls == ["begin", 0, 1, 0, 1, "end"]
    # They read the numbers of the whole run.
    with reading_params(callbacks, epochs=7, steps=9):
        fit_with(callbacks)
    assert {"epochs": 7, "steps": 9}.items() <= callbacks[0].params.items()
    fit_with(callbacks)
    assert callbacks[0].params["epochs"] == 2
    Recording.calls.clear()
    with skipping(callbacks, "on_train_end", lambda: False):
        fit_with(callbacks)
    assert Recording.calls == ["begin", 0, 1, "end"]


@pytest.mark.slow
def test_a_run_resumed_within_an_epoch_is_one_training(tmp_path, tiny_folder):
    config = small_config(
        tiny_folder, total_epochs=3, checkpoint_steps=1, keep_checkpoints=9
    )
    train(config, tmp_path / "whole")
    for state, stop_at, expected in (
        ("epoch_00000_step_0000001", None, ["begin", 0, 1, 2, "end"]),
        ("epoch_00000_step_0000001", 0, ["begin", 0, "end"]),
        ("epoch_00002_step_0000001", None, ["begin", 2, "end"]),
    ):
        Recording.calls.clear()
        workdir = shutil.copytree(tmp_path / "whole", tmp_path / "again")
        for path in (workdir / "checkpoints").iterdir():
            if path.name > state:
                shutil.rmtree(path)
        arguments = {"stop_at": stop_at}
        entry = {"class": f"{__name__}.Recording", "arguments": arguments}
        train(replace(config, train={"callbacks": [entry]}), workdir, True)
        assert Recording.calls == expected
        shutil.rmtree(workdir)


@pytest.mark.slow
def test_mlflow_gets_the_metrics_of_each_epoch(
    tmp_path, tiny_folder, monkeypatch
):
    mlflow = pytest.importorskip(
        "mlflow", reason="mlflow-skinny is not installed (2026-11-29)"
    )
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    entry = {"class": "mlflow.keras.MlflowCallback"}
    log = {
        "class": "keras.callbacks.CSVLogger",
        "arguments": {"filename": "{workdir}/log.csv"},
    }
    config = small_config(tiny_folder, callbacks=[entry, log])
    train(config, tmp_path / "run")
    mlflow.end_run()
    with open(tmp_path / "run" / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    for name in ("loss", "val_mean_iou"):
        kept = client.get_metric_history(run.info.run_id, name)
        np.testing.assert_allclose(
            [metric.value for metric in kept],
            [float(row[name]) for row in rows],
            rtol=1e-6,
        )
