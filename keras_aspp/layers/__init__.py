"""Layers that run on every Keras backend (`keras.ops` only)."""

from keras_aspp.layers.aspp import ASPP
from keras_aspp.layers.conv import AtrousConv2D
from keras_aspp.layers.dense_aspp import DenseASPP
from keras_aspp.layers.image_pooling import ImagePooling
from keras_aspp.layers.resize import BilinearResize
from keras_aspp.layers.strided import Conv2D, DepthwiseConv2D, ZeroPadding2D

__all__ = [
    "ASPP",
    "AtrousConv2D",
    "BilinearResize",
    "Conv2D",
    "DenseASPP",
    "DepthwiseConv2D",
    "ImagePooling",
    "ZeroPadding2D",
]
