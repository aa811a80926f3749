"""Filter for the output of native libraries on stderr."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

# Libraries may write and then abort the process, so a subprocess filters. It
# drops log records below the level and the harmless lines of LiteRT.
_FILTER = r"""
import re, sys
level, hold = int(sys.argv[1]), sys.argv[2] == "hold"
held = []
record = re.compile(
    rb"([IWEF])\d{4} \d\d:\d\d:\d\d|[-\d]{10} [:.\d]{8,}: ([IWEF]) "
)
noise = (b"WARNING: All log messages before absl::", b"INFO: ",
         b"fully_quantize: ")
for line in sys.stdin.buffer:
    found = record.match(line)
    if found and b"IWEF".index(found[1] or found[2]) < level:
        continue
    if line.startswith(noise):
        continue
    if line == b"\0end\n":
        held = []
        continue
    if hold and not found:
        held.append(line)
        continue
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
sys.stderr.buffer.writelines(held)
"""
# The descriptor is one for all threads, so one of them redirects it.
_redirects = threading.Lock()
_quiet_before = set()


@contextlib.contextmanager
def filtered_stderr(level: str = "2", hold: bool = False) -> Iterator[None]:
    """Sends file descriptor 2 through `_FILTER` for a while.

    Within another filter it does nothing.

    Args:
        level: str, least severity that is shown: 0 info, 1 warning, 2 error,
            3 fatal. `TF_CPP_MIN_LOG_LEVEL=0` in the environment shows all.
        hold: bool. Show lines other than log records only if the process
            dies; for libraries whose exceptions repeat them.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    if not _redirects.acquire(blocking=False):
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(_redirects.release)
        # A process without stderr, or that can start no other, goes on.
        with contextlib.suppress(OSError):
            stack.enter_context(_redirected(level, hold))
        yield


@contextlib.contextmanager
def filtered_once(name: str) -> Iterator[None]:
    """Applies `filtered_stderr` the first time a process enters `name`.

    For messages that a library writes once per process.
    """
    if name in _quiet_before:
        yield
        return
    _quiet_before.add(name)
    with filtered_stderr():
        yield


@contextlib.contextmanager
def _redirected(level, hold):
    _flush()
    with contextlib.ExitStack() as stack:
        terminal = os.dup(2)
        stack.callback(os.close, terminal)
        child = subprocess.Popen(
            [sys.executable, "-ISc", _FILTER, level, "hold" if hold else ""],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C must not end it first
        )
        os.dup2(child.stdin.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            if hold:
                os.write(2, b"\n\0end\n")
            os.dup2(terminal, 2)
            child.stdin.close()
            # It lives on while a process started meanwhile holds the pipe.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=5)


def _flush():
    if sys.stderr is not None:
        sys.stderr.flush()
