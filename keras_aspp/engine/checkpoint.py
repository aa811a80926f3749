"""Checkpoints: the best model, and the state to resume from."""

import contextlib
import dataclasses
import json
import logging
import math
import os

import keras
import numpy as np

from keras_aspp.config.schema import RENAMED, Config
from keras_aspp.engine.quantize_aware import write_ranges
from keras_aspp.engine.states import CheckpointStore
from keras_aspp.models.saving import save_model
from keras_aspp.utils.exceptions import InputError, UnavailableError
from keras_aspp.utils.signals import interrupt

# Fields that a resumed run may change: they are read before or after training,
# or say when to end and what to keep. `data.root` is the place of the data.
CHANGEABLE = (
    "data.root",
    "data.data_dir",
    "data.license",
    "data.test_split",
    "train.recalibrate_steps",
    "train.early_stopping_epochs",
    "train.keep_checkpoints",
    "train.checkpoint_steps",
    "train.callbacks",
    "export.",
)
_log = logging.getLogger(__name__)


class Checkpoints(keras.callbacks.Callback):
    """Saves the best model, the newest states and the history; stops early.

    After each epoch it saves a state of all variables and of the progress,
    and writes `logs/history.csv`. When the validation mean IoU is the best so
    far, it replaces `model.keras` before it saves the state that refers to it.
    A run that is killed at any moment resumes from the newest state, repeats
    what came after it, and ends with the same files.

    Args:
        store: `CheckpointStore` to write to.
        config: `Config` of the run.
        num_images: dict, split -> number of its images.
        averages: `keras.callbacks.SwapEMAWeights` of the run, or `None`; with
            it, the best model holds the averaged weights.
        steps_per_epoch: int; 0 to save states at the end of epochs only.
        owner: `Owner` of the workdir, checked before each save; or `None`.

    Attributes:
        epochs: int, epochs done.
        steps: int, steps done of the next epoch.
        best: float, best validation mean IoU.
        best_epoch: int, epoch of the best model; 0 if there is none.
        stopped: bool. A callback of the user ended the run.
        history: list of dict, the metrics of each epoch.
    """

    def __init__(
        self,
        store,
        config,
        num_images=None,
        averages=None,
        steps_per_epoch=0,
        owner=None,
    ):
        super().__init__()
        self.store, self.config, self.owner = store, config, owner
        self.num_images, self.averages = num_images or {}, averages
        self.steps_per_epoch = steps_per_epoch
        self.best, self.best_epoch = -math.inf, 0
        self.epochs, self.steps, self.history = 0, 0, []
        self.stopped = False
        self._metrics, self._first_step, self._requested = [], 0, False

    def restore(self, model):
        """Loads the newest intact state.

        Args:
            model: compiled model, built like the one that was saved.

        Raises:
            ValueError: the state belongs to another model, optimizer or data;
                its best model is lost; or all states are damaged.
        """
        found = self.store.newest()
        if found is None:
            return
        path, arrays, state = found
        variables = _variables(model)
        values = [arrays.pop(f"{i:05d}", None) for i in range(len(variables))]
        self._check_state(path, variables, values, arrays, state)
        for value, variable in zip(values, variables, strict=True):
            variable.assign(value)
        self._metrics = [arrays[name] for name in sorted(arrays)]
        if self._metrics:
            # Keras creates the variables of metrics when it first needs them.
            scores = np.zeros((1, 1, 1, model.num_classes), "float32")
            labels = scores if model.task == "multilabel" else scores[..., 0]
            model.compute_metrics(None, labels.astype("int32"), scores)
        self.best = -math.inf if state["best"] is None else state["best"]
        self.best_epoch, self.history = state["best_epoch"], state["history"]
        self.epochs, self.steps = state["epochs"], state["steps"]
        # Other callbacks may not want to end it.
        before = state["config"].get("train.callbacks")
        same = before == flat_fields(self.config)["train.callbacks"]
        self.stopped = same and state.get("stopped", False)

    def _check_state(self, path, variables, values, others, state):
        fits = all(
            value is not None and value.shape == tuple(variable.shape)
            for value, variable in zip(values, variables, strict=True)
        ) and not any(name.isdigit() for name in others)
        if not fits:
            raise InputError(
                "The checkpoint belongs to another model or optimizer than "
                f"the configuration describes. Received: {path}"
            )
        if state["pictures"] != self.num_images:
            raise InputError(
                "The data has changed since the checkpoint; restore it, or "
                "train again in another workdir. Images then: "
                f"{state['pictures']}, now: {self.num_images}"
            )
        if state["best_epoch"] and not self.store.has_best_model():
            raise InputError(
                "The best model of the run is lost or damaged; restore it, or "
                "train again in another workdir. "
                f"Received: {self.store.best_model}"
            )

    @property
    def patience(self):
        """Epochs without a better mean IoU that end the run, or `None`."""
        return self.config.train.early_stopping_epochs

    def out_of_patience(self):
        """Returns True if the last epoch ends the run by early stopping."""
        return (
            bool(self.patience and self.history)
            and "val_mean_iou" in self.history[-1]
            and self.epochs - self.best_epoch >= self.patience
        )

    def request_stop(self, number, frame):
        """Signal handler: saves and ends the run after this step.

        The second signal ends the run at once.
        """
        if self._requested:
            interrupt(number, frame)
        self._requested = True
        # Not the logger: the signal may have come while it writes.
        os.write(
            2, b"\nEnding after this step or validation; again: at once.\n"
        )

    def on_epoch_begin(self, epoch, logs=None):
        self._first_step = self.steps
        # fit has just reset them.
        if self.steps:
            # Checkpoints of older versions lack the last variables of the
            # confusion matrix, which are 0 in a run.
            for variable, value in zip(
                self.model.metrics_variables, self._metrics, strict=False
            ):
                variable.assign(value)

    def on_train_batch_end(self, batch, logs=None):
        steps = self._first_step + batch + 1
        every = self.config.train.checkpoint_steps
        due = self._requested or (every and steps % every == 0)
        # The last step's state is the epoch's, after validation.
        if due and steps < self.steps_per_epoch:
            self.steps = steps
            arrays = self._arrays()
            self._check_owner()
            with self._explain_write_errors():
                self._save_state(arrays)
            self.end_if_requested()

    def on_epoch_end(self, epoch, logs=None):
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self.epochs, self.steps = epoch + 1, 0
        # Those of the user were called before.
        self.stopped = bool(self.model.stop_training)
        self.history.append({"epoch": epoch, **logs})
        score = logs.get("val_mean_iou")
        arrays = self._arrays()
        self._check_owner()
        with self._explain_write_errors():
            if score is not None and score > self.best:
                self.best, self.best_epoch = score, self.epochs
                self._save_best()
            self._save_state(arrays)
        self.write_history()
        self.end_if_requested()
        if self.stopped:
            _log.info(
                "\nStopped after epoch %d by a callback of train.callbacks.",
                self.epochs,
            )
        if self.out_of_patience():
            _log.info(
                "\nStopped early: no better mean IoU for %d epochs.",
                self.patience,
            )
            self.model.stop_training = True

    def end_if_requested(self):
        """Ends the run if a signal came; a state is saved.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        if self._requested:
            raise KeyboardInterrupt(
                f"Interrupted after {self.progress()}; it is saved. "
                "Go on with --resume."
            )

    def progress(self):
        """Returns the epoch and step that are done, as text."""
        if not self.steps:
            return f"epoch {self.epochs}"
        return (
            f"step {self.steps} of {self.steps_per_epoch} in epoch "
            f"{self.epochs + 1}"
        )

    def write_history(self):
        """Writes the history of this state to the store."""
        self.store.write_history(self.history)

    def _check_owner(self):
        if self.owner:
            self.owner.check()

    def _save_best(self):
        if self.averages:
            self.averages.on_test_begin()
        save_model(self.model, self.store.best_model)
        write_ranges(self.model, self.store.workdir)
        if self.averages:
            self.averages.on_test_end()

    def _arrays(self):
        """Returns the arrays of a state; raises if weights are not finite."""
        arrays = {
            f"{i:05d}": keras.ops.convert_to_numpy(variable)
            for i, variable in enumerate(_variables(self.model))
        }
        if not all(np.isfinite(array).all() for array in arrays.values()):
            # A state saved now would be the newest, from which runs resume.
            raise InputError(
                f"The weights are not finite after {self.progress()}; the "
                "last checkpoint is from before. A smaller "
                "train.learning_rate or a longer train.warmup_steps helps."
            )
        if self.steps:
            for i, variable in enumerate(self.model.metrics_variables):
                array = keras.ops.convert_to_numpy(variable)
                arrays[f"metric_{i:05d}"] = array
        return arrays

    def _save_state(self, arrays):
        state = {
            "epochs": self.epochs,
            "steps": self.steps,
            "best": self.best if math.isfinite(self.best) else None,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "history": self.history,
            # The key of earlier versions, whose runs can be resumed.
            "pictures": self.num_images,
            "config": flat_fields(self.config),
        }
        self.store.save(self.epochs, self.steps, arrays, state)

    @contextlib.contextmanager
    def _explain_write_errors(self):
        """Turns a failed write into a one-line error."""
        try:
            yield
        except OSError as error:
            self.store.remove_temporaries()
            cause = error.__cause__ or error  # of `replacing`
            reason = getattr(cause, "strerror", None) or cause
            raise UnavailableError(
                f"The checkpoint after {self.progress()} cannot be written: "
                f"{reason}; the earlier ones are intact. Go "
                "on with --resume once the cause is removed. "
                f"Received: workdir={str(self.store.workdir)!r}"
            ) from error


def changes(workdir, config):
    """Compares a configuration with that of the run that it resumes.

    Args:
        workdir: folder of the run.
        config: `Config`.

    Returns:
        list of str, `field: old -> new` of each changed field.

    Raises:
        ValueError: a field that cannot change within a run has changed.
    """
    before = CheckpointStore(workdir, 1).newest_json()
    if before is None:
        return []
    # Fields that an earlier version lacked had their defaults.
    named = {RENAMED.get(k, k): v for k, v in before["config"].items()}
    old = {**flat_fields(Config()), **named}
    # Before there were tasks, the default weight of Dice was 0.
    if "data.task" not in before["config"] and not old["train.loss.dice"]:
        if not config.train.loss.dice:
            old["train.loss.dice"] = config.train.loss.dice
    changed = {
        name: f"{name}: {old[name]} -> {value}"
        for name, value in flat_fields(config).items()
        if old[name] != value
    }
    refused = [
        text
        for name, text in changed.items()
        if not name.startswith(CHANGEABLE)
    ]
    if refused:
        raise InputError(
            "A resumed run must keep its configuration; undo the change, or "
            "train again in another workdir (model.weights takes its "
            "model.keras). "
            f"Received: {', '.join(refused)}"
        )
    return list(changed.values())


def flat_fields(config):
    """Returns `section.field` -> value, as JSON reads it back."""

    def pairs(part, prefix):
        for field in dataclasses.fields(part):
            name, value = prefix + field.name, getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                yield from pairs(value, f"{name}.")
            else:
                yield name, value

    return json.loads(json.dumps(dict(pairs(config, ""))))


def _variables(model):
    # Keras' LossScaleOptimizer adds its variables again each time it is built.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]
