"""Segmenters: one architecture, one file."""

from keras_aspp.models.deeplab_v3 import DeepLabV3
from keras_aspp.models.deeplab_v3_plus import DeepLabV3Plus
from keras_aspp.models.segmenter import Segmenter

__all__ = ["DeepLabV3", "DeepLabV3Plus", "Segmenter"]
