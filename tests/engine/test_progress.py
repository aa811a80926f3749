"""The progress line, by a clock that the test turns."""

import types

import keras
import pytest

from keras_aspp.engine import progress
from keras_aspp.engine.progress import Progress, duration


class Clock:
    """Stands in for `time`; a step takes as long as one says."""

    now = 1000.0

    def monotonic(self):
        return self.now


def run(monkeypatch, seconds_of_steps, epochs=1, columns=80, validated=None):
    """Two validation batches of a second follow the steps of each epoch."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    size = types.SimpleNamespace(columns=columns)
    terminal = types.SimpleNamespace(get_terminal_size=lambda: size)
    monkeypatch.setattr(progress, "shutil", terminal)
    shown = Progress(validated=validated)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.jit_compile = False
    shown.set_model(model)
    shown.set_params({"epochs": epochs, "steps": len(seconds_of_steps)})
    for epoch in range(epochs):
        shown.on_epoch_begin(epoch)
        for batch, seconds in enumerate(seconds_of_steps):
            shown.on_train_batch_begin(batch)
            clock.now += seconds
            shown.on_train_batch_end(batch, {"loss": 0.25})
        if validated is None or epoch + 1 in validated:
            shown.on_test_begin()
            for batch in range(2):
                clock.now += 1
                shown.on_test_batch_end(batch)
            shown.on_test_end()
        shown.on_epoch_end(epoch, {"loss": 0.25, "val_mean_iou": 0.5})


def test_on_a_terminal_one_line_is_rewritten(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run(monkeypatch, [20, 0.5, 0.5, 0.01, 0.5])
    head, *lines = capsys.readouterr().out.split("\r")
    assert head == ""
    assert [line.rstrip(" ") for line in lines] == [
        # Three layers: a model, its input and a dense layer.
        "Compiling the first step (about 0 s) ...",
        # What compiled says nothing of the steps to come.
        "Epoch 1/1  step 1/5  loss 0.2500",
        "Epoch 1/1  step 2/5  0.50 s/step  2 s left and validation  loss "
        "0.2500",
        "Epoch 1/1  step 3/5  0.50 s/step  1 s left and validation  loss "
        "0.2500",
        # Step 4 came too soon after it to be shown.
        "Epoch 1/1  step 5/5  0.38 s/step  0 s left and validation  loss "
        "0.2500",
        "Epoch 1/1  validating, batch 1",
        "Epoch 1/1  validating, batch 2",
        "Epoch 1/1  5 steps in 24 s  loss 0.2500  val_mean_iou 0.5000\n",
    ]
    # Each covers the one before it.
    for line, before in zip(lines[1:], lines, strict=False):
        assert len(line) >= len(before.rstrip(" "))


def test_a_line_fits_the_terminal_until_its_epoch_ends(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run(monkeypatch, [20, 0.5], columns=20)
    *lines, last = capsys.readouterr().out.split("\r")
    assert max(map(len, lines)) == 19
    assert last.endswith("val_mean_iou 0.5000\n")


def test_in_a_file_a_line_a_minute_and_one_an_epoch(monkeypatch, capsys):
    run(monkeypatch, [20, 30, 30, 30], epochs=2)
    assert capsys.readouterr().out.splitlines() == [
        "Compiling the first step (about 0 s) ...",
        # A step of this epoch and four of the next are left.
        "Epoch 1/2  step 3/4  30.00 s/step  30 s left and validation, 2:30 in "
        "all  loss 0.2500",
        # Three steps and validation took 92 s, so four will take 123 s.
        "Epoch 1/2  4 steps in 1:52  loss 0.2500  val_mean_iou 0.5000  2:03 "
        "left",
        # Nothing compiles any more, the first step counts, and so do the two
        # seconds of validation.
        "Epoch 2/2  step 3/4  26.67 s/step  29 s left  loss 0.2500",
        "Epoch 2/2  4 steps in 1:52  loss 0.2500  val_mean_iou 0.5000",
    ]


def test_the_best_epoch_is_named_and_a_part_of_an_epoch_is_one(
    monkeypatch, capsys
):
    """Resumed at step 2 of 4 in epoch 3 of 5; epoch 1 was the best."""
    monkeypatch.setattr(progress, "time", clock := Clock())
    checkpoints = types.SimpleNamespace(
        best=0.25, best_epoch=1, steps_per_epoch=4, patience=3
    )
    shown = Progress(checkpoints, epochs=5)
    model = keras.Sequential()
    model.jit_compile = False
    shown.set_model(model)
    for epoch, steps, score in ((2, 2, 0.2), (3, 4, 0.5), (4, 4, None)):
        # As fit says, which is called for the part alone first.
        shown.set_params({"epochs": 3 if epoch == 2 else 5, "steps": steps})
        shown.on_epoch_begin(epoch)
        for batch in range(steps):
            shown.on_train_batch_begin(batch)
            clock.now += 10
            shown.on_train_batch_end(batch, {})
        shown.on_epoch_end(epoch, score and {"val_mean_iou": score})
    assert capsys.readouterr().out.splitlines() == [
        "Compiling the first step (about 0 s) ...",
        # Two epochs of four steps of 10 s are to come.
        "Epoch 3/5  2 steps in 20 s  val_mean_iou 0.2000  kept: epoch 1 "
        "(0.2500), early stopping in 1  1:20 left",
        "Epoch 4/5  4 steps in 40 s  val_mean_iou 0.5000  best so far, kept"
        "  40 s left",
        "Epoch 5/5  4 steps in 40 s",
    ]


def test_an_epoch_without_validation_counts_none(monkeypatch, capsys):
    run(monkeypatch, [70, 70, 70], epochs=3, validated=[1, 3])
    left = [
        line.split("s/step  ")[1].split("  loss")[0].split(",")[0]
        for line in capsys.readouterr().out.splitlines()
        if "s/step" in line and "step 2/" in line
    ]
    assert left == ["1:10 left and validation", "1:10 left", "1:12 left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3753, "1:02:33")],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text
