"""Docstrings of which a part is generated."""

import inspect

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
    lines = inspect.cleandoc(Owner.__doc__).splitlines()[2:]
    assert lines[:5] == [
        "Args:",
        "    first: a",
        "        b",
        "    second: c",
        "    last: one of",
    ]
    *wrapped, last = lines[5:]
    assert last == " " * 8 + "by default."
    assert [line[:8] for line in wrapped] == [" " * 8] * 2
    assert " ".join(wrapped).split() == ["word"] * 15 + ["end."]
    assert max(map(len, Owner.__doc__.splitlines())) <= 79


def test_without_docstrings_nothing_is_inserted():
    class Bare:
        pass

    insert_text(Bare, "{names}", "text")
    assert Bare.__doc__ is None
