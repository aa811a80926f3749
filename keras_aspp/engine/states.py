"""States of a run on the disk: arrays and what JSON holds, checked."""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import commit, remove_folder

_FILES = ("state.json", "variables.npz")
_SUMS = "SHA256SUMS"


class CheckpointStore:
    """The newest states of a run, each a folder that is whole or not there.

    A folder holds `variables.npz`, `state.json` and `SHA256SUMS`, which
    `sha256sum -c` reads too.

    Args:
        folder: `Path`; made if need be.
        keep: int > 0, how many stay.
    """

    def __init__(self, folder, keep):
        self.folder, self.keep = Path(folder), keep

    def paths(self):
        """Folders of the states, the oldest first."""
        return sorted(self.folder.glob("epoch_*"))

    def save(self, epochs, steps, arrays, state):
        """Writes one state, then removes the oldest, and any that is newer.

        Args:
            epochs: int, epochs that are done.
            steps: int, steps of the next epoch that are done.
            arrays: dict of NumPy arrays.
            state: what JSON can hold.
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
        if final.exists():  # damaged, or it would not be written again
            remove_folder(final)
        commit(temporary, final)
        # A newer one is damaged, or the run would have gone on from it.
        paths = self.paths()
        end = paths.index(final) + 1
        for path in paths[end:] + paths[:end][: -self.keep]:
            remove_folder(path)

    def newest_json(self):
        """What the newest whole state holds beside its arrays.

        Returns:
            what was given to `save`, or `None`.
        """
        for path in reversed(self.paths()):
            with contextlib.suppress(OSError, ValueError):
                return _checked_json(path)
        return None

    def newest(self):
        """The newest state that is whole; damaged ones are reported.

        Returns:
            `(path, arrays, state)`, or `None` where there is no state.

        Raises:
            ValueError: there are states, and all are damaged.
        """
        for path in reversed(self.paths()):
            try:
                return path, *_read(path)
            except (OSError, ValueError) as error:
                print(f"Skipped a damaged checkpoint: {path} ({error})")
        if self.paths():
            raise InputError(
                "None of the checkpoints can be read; train anew in another "
                f"workdir. Received: {self.folder}"
            )
        return None


def _read(path):
    state = _checked_json(path)
    with np.load(path / "variables.npz") as file:
        return {name: file[name] for name in file.files}, state


def _checked_json(path):
    if (path / _SUMS).read_text() != _sums(path):
        raise InputError("not what its SHA256SUMS says")
    return json.loads((path / "state.json").read_text())


def _sums(folder):
    lines = []
    for name in _FILES:
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {name}\n")
    return "".join(lines)
