"""Checks of numbers that users give."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence, Set
from typing import Any

from keras_aspp.utils.exceptions import InputError


def is_number(value: Any) -> bool:
    """Returns True for a real number, also NumPy's, but not for a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_int(name: str, value: int, least: int = 1) -> int:
    """Returns `value`, or raises `ValueError` below `least` or if no int."""
    if type(value) is not int or value < least:
        raise InputError(
            f"`{name}` must be an int > {least - 1}. Received: {name}={value!r}"
        )
    return value


def check_number(name: str, value: float, interval: str) -> float:
    """Returns a number as a float, or raises `ValueError` outside an interval.

    Args:
        name: str, name of the argument for the message.
        value: what was given.
        interval: str such as `[0, 1)` or `(0, inf)`; a square bracket includes
            the limit.
    """
    if not _is_within(value, interval):
        raise InputError(
            f"`{name}` must be {_rule(interval)}. Received: {name}={value!r}"
        )
    return float(value)


def check_numbers(
    name: str, values: Sequence[float], interval: str
) -> tuple[float, ...]:
    """Returns numbers as floats; the arguments are those of `check_number`."""
    given = _as_list(values)
    if given is None or not all(_is_within(n, interval) for n in given):
        raise InputError(
            f"`{name}` must be a sequence, each value {_rule(interval)}. "
            f"Received: {name}={values!r}"
        )
    return tuple(map(float, given))


def _as_list(values):
    if isinstance(values, (str, bytes, Mapping, Set)):
        return None
    try:
        return list(values)
    except TypeError:
        return None


def _is_within(value, interval):
    low, high = map(float, interval[1:-1].split(","))
    return (
        is_number(value)
        and (low <= value if interval[0] == "[" else low < value)
        and (value <= high if interval[-1] == "]" else value < high)
    )


def _rule(interval):
    low, high = interval[1:-1].split(", ")
    if low == "-inf":
        return "a finite number"
    if high == "inf":
        return f"a number {'>=' if interval[0] == '[' else '>'} {low}"
    return f"in {interval}"
