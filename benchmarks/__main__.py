"""`python -m benchmarks`; see `benchmarks.run` and `benchmarks.runtimes`."""

import sys

from benchmarks.run import run
from keras_aspp.cli.main import guarded


def main(arguments):
    """Comparisons, or all runtimes of one model."""
    if arguments[:1] == ["runtimes"]:
        from benchmarks import runtimes

        return runtimes.run(arguments[1:])
    return run(arguments)


sys.exit(guarded(main, sys.argv[1:]))
