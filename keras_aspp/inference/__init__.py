"""Prediction with Keras models and exported artefacts."""

from keras_aspp.inference.predictor import Predictor

__all__ = ["Predictor"]
