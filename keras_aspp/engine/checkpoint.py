"""Checkpoints: the best model, and the state to resume from."""

import json
import math
import os
import shutil
from pathlib import Path

import keras
import numpy as np

from keras_aspp.models import Segmenter, with_dtype

KEEP = 2
_PREFIX = "epoch_"


class Checkpoints(keras.callbacks.Callback):
    """Keeps the best model and the newest states, and stops early.

    After each epoch `checkpoints/epoch_N/` gets weights, optimizer and
    progress, under a temporary name first; the two newest are kept. When the
    validation mean IoU is the best so far, `model.keras` is replaced.

    Args:
        workdir: `Path` of the run.
        early_stopping_epochs: int or `None`.
        averages: `keras.callbacks.SwapEMAWeights` of the run, or `None`: the
            best model is that of the averaged weights.
    """

    def __init__(self, workdir, early_stopping_epochs=None, averages=None):
        super().__init__()
        self.averages = averages
        self.move(workdir)
        self.early_stopping_epochs = early_stopping_epochs
        self.best, self.best_epoch = -math.inf, 0

    def move(self, workdir):
        """Writes to another folder from now on."""
        self.workdir = Path(workdir)
        self.folder = self.workdir / "checkpoints"

    def restore(self, model):
        """Loads the newest state that loads.

        Args:
            model: compiled model, built like the one that was saved.

        Returns:
            int, epochs done; 0 where there is no state.

        Raises:
            ValueError: a state is of another model or optimizer.
        """
        for path in reversed(self._states()):
            try:
                state = json.loads((path / "state.json").read_text())
                with np.load(path / "variables.npz") as arrays:
                    values = [arrays[name] for name in arrays.files]
            except (OSError, ValueError, KeyError, EOFError) as error:
                print(f"Skipped a damaged checkpoint: {path} ({error})")
                continue
            variables = _variables(model)
            fits = len(values) == len(variables) and all(
                value.shape == tuple(variable.shape)
                for value, variable in zip(values, variables, strict=True)
            )
            if not fits:
                raise ValueError(
                    "The checkpoint is of another model or optimizer than "
                    f"the configuration describes. Received: {path}"
                )
            for value, variable in zip(values, variables, strict=True):
                variable.assign(value)
            self.best = state["best"]
            if self.best is None:
                self.best = -math.inf
            self.best_epoch = state["best_epoch"]
            return state["epochs"]
        return 0

    def on_epoch_end(self, epoch, logs=None):
        score = (logs or {}).get("val_mean_iou")
        done = epoch + 1
        if score is not None and score > self.best:
            self.best, self.best_epoch = float(score), done
            self._save_best()
        self._save_state(done)
        patience = self.early_stopping_epochs
        if (
            patience
            and score is not None
            and done - self.best_epoch >= patience
        ):
            print(f"\nStopped early: no better mean IoU for {patience} epochs.")
            self.model.stop_training = True

    def _save_best(self):
        if self.averages:
            self.averages.on_test_begin()
        save_model(self.model, self.workdir / "model.keras")
        if self.averages:
            self.averages.on_test_end()

    def _save_state(self, done):
        arrays = {
            f"{i:05d}": keras.ops.convert_to_numpy(variable)
            for i, variable in enumerate(_variables(self.model))
        }
        if not all(np.isfinite(array).all() for array in arrays.values()):
            # Not one more checkpoint: it would be the newest.
            raise ValueError(
                f"The weights are not finite after epoch {done}; the last "
                "checkpoint is from before. A smaller train.learning_rate or "
                "a longer train.warmup_steps helps."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{_PREFIX}{done:05d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with open(temporary / "variables.npz", "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        state = {
            "epochs": done,
            "best": self.best if math.isfinite(self.best) else None,
            "best_epoch": self.best_epoch,
        }
        (temporary / "state.json").write_text(json.dumps(state))
        final = self.folder / f"{_PREFIX}{done:05d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in self._states()[:-KEEP]:
            shutil.rmtree(old)

    def _states(self):
        return sorted(self.folder.glob(f"{_PREFIX}*"))


def save_model(model, path):
    """Writes a `.keras` without optimizer state, then renames it."""
    temporary = Path(path).with_name(f".{Path(path).name}.tmp.keras")
    # Precision and compilation belong to the run, not to the model.
    # (A functional model's own policy is always the global one.)
    if isinstance(model, Segmenter) and model.arguments()["dtype"] != "float32":
        model = with_dtype(model, "float32")
    optimizer = getattr(model, "optimizer", None)
    compiled = model.compiled
    try:
        model.optimizer, model.compiled = None, False
        model.save(temporary)
    finally:
        model.optimizer, model.compiled = optimizer, compiled
    os.replace(temporary, path)


def _variables(model):
    model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]
