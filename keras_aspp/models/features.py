"""Feature maps of backbones: choice, strides, alignment."""

import keras

from keras_aspp.backbones.cascade import LAST
from keras_aspp.backbones.output_stride import (
    feature_strides,
    first_cell,
    stage_ends,
    with_output_stride,
)
from keras_aspp.utils.exceptions import InputError


def shift_px(backbone, high_level, output_stride, trained_output_stride):
    """By what a cell is drawn elsewhere than the head learned it, `(y, x)`.

    Upsampling draws cell i of stride s around pixel i * s + (s - 1) / 2,
    wherever it looks.
    """
    if trained_output_stride == output_stride:
        return (0, 0)
    learned, drawn = (
        [n * s + (s - 1) / 2 for n in first_cell(backbone, s, high_level)]
        for s in (trained_output_stride, output_stride)
    )
    return tuple(a - b for a, b in zip(learned, drawn, strict=True))


def pick(features, key):
    """`features[key]`, or an error that names the keys there are."""
    if key not in features:
        raise InputError(
            f"The backbone has no feature `{key}`. "
            f"Received: features={sorted(features)}"
        )
    return features[key]


def as_features(model, output_stride):
    """A functional model as a dense extractor with dict outputs.

    Args:
        model: functional `keras.Model`.
        output_stride: int, pixels per cell of the last feature map.

    Returns:
        `keras.Model`, images -> dict keyed by nominal stride.
    """
    dense = with_output_stride(model, output_stride)
    if len(dense.inputs) != 1:
        raise InputError(
            "A backbone must have one input, the picture. Received: "
            f"{[tensor.name for tensor in dense.inputs]}"
        )
    if isinstance(dense.output, dict):
        return dense
    return keras.Model(dense.input, stage_ends(dense), name=dense.name)


def _nominal_strides(backbone):
    """Nominal stride of each feature, by its key."""
    by_layer = feature_strides(backbone)
    return {
        key: by_layer[tensor._keras_history.operation.name]
        for key, tensor in backbone.output.items()
    }


def coarsest(backbone):
    """`"stride_32"`, or else the key of the coarsest feature."""
    if LAST in backbone.output:
        return LAST
    strides = _nominal_strides(backbone)
    return max(strides, key=strides.get)


def end_at(backbone, key, output_stride):
    """The backbone without what comes after a feature."""
    pick(backbone.output, key)
    strides = _nominal_strides(backbone)
    if strides[key] < output_stride:
        raise InputError(
            "`output_stride` must be at most the stride of `high_level`. "
            f"Received: output_stride={output_stride}, high_level={key!r}"
        )
    kept = {
        name: tensor
        for name, tensor in backbone.output.items()
        if strides[name] <= strides[key]
    }
    return keras.Model(backbone.input, kept, name=backbone.name)
