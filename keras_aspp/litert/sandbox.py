"""Trial of untrusted `.tflite` files in a subprocess.

LiteRT checks a file's structure, not what its operators make of it: of files
with a few bytes changed, one in some hundreds brings the process down, or
keeps it for ever.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import PathLike

TIMEOUT_SECONDS = 60
_TRIAL = """
import os, sys
try:
    import resource
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except ImportError:
    pass
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def prepared(side, **options):
    interpreter = Interpreter(model_path=sys.argv[1], **options)
    any_size = False
    for input_details in interpreter.get_input_details():
        signature = input_details["shape_signature"]
        axes = [a for a in (1, 2) if len(signature) == 4 and signature[a] < 0]
        if axes:
            any_size = True
            shape = input_details["shape"].copy()
            shape[axes] = side
            interpreter.resize_tensor_input(input_details["index"], shape)
    interpreter.allocate_tensors()
    return interpreter, any_size


def has_cells(side):
    # XNNPACK accepts maps without cells; the kernels of LiteRT fail.
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        found, any_size = prepared(side, experimental_op_resolver_type=plain)
    except RuntimeError:
        return False
    details = found.get_tensor_details()
    return not any_size or all(0 not in tensor["shape"] for tensor in details)


*smaller, side = 32, 128, 512
side = next((s for s in smaller if has_cells(s)), side)
prepared(side)[0].invoke()
"""


def check_runs(path: PathLike) -> None:
    """Loads a `.tflite` and runs it once, in a subprocess.

    A file of any size says 1x1, of which a model may be left no feature cell:
    its open height and width become the first of a few that suffice.

    Raises:
        ValueError: it cannot be loaded or run, crashes, or takes longer than
            `TIMEOUT_SECONDS`.
    """
    status = os.stat(path)
    _run(str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _run(path, *version):
    """Checks each version of a file once; failures are not cached."""
    reason = _fault(path)
    if reason:
        raise InputError(f"Not a loadable .tflite. Received: {path} ({reason})")


def _fault(path):
    """Returns the error message of a file, or an empty string."""
    try:
        done = subprocess.run(
            # Not in the working directory, whose modules may be untrusted.
            [sys.executable, "-P", "-c", _TRIAL, path],
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
    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return said[-1] if done.returncode else ""
