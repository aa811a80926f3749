"""Files that are whole or not there, after a power cut too."""

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
    """Hash of a file, or of a folder: over its sorted `path sha256` lines."""
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


# What unfinished files are called: hidden, and removed at the next start.
_TEMPORARY = (".*.tmp", ".*.tmp.*")


def write_json(path: PathLike, content: Any) -> None:
    """Writes JSON under a temporary name and renames it."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: PathLike, text: str) -> None:
    """Writes a text under a temporary name and renames it.

    Raises:
        OSError: it cannot be written, for want of room say; the earlier file
            is as it was.
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
    """Gives a name to write a file under, which is `path` afterwards.

    Where writing fails, the earlier file is as it was.

    Args:
        path: of the file.
        durable: bool. Whether it is to outlast a power cut, which takes a
            wait for the disk.

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
    """Renames a file, or a folder of files, that is written.

    The contents are on the disk before the name is, and the name when this
    returns. An earlier file gives way, an earlier folder must be empty.
    """
    temporary, path = Path(temporary), Path(path)
    if temporary.is_dir():
        for file in temporary.iterdir():
            _sync(file)
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def remove_folder(path: PathLike) -> None:
    """Removes a folder; killed within, it leaves none that looks whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def remove_temporaries(*folders: PathLike) -> None:
    """Removes what killed writers left behind."""
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
