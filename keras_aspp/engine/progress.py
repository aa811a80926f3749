"""The progress line of training."""

from __future__ import annotations

import shutil
import sys
import time

import keras

from keras_aspp.utils.keras_graph import sublayers

# Keys: without and with XLA. Measured on one core of an AMD EPYC:
# MobileNetV2, MobileNetV3 and ResNet-50 (172 to 212 layers) take 0.06 to 0.08 s
# a layer to trace and optimize, and 0.16 to 0.32 s where XLA compiles them.
SECONDS_PER_LAYER = {False: 0.08, True: 0.25}
# Interval of updates: on a terminal, elsewhere.
UPDATE_SECONDS, LINE_SECONDS = 0.1, 60


class Progress(keras.callbacks.Callback):
    """Shows the steps of an epoch, the time left and its metrics.

    On a terminal one line is rewritten. Elsewhere, as in a log file, a line is
    printed each minute and at the end of each epoch. The first step of a run
    traces and compiles the graph, so it is announced and counts for no
    estimate. The time left of an epoch counts what the last validation took,
    and names the first one, of unknown length. The time left of the run counts
    what its epochs took so far, validation and checkpoints included.

    Args:
        checkpoints: `Checkpoints` of the run, with the best epoch and the
            length of an epoch; `None` shows no best epoch.
        epochs: int, epochs of the whole run; those of `fit` if `None`.
        validated: epochs, from 1, that end with validation; all if `None`.
    """

    def __init__(self, checkpoints=None, epochs=None, validated=None):
        super().__init__()
        self.checkpoints, self.epochs = checkpoints, epochs
        self.validated = validated
        self._compiled, self._on_line, self._printed_at = False, 0, 0.0
        self._epoch, self._epoch_begin, self._rate_begin = 0, 0.0, None
        self._run_begin, self._run_steps = None, 0
        self._test_begin, self._test_seconds = 0.0, None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._epoch_begin = epoch, time.monotonic()
        self._printed_at = self._epoch_begin
        self._rate_begin = (0, self._epoch_begin) if self._compiled else None

    def on_train_batch_begin(self, batch, logs=None):
        if not self._compiled and self._rate_begin is None:
            layers = len(sublayers(self.model))
            seconds = layers * SECONDS_PER_LAYER[bool(self.model.jit_compile)]
            self._show(
                f"Compiling the first step (about {duration(seconds)}) ...",
                end=not sys.stdout.isatty(),
            )

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if self._rate_begin is None:
            self._compiled, self._rate_begin = True, (batch + 1, now)
            self._run_begin = now
        else:
            self._run_steps += 1
        pause = UPDATE_SECONDS if sys.stdout.isatty() else LINE_SECONDS
        if now - self._printed_at >= pause:
            self._printed_at = now
            self._show(self._line(batch + 1, now, logs))

    def on_test_begin(self, logs=None):
        self._test_begin = time.monotonic()

    def on_test_end(self, logs=None):
        self._test_seconds = time.monotonic() - self._test_begin

    def on_test_batch_end(self, batch, logs=None):
        if sys.stdout.isatty():
            self._show(f"{self._name()}  validating, batch {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        now, steps = time.monotonic(), self.params["steps"]
        text = f"{self._name()}  {steps} steps in "
        text += duration(now - self._epoch_begin) + _numbers(logs)
        text += self._best((logs or {}).get("val_mean_iou"))
        left = self._run_left(steps, now)
        if left:
            text += f"  {left} left"
        self._show(text, end=True)

    def _num_epochs(self):
        return self.epochs or self.params["epochs"]

    def _name(self):
        return f"Epoch {self._epoch + 1}/{self._num_epochs()}"

    def _best(self, score):
        """Returns the best epoch as text; its model is saved afterwards."""
        if self.checkpoints is None or score is None:
            return ""
        if score > self.checkpoints.best:
            return "  best so far, kept"
        best, best_epoch = self.checkpoints.best, self.checkpoints.best_epoch
        text = f"  kept: epoch {best_epoch} ({best:.4f})"
        patience = self.checkpoints.patience
        if patience:
            left = max(best_epoch + patience - self._epoch - 1, 0)
            text += f", early stopping in {left}"
        return text

    def _run_left(self, step, now):
        """Returns the time left of all epochs, empty if it is unknown."""
        epochs = self._num_epochs() - self._epoch - 1
        if not self._run_steps or not epochs:
            return ""
        steps = self.params["steps"]
        of_epoch = steps
        if self.checkpoints:  # within a resumed epoch, fit runs the rest only
            of_epoch = self.checkpoints.steps_per_epoch
        left = steps - step + epochs * of_epoch
        return duration((now - self._run_begin) / self._run_steps * left)

    def _line(self, step, now, logs):
        steps = self.params["steps"]
        text = f"{self._name()}  step {step}/{steps}"
        first, begin = self._rate_begin
        if step > first:
            seconds = (now - begin) / (step - first)
            left = seconds * (steps - step)
            validates = self.validated is None or (
                self._epoch + 1 in self.validated
            )
            if validates and self._test_seconds:
                left += self._test_seconds
            text += f"  {seconds:.2f} s/step  {duration(left)} left"
            if validates and self._test_seconds is None:
                text += " and validation"
            in_all = self._run_left(step, now)
            if in_all:
                text += f", {in_all} in all"
        return text + _numbers(logs)

    def _show(self, text, end=False):
        """Prints a line; a terminal's last line is overwritten."""
        if not sys.stdout.isatty():
            print(text, flush=True)
            return
        if not end:
            text = text[: shutil.get_terminal_size().columns - 1]
        print("\r" + text.ljust(self._on_line), end="\n" * end, flush=True)
        self._on_line = 0 if end else len(text)


def duration(seconds: float) -> str:
    """Formats seconds as `42 s`, `3:07` or `1:02:33`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}" if minutes else f"{seconds} s"


def _numbers(logs):
    return "".join(f"  {k} {float(v):.4f}" for k, v in (logs or {}).items())
