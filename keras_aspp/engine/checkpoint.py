"""Checkpoints: the best model, and the state to resume from."""

import contextlib
import dataclasses
import json
import math
import os
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_aspp.config.schema import Config
from keras_aspp.engine.states import CheckpointStore
from keras_aspp.engine.tensorboard import write_history
from keras_aspp.models.saving import save_model
from keras_aspp.utils.exceptions import InputError, UnavailableError
from keras_aspp.utils.files import remove_temporaries
from keras_aspp.utils.signals import interrupt

# What a resumed run may have otherwise: it is read before or after training,
# or says when to end and what to keep. `data.root` is where the same data is.
CHANGEABLE = (
    "data.root",
    "data.data_dir",
    "data.license",
    "data.test_split",
    "train.recalibrate_steps",
    "train.early_stopping_epochs",
    "train.keep_checkpoints",
    "train.checkpoint_steps",
    "export.",
)


class Checkpoints(keras.callbacks.Callback):
    """Keeps the best model, the newest states and the history; stops early.

    After each epoch `checkpoints/epoch_N/` gets all variables and the
    progress, `logs/history.csv` its line, and when the validation mean IoU is
    the best so far, `model.keras` is replaced, before the state that says so
    is written. A run that is killed at any moment goes on from the newest
    state, does again what came after it and so comes to the same files.

    Args:
        workdir: `Path` of the run.
        config: `Config` of the run.
        pictures: dict, split -> how many pictures the run has of it.
        averages: `keras.callbacks.SwapEMAWeights` of the run, or `None`: the
            best model is that of the averaged weights.
        steps_per_epoch: int; 0 for no states but at the end of epochs.
        owner: `Owner` of the workdir, checked before each save; or `None`.

    Attributes:
        epochs: int, epochs done.
        steps: int, steps of the next epoch done.
        history: list of dict, a line for each epoch.
    """

    def __init__(
        self,
        workdir,
        config,
        pictures=None,
        averages=None,
        steps_per_epoch=0,
        owner=None,
    ):
        super().__init__()
        self.config, self.owner = config, owner
        self.pictures, self.averages = pictures or {}, averages
        self.steps_per_epoch = steps_per_epoch
        self.move(workdir)
        self.best, self.best_epoch = -math.inf, 0
        self.epochs, self.steps, self.history = 0, 0, []
        self._metrics, self._first_step, self._asked = [], 0, False

    def move(self, workdir):
        """Writes to another folder from now on."""
        self.workdir = Path(workdir)
        self.states = CheckpointStore(
            self.workdir / "checkpoints", self.config.train.keep_checkpoints
        )

    def restore(self, model):
        """Loads the newest state that loads.

        Args:
            model: compiled model, built like the one that was saved.

        Raises:
            ValueError: a state is of another model, optimizer or data; the
                best model that it names is lost; or no state loads.
        """
        found = self.states.newest()
        if found is None:
            return
        path, arrays, state = found
        variables = _variables(model)
        values = [arrays.pop(f"{i:05d}", None) for i in range(len(variables))]
        fits = all(
            value is not None and value.shape == tuple(variable.shape)
            for value, variable in zip(values, variables, strict=True)
        ) and not any(name.isdigit() for name in arrays)
        if not fits:
            raise InputError(
                "The checkpoint is of another model or optimizer than "
                f"the configuration describes. Received: {path}"
            )
        if state["pictures"] != self.pictures:
            raise InputError(
                "The data has changed since the checkpoint; give the run what "
                "it had, or train anew in another workdir. Pictures then: "
                f"{state['pictures']}, now: {self.pictures}"
            )
        best = self.workdir / "model.keras"
        if state["best_epoch"] and not _is_whole(best):
            raise InputError(
                "The best model of the run is lost or damaged; restore it, or "
                f"train anew in another workdir. Received: {best}"
            )
        for value, variable in zip(values, variables, strict=True):
            variable.assign(value)
        self._metrics = [arrays[name] for name in sorted(arrays)]
        if self._metrics:
            # Keras makes their variables when it first needs them.
            pixel = np.zeros((1, 1, 1), "int32")
            scores = np.zeros((1, 1, 1, model.num_classes), "float32")
            model.compute_metrics(None, pixel, scores)
        self.best = -math.inf if state["best"] is None else state["best"]
        self.best_epoch, self.history = state["best_epoch"], state["history"]
        self.epochs, self.steps = state["epochs"], state["steps"]

    def out_of_patience(self):
        """Whether the last epoch was validated, and is too far from the best.

        Returns:
            bool.
        """
        patience = self.config.train.early_stopping_epochs
        return (
            bool(patience and self.history)
            and "val_mean_iou" in self.history[-1]
            and self.epochs - self.best_epoch >= patience
        )

    def ask(self, number, frame):
        """Handler of a signal: save and end after this step.

        The second signal ends the run where it is.
        """
        if self._asked:
            interrupt(number, frame)
        self._asked = True
        # Not print: the signal may have come amid one.
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
        due = self._asked or (every and steps % every == 0)
        # The last step's state is the epoch's, after validation.
        if due and steps < self.steps_per_epoch:
            self.steps = steps
            arrays = self._arrays()
            self._check_owner()
            with self._room():
                self._save_state(arrays)
            self.end_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self.epochs, self.steps = epoch + 1, 0
        self.history.append({"epoch": epoch, **logs})
        score = logs.get("val_mean_iou")
        arrays = self._arrays()
        self._check_owner()
        with self._room():
            if score is not None and score > self.best:
                self.best, self.best_epoch = score, self.epochs
                self._save_best()
            self._save_state(arrays)
        self.write_history()
        self.end_if_asked()
        if self.out_of_patience():
            patience = self.config.train.early_stopping_epochs
            print(f"\nStopped early: no better mean IoU for {patience} epochs.")
            self.model.stop_training = True

    def end_if_asked(self):
        """Ends the run where a signal has come and a state is saved.

        Raises:
            KeyboardInterrupt: so it is.
        """
        if self._asked:
            raise KeyboardInterrupt(
                f"Interrupted after {self.progress()}; it is saved. "
                "Go on with --resume."
            )

    def progress(self):
        """How far the run is, for people."""
        if not self.steps:
            return f"epoch {self.epochs}"
        return (
            f"step {self.steps} of {self.steps_per_epoch} in epoch "
            f"{self.epochs + 1}"
        )

    def write_history(self):
        """Writes `logs/history.csv` as it is at this state."""
        logs = self.workdir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        write_history(logs / "history.csv", self.history)

    def remove_temporaries(self):
        """Removes what a killed run left half-written."""
        logs = self.workdir / "logs"
        remove_temporaries(
            self.workdir, self.states.folder, logs, *logs.glob("*/")
        )

    def _check_owner(self):
        if self.owner:
            self.owner.check()

    def _save_best(self):
        if self.averages:
            self.averages.on_test_begin()
        save_model(self.model, self.workdir / "model.keras")
        if self.averages:
            self.averages.on_test_end()

    def _arrays(self):
        """All that a state holds; raises where it is not finite."""
        arrays = {
            f"{i:05d}": keras.ops.convert_to_numpy(variable)
            for i, variable in enumerate(_variables(self.model))
        }
        if not all(np.isfinite(array).all() for array in arrays.values()):
            # Not one more checkpoint: it would be the newest.
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
            "history": self.history,
            "pictures": self.pictures,
            "config": _flat(self.config),
        }
        self.states.save(self.epochs, self.steps, arrays, state)

    @contextlib.contextmanager
    def _room(self):
        """Says in one line that something cannot be written."""
        try:
            yield
        except OSError as error:
            self.remove_temporaries()
            raise UnavailableError(
                f"The checkpoint after {self.progress()} cannot be written: "
                f"{error.strerror or error}; the ones before it are whole. Go "
                "on with --resume once that is mended. "
                f"Received: workdir={str(self.workdir)!r}"
            ) from error


