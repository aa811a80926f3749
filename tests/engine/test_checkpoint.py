"""Checkpoints: written whole, verified, kept, and gone on from."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, event_steps, npy, sample
from tiny_run import replace

from keras_aspp.cli.main import main
from keras_aspp.config.load import dump_config
from keras_aspp.config.schema import Config, LossConfig, TrainConfig
from keras_aspp.engine.checkpoint import CHANGEABLE, Checkpoints, changes
from keras_aspp.engine.loss import build_loss
from keras_aspp.engine.states import CheckpointStore, write_history
from keras_aspp.engine.tensorboard import cut_events
from keras_aspp.metrics import ConfusionMatrix, confusion_of
from keras_aspp.models.saving import save_model
from keras_aspp.utils.files import remove_temporaries, write_json
from keras_aspp.utils.signals import interrupt, stop_signals

STEPS = 4


def config_of(**train):
    return replace(Config(), train=train)


def small_model(seed=1, task="semantic"):
    """Compiled: dropout, batch norm, averages, momentum and the metric."""
    keras.utils.set_random_seed(seed)
    num_classes = 2 if task == "binary" else 3
    model = keras.Sequential(
        [
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.4),
            keras.layers.Conv2D(num_classes, 1),
        ]
    )
    model.build((None, 5, 7, 2))
    model.task, model.num_classes = task, num_classes
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
        build_loss(LossConfig(), 255, task=task),
        metrics=[confusion_of(task, num_classes)],
    )
    return model


def labels_of(x, task):
    """Labels of a task, of images of two channels."""
    first, second = (x[..., i] > 0 for i in range(2))
    if task == "multilabel":
        y = np.stack([first, second, first & second], axis=-1)
    else:
        y = first if task == "binary" else first.astype("int32") + second
    return y.astype("int32")


def batches(first, task="semantic"):
    x = sample((12, 5, 7, 2))
    y = labels_of(x, task)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2).repeat()
    return data.skip(first)


def fit(model, checkpoints, epochs, before=()):
    """What `engine.run` does, with these data."""
    while checkpoints.epochs < epochs:
        part = checkpoints.steps
        model.fit(
            batches(checkpoints.epochs * STEPS + part, model.task),
            validation_data=batches(0, model.task).take(2),
            initial_epoch=checkpoints.epochs,
            epochs=checkpoints.epochs + 1 if part else epochs,
            steps_per_epoch=STEPS - part,
            shuffle=False,
            callbacks=[*before, checkpoints],
            verbose=0,
        )
        if part:
            checkpoints.restore(model)


def checkpoints_of(workdir, model=None, **train):
    """Of a run that is yet to begin, or goes on with a model."""
    workdir.mkdir(exist_ok=True)
    config = config_of(**train)
    store = CheckpointStore(workdir, config.train.keep_checkpoints)
    checkpoints = Checkpoints(store, config, {"train": 12}, None, STEPS)
    if model:
        checkpoints.set_model(model)
        checkpoints.on_epoch_begin(0)
    return checkpoints


def rows(workdir):
    with open(workdir / "logs" / "history.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def states(tmp_path):
    """Two states; the arrays hold their epoch."""
    states = CheckpointStore(tmp_path, 2)
    for epoch in (1, 2):
        save(states, epoch)
    return states


def save(states, epoch, steps=0):
    arrays = {"a": np.full((3, 2), epoch + 0.5), "b": np.arange(epoch)}
    states.save(epoch, steps, arrays, {"epoch": epoch, "steps": steps})


def names(states):
    return [path.name for path in states.paths()]


def test_the_newest_of_the_last_ones_is_loaded(states):
    save(states, 2, steps=7)
    save(states, 3)
    assert names(states) == ["epoch_00002_step_0000007", "epoch_00003"]
    path, arrays, state = states.newest()
    assert path.name == "epoch_00003"
    assert state == {"epoch": 3, "steps": 0}
    np.testing.assert_array_equal(arrays["a"], np.full((3, 2), 3.5))
    np.testing.assert_array_equal(arrays["b"], [0, 1, 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["variables.npz", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b"\xff\xfenot text"),
        lambda path: path.write_bytes(b"[1]"),
    ],
    ids=["flipped", "lost", "empty", "short", "garbage", "list"],
)
def test_a_damaged_state_is_reported_and_skipped(states, capsys, name, damage):
    newest = states.paths()[-1]
    damage(newest / name)
    assert states.newest_json()["epoch"] == 1
    path, arrays, _ = states.newest()
    assert path.name == "epoch_00001"
    assert arrays["a"][0, 0] == 1.5
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Skipped a damaged checkpoint: {newest} (")
    # The run does it again.
    save(states, 2)
    assert states.newest()[0] == newest


def test_a_damaged_state_does_not_push_out_what_is_saved_after_it(states):
    """A run gone back to an earlier state saves some before the damaged one."""
    for path in states.paths():
        flip(path / "state.json")
    save(states, 1, steps=3)
    assert names(states) == ["epoch_00001", "epoch_00001_step_0000003"]
    assert states.newest()[0].name == "epoch_00001_step_0000003"


def test_weights_that_are_not_finite_replace_nothing(tmp_path):
    checkpoints = checkpoints_of(tmp_path, small_model())
    checkpoints.on_epoch_end(0, {"val_mean_iou": 0.5})
    best = (tmp_path / "model.keras").read_bytes()
    variable = checkpoints.model.trainable_variables[0]
    variable.assign(np.full(variable.shape, np.nan))
    with pytest.raises(ValueError, match="not finite after epoch 2"):
        checkpoints.on_epoch_end(1, {"val_mean_iou": 0.6})
    assert (tmp_path / "model.keras").read_bytes() == best
    assert names(checkpoints.store) == ["epoch_00001"]


def test_no_state_is_none_and_all_damaged_is_an_error(tmp_path, states):
    assert CheckpointStore(tmp_path / "nothing", 2).newest() is None
    for path in states.paths():
        shutil.rmtree(path)
        path.mkdir()
    with pytest.raises(ValueError, match="None of the checkpoints can be read"):
        states.newest()


class Killed(BaseException):
    pass


def test_a_save_that_ends_anywhere_leaves_a_whole_state(states, monkeypatch):
    """At each call that changes the disk, as by a power cut before it."""
    ends = {}
    for at in range(100):
        left = at

        def guard(real):
            def guarded(*args, **kwargs):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return real(*args, **kwargs)

            return guarded

        with monkeypatch.context() as patched:
            for name in ("fsync", "replace", "unlink", "rmdir", "mkdir"):
                patched.setattr(os, name, guard(getattr(os, name)))
            try:
                save(states, 3)
                break
            except Killed:
                pass
        remove_temporaries(states.folder)
        assert not list(states.folder.glob(".*"))
        epoch = states.newest()[2]["epoch"]
        ends[epoch] = ends.get(epoch, 0) + 1
        if epoch == 3:
            shutil.rmtree(states.folder / "epoch_00003")
            for epoch in (1, 2):
                save(states, epoch)
        assert names(states) == ["epoch_00001", "epoch_00002"]
    # 2 folders made, 3 files and theirs on the disk, the name | the name on
    # the disk, the old state hidden, its 3 files and itself removed.
    assert ends == {2: 7, 3: 6}


def test_contents_are_on_the_disk_before_the_name_is(states, monkeypatch):
    calls = []

    def record(name, real):
        def recorded(*args, **kwargs):
            what = args[0]
            if name == "fsync":
                what = os.readlink(f"/proc/self/fd/{what}")
            calls.append((name, os.path.basename(what)))
            return real(*args, **kwargs)

        return recorded

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, record(name, getattr(os, name)))
    save(states, 3)
    files = {("fsync", n) for n in os.listdir(states.paths()[-1])}
    assert len(files) == 3
    assert set(calls[:3]) == files
    assert calls[3:6] == [
        ("fsync", ".epoch_00003.tmp"),
        ("replace", ".epoch_00003.tmp"),
        ("fsync", "checkpoints"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["semantic", "binary", "multilabel"])
def test_a_run_cut_within_an_epoch_ends_in_the_same_bits(tmp_path, task):
    whole, model = checkpoints_of(tmp_path / "whole"), small_model(task=task)
    fit(model, whole, 3)

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if len(cut.history) == 1 and batch == 3:
                raise Killed

    cut = checkpoints_of(tmp_path / "cut", checkpoint_steps=2)
    with pytest.raises(Killed):
        fit(small_model(task=task), cut, 3, [Kill()])
    assert names(cut.store) == ["epoch_00001", "epoch_00001_step_0000002"]
    again, other = checkpoints_of(tmp_path / "cut"), small_model(2, task)
    again.restore(other)
    assert again.progress() == "step 2 of 4 in epoch 2"
    fit(other, again, 3)
    assert again.history == whole.history
    assert (tmp_path / "cut/logs/history.csv").read_text() == (
        tmp_path / "whole/logs/history.csv"
    ).read_text()
    assert [row["epoch"] for row in rows(tmp_path / "cut")] == ["0", "1", "2"]
    _, expected, _ = whole.store.newest()
    _, found, _ = again.store.newest()
    assert found.keys() == expected.keys()
    moved = 0
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        moved += value.std() > 0.01
    assert moved > 5
    first, second = (
        keras.saving.load_model(tmp_path / name / "model.keras")
        for name in ("whole", "cut")
    )
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(npy(a), npy(b))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(tmp_path, capfd, number):
    checkpoints = checkpoints_of(tmp_path, small_model())
    before = signal.getsignal(number)
    with stop_signals(checkpoints.request_stop):
        checkpoints.on_train_batch_end(0)
        assert not names(checkpoints.store)
        os.kill(os.getpid(), number)
        with pytest.raises(
            KeyboardInterrupt,
            match="after step 2 of 4 in epoch 1; it is saved.*--resume",
        ):
            checkpoints.on_train_batch_end(1)
    assert signal.getsignal(number) is before
    assert "again: at once" in capfd.readouterr().err
    assert names(checkpoints.store) == ["epoch_00000_step_0000002"]


def test_a_signal_after_the_last_step_waits_for_validation(tmp_path):
    checkpoints = checkpoints_of(tmp_path, small_model())
    with stop_signals(checkpoints.request_stop):
        os.kill(os.getpid(), signal.SIGTERM)
        checkpoints.on_train_batch_end(STEPS - 1)
        assert not names(checkpoints.store)
        with pytest.raises(
            KeyboardInterrupt, match="after epoch 1; it is saved"
        ):
            checkpoints.on_epoch_end(0, {"val_mean_iou": 0.5})
    assert names(checkpoints.store) == ["epoch_00001"]
    assert len(rows(tmp_path)) == 1


def test_the_second_signal_ends_at_once(tmp_path):
    checkpoints = checkpoints_of(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt, match="Go on with --resume"),
        stop_signals(checkpoints.request_stop),
    ):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    with (
        pytest.raises(KeyboardInterrupt, match="Go on with --resume"),
        stop_signals(interrupt),
    ):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("limit", [700, 60_000])
def test_a_full_disk_is_one_line_and_the_last_state_stays(tmp_path, limit):
    """The limit on the size of a file stands for the disk's."""
    model = small_model()
    checkpoints = checkpoints_of(tmp_path, model)
    checkpoints.on_epoch_end(0, {"val_mean_iou": 0.5})
    best = (tmp_path / "model.keras").stat().st_size
    assert 700 < best < 60_000  # of the two, one is too small for the state
    score = 0.9 if limit < best else 0.1
    if limit > best:
        model.extra = keras.Variable(np.ones((200, 100), "float32"))
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, size))
        with pytest.raises(OSError, match="File too large") as raised:
            checkpoints.on_epoch_end(1, {"val_mean_iou": score})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    message = str(raised.value)
    assert "after epoch 2 cannot be written" in message
    assert "the earlier ones are intact. Go on with --resume" in message
    assert "\n" not in message
    assert not list(tmp_path.rglob(".*"))
    assert checkpoints.store.newest()[2]["epochs"] == 1
    assert len(rows(tmp_path)) == 1
    assert keras.saving.load_model(tmp_path / "model.keras")


