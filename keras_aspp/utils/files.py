"""Atomic, durable writes of files and folders."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from keras_aspp.utils.exceptions import (
    OutputExistsError,
    UnavailableError,
    UserError,
)
from keras_aspp.utils.signals import delayed_signals
from keras_aspp.utils.text import printable
from keras_aspp.utils.types import PathLike

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def sha256(path: PathLike) -> str:
    """Hashes a file, or a folder by its sorted `path sha256` lines."""
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
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


# Names of unfinished files, which the next run of a workdir removes.
_TEMPORARY = (".*.tmp", ".*.tmp.*")
# Name of an unfinished folder: another suffix, since a folder may be exported
# into a workdir while a run starts there.
_UNFINISHED = ".unfinished"
# Errors of a disk, or of its share, that is full.
_OF_A_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of an exchange of names that the system or file system lacks.
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


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
    except UserError:
        raise
    except OSError as error:
        raise UnavailableError(
            f"A file cannot be written: {error.strerror or error}. "
            f"Received: {path}"
        ) from error


@contextlib.contextmanager
def _naming(path):
    """Turns the error of a full disk into one line that names the output.

    The system's own error names no file, or the source of a copy.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno not in _OF_A_FULL_DISK:
            raise
        raise UnavailableError(
            f"A file cannot be written: {error.strerror}. Received: {path}"
        ) from error


