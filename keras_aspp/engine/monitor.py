"""Callback that warns when training diverges or collapses."""

import logging
import math

import keras
import numpy as np
import tensorflow as tf

from keras_aspp.utils.exceptions import InputError

# Share of all pixels, and more than its share of labels, that a single
# predicted class covers when training has collapsed.
COLLAPSED = 0.995
# Batches whose mean loss counts as the initial loss.
FIRST_BATCHES = 10
# Batches before which the loss does not tell whether the rate is right.
MIN_BATCHES = 100
TOO_HIGH, TOO_LOW = 1.5, 0.98
_log = logging.getLogger(__name__)


class TrainingMonitor(keras.callbacks.Callback):
    """Warns once of each problem of a run, and ends it when the loss is NaN.

    It warns when validation predicts almost only one class, when the loss
    suggests a wrong learning rate, and when a batch has no labeled pixel. A
    loss that is not finite raises, so that no state is saved after it.

    Args:
        spec: `DatasetSpec`.
        files_of_batch: function of the index of a batch, counted from the
            beginning of the run, that returns the names of its images.
        steps: int, batches of an epoch.
        first_epoch: int, epochs done before.
        first_step: int, steps done of the first epoch.
        loss: `LossConfig` of the run, for the advice; or `None`.
        is_trained: bool. The run starts from a trained model, whose loss need
            not fall.

    Raises:
        ValueError: the loss is not finite.
    """

    def __init__(
        self,
        spec,
        files_of_batch,
        steps,
        first_epoch=0,
        first_step=0,
        loss=None,
        is_trained=False,
    ):
        super().__init__()
        self.spec, self.steps = spec, steps
        self.files_of_batch = files_of_batch
        self.epoch, self.first_epoch = first_epoch, first_epoch
        self.first_step, self.first_loss = first_step, None
        self._must_fall = first_epoch == 0 and not is_trained
        self._warned, self._collapse = set(), None
        weights = loss and loss.with_defaults(spec.task)
        self._has_overlap = bool(
            weights and (weights.dice or weights.tversky or weights.lovasz)
        )

    def warn(self, problem, text):
        """Logs a warning the first time that a problem occurs."""
        if problem not in self._warned:
            self._warned.add(problem)
            _log.warning("%s", text)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            step = self.epoch * self.steps + batch
            if self.epoch == self.first_epoch:
                step += self.first_step
            files = ", ".join(self.files_of_batch(step))
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
        # Not before: the line of the epoch is printed first.
        if self._collapse:
            self.warn("collapse", self._collapse)
        loss = (logs or {}).get("loss")
        steps = (epoch + 1 - self.first_epoch) * self.steps
        if None in (loss, self.first_loss) or steps < MIN_BATCHES:
            return
        advice = "`train.lr_finder` tries a range of rates."
        course = f"from {self.first_loss:.3g} to {loss:.3g} in {steps} steps"
        if loss > TOO_HIGH * self.first_loss:
            self.warn(
                "rate",
                f"the loss has grown {course}; the learning rate looks too "
                f"high. {advice}",
            )
        elif loss > TOO_LOW * self.first_loss and self._must_fall:
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
        predicted, labeled = matrix.sum(0) / total, matrix.sum(1) / total
        class_id = int(np.argmax(predicted))
        if predicted[class_id] > max(COLLAPSED, labeled[class_id] + 0.001):
            remedy = "" if self._has_overlap else "train.loss.dice or "
            self._collapse = (
                f"{predicted[class_id]:.1%} of the validation pixels are "
                f"predicted {self.spec.class_names[class_id]}, "
                f"{labeled[class_id]:.1%} are labeled so. Early in a run this "
                f"is temporary; otherwise try {remedy}another learning rate."
            )

    def check_batch(self, images, labels):
        """Returns a batch unchanged; for `tf.data.Dataset.map`."""

        def no_valid_pixel():
            self.warn(
                "void",
                "a batch contains only ignored pixels and contributes no "
                "gradient. `keras-aspp data check` lists such masks; crops of "
                "large ignored areas have the same effect.",
            )
            return False

        tf.cond(
            tf.reduce_any(labels != self.spec.ignore_label),
            lambda: True,
            lambda: tf.numpy_function(no_valid_pixel, [], tf.bool),
        )
        return images, labels
