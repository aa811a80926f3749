"""Start of a program: log levels, output and Ctrl-C, before TensorFlow."""

import contextlib
import gc
import importlib.util
import os
import signal
import sys
import threading
import time

from keras_aspp.utils.native_log import filtered_stderr


def start_program():
    """Keeps TensorFlow's log off the terminal, and lines in order.

    TensorFlow is imported without garbage collections, and later collections
    skip its objects.

    `TF_CPP_MIN_LOG_LEVEL` and `GRPC_VERBOSITY` of the environment win; a level
    of 0 shows everything.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if level in ("1", "2", "3") and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _TensorFlowImport(level))
    # A stream that the caller closed, as a daemon does, is none in Python.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    # In a pipe, stdout would otherwise lag behind stderr by a whole buffer.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)


@contextlib.contextmanager
def prompt_interrupts():
    """Makes Ctrl-C and SIGTERM end a command at once, with its cleanup.

    Both raise `KeyboardInterrupt`. Within the import of a C extension that can
    crash the process, so it ends there. Python drops a `KeyboardInterrupt` in
    a finalizer or in a callback of the garbage collector, of which JAX has
    one; it is raised again.
    """
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    replaced = [
        number
        for number, handler in defaults.items()
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is handler
    ]
    hook = sys.unraisablehook
    for number in replaced:
        signal.signal(number, _interrupt)
    if replaced:
        sys.unraisablehook = lambda lost: _repeat_interrupt(
            lost, hook, replaced[0]
        )
    try:
        yield
    finally:
        if replaced:
            sys.unraisablehook = hook
        for number in replaced:
            signal.signal(number, defaults[number])


_num_handled = _num_raised = 0  # calls of the handler below


def _interrupt(number, frame):
    """Handler of a signal: ends the process while it imports."""
    global _num_handled, _num_raised
    _num_handled += 1
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"\nInterrupted.\n")
            os._exit(130)
        if frame.f_code is _repeat.__code__:
            return  # Python would drop it here, too; the thread repeats it.
        frame = frame.f_back
    _num_raised += 1
    raise KeyboardInterrupt


def _repeat_interrupt(lost, hook, number):
    """Raises a dropped `KeyboardInterrupt` again, from another place."""
    if lost.exc_type is KeyboardInterrupt and hasattr(signal, "pthread_kill"):
        _repeat(number)
    else:
        hook(lost)


def _repeat(number):
    arguments = number, _num_raised
    threading.Thread(target=_send, args=arguments, daemon=True).start()


def _send(number, num_raised):
    """Sends a signal to the main thread until the handler has raised."""
    handled = -1
    while True:
        time.sleep(0.05)  # until the callback has returned
        if _num_raised != num_raised:
            return  # One more would interrupt the cleanup.
        if signal.getsignal(number) is not _interrupt:
            return
        # Not before the last one was handled. A real signal also ends a wait
        # of the system's.
        if _num_handled != handled:
            handled = _num_handled
            signal.pthread_kill(threading.main_thread().ident, number)


class _TensorFlowImport:
    """Import hook: filters TensorFlow's log and collects no garbage."""

    def __init__(self, level):
        self.level, self.searching = level, False

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow" or self.searching:
            return None
        self.searching = True  # so that the other finders search
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                # Not before: finding the spec is not yet an import.
                sys.meta_path.remove(self)
                with filtered_stderr(self.level), _without_collections():
                    execute(module)

            spec.loader.exec_module = exec_module
        return spec


@contextlib.contextmanager
def _without_collections():
    """Disables garbage collection for a while, and for what is left forever.

    The import makes half a million objects that stay. Collections that visit
    them take a quarter of its time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
