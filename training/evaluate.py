"""`python -m training.evaluate` is `keras-aspp evaluate`."""

import sys

from keras_aspp.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