def test_a_file_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    before = path.read_text()
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, size))
        with pytest.raises(OSError, match=r"too large\. .*metrics\.json"):
            write_json(path, {"a": "b" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    assert os.listdir(tmp_path) == ["metrics.json"]
    assert path.read_text() == before


def test_patience_is_remembered(tmp_path):
    model = small_model()
    checkpoints = checkpoints_of(tmp_path, model, early_stopping_epochs=2)
    for epoch, score in enumerate((0.4, 0.3, 0.2)):
        assert not checkpoints.out_of_patience()
        checkpoints.on_epoch_end(epoch, {"val_mean_iou": score})
    assert checkpoints.out_of_patience()
    for patience, stops in ((2, True), (3, False), (None, False)):
        again = checkpoints_of(tmp_path, early_stopping_epochs=patience)
        again.restore(model)
        assert again.out_of_patience() is stops
        assert (again.best, again.best_epoch) == (0.4, 1)


def test_a_stop_by_a_callback_of_the_user_is_remembered(tmp_path, caplog):
    own = [{"class": "keras.callbacks.TerminateOnNaN"}]
    model = small_model()
    checkpoints = checkpoints_of(tmp_path, model, callbacks=own)
    checkpoints.on_epoch_end(0, {"val_mean_iou": 0.4})
    model.stop_training = True
    with caplog.at_level("INFO", "keras_aspp"):
        checkpoints.on_epoch_end(1, {"val_mean_iou": 0.3})
    assert "Stopped after epoch 2 by a callback" in caplog.text
    for callbacks, stopped in ((own, True), ([], False)):
        again = checkpoints_of(tmp_path, callbacks=callbacks)
        again.restore(model)
        assert again.stopped is stopped


def test_what_is_not_the_run_is_refused(tmp_path):
    model = small_model()
    checkpoints_of(tmp_path, model).on_epoch_end(0, {"val_mean_iou": 0.5})
    store = CheckpointStore(tmp_path, 2)
    fewer = Checkpoints(store, config_of(), {"train": 11}, None, STEPS)
    with pytest.raises(ValueError, match=r"then: .*12}, now: {'train': 11}"):
        fewer.restore(model)
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="another model or optimizer"):
        checkpoints_of(tmp_path).restore(model)
    content = (tmp_path / "model.keras").read_bytes()
    for damage in (content[:-9], content[:400] + b"x" + content[401:], None):
        (tmp_path / "model.keras").unlink()
        if damage:
            (tmp_path / "model.keras").write_bytes(damage)
        with pytest.raises(ValueError, match="best model .* lost or damaged"):
            checkpoints_of(tmp_path).restore(small_model())


def test_changes_are_told_or_refused(tmp_path):
    config = config_of(total_epochs=3)
    assert changes(tmp_path, config) == []
    checkpoints_of(tmp_path, small_model(), total_epochs=3).on_epoch_end(0)
    assert changes(tmp_path, config) == []
    moved = replace(
        config,
        data={"root": "elsewhere", "test_split": "test"},
        train={"keep_checkpoints": 5},
        export={"image_size": (96, 64)},
    )
    assert changes(tmp_path, moved) == [
        "data.root: None -> elsewhere",
        "data.test_split: None -> test",
        "train.keep_checkpoints: 2 -> 5",
        "export.image_size: None -> [96, 64]",
    ]
    for section, field in (
        ("model", {"output_stride": 8}),
        ("data", {"label_map": {3: "ignore"}}),
        ("data", {"validation_split": "other"}),
        ("train", {"total_epochs": 4}),
        ("train", {"batch_size": 3}),
        ("train", {"optimizer": "adamw"}),
        ("train", {"precision": "mixed_bfloat16"}),
        ("train", {"seed": 1}),
        ("train", {"loss": TrainConfig(total_steps=1).loss.__class__(dice=1)}),
    ):
        ((name, _),) = field.items()
        with pytest.raises(ValueError, match=rf"Received: {section}\.{name}"):
            changes(tmp_path, replace(moved, **{section: field}))


def test_the_documented_changes_are_those_that_are_accepted():
    text = (ROOT / "docs/reliability.md").read_text("utf-8")
    listed = text.partition("may change:\n")[2].partition("\n\nAny other")[0]
    named = re.findall(r"`(\w+\.(?:\w+|\*))`", listed)
    assert sorted(n.removesuffix("*") for n in named) == sorted(CHANGEABLE)


def test_the_command_line_refuses_in_one_line(tmp_path, capsys):
    # Without weights to download, which would be looked for first.
    config = replace(
        config_of(total_epochs=3), model={"backbone_weights": None}
    )
    checkpoints = checkpoints_of(tmp_path, small_model())
    checkpoints.config = config
    checkpoints.on_epoch_end(0)
    file = tmp_path / "config.yaml"
    dump_config(config, file)
    before = file.read_text()
    words = ["train", "--config", str(file), "--workdir", str(tmp_path)]
    more = ["--resume", "--train.seed", "3", "--export.max_int8_loss=2"]
    assert main(words + more) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Received: train.seed: 0 -> 3")
    assert file.read_text() == before
    # What may change, but not the data, of which there is none here.
    assert main([*words, "--resume", "--export.max_int8_loss=2"]) == 1
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keep_checkpoints", 0),
        ("checkpoint_steps", 0),
        ("early_stopping_epochs", 0),
    ],
)
def test_counts_are_checked(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be > 0. Received"):
        TrainConfig(total_epochs=1, **{field: value})


def test_history_has_the_form_of_the_csv_logger(tmp_path):
    lines = [{"loss": 0.1 + 0.2, "val_loss": 1e-9}, {"loss": float("nan")}]
    logger = keras.callbacks.CSVLogger(tmp_path / "keras.csv")
    logger.on_train_begin()
    for epoch, line in enumerate(lines):
        logger.on_epoch_end(epoch, line)
    logger.on_train_end()
    numbered = [{"epoch": i, **line} for i, line in enumerate(lines)]
    write_history(tmp_path / "ours.csv", json.loads(json.dumps(numbered)))
    assert (tmp_path / "ours.csv").read_bytes() == (
        tmp_path / "keras.csv"
    ).read_bytes()


def test_events_are_cut_to_the_epochs_done(tmp_path):
    def run(*epochs):
        """Writes what Keras' callback does, to a file of its own."""
        writer = tf.summary.create_file_writer(str(tmp_path / "train"))
        with writer.as_default():
            for epoch in epochs:
                tf.summary.scalar("epoch_loss", 0.5, step=epoch)
                done = (epoch + 1) * STEPS
                tf.summary.scalar("loss_vs_iterations", 0.5, step=done)
        writer.close()

    run(0, 1)
    (file,) = (tmp_path / "train").glob("events*")
    whole = file.read_bytes()
    cut_events(tmp_path, 2, 2 * STEPS)
    assert file.read_bytes() == whole  # there is nothing to do
    file.write_bytes(whole + b"\x20\x00\x00torn")
    # Killed before the second epoch's state was there.
    cut_events(tmp_path, 1, STEPS)
    assert event_steps(tmp_path) == {
        "epoch_loss": [0],
        "loss_vs_iterations": [STEPS],
    }
    assert not list(tmp_path.rglob(".*"))
    run(1)
    assert sorted(event_steps(tmp_path)["epoch_loss"]) == [0, 1]


def test_what_is_left_half_written_is_removed(tmp_path):
    write_json(tmp_path / "kept.json", {"a": 1})
    save_model(small_model(), tmp_path / "kept.keras")
    (tmp_path / ".metrics.json.tmp").write_text("{")
    (tmp_path / ".model.keras.tmp.keras").write_text("PK")
    (tmp_path / ".epoch_00001.tmp").mkdir()
    (tmp_path / ".epoch_00001.tmp" / "state.json").write_text("{")
    (tmp_path / ".git").mkdir()
    remove_temporaries(tmp_path, tmp_path / "absent")
    assert sorted(os.listdir(tmp_path)) == [".git", "kept.json", "kept.keras"]


def test_metrics_saved_before_they_counted_wrong_labels_are_restored(tmp_path):
    metric = ConfusionMatrix(3)
    model = types.SimpleNamespace(metrics_variables=metric.variables)
    checkpoints = checkpoints_of(tmp_path / "run")
    checkpoints.set_model(model)
    checkpoints.steps = 1
    checkpoints._metrics = [np.diag([5, 6, 7])]  # the matrix alone
    checkpoints.on_epoch_begin(0)
    np.testing.assert_array_equal(metric.matrix(), np.diag([5, 6, 7]))