def changes(workdir, config):
    """What a configuration has otherwise than the run that it resumes.

    Args:
        workdir: of the run.
        config: `Config`.

    Returns:
        list of str, `field: old -> new`.

    Raises:
        ValueError: one is of a field that cannot change within a run.
    """
    before = CheckpointStore(Path(workdir) / "checkpoints", 1).newest_json()
    if before is None:
        return []
    # A field that its version did not have had its default there.
    old = {**_flat(Config()), **before["config"]}
    changed = {
        name: f"{name}: {old[name]} -> {value}"
        for name, value in _flat(config).items()
        if old[name] != value
    }
    refused = [
        text
        for name, text in changed.items()
        if not name.startswith(CHANGEABLE)
    ]
    if refused:
        raise InputError(
            "A resumed run must be the run it was; undo the change, or train "
            "anew in another workdir (model.weights takes its model.keras). "
            f"Received: {', '.join(refused)}"
        )
    return list(changed.values())


def _flat(config):
    """`section.field` -> value, as JSON gives it back."""

    def pairs(part, prefix):
        for field in dataclasses.fields(part):
            name, value = prefix + field.name, getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                yield from pairs(value, f"{name}.")
            else:
                yield name, value

    return json.loads(json.dumps(dict(pairs(config, ""))))


def _is_whole(path):
    """Whether a zip file, as `.keras` is, passes its checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _variables(model):
    # Keras' LossScaleOptimizer adds its variables again each time it is built.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]
