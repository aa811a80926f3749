"""Metrics over a whole set."""

from keras_aspp.metrics.boundary import BandIoU, BoundaryIoU
from keras_aspp.metrics.calibration import Calibration
from keras_aspp.metrics.confusion import ConfusionMatrix

__all__ = ["BandIoU", "BoundaryIoU", "Calibration", "ConfusionMatrix"]
