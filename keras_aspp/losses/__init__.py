"""Losses for label maps; all of them leave out ignored pixels.

Plain cross entropy is available in Keras:
`SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)`.
"""

from keras_aspp.losses.balance import (
    effective_number_weights,
    median_frequency_weights,
)
from keras_aspp.losses.base import SegmentationLoss
from keras_aspp.losses.cross_entropy import CrossEntropy
from keras_aspp.losses.distillation import Distillation
from keras_aspp.losses.lovasz import LovaszHinge, LovaszSoftmax
from keras_aspp.losses.overlap import Dice, Tversky
from keras_aspp.losses.per_class import PerClass
from keras_aspp.losses.weighted_sum import WeightedSum

__all__ = [
    "CrossEntropy",
    "Dice",
    "Distillation",
    "LovaszHinge",
    "LovaszSoftmax",
    "PerClass",
    "SegmentationLoss",
    "Tversky",
    "WeightedSum",
    "effective_number_weights",
    "median_frequency_weights",
]
