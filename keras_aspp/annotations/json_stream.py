"""JSON files of any size, read item by item."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from keras_aspp.utils import extras
from keras_aspp.utils.exceptions import InputError

# ijson stores the path of every open bracket: its memory grows as the square.
_MAX_DEPTH = 256
# A string, or its beginning at the end of a chunk, which has no last quote.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
_LISTS, _ENDS = ("annotations", "annotations.item"), ("end_array", "end_map")
_STEPS = np.zeros(256, "int8")
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


def top_level_keys(path: Path) -> set[str]:
    """Returns the keys of a JSON file's object, streamed.

    Returns:
        set of str, possibly not all: reading stops at `shapes`, or where
        `images` and the first of `annotations` are found. `"[].KEY"` for the
        keys of the first item of a list, `"annotations[].KEY"` for those of
        `annotations`.

    Raises:
        ValueError: no valid JSON as far as it was read, or nested too deep.
    """
    keys: set[str] = set()
    is_listed = False
    with _opened(path) as (ijson, file):
        for prefix, event, value in ijson.parse(file):
            if prefix == "" and event == "map_key":
                keys.add(value)
            elif prefix == "item" and event == "map_key":
                keys.add(f"[].{value}")
            elif prefix == "annotations.item" and event == "map_key":
                keys.add(f"annotations[].{value}")
            elif prefix == "item" and event == "end_map":
                break
            elif prefix in _LISTS and event in _ENDS:
                is_listed = True
            # Decided before the long lists, where these come first.
            if (is_listed and "images" in keys) or "shapes" in keys:
                break
    return keys


def stream_items(path: Path, prefix: str) -> Iterator[Any]:
    """Yields the items of a list of a JSON file, without loading the file.

    Args:
        path: the file.
        prefix: as ijson has it: `"item"`, or `"KEY.item"` within an object.

    Raises:
        ValueError: no valid JSON, or nested too deep.
    """
    with _opened(path) as (ijson, file):
        yield from ijson.items(file, prefix, use_float=True)


@contextlib.contextmanager
def _opened(path):
    """Yields `(ijson, file)`; names the file in errors of its syntax."""
    extras.require("Importing annotations", "import", "ijson")
    import ijson

    with path.open("rb") as file:
        try:
            yield ijson, _Shallow(file, path)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(
                f"Not valid JSON. File: {path} ({reason})"
            ) from None


class _Shallow:
    """Binary file that raises where its JSON is nested too deep."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        self._depth, self._in_string, self._rest = 0, False, b""

    def read(self, size: int = -1) -> bytes:
        chunk = self.file.read(size)
        text = self._rest + chunk
        # A backslash and the character after it stay together.
        is_cut = (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
        self._rest = text[-1:] if is_cut else b""
        text = text[: len(text) - is_cut]
        outside, strings = _STRING.subn(
            rb"\1", b'"' + text if self._in_string else text
        )
        self._in_string = outside.count(b'"') < strings
        steps = _STEPS[np.frombuffer(outside, "uint8")]
        depths = self._depth + np.cumsum(steps, dtype="int32")
        if depths.max(initial=0) > _MAX_DEPTH:
            raise InputError(
                f"JSON must be nested at most {_MAX_DEPTH} deep. "
                f"File: {self.path}"
            )
        self._depth = int(depths[-1]) if len(depths) else self._depth
        return chunk
