"""Dense backbones: feature extractors with an output stride."""

from keras_aspp.backbones.atrous import (
    feature_strides,
    stage_ends,
    with_output_stride,
)
from keras_aspp.backbones.rematerialize import rematerialize
from keras_aspp.backbones.zoo import create_backbone, list_backbones

__all__ = [
    "create_backbone",
    "feature_strides",
    "list_backbones",
    "rematerialize",
    "stage_ends",
    "with_output_stride",
]
