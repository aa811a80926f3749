"""Segmenters: one architecture, one file."""

from keras_aspp.models.daformer import DAFormer
from keras_aspp.models.deeplab_v2 import DeepLabV2
from keras_aspp.models.deeplab_v3 import CascadedDeepLabV3, DeepLabV3
from keras_aspp.models.deeplab_v3_plus import DeepLabV3Plus
from keras_aspp.models.dense_aspp import DenseASPP
from keras_aspp.models.distillation import distill
from keras_aspp.models.fold import fold_batch_norm
from keras_aspp.models.lr_aspp import LRASPP
from keras_aspp.models.output_stride import with_output_stride
from keras_aspp.models.precision import with_dtype
from keras_aspp.models.quantize_aware import QuantizeAware
from keras_aspp.models.recalibrate import recalibrate
from keras_aspp.models.segmenter import Segmenter

__all__ = [
    "CascadedDeepLabV3",
    "DAFormer",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DenseASPP",
    "LRASPP",
    "QuantizeAware",
    "Segmenter",
    "distill",
    "fold_batch_norm",
    "recalibrate",
    "with_dtype",
    "with_output_stride",
]
