"""Processes that find TensorFlow imported, which takes seconds.

They are forks of a server that has imported it and computed nothing, so each
may choose its devices, its cluster and its environment.
"""

import gc
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import keras
from signatures import cache_signatures
from tensorflow.python.util import tf_stack

PRELOADED = [
    "jsonargparse",
    "keras_aspp.config.load",
    "keras_aspp.engine.run",
    "keras_aspp.inference.files",
    "matplotlib.figure",
    "pytest",
    "tensorboard.summary",
]


def context():
    """Returns the context of `multiprocessing` whose processes are forks."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def start(log, target, *arguments, **environment):
    """Starts a process.

    Args:
        log: path of the file that gets what the process prints.
        target: function that it calls, of a module.
        *arguments: of the function.
        **environment: variables that the process sets first.

    Returns:
        process; its `log` is the path.
    """
    process = context().Process(
        target=_call, args=(log, target, arguments, environment)
    )
    process.start()
    process.log = Path(log)
    return process


def finish(*processes, timeout=300):
    """Returns what each process printed; fails unless all end well."""
    try:
        for process in processes:
            process.join(timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()
    printed = [process.log.read_text() for process in processes]
    for process, text in zip(processes, printed, strict=True):
        assert process.exitcode == 0, text[-3000:]
    return printed


def run_file(path, *arguments):
    """Runs a Python file in a process that has TensorFlow, not keras_aspp."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "keras_aspp":
            del sys.modules[name]
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def _call(log, target, arguments, environment):
    os.environ.update(environment)
    print_to(log)
    target(*arguments)


def save_time():
    """Leaves out what takes a quarter of the time and no test is about."""
    # Half a million objects of TensorFlow need no collection, and graphs make
    # millions more: the default thresholds cost a sixth of the CPU time.
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    if keras.backend.backend() == "tensorflow":
        # JAX, which TensorFlow imports, looks for arrays in each collection.
        gc.callbacks.clear()
    cache_signatures()
    # Each operation of a graph records the stack that makes it, for messages
    # of errors, which name this function instead.
    recorded = tf_stack.extract_stack()
    tf_stack.extract_stack = lambda stacklevel=1: recorded


def print_to(log):
    """Appends what this process prints to a file; saves time, as conftest."""
    save_time()
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
