"""`python -m benchmarks`; see `benchmarks.run`."""

import sys

from benchmarks.run import run
from keras_aspp.cli.main import guarded

sys.exit(guarded(run, sys.argv[1:]))
