"""`python -m keras_aspp`, the command `keras-aspp`."""

import sys

from keras_aspp.cli.main import main

sys.exit(main())
