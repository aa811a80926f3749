"""Atrous convolution and Atrous Spatial Pyramid Pooling for Keras.

Importing it registers every layer, model, loss and metric with Keras, so it is
all that loading a `.keras` file needs.
"""

import importlib
import pathlib
import sys

from keras_aspp.version import __version__

__all__ = [
    "Predictor",
    "Preprocess",
    "__version__",
    "analysis",
    "backbones",
    "data",
    "export",
    "layers",
    "losses",
    "metrics",
    "models",
    "weights",
]


def __getattr__(name):
    # Attributes that `import keras_aspp` does not load.
    if name == "Predictor":
        return importlib.import_module("keras_aspp.inference").Predictor
    if name == "Preprocess":
        return importlib.import_module("keras_aspp.preprocess").Preprocess
    if name in __all__:
        return importlib.import_module(f"keras_aspp.{name}")
    raise AttributeError(f"module 'keras_aspp' has no attribute {name!r}")


def _is_program():
    """Returns True in the process of the console script `keras-aspp`."""
    arguments = getattr(sys, "argv", None) or [""]
    return pathlib.Path(arguments[0]).stem == "keras-aspp"


# Python imports a package before the modules in it, so the console script
# would wait seconds for TensorFlow before it could print its version. Its
# commands import what they use.
if not _is_program():
    from keras_aspp import backbones, layers, losses, metrics, models, weights
    from keras_aspp.preprocess import Preprocess
