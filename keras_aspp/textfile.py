"""Text from anywhere: small files, JSON, and names that are shown."""

import json
import os
import stat

# Specs and manifests hold a few kB.
MAX_BYTES = 2**20


def read_text(path, max_bytes=MAX_BYTES):
    """The text of a small file.

    Raises:
        OSError: it cannot be opened.
        ValueError: no regular file, longer than `max_bytes`, or not UTF-8.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"Not a regular file. File: {path}")
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"Longer than {max_bytes} bytes. File: {path}")
    try:
        # Some editors on Windows put a byte-order mark in front.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"Not UTF-8 text. File: {path} ({error})") from None


def read_json(path):
    """The contents of a small JSON file.

    Raises:
        OSError: it cannot be opened.
        ValueError: as `read_text`, or no valid JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # ValueError too for a number of thousands of digits.
        raise ValueError(f"Not valid JSON. File: {path} ({error})") from None


def read_manifest(path):
    """The contents of a `manifest.json`, as far as it is relied on.

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
        raise ValueError(
            "A manifest must hold `class_names` and `artefacts`, each with "
            f"`path` and `sha256`. File: {path}"
        )
    return content


def printable(text):
    r"""Text on one line, whatever it holds.

    Line breaks, control characters, which a terminal would obey, and bytes
    that are no UTF-8 are shown by their numbers.

    Example:
    >>> print(printable("a\nb"))
    a\nb
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in str(text)
    )
