"""Console script `keras-aspp`."""

import argparse
import contextlib
import importlib
import os
import sys
import traceback
import warnings

from keras_aspp.cli.log import printed_messages
from keras_aspp.cli.startup import prompt_interrupts, start_program
from keras_aspp.utils.errors import is_user_error, one_line

COMMANDS = {
    "train": "train a segmenter from a configuration",
    "evaluate": "evaluate a model on a data set",
    "export": "write SavedModel, TFLite and ONNX files, compared with the "
    "model",
    "predict": "segment images; GeoTIFFs by window",
    "inspect": "print feature sizes, receptive fields and cost of a model",
    "explain": "draw atrous convolution on your own image",
    "demo": "serve exported models to your browser",
    "push": "upload a model to the Hugging Face Hub",
    "data": "import annotations; check, draw and convert data sets",
}

# Exit status of an internal error, as EX_SOFTWARE of sysexits.h.
INTERNAL_ERROR = 70
# That of a program which SIGPIPE ends.
READER_LEFT = 141
DEBUG = "KERAS_ASPP_DEBUG"


class Parser(argparse.ArgumentParser):
    """Parser that reports wrong usage in one line and exits with status 2."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # `guarded` reads it; here it is only for `--help`.
        self.add_argument(
            "--debug",
            action="store_true",
            help="show the traceback of an error",
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_beam(parser, what):
    """Adds `--beam` and `--beam-options` to a command that can use them."""
    parser.add_argument(
        "--beam",
        action="store_true",
        help=f"{what} on Apache Beam, for millions of images",
    )
    parser.add_argument(
        "--beam-options",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="all that follows is Beam's, e.g. --runner=FlinkRunner",
    )


def beam_options(parser, flags):
    """Returns Beam's options as a list, `None` without `--beam`."""
    if flags.beam_options is not None and not flags.beam:
        parser.error("--beam-options needs --beam")
    return (flags.beam_options or []) if flags.beam else None


def main(arguments=None):
    """Runs one command.

    Args:
        arguments: list of str; those of the process if `None`.

    Returns:
        int, the exit status: 0 done; 1 an error of the input, reported in one
        line; 2 wrong usage of the command line; 70 an error of keras_aspp
        itself; 130 interrupted; 141 nobody reads the output any more.
    """
    # Includes the imports, which take seconds.
    return guarded(_run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments):
    """Imports the module of a command and calls it."""
    start_program()
    arguments = list(arguments)
    parser = Parser(
        prog="keras-aspp",
        description="Atrous convolution and ASPP for Keras: train, evaluate, "
        "export, predict, inspect.",
        epilog="\n".join(f"  {k:10} {v}" for k, v in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS))
    known = parser.parse_args(arguments[:1])
    if known.version:
        from keras_aspp.version import __version__

        print(__version__)
        return 0
    if known.command is None:
        parser.error("a command is needed")
    module = importlib.import_module(f"keras_aspp.cli.{known.command}")
    return module.run(arguments[1:])


def guarded(run, arguments):
    """Calls `run(arguments)` and reports its errors, Ctrl-C and SIGTERM.

    An error of the user is one line. An internal error asks for a report.
    `--debug` among the arguments, or `KERAS_ASPP_DEBUG=1` in the environment,
    shows the whole traceback of either.

    Args:
        run: function of a list of str that returns an exit status or `None`.
        arguments: list of str.

    Returns:
        int, the exit status; see `main`.
    """
    debug = "--debug" in arguments or os.environ.get(DEBUG, "") not in ("", "0")
    if debug:
        _show_frames_of_keras()
    try:
        with prompt_interrupts(), printed_messages(), _warnings_of_one_line():
            status = run([a for a in arguments if a != "--debug"]) or 0
            print(end="", flush=True)
            return status
    except KeyboardInterrupt as stop:
        _report(f"\n{str(stop) or 'Interrupted.'}")
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_stdout_closed():
            return READER_LEFT
        if debug:
            traceback.print_exc()
        if is_user_error(error):
            _report(f"keras-aspp: error: {one_line(error)}")
            return 1
        _report(
            f"keras-aspp: internal error: {type(error).__name__}: "
            f"{one_line(error)}\nThis is a fault of keras_aspp, not of your "
            "input; please report it in an issue of the repository that you "
            "installed it from, with the output of --debug."
        )
        return INTERNAL_ERROR


def _is_stdout_closed():
    """Returns True if nobody reads standard output, as after `| head`."""
    # An empty buffer would be written without an error.
    return not _can_write(" ", sys.stdout)


def _report(text):
    """Prints a line to standard error, if anybody reads it."""
    _can_write(f"{text}\n", sys.stderr)


def _can_write(text, stream):
    """Writes a text; returns False if nobody reads the stream any more."""
    try:
        print(text, end="", file=stream, flush=True)
    except BrokenPipeError:
        # Python would report what is left at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def _show_frames_of_keras():
    """Keeps Keras from dropping its own frames from tracebacks."""
    start_program()
    import keras

    keras.config.disable_traceback_filtering()


@contextlib.contextmanager
def _warnings_of_one_line():
    """Prints warnings as one line, without file and source line."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: (
        f"Warning: {one_line(message)}\n"
    )
    try:
        yield
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    sys.exit(main())
