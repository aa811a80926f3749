"""A run that is killed at random moments is the run that was left alone.

Runs are processes of their own, forked from one that has imported all they
need. Each asks the test before it goes on at certain moments: after a step,
and within whatever writes, the file half-written. There, or a random time
after, the test kills it by SIGKILL.
"""

import contextlib
import csv
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked
import keras
import numpy as np
import pytest
from helpers import ROOT
from tiny_run import small_config, write_folder

from keras_aspp.config.load import dump_config

SEED = 20261125
KILLS = 6
EPOCHS, STEPS = 5, 3
MOMENTS = 40  # a run is killed at one of so many, if it gets there
AFTER_TRAINING = (
    "replace .recalibrated.tmp.keras",
    "fsync .metrics.json.tmp.json",
)


@pytest.fixture(scope="module")
def run_config(tmp_path_factory):
    """A file that holds a configuration of a short run."""
    root = tmp_path_factory.mktemp("kill")
    write_folder(root, sizes=((64, 64),) * (2 * STEPS))
    config = small_config(
        root,
        dropout=0.3,
        total_epochs=EPOCHS,
        ema_momentum=0.8,
        recalibrate_steps=1,
        checkpoint_steps=2,
    )
    dump_config(config, root / "config.yaml")
    return root / "config.yaml"


def command(config, workdir, resume):
    words = ["train", "--config", str(config), "--workdir", str(workdir)]
    return words + ["--resume"] * resume


def child(words, log, connection):
    """Runs a command, and asks at each moment whether it may go on."""

    def moment(name, target):
        if isinstance(target, int):  # what a file descriptor stands for
            target = os.readlink(f"/proc/self/fd/{target}")
        is_path = isinstance(target, (str, Path))
        connection.send(
            f"{name} {os.path.basename(target)}" if is_path else name
        )
        connection.recv()

    def before(owner, name):
        real = getattr(owner, name)

        @functools.wraps(real)
        def patched(*args, **kwargs):
            moment(name, args[0])
            return real(*args, **kwargs)

        setattr(owner, name, patched)

    def torn(owner, name, place):
        """What writes a file, with a moment where it is half there."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def patched(*args, **kwargs):
            result = real(*args, **kwargs)
            path = Path(args[place])
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            moment(name, path)
            path.write_bytes(content)
            return result

        setattr(owner, name, patched)

    forked.print_to(log)
    from keras_aspp.cli.main import main
    from keras_aspp.engine.monitor import TrainingMonitor

    torn(np, "savez", 0)
    torn(Path, "write_text", 0)
    torn(keras.Model, "save", 1)
    for name in ("fsync", "replace", "unlink"):
        before(os, name)
    before(TrainingMonitor, "on_train_batch_end")
    os._exit(main(words))


class Runs:
    """Runs of one configuration, each a process, and their log."""

    def __init__(self, config, log):
        self.config, self.log = config, log
        self.context = forked.context()

    def start(self, workdir, when=None, seconds=0.0, number=signal.SIGKILL):
        """Runs the command, or goes on with what it has begun.

        Args:
            workdir: of the run.
            when: number or name of the moment at which a signal is sent, or
                `None`.
            seconds: after that moment.
            number: of the signal.

        Returns:
            `(exit status, name of the moment)`; `None` if it never came.
        """
        ours, theirs = self.context.Pipe()
        words = command(self.config, workdir, workdir.exists())
        process = self.context.Process(
            target=child, args=(words, self.log, theirs)
        )
        process.start()
        theirs.close()
        count, hit, timer = 0, None, None
        with contextlib.suppress(EOFError, OSError):
            while True:
                name = ours.recv()
                count += 1
                if hit is None and when in (count, name):
                    hit = name
                    if seconds:
                        timer = threading.Timer(seconds, process.kill)
                        timer.start()
                    else:
                        os.kill(process.pid, number)
                ours.send("go on")
        process.join()
        if timer:
            timer.cancel()
            hit = f"{seconds:.2f} s after {hit}"
        return process.exitcode, hit


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
    """Tag, step and value of all scalars, and the steps of images.

    How often steps were traced, and whether by XLA, is of a process.
    """
    import tensorflow as tf

    found = []
    for path in folder.rglob("events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag.startswith("image"):
                    found.append((value.tag, event.step, 0.0))
                elif not value.tag.startswith(("keras", "xla", "traces/")):
                    number = float(tf.make_ndarray(value.tensor))
                    name = f"{path.parent.name}/{value.tag}"
                    found.append((name, event.step, number))
    return sorted(found)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def runs(run_config, tmp_path_factory):
    return Runs(run_config, tmp_path_factory.mktemp("logs") / "log")


@pytest.fixture(scope="module")
def expected(runs, tmp_path_factory):
    """What the uninterrupted run leaves."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert runs.start(workdir) == (0, None), runs.log.read_text()[-3000:]
    found = contents(workdir)
    assert "; kept." in runs.log.read_text()
    assert len(found["events"]) > 5 * EPOCHS
    with open(workdir / "logs" / "history.csv") as file:
        epochs = [row["epoch"] for row in csv.DictReader(file)]
    assert epochs == [str(i) for i in range(EPOCHS)]
    return found


