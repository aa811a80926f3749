"""`python -m training.predict` is `keras-aspp predict`."""

import sys

from keras_aspp.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
