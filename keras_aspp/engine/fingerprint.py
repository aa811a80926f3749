"""Fingerprint of data and teacher, compared by `--resume`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_aspp.data.folder import FolderSource
from keras_aspp.data.sources import Source
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.files import write_json
from keras_aspp.utils.types import PathLike

FINGERPRINT_FILE = "fingerprint.json"
# Fields of a specification that training does not read.
_FOR_PEOPLE = ("name", "license")
_BLOCK = 2**20
# A TFRecord: length (8 bytes), its checksum (4), data, checksum of these (4).
_RECORD_HEAD, _RECORD_SUM = 12, 4
_THREADS = 8


def fingerprint(
    source: Source, splits: Iterable[str], teacher: PathLike | None = None
) -> dict[str, Any]:
    """Returns the fingerprint of a data set and a teacher.

    File names are relative to the data set, so that it may be moved. Files are
    compared by content, so that copies are equal. TFRecord files are compared
    by the checksum that they store for each example.

    Args:
        source: `FolderSource` or `TfdsSource`.
        splits: names of the splits that the run reads.
        teacher: file of the model to distill from, or `None`. It is read in
            every step. Models that only start a run are in its checkpoints.

    Returns:
        dict, JSON-ready: `specification`; `files`, split -> name ->
        `[bytes, digest]`; with a teacher, `teacher`, `[bytes, digest]`.

    Raises:
        OSError: a file cannot be read.
    """
    found = {
        "specification": _specification(source.spec),
        "files": {split: _files(source, split) for split in splits},
    }
    if teacher is not None:
        found["teacher"] = _digest(teacher)
    return found


def write_fingerprint(workdir: PathLike, found: dict[str, Any]) -> None:
    """Writes a fingerprint into a workdir."""
    write_json(Path(workdir) / FINGERPRINT_FILE, found)


def read_fingerprint(workdir: PathLike) -> dict[str, Any] | None:
    """Reads the fingerprint of a workdir, `None` if it holds none."""
    path = Path(workdir) / FINGERPRINT_FILE
    if not path.is_file():
        return None
    with _explained(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        data_changes(found, found)
    return found


def specification_of(found: dict[str, Any]) -> DatasetSpec:
    """Returns the `DatasetSpec` that a fingerprint holds."""
    fields = {**_defaults(), **found["specification"]}
    if fields["label_map"] is not None:
        fields["label_map"] = {
            int(key): label for key, label in fields["label_map"].items()
        }
    return DatasetSpec(**fields)


@contextlib.contextmanager
def _explained(path):
    """Turns what a damaged fingerprint raises into a one-line error."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "The fingerprint of the run's data is damaged; if the data is what "
            f"it was, remove the file. Received: {path} ({error})"
        ) from None


def check_fingerprint(workdir: PathLike, found: dict[str, Any]) -> bool:
    """Raises `ValueError` if data or teacher changed since the run began.

    Args:
        workdir: folder of the run.
        found: dict, the fingerprint now.

    Returns:
        bool, False if the workdir holds no fingerprint, or one without the
        teacher, like those of earlier versions.

    Raises:
        ValueError: data or teacher have changed, or the stored fingerprint is
            damaged.
    """
    before = read_fingerprint(workdir)
    if before is None:
        return False
    with _explained(Path(workdir) / FINGERPRINT_FILE):
        changes = data_changes(before, found)
    if changes:
        raise InputError(
            "The teacher or the data has changed since the run began; restore "
            "it, or train anew in another workdir (model.weights takes its "
            f"model.keras). Changed: {'; '.join(changes)}"
        )
    return found.keys() <= before.keys()


def data_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lists the differences of two fingerprints as text.

    Args:
        before: dict, see `fingerprint`.
        now: dict.

    Returns:
        list of str, empty if they are equal.
    """
    # A field that an earlier version lacked had its default.
    old = {**_defaults(), **before["specification"]}
    new = now["specification"]
    changes = [
        _changed_field(key, old[key], new[key])
        for key in new
        if old[key] != new[key]
    ]
    for split in {**before["files"], **now["files"]}:
        changes += _changed_files(
            split, before["files"].get(split, {}), now["files"].get(split, {})
        )
    if "teacher" in before and before["teacher"] != now.get("teacher"):
        changes.append("the file of train.distill_from")
    return changes


def _specification(spec):
    """Returns the fields that training reads, as JSON reads them back."""
    return _as_json(dataclasses.asdict(spec))


def _defaults():
    fields = dataclasses.fields(DatasetSpec)
    required = dataclasses.MISSING
    return _as_json(
        {f.name: f.default for f in fields if f.default is not required}
    )


def _as_json(fields):
    kept = {k: v for k, v in fields.items() if k not in _FOR_PEOPLE}
    return json.loads(json.dumps(kept))


def _changed_field(key, old, new):
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{key}: {len(old)} entries -> {len(new)}"
        differ = [i for i in range(len(old)) if old[i] != new[i]]
        i = differ[0]
        return (
            f"{key}: {len(differ)} of {len(old)} entries, first number {i}: "
            f"{old[i]} -> {new[i]}"
        )
    return f"{key}: {old} -> {new}"


def _changed_files(split, old, new):
    lost = [name for name in old if name not in new]
    added = {tuple(new[name]): name for name in new if name not in old}
    renamed = {
        name: added.pop(tuple(old[name]))
        for name in lost
        if tuple(old[name]) in added
    }
    swapped = dict.fromkeys(renamed.values())
    kinds = (
        ("changed", [k for k in old if k in new and old[k] != new[k]]),
        ("renamed", [f"{a} -> {b}" for a, b in renamed.items()]),
        ("missing", [k for k in lost if k not in renamed]),
        ("new", [k for k in new if k not in {**old, **swapped}]),
    )
    return [
        f"{len(names)} files of split {split} {kind}, first {names[0]}"
        for kind, names in kinds
        if names
    ]


def _files(source, split):
    """Returns name -> `[bytes, digest]`, in the order of reading."""
    if isinstance(source, FolderSource):
        named = {
            Path(os.path.relpath(path, source.root)).as_posix(): path
            for path in source.files(split)
        }
        digest = _digest
    else:
        # Without the name of the data set, since records may be moved, too.
        prefix = f"{source.builder.name}-"
        named = {
            f"{os.path.basename(path).removeprefix(prefix)} from {skip} to "
            f"{skip + take}": path
            for path, skip, take, _ in source.shards(split)
        }
        digest = _digest_of_records
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(digest, named.values())
        return dict(zip(named, found, strict=True))


def _digest(path):
    """Returns size and digest of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
        return [file.tell(), digest.hexdigest()]


def _digest_of_records(path):
    """Returns the size of a TFRecord file, and digest of its checksums."""
    import tensorflow as tf

    if "://" in path:  # a round trip for each record would take too long
        return [tf.io.gfile.stat(path).length, ""]
    digest, size = hashlib.blake2b(digest_size=16), os.path.getsize(path)
    with open(path, "rb") as file:
        while head := file.read(_RECORD_HEAD):
            digest.update(head)
            length = int.from_bytes(head[:8], "little")
            if length > size:  # no TFRecord file, or a damaged one
                break
            file.seek(length, os.SEEK_CUR)
            digest.update(file.read(_RECORD_SUM))
    return [size, digest.hexdigest()]
