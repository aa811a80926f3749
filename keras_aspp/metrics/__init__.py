"""Metrics, all read from one confusion matrix."""

from keras_aspp.metrics.confusion import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
