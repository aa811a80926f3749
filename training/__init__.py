"""The application: thin scripts around the library."""

import sys

# `python -m training.NAME` is a program, like the console script; Python
# imports this package before it replaces "-m" by the script's own path.
if sys.argv[:1] == ["-m"]:
    sys.argv[0] = "keras-aspp"
    from keras_aspp.cli.startup import start_program

    start_program()
