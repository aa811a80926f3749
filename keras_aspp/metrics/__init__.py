"""Metrics accumulated over a whole data set."""

from keras_aspp.metrics.binary import BinaryCurve
from keras_aspp.metrics.boundary import BandIoU, BoundaryIoU
from keras_aspp.metrics.calibration import Calibration
from keras_aspp.metrics.confusion import ConfusionMatrix
from keras_aspp.metrics.multilabel import MultilabelConfusion, confusion_of
from keras_aspp.metrics.objects import ScaleRecall, SizeRecall

__all__ = [
    "BandIoU",
    "BinaryCurve",
    "BoundaryIoU",
    "Calibration",
    "ConfusionMatrix",
    "MultilabelConfusion",
    "ScaleRecall",
    "SizeRecall",
    "confusion_of",
]
