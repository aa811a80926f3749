"""Signals that stop a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


@contextlib.contextmanager
def stop_signals(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Context in which `handler` handles SIGINT (Ctrl-C) and SIGTERM.

    Outside the main thread Python cannot set handlers; nothing changes.

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


def interrupt(number: int, frame: Any) -> NoReturn:
    """Signal handler that stops the run immediately."""
    raise KeyboardInterrupt("Interrupted. Go on with --resume.")
