"""Progress of an export: its phases and the time each took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


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


@contextlib.contextmanager
def timed(
    progress: Callable[[str, float | None], None] | None, phase: str
) -> Iterator[None]:
    """Reports the beginning and the end of a phase.

    Args:
        progress: function of `(phase, seconds)`, or `None` for no report.
        phase: str.
    """
    if progress is None:
        yield
        return
    start = time.perf_counter()
    progress(phase, None)
    try:
        yield
    finally:
        # After an error too, so that its message gets a line of its own.
        progress(phase, time.perf_counter() - start)