def test_killed_at_random_moments(runs, expected, tmp_path):
    rng = random.Random(SEED)
    start, workdir = time.monotonic(), tmp_path / "run"
    # Which moment, or how it is called, and how long after it.
    plan = [
        (rng.randint(1, MOMENTS), rng.choice([0, rng.uniform(0, 0.5)]))
        for _ in range(KILLS)
    ]
    plan += [(name, 0) for name in AFTER_TRAINING]
    kills, finished = [], 0
    while plan or workdir.exists():
        which, seconds = plan[0] if plan else (None, 0)
        status, name = runs.start(workdir, which, seconds)
        if status == 0:
            assert_same(contents(workdir), expected)
            shutil.rmtree(workdir)
            finished += 1
            assert finished < KILLS, f"never at {which}"
        else:
            assert status == -signal.SIGKILL, runs.log.read_text()[-3000:]
            kills.append(name)
            del plan[0]
    print(f"\nSeed {SEED}: {len(kills)} kills in {finished} runs, which ended")
    print(f"as one left alone, in {time.monotonic() - start:.0f} s. Killed at:")
    print("\n".join(kills))
    assert len(kills) == KILLS + len(AFTER_TRAINING)
    within = [
        name
        for name in kills
        if " s after " not in name and name != "on_train_batch_end"
    ]
    assert len(within) >= 3, "too few within a write"


def test_signals_end_a_run_with_a_checkpoint(runs, expected, tmp_path):
    workdir = tmp_path / "run"
    for number, moment, said in (
        (signal.SIGINT, "on_train_batch_end", "step 1 of 3 in epoch 1"),
        # It goes on within an epoch, and ends within the next.
        (
            signal.SIGTERM,
            "fsync .epoch_00001_step_0000002.tmp",
            "step 2 of 3 in epoch 2;",
        ),
    ):
        written = len(runs.log.read_text())
        status, _ = runs.start(workdir, moment, number=number)
        line = runs.log.read_text()[written:].splitlines()[-1]
        assert status == 130
        assert line.startswith(f"Interrupted after {said}")
        assert line.endswith("it is saved. Go on with --resume.")
    assert runs.start(workdir) == (0, None)
    assert_same(contents(workdir), expected)


def test_sigterm_to_an_export_leaves_the_one_before(tiny_workdir, tmp_path):
    """Sent once some files are written, and before all are."""
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    for folder in (out, temporary):
        folder.mkdir()
    before = '{"class_names": [], "artefacts": []}'
    (out / "manifest.json").write_text(before)
    words = ["export", "--model", tiny_workdir, "--output", out, "--overwrite"]
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_aspp.cli.main", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(temporary),
            # Of what AutoGraph writes and removes.
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        text=True,
    )
    with process:
        end = time.monotonic() + 200
        while not list(tmp_path.glob(".out.*.unfinished/saved_model")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        process.terminate()
        said = process.communicate(timeout=100)[1]
    assert process.returncode == 130
    assert said.endswith("\nInterrupted. Nothing was exported.\n")
    assert sorted(tmp_path.iterdir()) == [out, temporary]
    assert list(temporary.iterdir()) == []
    (kept,) = out.iterdir()
    assert kept.read_text() == before
