"""Dense backbones: feature extractors with an output stride."""

from keras_aspp.backbones.families import list_backbones
from keras_aspp.backbones.output_stride import (
    feature_strides,
    stage_ends,
    with_output_stride,
)
from keras_aspp.backbones.rematerialize import rematerialize
from keras_aspp.backbones.zoo import create_backbone

__all__ = [
    "create_backbone",
    "feature_strides",
    "list_backbones",
    "rematerialize",
    "stage_ends",
    "with_output_stride",
]
