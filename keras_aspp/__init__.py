"""Atrous convolution and Atrous Spatial Pyramid Pooling for Keras.

Importing it registers every layer, model, loss and metric with Keras, so it is
all that loading a `.keras` file needs.
"""

from keras_aspp import backbones, layers, losses, metrics, models, weights
from keras_aspp.preprocess import Preprocess
from keras_aspp.version import __version__

__all__ = [
    "Predictor",
    "Preprocess",
    "__version__",
    "analysis",
    "backbones",
    "export",
    "layers",
    "losses",
    "metrics",
    "models",
    "weights",
]


def __getattr__(name):
    # What `import keras_aspp` shall not add to importing Keras.
    import importlib

    if name == "Predictor":
        return importlib.import_module("keras_aspp.inference").Predictor
    if name in ("analysis", "export"):
        return importlib.import_module(f"keras_aspp.{name}")
    raise AttributeError(f"module 'keras_aspp' has no attribute {name!r}")
