"""Atomic, durable file writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_aspp.utils.types import PathLike


def sha256(path: PathLike) -> str:
    """Hashes a file, or a folder by its sorted `path sha256` lines."""
    path = Path(path)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [
        f"{file.relative_to(path).as_posix()} {sha256(file)}\n"
        for file in files_of(path)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def files_of(path: Path) -> list[Path]:
    """Returns the file itself, or all files below a folder, sorted."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file())


# Names of unfinished files: hidden, and removed at the next start.
_TEMPORARY = (".*.tmp", ".*.tmp.*")


def write_json(path: PathLike, content: Any) -> None:
    """Writes JSON under a temporary name and renames it."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: PathLike, text: str) -> None:
    """Writes a text under a temporary name and renames it.

    Raises:
        OSError: the file cannot be written, for example on a full disk; the
            earlier file is unchanged.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"A file cannot be written: {error.strerror or error}. "
            f"Received: {path}"
        ) from error


@contextlib.contextmanager
def replacing(path: PathLike, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` at the end.

    If writing fails, the earlier file is unchanged.

    Args:
        path: path of the file.
        durable: bool. If True, waits for the disk, so that the file survives
            a power cut.

    Yields:
        `Path` in the same folder, of the same suffix.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            commit(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def commit(temporary: PathLike, path: PathLike) -> None:
    """Moves a written file, or folder of files, to its final path.

    Contents are flushed to the disk before the rename, and the rename before
    the return. An earlier file is replaced, an earlier folder must be empty.
    """
    temporary, path = Path(temporary), Path(path)
    if temporary.is_dir():
        for file in temporary.iterdir():
            _sync(file)
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def remove_folder(path: PathLike) -> None:
    """Removes a folder, by a rename first, so that a kill leaves no part."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def remove_temporaries(*folders: PathLike) -> None:
    """Removes temporary files of killed writers."""
    for folder in map(Path, folders):
        for pattern in _TEMPORARY:
            for path in folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _sync(path):
    if os.name == "nt":  # where folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
