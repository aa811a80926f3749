"""`python -m training.train` is `keras-aspp train`."""

import sys

from keras_aspp.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
