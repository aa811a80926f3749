"""Docstrings of which a part is generated."""

import re
import textwrap

WIDTH = 79


def insert_text(owner: type, marker: str, text: str) -> None:
    """Replaces the line of a class' docstring that consists of a marker.

    Args:
        owner: class, changed in place; without a docstring, as under
            `python -OO`, it stays the same.
        marker: e.g. `"{common_arguments}"`.
        text: one or more lines, indented as the marker is. A single line is
            wrapped.
    """
    if not owner.__doc__:
        return

    def indented(found):
        if "\n" in text:
            return textwrap.indent(text, found[1])
        return textwrap.fill(
            text,
            WIDTH,
            initial_indent=found[1],
            subsequent_indent=found[1],
            break_long_words=False,
            break_on_hyphens=False,
        )

    owner.__doc__ = re.sub(
        f"^( *){re.escape(marker)}$",
        indented,
        owner.__doc__,
        flags=re.MULTILINE,
    )
