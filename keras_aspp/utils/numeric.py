"""Checks of numbers that users give."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_aspp.utils.exceptions import InputError


def is_number(value: Any) -> bool:
    """Returns True for a real number, also NumPy's, but not for a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_int(value: Any) -> int | None:
    """Returns an int, also NumPy's or a tensor's, as int, else `None`."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_int(name: str, value: int, least: int = 1) -> int:
    """Returns an int, or raises `ValueError` below `least` or if it is none."""
    found = as_int(value)
    if found is None or found < least:
        raise InputError(
            f"`{name}` must be an int > {least - 1}. Received: {name}={value!r}"
        )
    return found


def check_ints(
    name: str, value: int | Sequence[int], count: int
) -> tuple[int, ...]:
    """Returns `count` ints: those given, or one int that stands for all.

    Raises:
        ValueError: they are not as many, or one is no int > 0.
    """
    values = (value,) * count if as_int(value) is not None else value
    try:
        values = tuple(values)
    except TypeError:
        values = ()
    if len(values) != count:
        raise InputError(
            f"`{name}` must be an int > 0 or {count} of them. "
            f"Received: {name}={value!r}"
        )
    return tuple(check_int(name, one) for one in values)


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
    """Returns numbers as Python's, in a tuple.

    Args:
        name: see `check_number`.
        values: sequence, iterator, array or tensor of one axis.
        interval: see `check_number`.

    Raises:
        ValueError: one of them is no number in the interval, or there is no
            order: a dict is no sequence of its keys.
    """
    given = list(values) if isinstance(values, Iterator) else values
    try:
        found = np.asarray(given)
    except ValueError:  # of several lengths
        found = np.asarray(None)
    valid = found.ndim == 1 and (found.size == 0 or found.dtype.kind in "iuf")
    if not valid or not all(_is_within(n, interval) for n in found.tolist()):
        raise InputError(
            f"`{name}` must be a sequence, each value {_rule(interval)}. "
            f"Received: {name}={given!r}"
        )
    return tuple(found.tolist())


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
