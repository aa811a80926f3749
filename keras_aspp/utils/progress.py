"""Progress of an export: its phases and the time each took."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

# Seconds after which a running phase is reported again.
_EVERY = 10.0


def print_progress(phase: str, seconds: float | None) -> None:
    """Prints the start of a phase, and its duration on the same line.

    Args:
        phase: str, such as `"model_int8.tflite: converting"`.
        seconds: float, or `None` when the phase begins.
    """
    if seconds is None:
        print(f"{phase} ...", end="", flush=True)
    else:
        print(f" {seconds:.{0 if seconds >= 10 else 1}f} s", flush=True)


def _print_running(seconds):
    """Prints the time that a phase has taken so far, on its line."""
    print(f" {seconds:.0f} s ...", end="", flush=True)


@contextlib.contextmanager
def timed(
    progress: Callable[[str, float | None], None] | None, phase: str
) -> Iterator[None]:
    """Reports the beginning and the end of a phase.

    `print_progress` also reports every ten seconds in between.

    Args:
        progress: function of `(phase, seconds)`, or `None` for no report.
        phase: str.
    """
    if progress is None:
        yield
        return
    start = time.perf_counter()
    progress(phase, None)
    ended = threading.Event()

    def report():
        while not ended.wait(_EVERY):
            _print_running(time.perf_counter() - start)

    reporter = threading.Thread(target=report, daemon=True)
    if progress is print_progress:
        reporter.start()
    try:
        yield
    finally:
        ended.set()
        if reporter.is_alive():
            reporter.join()
        # After an error too, so that its message gets a line of its own.
        progress(phase, time.perf_counter() - start)
