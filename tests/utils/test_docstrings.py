"""Docstrings of which a part is generated."""

import sys

from keras_aspp.utils.docstrings import insert_text


class Owner:
    """Owner.

    Args:
        {common}
        last: one of
            {names}
            by default.
    """


def test_a_marker_becomes_lines_of_its_indentation():
    insert_text(Owner, "{common}", "first: a\n    b\nsecond: c")
    insert_text(Owner, "{names}", "word " * 15 + "end.")
    # Python 3.13 removes the indentation of the source by itself.
    by_itself = sys.version_info >= (3, 13)
    source, words = ("", 14) if by_itself else ("    ", 13)
    assert Owner.__doc__.splitlines()[2:] == [
        f"{source}Args:",
        f"{source}    first: a",
        f"{source}        b",
        f"{source}    second: c",
        f"{source}    last: one of",
        f"{source}        " + " ".join(["word"] * words),
        f"{source}        " + "word " * (15 - words) + "end.",
        f"{source}        by default.",
        *([] if by_itself else [source]),
    ]


def test_without_docstrings_nothing_is_inserted():
    class Bare:
        pass

    insert_text(Bare, "{names}", "text")
    assert Bare.__doc__ is None
