"""Metrics over a whole set."""

from keras_aspp.metrics.boundary import BandIoU, BoundaryIoU
from keras_aspp.metrics.calibration import Calibration
from keras_aspp.metrics.confusion import ConfusionMatrix
from keras_aspp.metrics.objects import ScaleRecall

__all__ = [
    "BandIoU",
    "BoundaryIoU",
    "Calibration",
    "ConfusionMatrix",
    "ScaleRecall",
]
