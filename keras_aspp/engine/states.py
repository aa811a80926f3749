"""Files of a run: training states verified by SHA-256, best model, history."""

import contextlib
import csv
import hashlib
import io
import json
import logging
import zipfile
from pathlib import Path

import numpy as np

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import (
    commit,
    remove_folder,
    remove_temporaries,
    write_text,
)

_FILES = ("state.json", "variables.npz")
_SUMS = "SHA256SUMS"
_log = logging.getLogger(__name__)


class CheckpointStore:
    """Files that a run saves in its workdir.

    `checkpoints/` holds the newest training states, each a folder of
    `variables.npz`, `state.json` and `SHA256SUMS` (which `sha256sum -c` reads
    too) that is complete or absent. `model.keras` is the best model,
    `logs/history.csv` the metrics of each epoch.

    Args:
        workdir: folder of the run.
        keep: int > 0, number of states to keep.

    Attributes:
        workdir: `Path` of the run.
        folder: `Path` of the states.
        best_model: `Path` of the best model.
    """

    def __init__(self, workdir, keep):
        self.workdir, self.keep = Path(workdir), keep
        self.folder = self.workdir / "checkpoints"
        self.best_model = self.workdir / "model.keras"

    def paths(self):
        """Returns the folders of the states, the oldest first."""
        return sorted(self.folder.glob("epoch_*"))

    def save(self, epochs, steps, arrays, state):
        """Writes one state, then removes the oldest ones and newer ones.

        Args:
            epochs: int, epochs done.
            steps: int, steps done of the next epoch.
            arrays: dict of NumPy arrays.
            state: JSON-serializable value.
        """
        name = f"epoch_{epochs:05d}"
        if steps:
            name += f"_step_{steps:07d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.tmp"
        temporary.mkdir()
        np.savez(temporary / "variables.npz", **arrays)
        (temporary / "state.json").write_text(
            json.dumps(state), encoding="utf-8"
        )
        (temporary / _SUMS).write_text(_sums(temporary))
        final = self.folder / name
        if final.exists():  # damaged, or the run would have resumed from it
            remove_folder(final)
        commit(temporary, final)
        # Newer states are damaged, or the run would have resumed from them.
        paths = self.paths()
        end = paths.index(final) + 1
        for path in paths[end:] + paths[:end][: -self.keep]:
            remove_folder(path)

    def newest_json(self):
        """Returns the `state` of the newest intact state, or `None`."""
        for path in reversed(self.paths()):
            with contextlib.suppress(OSError, ValueError):
                return _checked_json(path)
        return None

    def newest(self):
        """Reads the newest intact state; logs the damaged ones.

        Returns:
            `(path, arrays, state)`, or `None` if there is no state.

        Raises:
            ValueError: all states are damaged.
        """
        for path in reversed(self.paths()):
            try:
                return path, *_read(path)
            except (OSError, ValueError) as error:
                _log.info("Skipped a damaged checkpoint: %s (%s)", path, error)
        if self.paths():
            raise InputError(
                "None of the checkpoints can be read; train again in another "
                f"workdir. Received: {self.folder}"
            )
        return None

    def has_best_model(self):
        """Returns True if the best model passes the checksums of its zip."""
        try:
            with zipfile.ZipFile(self.best_model) as file:
                return file.testzip() is None
        except (OSError, zipfile.BadZipFile):
            return False

    def write_history(self, rows):
        """Writes `logs/history.csv`; see `write_history`."""
        logs = self.workdir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        write_history(logs / "history.csv", rows)

    def remove_temporaries(self):
        """Removes temporary files that a killed run left."""
        logs = self.workdir / "logs"
        remove_temporaries(self.workdir, self.folder, logs, *logs.glob("*/"))


def write_history(path, rows):
    """Writes a CSV file in the format of `keras.callbacks.CSVLogger`.

    Args:
        path: file to write.
        rows: list of dict, one for each epoch, `epoch` among the keys.
    """
    columns = sorted({name for row in rows for name in row} - {"epoch"})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", *columns], restval="NA")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _read(path):
    state = _checked_json(path)
    with np.load(path / "variables.npz") as file:
        return {name: file[name] for name in file.files}, state


def _checked_json(path):
    if (path / _SUMS).read_text() != _sums(path):
        raise InputError("its SHA256SUMS differ")
    return json.loads((path / "state.json").read_text())


def _sums(folder):
    lines = []
    for name in _FILES:
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {name}\n")
    return "".join(lines)
