"""Handlers of the signals that end a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


@contextlib.contextmanager
def stop_signals(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Sends SIGINT (Ctrl-C) and SIGTERM to a handler.

    Outside the main thread, where Python cannot set handlers, nothing changes.

    Args:
        handler: function of `(number, frame)`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def delayed_signals() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until the end of the block."""
    received = []
    try:
        with stop_signals(lambda number, frame: received.append(number)):
            yield
    finally:
        if received:
            signal.raise_signal(received[0])


def interrupt(number: int, frame: Any) -> NoReturn:
    """Handler that ends the run at once."""
    raise KeyboardInterrupt("Interrupted. Go on with --resume.")
