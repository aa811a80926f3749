"""What tells a user, while it trains, that it does not learn."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_aspp.utils.exceptions import InputError

# A class that gets this share of all pixels, and more than is labelled so,
# has swallowed the others.
COLLAPSED = 0.995
# Batches whose mean loss is taken for where training began.
FIRST_BATCHES = 10
# Before so many batches the loss says little of the learning rate.
MIN_BATCHES = 100
TOO_HIGH, TOO_LOW = 1.5, 0.98


class TrainingMonitor(keras.callbacks.Callback):
    """Warns, of each thing once, of a run that goes wrong; stops a dead one.

    It warns when validation finds next to nothing but one class, and when
    the loss speaks for a learning rate that is far off. Where the loss is no
    number any more it raises, so that no state is saved after it.

    Args:
        spec: `DatasetSpec`.
        files_of: function of a batch's number, counted from the beginning of
            the run, that names the pictures in it.
        steps: int, batches of an epoch.
        first_epoch: int, epochs done before.
        first_step: int, steps done of the one that it begins in.

    Raises:
        ValueError: the loss is not finite.
    """

    def __init__(self, spec, files_of, steps, first_epoch=0, first_step=0):
        super().__init__()
        self.spec, self.files_of, self.steps = spec, files_of, steps
        self.epoch, self.first_epoch = first_epoch, first_epoch
        self.first_step, self.first_loss = first_step, None
        self.said = set()

    def warn(self, kind, text):
        """Prints a warning, the first of its kind only."""
        if kind not in self.said:
            self.said.add(kind)
            print(f"\nWarning: {text}")

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            step = self.epoch * self.steps + batch
            if self.epoch == self.first_epoch:
                step += self.first_step
            files = ", ".join(self.files_of(step))
            raise InputError(
                f"The loss is not finite at step {step}, in epoch "
                f"{self.epoch + 1}; the last checkpoint and the best model "
                "are from before. A smaller train.learning_rate or a longer "
                "train.warmup_steps helps, or a look at the batch. "
                f"Files: {files}"
            )
        first = min(FIRST_BATCHES, self.steps)
        if self.epoch == self.first_epoch and batch + 1 == first:
            self.first_loss = loss

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss")
        seen = (epoch + 1 - self.first_epoch) * self.steps
        if None in (loss, self.first_loss) or seen < MIN_BATCHES:
            return
        advice = "`train.lr_finder` tries a range of them."
        course = f"from {self.first_loss:.3g} to {loss:.3g} in {seen} steps"
        if loss > TOO_HIGH * self.first_loss:
            self.warn(
                "rate",
                f"the loss has grown {course}; the learning rate looks too "
                f"high. {advice}",
            )
        elif loss > TOO_LOW * self.first_loss and self.first_epoch == 0:
            self.warn(
                "rate",
                f"the loss has hardly moved, {course}; the learning rate "
                f"looks too low, or far too high. {advice}",
            )

    def on_test_end(self, logs=None):
        for metric in self.model.metrics:
            for part in getattr(metric, "metrics", [metric]):
                if hasattr(part, "matrix"):
                    self._check_collapse(part.matrix())

    def _check_collapse(self, matrix):
        total = matrix.sum()
        if not total:
            return
        predicted, labelled = matrix.sum(0) / total, matrix.sum(1) / total
        kind = int(np.argmax(predicted))
        if predicted[kind] > max(COLLAPSED, labelled[kind] + 0.001):
            self.warn(
                "collapse",
                f"{predicted[kind]:.1%} of the validation pixels are "
                f"predicted {self.spec.class_names[kind]}, "
                f"{labelled[kind]:.1%} are labelled so. Early in a run that "
                "passes; if not, train.loss.dice helps, or another learning "
                "rate.",
            )

    def batch(self, images, labels):
        """A batch as it is, looked at; for `tf.data.Dataset.map`."""

        def no_valid_pixel():
            self.warn(
                "void",
                "a batch has no valid pixel, all is ignored: it teaches "
                "nothing. `keras-aspp data check` names masks that are so; "
                "crops of large ignored areas are, too.",
            )
            return False

        tf.cond(
            tf.reduce_any(labels != self.spec.ignore_label),
            lambda: True,
            lambda: tf.numpy_function(no_valid_pixel, [], tf.bool),
        )
        return images, labels
