"""Importers of public weights."""

from keras_aspp.weights.tflite import from_tflite

__all__ = ["from_tflite"]
