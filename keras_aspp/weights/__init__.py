"""Importers of public weights."""

from keras_aspp.weights.keras_hub import from_keras_hub
from keras_aspp.weights.tflite import from_tflite
from keras_aspp.weights.torchvision import from_torchvision

__all__ = ["from_keras_hub", "from_tflite", "from_torchvision"]
