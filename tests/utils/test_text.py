import sys

from keras_aspp.utils.text import _is_unsafe, is_line, printable


def test_all_that_python_can_print_is_safe_on_a_line():
    # So texts that it can print need not be checked by character.
    unsafe = [c for c in map(chr, range(sys.maxunicode + 1)) if _is_unsafe(c)]
    assert {"\n", "\x1b", "\u2028", "\u202e", "\ud800"} <= {*unsafe}
    assert not any(c.isprintable() for c in unsafe)


def test_one_unsafe_character_is_escaped_among_others():
    joined = "\u0646\u200c\u0647 \xa0\u00e9"  # not printable for Python, safe
    assert not joined.isprintable()
    assert is_line(joined) and printable(joined) == joined
    assert not is_line(f"{joined}\u202e")
    assert printable(f"{joined}\u202e/a\n") == f"{joined}\\u202e/a\\n"
