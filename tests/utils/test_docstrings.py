"""Docstrings of which a part is generated."""

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
    assert Owner.__doc__.splitlines()[2:] == [
        "    Args:",
        "        first: a",
        "            b",
        "        second: c",
        "        last: one of",
        "            " + " ".join(["word"] * 13),
        "            word word end.",
        "            by default.",
        "    ",
    ]


def test_without_docstrings_nothing_is_inserted():
    class Bare:
        pass

    insert_text(Bare, "{names}", "text")
    assert Bare.__doc__ is None
