"""Prediction with any artefact."""

from keras_aspp.inference.predictor import Predictor

__all__ = ["Predictor"]
