"""Untrusted text: small files, JSON, and printable names."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from typing import Any

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import PathLike

# Specs and manifests hold a few kB.
MAX_BYTES = 2**20
# Control characters, halves of a surrogate pair, breaks of lines, paragraphs.
_UNSAFE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
# What comes after one of them is shown in another order or place.
_BIDI_OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def read_text(path: PathLike, max_bytes: int = MAX_BYTES) -> str:
    """Reads the text of a small file.

    Raises:
        OSError: it cannot be opened.
        ValueError: no regular file, longer than `max_bytes`, or not UTF-8.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise InputError(f"Not a regular file. File: {path}")
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise InputError(f"Longer than {max_bytes} bytes. File: {path}")
    try:
        # Some editors on Windows put a byte-order mark in front.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"Not UTF-8 text. File: {path} ({error})") from None


def read_json(
    path: PathLike,
    repeated: list[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Reads a small JSON file.

    Args:
        path: the file.
        repeated: list to which keys are appended that an object has twice; the
            last one counts.
        max_bytes: int, largest size of the file.

    Raises:
        OSError: it cannot be opened.
        ValueError: as `read_text`, or no valid JSON.
    """
    text = read_text(path, max_bytes)

    def unique(pairs):
        found = dict(pairs)
        if repeated is not None and len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.extend(key for key in found if keys.count(key) > 1)
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        # ValueError too for a number of thousands of digits.
        raise InputError(f"Not valid JSON. File: {path} ({error})") from None


def read_manifest(path: PathLike) -> dict[str, Any]:
    """Reads a `manifest.json` and checks the keys in use.

    Raises:
        OSError: it cannot be opened.
        ValueError: as `read_json`, or a key is missing or of another type.
    """
    content = read_json(path)
    good = (
        isinstance(content, dict)
        and isinstance(content.get("class_names"), list)
        and isinstance(content.get("artefacts"), list)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("path"), str)
            and isinstance(entry.get("sha256"), str)
            for entry in content["artefacts"]
        )
    )
    if not good:
        raise InputError(
            "A manifest must hold `class_names` and `artefacts`, each with "
            f"`path` and `sha256`. File: {path}"
        )
    return content


def is_line(text: str) -> bool:
    """Returns True for text that stays on its line, in its order.

    Joiners (Persian, emoji) and all kinds of spaces may be in it, control
    characters, line breaks and overrides of the writing direction may not.
    """
    # Fast for most texts; all that `isprintable` accepts is safe.
    return text.isprintable() or not any(_is_unsafe(c) for c in text)


def _is_unsafe(c):
    return unicodedata.category(c) in _UNSAFE_CATEGORIES or c in _BIDI_OVERRIDES


def look(text: str) -> str:
    """Returns a key that is equal for names that look alike.

    The same for names that differ in case, in spaces and invisible characters,
    or in how Unicode composes their letters.

    Example:
    >>> look("Caf\u00e9 ") == look("cafe\u0301")
    True
    """
    text = unicodedata.normalize("NFC", text.casefold())
    shown = (c for c in text if unicodedata.category(c) != "Cf")
    return " ".join("".join(shown).split())


def num_of(count: int, noun: str) -> str:
    """Formats a number of things.

    Args:
        count: int.
        noun: str, the singular, whose plural ends in `s`.

    Example:
    >>> num_of(1, "image"), num_of(2, "image")
    ('1 image', '2 images')
    """
    return f"{count} {noun}" + "s" * (count != 1)


def printable(text: object) -> str:
    r"""Escapes text to one line of printable characters.

    Line breaks, control characters, which a terminal would obey, and bytes
    outside UTF-8 are shown by their numbers.

    Example:
    >>> print(printable("a\nb"))
    a\nb
    """
    text = str(text)
    if is_line(text):
        return text
    return "".join(
        c.encode("unicode_escape").decode() if _is_unsafe(c) else c
        for c in text
    )
