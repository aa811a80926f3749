"""Old names that keep working for one release."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from keras_aspp.utils.exceptions import InputTypeError

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns that a name is deprecated.

    Args:
        old: str, the name in use.
        new: str, the name to use instead.
        stacklevel: int, as of `warnings.warn`. Defaults to 3, the caller of
            the function that calls this one.
    """
    warnings.warn(
        f"`{old}` is deprecated and will be removed in the next release; use "
        f"`{new}`.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def renamed_arguments(
    **names: str,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a function accept arguments by their old names, with a warning.

    Args:
        **names: old name -> new name.

    Returns:
        A decorator that leaves the signature of the function unchanged.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> R:
            for old in names.keys() & kwargs.keys():
                warn_renamed(old, names[old])
                if names[old] in kwargs:
                    raise InputTypeError(
                        f"`{old}` is the old name of `{names[old]}`; pass only "
                        f"one of them. Received: both in a call of "
                        f"`{function.__name__}`"
                    )
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def renamed_attribute(old: str, new: str) -> property:
    """Returns a property that forwards an old attribute name to the new one."""

    def read(self: Any) -> Any:
        warn_renamed(old, new)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        warn_renamed(old, new)
        setattr(self, new, value)

    return property(read, write, doc=f"Deprecated name of `{new}`.")