@contextlib.contextmanager
def replacing(path: PathLike, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary name of a file that is renamed to `path` at the end.

    After an error, the earlier file is unchanged.

    Args:
        path: file to write.
        durable: bool. Wait until the file is on the disk, so that it survives
            a power failure.

    Yields:
        `Path` in the same folder, of the same suffix.

    Raises:
        OSError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        with _naming(path):
            yield temporary
            if durable:
                commit(temporary, path)
            else:
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(
    path: PathLike,
    overwrite: bool,
    is_own: Callable[[Path], bool],
    writer: str,
) -> None:
    """Raises if a folder must not be written, or not be replaced.

    Files that the command did not write are never replaced: no copy of them
    may exist.

    Args:
        path: folder to write.
        overwrite: bool. Replace an earlier result, or an empty folder.
        is_own: function that returns True for a folder that `writer` wrote.
        writer: command, for the message.

    Raises:
        FileExistsError: `path` exists and would not be replaced, or holds
            the current folder.
    """
    path = Path(path)
    if not path.exists():
        return
    own = path.is_dir() and (not any(path.iterdir()) or is_own(path))
    if not own:
        raise OutputExistsError(
            f"The output holds files that `{writer}` did not write and does "
            "not replace; name another folder, or remove it yourself. "
            f"Received: {str(path)!r}"
        )
    if Path.cwd().is_relative_to(path.resolve()):
        # The shell would stay in a folder that is removed.
        raise OutputExistsError(
            "The output must not hold the current folder, since it is replaced "
            "as a whole; run the command from another folder, or name a new "
            f"one. Received: {str(path)!r}"
        )
    if not overwrite:
        raise OutputExistsError(
            "The folder exists; pass overwrite (--overwrite) to replace it. "
            f"Received: {str(path)!r}"
        )


def make_folder(path: PathLike) -> Path:
    """Makes a folder and its parents; returns its path.

    Raises:
        FileExistsError: `path`, or a parent, is a file.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise OutputExistsError(
            "The output must be a folder, and a file has its name or that of "
            f"a parent; name another. Received: {str(path)!r}"
        ) from None
    return path


def prepare_file(path: PathLike) -> None:
    """Makes the folder of a file that is written after long work.

    Raises:
        FileExistsError: `path` is a folder, or its parent a file.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise OutputExistsError(
            "The output must be a file, and a folder has its name; name "
            f"another. Received: {str(path)!r}"
        )


_BEGUN = "begun"


class WrittenFiles:
    """Record of the files that a command wrote into a folder.

    A hidden file in the folder holds the name and SHA-256 of each, so a file
    that was corrected by hand is told from the one that was written. Lines
    are appended, also by several processes at a time. A name that a killed
    process began, and did not add, is one of its files.

    Args:
        folder: `Path`; it may be missing.
        command: str, what writes, for the name of the record and messages.
    """

    def __init__(self, folder: PathLike, command: str) -> None:
        self.folder, self.command = Path(folder), command
        self.path = self.folder / f".{command}.sha256"
        self.lines: set[str] = set()
        self.begun: set[str] = set()
        if self.path.is_file():
            text = self.path.read_text(encoding="ascii", errors="replace")
            for line in text.splitlines():
                state, _, name = line.partition(" ")
                if state == _BEGUN:
                    self.begun.add(name)
                else:
                    self.begun.discard(name)
                    self.lines.add(line)

    def check(self, names: Iterable[str]) -> None:
        """Raises for files that would be replaced and are not in the record.

        Args:
            names: files to write, within the folder.

        Raises:
            FileExistsError: the command did not write them, or they changed.
        """
        others = [
            name
            for name in names
            if os.path.lexists(self.folder / name)
            and ascii(name) not in self.begun
            and self._line(name) not in self.lines
        ]
        if others:
            more = f" and {len(others) - 1} more" if others[1:] else ""
            raise OutputExistsError(
                f"The output holds files that `keras-aspp {self.command}` did "
                "not write, or that were changed since; they are not replaced. "
                "Name another folder, or move them. "
                f"Received: {printable(self.folder / others[0])}{more}"
            )

    def begin(self, names: Iterable[str]) -> None:
        """Adds names of files before they are written.

        Raises:
            OSError: the record cannot be written.
        """
        self._append([f"{_BEGUN} {name!a}" for name in names])

    def add(self, names: Iterable[str]) -> None:
        """Adds files that were written, or are missing after an error.

        Raises:
            OSError: the record cannot be written.
        """
        self._append([self._line(name) for name in names])

    def _append(self, lines):
        if not lines:
            return
        with _naming(self.path), open(self.path, "a") as file:
            # A killed process may have left half a line.
            file.write("".join(f"\n{line}" for line in lines))

    def _line(self, name):
        """Returns the line of a file, in ASCII."""
        path = self.folder / name
        return f"{sha256(path) if path.is_file() else 'missing'} {name!a}"


@contextlib.contextmanager
def replacing_folder(path: PathLike) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `path` at the end.

    An earlier `path` and the temporary folder exchange their names in one
    step, so `path` is whole at every moment, even if the process is killed.
    Where the system or the file system cannot exchange names, two renames
    replace the earlier folder; a process killed between them leaves both
    folders under temporary names.

    The temporary folder is locked. Folders that killed processes left for the
    same `path` are removed, those of running processes stay. After an error
    the earlier `path` is unchanged; signals wait until the names are right.

    Args:
        path: folder to write. Its parent is created if needed.

    Yields:
        `Path` of an empty folder beside `path`.

    Raises:
        OSError: the disk is full.
    """
    # A path such as "." has neither a name nor a parent.
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        # Otherwise one of them may hold what was at `path`.
        _remove_abandoned(path)
    work = lock = None
    try:
        work, lock = _make_locked_folder(path)
        with _naming(path):
            yield work
            os.chmod(work, 0o755)
            _sync_tree(work)
        with delayed_signals():
            if not os.path.lexists(path):
                os.replace(work, path)
            elif not exchange(work, path):
                _replace_in_two_steps(work, path)
            _sync(path.parent)
            # The earlier folder, or nothing.
            _remove(work)
            _remove_abandoned(path)
    finally:
        if work is not None:
            _remove(work)
        if lock is not None:
            os.close(lock)


def exchange(first: PathLike, second: PathLike) -> bool:
    """Exchanges two names in one step.

    Args:
        first: file or folder.
        second: file or folder of the same file system.

    Returns:
        bool, False if the system or the file system cannot do it.

    Raises:
        OSError: the names cannot be exchanged, for example one is missing.
    """
    if os.name == "nt":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            status = libc.renamex_np(*names, 2)  # RENAME_SWAP
        else:
            here = -100  # AT_FDCWD
            # The last argument is RENAME_EXCHANGE.
            status = libc.renameat2(here, names[0], here, names[1], 2)
    except AttributeError:  # an older C library
        return False
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    # The subclass of the number, such as FileNotFoundError.
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def _replace_in_two_steps(work, path):
    earlier = work.with_suffix(f".earlier{_UNFINISHED}")
    os.replace(path, earlier)
    try:
        os.replace(work, path)
    except BaseException:
        os.replace(earlier, path)
        raise
    os.replace(earlier, work)


def _make_locked_folder(path):
    """Makes a temporary folder beside `path`; returns it and its lock."""
    while True:
        work = Path(
            tempfile.mkdtemp(_UNFINISHED, f".{path.name}.", path.parent)
        )
        # Before it is locked, another process may remove it as abandoned.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            return work, _lock(work)


def _lock(folder):
    """Locks a folder until the descriptor is closed or the process ends.

    Returns:
        int, the descriptor; `None` if the system cannot lock folders.

    Raises:
        BlockingIOError: another process holds the lock.
        FileNotFoundError: the folder was removed meanwhile.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # such as on NFS
            return None
        os.stat(folder)
        stack.pop_all()
    return descriptor


def _remove_abandoned(path):
    """Removes unfinished folders of `path` whose process has ended."""
    own = re.compile(
        rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}(\.earlier)?"
        rf"{re.escape(_UNFINISHED)}"
    )
    for folder in path.parent.iterdir():
        if not own.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError):
            lock = _lock(folder)
            if lock is not None:
                _remove(folder)
                os.close(lock)


def _remove(path):
    """Removes a folder, file or link; ignores errors of a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def commit(temporary: PathLike, path: PathLike) -> None:
    """Renames a written file or folder, durably.

    The contents are on the disk before the rename, and the name is when this
    returns. An earlier file is replaced; an earlier folder must be empty.
    """
    temporary, path = Path(temporary), Path(path)
    _sync_tree(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def remove_folder(path: PathLike) -> None:
    """Removes a folder; if killed meanwhile, none remains under its name."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def remove_temporaries(*folders: PathLike) -> None:
    """Removes temporary files that killed processes left."""
    for folder in map(Path, folders):
        for pattern in _TEMPORARY:
            for path in folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _sync_tree(path):
    """Writes a file, or all below a folder, to the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _sync_tree(entry)
    _sync(path)


def _sync(path):
    if os.name == "nt":  # where folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
