"""Apache Beam helpers: pipeline options and files."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from keras_aspp.utils.exceptions import InputNotFoundError
from keras_aspp.utils.extras import require
from keras_aspp.utils.types import PathLike


def pipeline_options(options: Sequence[str]) -> Any:
    """Parses a list of str into Beam's `PipelineOptions`.

    Raises:
        ValueError: Beam is not installed.
    """
    require("`--beam`", "beam", "apache_beam")
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(options)


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """Raises errors of Beam's file systems as errors of the input.

    Raises:
        FileNotFoundError: a file or a match of a pattern is missing.
    """
    from apache_beam.io.filesystem import BeamIOError

    try:
        yield
    except BeamIOError as error:
        raise InputNotFoundError(str(error)) from error


# Files, on whatever file system.


def absolute_path(path: PathLike) -> str:
    """Returns the absolute path of a local file; URLs are unchanged."""
    path = os.fspath(path)
    return path if "://" in path else os.path.abspath(path)


def join_path(folder: str, *names: str) -> str:
    """Joins paths on any file system that Beam supports."""
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.join(folder, *names)


def write_file(path: str, content: bytes) -> None:
    """Writes bytes under a temporary name and renames the file."""
    from apache_beam.io.filesystems import FileSystems

    # Two workers may process the same item.
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with FileSystems.create(temporary) as file:
        file.write(content)
    FileSystems.rename([temporary], [path])


def write_json_file(content: Any, path: str) -> None:
    """Writes JSON by `write_file`."""
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json_file(path: str) -> Any:
    """Reads JSON from any file system that Beam supports."""
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path) as file:
        return json.loads(file.read())
