"""Callbacks of the user, named in a configuration by their class path."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import PathLike

# Replaced in arguments by the folder of the run.
WORKDIR = "{workdir}"


def build_callbacks(
    entries: Sequence[Mapping[str, Any]], workdir: PathLike
) -> list[keras.callbacks.Callback]:
    """Builds the callbacks of `train.callbacks`.

    Args:
        entries: mappings of `class`, the path of a subclass of
            `keras.callbacks.Callback`, and optionally `arguments`. In
            arguments that are text, `{workdir}` is the folder of the run.
        workdir: folder of the run.

    Returns:
        list of `keras.callbacks.Callback`, whose errors name their entry.

    Raises:
        InputError: a class is not found or no callback, or refuses its
            arguments.
    """
    return [
        _build(entry, f"train.callbacks[{index}]", str(workdir))
        for index, entry in enumerate(entries)
    ]


@contextlib.contextmanager
def skipping(
    callbacks: Sequence[keras.callbacks.Callback],
    hook: str,
    condition: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Skips `on_train_begin` or `on_train_end` of callbacks.

    To callbacks, two calls of `fit` are one training where the end of the
    first and the beginning of the second are skipped.

    Args:
        callbacks: list of `keras.callbacks.Callback`.
        hook: name of the method.
        condition: function that returns True, when Keras calls the hook, if it
            is to be skipped.
    """

    def skipped(method):
        def call(logs=None):
            if not condition():
                method(logs)

        return call

    with _wrapped(callbacks, hook, skipped):
        yield


@contextlib.contextmanager
def reading_params(
    callbacks: Sequence[keras.callbacks.Callback], **params: int
) -> Iterator[None]:
    """Lets callbacks read these parameters instead of those of `fit`.

    Args:
        callbacks: list of `keras.callbacks.Callback`.
        **params: `epochs` and `steps` of the whole run.
    """
    with _wrapped(
        callbacks,
        "set_params",
        lambda method: lambda own: method({**own, **params}),
    ):
        yield


@contextlib.contextmanager
def _wrapped(callbacks, hook, wrap):
    """Within it, a method of callbacks is what `wrap` makes of it."""
    methods = [getattr(callback, hook) for callback in callbacks]
    for callback, method in zip(callbacks, methods, strict=True):
        setattr(callback, hook, wrap(method))
    try:
        yield
    finally:
        for callback, method in zip(callbacks, methods, strict=True):
            setattr(callback, hook, method)


def _build(entry, name, workdir):
    path = entry["class"]
    callback_type = _find(path, name)
    arguments = {
        key: value.replace(WORKDIR, workdir)
        if isinstance(value, str)
        else value
        for key, value in (entry.get("arguments") or {}).items()
    }
    try:
        callback = callback_type(**arguments)
    except Exception as error:
        raise InputError(
            f"`{name}.arguments` are refused by {path}: {first_line(error)} "
            f"Received: arguments={arguments}"
        ) from error
    hooks = [n for n in dir(keras.callbacks.Callback) if n.startswith("on_")]
    for hook in hooks:
        method = getattr(callback, hook)
        # Keras skips hooks that are not overridden, which are marked.
        if not hasattr(method, "_is_default"):
            setattr(callback, hook, _naming(method, f"`{name}` ({path})"))
    return callback


def _find(path: str, name: str) -> type[keras.callbacks.Callback]:
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        # Whatever a module raises while it is imported.
        raise InputError(
            f"`{name}.class` cannot be imported; check the path, and that the "
            f"package is installed: {first_line(error)} Received: class={path}"
        ) from error
    if not (
        isinstance(found, type) and issubclass(found, keras.callbacks.Callback)
    ):
        raise InputError(
            f"`{name}.class` must be a subclass of keras.callbacks.Callback. "
            f"Received: class={path}"
        )
    return found


def _naming(method: Callable, name: str) -> Callable:
    """Wraps a hook, so that an error names the callback."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except Exception as error:
            raise InputError(
                f"{name} failed in {method.__name__}: "
                f"{type(error).__name__}: {first_line(error)} The last "
                "checkpoint is from before; go on with --resume, also without "
                "this callback."
            ) from error

    return call
