"""keras-aspp: the console script."""

import argparse
import contextlib
import importlib
import sys
import warnings

from keras_aspp.cli.startup import prompt_interrupts, start_program
from keras_aspp.utils.errors import is_user_error, one_line

COMMANDS = {
    "train": "train a segmenter as a configuration says",
    "evaluate": "count a model's right and wrong pixels on a data set",
    "export": "write SavedModel and TFLite files, checked against the model",
    "predict": "segment pictures",
    "inspect": "what a model costs, what it sees and what it misses",
    "explain": "draw what atrous convolution does to a picture of yours",
    "demo": "try an exported model in the browser",
    "data": "look at a data set before it is trained on, convert it",
}


class Parser(argparse.ArgumentParser):
    """Wrong usage: one line and a pointer to `--help`, status 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_beam(parser, what):
    """Adds `--beam` and `--beam-options` to a command that can use them."""
    parser.add_argument(
        "--beam",
        action="store_true",
        help=f"{what} on Apache Beam, where pictures are many",
    )
    parser.add_argument(
        "--beam-options",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="all that follows is Beam's, e.g. --runner=FlinkRunner",
    )


def beam_options(parser, flags):
    """Beam's options as a list, `None` where Beam was not asked for."""
    if flags.beam_options is not None and not flags.beam:
        parser.error("--beam-options needs --beam")
    return (flags.beam_options or []) if flags.beam else None


def main(arguments=None):
    """Runs one command; returns the exit status.

    0 done; 1 the input is at fault (one line); 2 wrong usage of the command
    line; 130 interrupted.
    """
    with prompt_interrupts():
        # Includes the imports, which take seconds.
        return guarded(_run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments):
    """Imports the module of a command and calls it."""
    start_program()
    arguments = list(arguments)
    parser = Parser(
        prog="keras-aspp",
        description="Atrous convolution and ASPP for Keras: train, evaluate, "
        "export, predict, look inside.",
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
    """Calls `run(arguments)`; faults of the input become one line."""
    try:
        with _warnings_of_one_line():
            return run(arguments) or 0
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'Interrupted.'}", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"keras-aspp: error: {one_line(error)}", file=sys.stderr)
        return 1


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
