"""A `.tflite` from anywhere is tried in a process of its own.

LiteRT checks a file's structure, not what its operators make of it: of files
with a few bytes changed, one in some hundreds brings the process down, or
keeps it for ever.
"""

import functools
import os
import subprocess
import sys

TIMEOUT_SECONDS = 60
_TRIAL = """
import os, sys
try:
    import resource
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except ImportError:
    pass
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1])
interpreter.allocate_tensors()
interpreter.invoke()
"""


def try_out(path):
    """Loads a `.tflite` and runs it once, elsewhere.

    Raises:
        ValueError: it cannot be loaded or run, crashes, or takes longer than
            `TIMEOUT_SECONDS`.
    """
    status = os.stat(path)
    reason = _fault(str(path), status.st_mtime_ns, status.st_size)
    if reason:
        raise ValueError(f"Not a loadable .tflite. Received: {path} ({reason})")


@functools.lru_cache
def _fault(path, *version):
    """What is wrong with a file, or nothing; known of each version."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_SECONDS} seconds"
    if done.returncode < 0:
        return f"it crashes the interpreter, signal {-done.returncode}"
    said = done.stderr.strip().splitlines()
    return said[-1] if done.returncode else ""
