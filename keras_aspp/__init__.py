"""Atrous convolution and Atrous Spatial Pyramid Pooling for Keras.

Importing this package registers every layer, model, loss and metric with
Keras, so that `keras.saving.load_model` loads their `.keras` files.
"""

import importlib
import pathlib
import sys
from typing import Any

from keras_aspp.version import __version__

__all__ = [
    "Predictor",
    "Preprocess",
    "__version__",
    "analysis",
    "annotations",
    "backbones",
    "data",
    "export",
    "inference",
    "layers",
    "losses",
    "metrics",
    "models",
    "weights",
]


def __getattr__(name: str) -> Any:
    # Attributes that `import keras_aspp` loads on first use.
    if name == "Predictor":
        return importlib.import_module("keras_aspp.inference").Predictor
    if name == "Preprocess":
        return importlib.import_module("keras_aspp.preprocess").Preprocess
    if name in __all__:
        return importlib.import_module(f"keras_aspp.{name}")
    raise AttributeError(f"module 'keras_aspp' has no attribute {name!r}")


def _is_program():
    """Returns True in a process of `keras-aspp` or `python -m keras_aspp`."""
    arguments = getattr(sys, "argv", None) or [""]
    if arguments[0] == "-m":  # while Python imports the package that it runs
        module = sys.orig_argv[-len(arguments) :][0]
        return module.removeprefix("-m") == "keras_aspp"
    return pathlib.Path(arguments[0]).stem == "keras-aspp"


# Python imports a package before its modules, so the program would
# load TensorFlow for seconds before it prints its version. Its commands import
# what they need.
if not _is_program():
    from keras_aspp import backbones, layers, losses, metrics, models, weights
    from keras_aspp.preprocess import Preprocess
