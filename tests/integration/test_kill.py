"""A run that is killed at random moments is the run that was left alone.

Runs are processes of their own, forked from one that has imported all they
need. Each asks the test before it goes on at certain moments: after a step,
and within whatever writes, the file half-written. There, or a random time
after, the test kills it by SIGKILL.
"""

import contextlib
import csv
import functools
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny_run import tiny_config, write_folder

from keras_aspp.cli.configuration import dump_config
from keras_aspp.models import DeepLabV3

SEED = 20261125
KILLS = 20
EPOCHS, STEPS = 8, 3
MOMENTS = 60  # a run is killed at one of so many, if it gets there


def small_segmenter(path):
    """Few layers, since each process traces them anew; with dropout."""
    x = inputs = keras.Input((None, None, 3))
    features = {}
    for stride in (2, 4, 8, 16, 32):
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(x)
        if stride == 8:
            x = keras.layers.BatchNormalization()(x)
        features[f"stride_{stride}"] = x = keras.layers.ReLU()(x)
    DeepLabV3(
        3,
        keras.Model(inputs, features, name="small"),
        atrous_rates=(1,),
        aspp_filters=4,
        image_pooling=False,
        dropout=0.3,
    ).save(path)
    return str(path)


@pytest.fixture(scope="module")
def run_config(tmp_path_factory):
    """A file that holds a configuration of a short run."""
    from tiny_run import replace

    root = tmp_path_factory.mktemp("kill")
    write_folder(root, sizes=((64, 64),) * (2 * STEPS))
    config = replace(
        tiny_config(
            root,
            total_epochs=EPOCHS,
            ema_momentum=0.8,
            recalibrate_steps=1,
            checkpoint_steps=2,
        ),
        model={
            "architecture": "deeplab_v3",
            "backbone": "small",
            "weights": small_segmenter(root / "small.keras"),
            "atrous_rates": [1],
            "aspp_filters": 4,
            "image_pooling": False,
            "dropout": 0.3,
            "separable": False,
            "decoder_filters": 256,
            "projection_filters": 48,
        },
        data={"crop_size": (32, 32)},
    )
    dump_config(config, root / "config.yaml")
    return root / "config.yaml"


def command(config, workdir, resume):
    words = ["train", "--config", str(config), "--workdir", str(workdir)]
    return words + ["--resume"] * resume


def child(words, log, connection):
    """Runs a command, and asks at each moment whether it may go on."""

    def moment(name):
        connection.send(name)
        connection.recv()

    def before(owner, name):
        real = getattr(owner, name)

        @functools.wraps(real)
        def patched(*args, **kwargs):
            moment(name)
            return real(*args, **kwargs)

        setattr(owner, name, patched)

    def torn(owner, name):
        """What writes a file, with a moment where it is half there."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def patched(*args, **kwargs):
            result = real(*args, **kwargs)
            path = next(a for a in args if isinstance(a, Path) and a.is_file())
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            moment(name)
            path.write_bytes(content)
            return result

        setattr(owner, name, patched)

    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from keras_aspp.cli.main import main
    from keras_aspp.engine.watch import Watch

    torn(np, "savez")
    torn(Path, "write_text")
    torn(keras.Model, "save")
    for owner, name in (
        (os, "fsync"),
        (os, "replace"),
        (os, "unlink"),
        (Watch, "on_train_batch_end"),
    ):
        before(owner, name)
    os._exit(main(words))


class Runs:
    """Starts runs, and kills them at a moment or a while after."""

    def __init__(self, log):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            [
                "jsonargparse",
                "keras_aspp.cli.configuration",
                "keras_aspp.engine.run",
                "matplotlib.figure",
                "pytest",
                "tensorboard.summary",
            ]
        )
        self.log = log

    def start(self, words, kill_at=None, seconds=None):
        """Returns the moment it was killed at, or `None` if it got through."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=child, args=(words, self.log, theirs)
        )
        process.start()
        theirs.close()
        count = 0
        with contextlib.suppress(EOFError):
            while True:
                name = ours.recv()
                count += 1
                if count == kill_at and seconds is None:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    return name
                ours.send("go on")
                if count == kill_at:
                    deadline = time.monotonic() + seconds
                    while (left := deadline - time.monotonic()) > 0:
                        if ours.poll(left):
                            name = ours.recv()
                            ours.send("go on")
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    return f"after {name}"
        process.join()
        assert process.exitcode == 0, self.log.read_text()[-3000:]
        return None


def contents(workdir):
    """All that a run leaves behind, but for dates."""
    newest = sorted((workdir / "checkpoints").iterdir())
    with np.load(newest[-1] / "variables.npz") as file:
        found = {name: file[name] for name in file.files}
    model = keras.saving.load_model(workdir / "model.keras")
    found |= {f"best {i}": w for i, w in enumerate(model.get_weights())}
    found["states"] = [path.name for path in newest]
    for name in ("metrics.json", "logs/history.csv", "config.yaml"):
        found[name] = (workdir / name).read_text()
    found["hidden"] = sorted(str(p) for p in workdir.rglob(".*"))
    found["events"] = events(workdir / "logs")
    return found


def events(folder):
    """Tag, step and value of all scalars, and the steps of pictures."""
    import tensorflow as tf

    found = []
    for path in folder.rglob("events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag.startswith("picture"):
                    found.append((value.tag, event.step, 0.0))
                elif value.tag != "keras":
                    number = float(tf.make_ndarray(value.tensor))
                    name = f"{path.parent.name}/{value.tag}"
                    found.append((name, event.step, number))
    return sorted(found)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_killed_at_random_moments(run_config, tmp_path):
    rng = random.Random(SEED)
    runs = Runs(tmp_path / "log")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start = time.monotonic()
    assert runs.start(command(run_config, whole, False)) is None
    expected = contents(whole)
    assert len(expected["events"]) > 5 * EPOCHS
    with open(whole / "logs" / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == EPOCHS
    kills, finished, resume = [], 0, False
    while len(kills) < KILLS or resume:
        at = seconds = None
        if len(kills) < KILLS:
            at = rng.randint(1, MOMENTS)
            seconds = rng.choice([None, rng.uniform(0, 0.5)])
        name = runs.start(command(run_config, cut, resume), at, seconds)
        if name is None:
            assert_same(contents(cut), expected)
            shutil.rmtree(cut)
            finished += 1
        else:
            kills.append((at, name))
        resume = name is not None
    seconds = time.monotonic() - start
    print(f"\nSeed {SEED}: {len(kills)} kills, {finished} runs finished equal")
    print(f"to the uninterrupted one, in {seconds:.0f} s:")
    for at, name in kills:
        print(f"  moment {at}: {name}")
    assert finished
    within = [n for _, n in kills if n in ("savez", "fsync", "replace", "save")]
    assert len(within) > 2
