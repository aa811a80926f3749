"""Layers that run on every Keras backend (`keras.ops` only)."""

from keras_aspp.layers.aspp import ASPP
from keras_aspp.layers.background_logit import BackgroundLogit
from keras_aspp.layers.batch_norm import BatchNormalization, GroupNormalization
from keras_aspp.layers.cascade import AtrousCascade
from keras_aspp.layers.class_thresholds import ClassThresholds
from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.layers.dappm import DAPPM
from keras_aspp.layers.dense_aspp import DenseASPP
from keras_aspp.layers.dense_prediction_cell import DensePredictionCell
from keras_aspp.layers.dilated_reparam import DilatedReparamBlock
from keras_aspp.layers.image_pooling import ImagePooling
from keras_aspp.layers.resize import BilinearResize
from keras_aspp.layers.rewritable import (
    AveragePooling2D,
    Conv2D,
    Cropping2D,
    DepthwiseConv2D,
    MaxPooling2D,
    SeparableConv2D,
    Trim,
    ZeroPadding2D,
)
from keras_aspp.layers.skip_fusion import SkipFusion

__all__ = [
    "ASPP",
    "AtrousCascade",
    "AtrousConv2D",
    "AveragePooling2D",
    "BackgroundLogit",
    "BatchNormalization",
    "BilinearResize",
    "ClassThresholds",
    "Conv2D",
    "Cropping2D",
    "DAPPM",
    "DenseASPP",
    "DensePredictionCell",
    "DepthwiseConv2D",
    "DilatedReparamBlock",
    "GroupNormalization",
    "ImagePooling",
    "MaxPooling2D",
    "SeparableConv2D",
    "SkipFusion",
    "Trim",
    "ZeroPadding2D",
]
