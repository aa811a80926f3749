"""`python -m training.export` is `keras-aspp export`."""

import sys

from keras_aspp.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
