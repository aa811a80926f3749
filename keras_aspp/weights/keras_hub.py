"""keras-hub's DeepLabV3+, as a model of ours."""

from __future__ import annotations

import keras
import numpy as np

from keras_aspp.backbones.pyramid import pyramid_of
from keras_aspp.models import DeepLabV3Plus
from keras_aspp.preprocess import Preprocess
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.finite import check_weights
from keras_aspp.utils.types import PathLike


def from_keras_hub(segmenter: PathLike | keras.Model) -> DeepLabV3Plus:
    """A DeepLabV3+ of keras-hub as a Keras model of ours.

    keras-hub itself reads its presets, so it must be installed for this
    (`pip install keras-hub`); the model that comes out does not need it. Of
    any size and output stride, it can be trained, checked and exported as
    every other one.

    Args:
        segmenter: a `keras_hub.models.DeepLabV3ImageSegmenter`; or what its
            `from_preset` takes: the name of a preset, which it downloads, such
            as `"deeplab_v3_plus_resnet50_pascalvoc"`, or the folder of one.

    Returns:
        `DeepLabV3Plus` of the same output stride. Logits equal theirs at
        sizes that are multiples of 32; `preprocess` is what their image
        converter does to the values of pixels.

    Raises:
        ImportError: keras-hub is not installed.
        ValueError: it is not a DeepLabV3+ of keras-hub, or cannot be read.

    Example:
        model = ka.weights.from_keras_hub("deeplab_v3_plus_resnet50_pascalvoc")
        finer = ka.models.with_output_stride(model, 16)
    """
    segmenter = _load(segmenter)
    theirs = getattr(segmenter, "backbone", None)
    low_key = getattr(theirs, "low_level_feature_key", None)
    if not hasattr(segmenter, "output_conv") or low_key is None:
        raise InputError(
            "Not a DeepLabV3ImageSegmenter of keras-hub whose backbone has a "
            "low_level_feature_key; pass a DeepLabV3+. Received: "
            f"{type(segmenter).__name__} with low_level_feature_key={low_key!r}"
        )
    encoder = theirs.image_encoder
    features = pyramid_of(encoder)
    strides = {
        key: next((s for s in features if features[s] is tensor), None)
        for key, tensor in encoder.pyramid_outputs.items()
    }
    if strides[low_key] != "stride_4":
        raise InputError(
            "The low-level feature of a DeepLabV3+ must have stride 4; create "
            "it with the low_level_feature_key of stride 4. Received: "
            f"low_level_feature_key={low_key!r} of {strides}"
        )
    high_key = theirs.spatial_pyramid_pooling_key
    high_level = strides[high_key]
    if high_level is None:
        raise InputError(
            "spatial_pyramid_pooling_key must name the last level of its "
            f"stride. Received: {high_key!r} of {strides}"
        )
    pyramid = theirs.get_layer(_name_of(theirs, "SpatialPyramidPooling"))
    kernel = segmenter.output_conv.kernel
    model = DeepLabV3Plus(
        kernel.shape[-1],
        keras.Model(encoder.input, features, name=encoder.name),
        output_stride=int(high_level.removeprefix("stride_")),
        high_level=high_level,
        atrous_rates=tuple(theirs.dilation_rates),
        aspp_filters=pyramid.num_channels,
        projection_filters=theirs.projection_filters,
        decoder_filters=kernel.shape[-2],
        decoder="light",
        preprocess=_preprocess(segmenter.preprocessor),
    )
    aspp = model.get_layer("aspp")
    *branches, pooling = aspp.branches
    blocks = [*branches, pooling.conv, aspp.projection]
    parts = [*pyramid.aspp_parallel_channels, pyramid.projection]
    for block, part in zip(blocks, parts, strict=True):
        conv, norm = (layer for layer in part.layers if layer.weights)
        _fill(block, conv, norm)
    for name, conv, norm in (
        ("low_level", "decoder_conv", "decoder_norm"),
        ("decoder_1", "segmentation_head_conv", "segmentation_head_norm"),
    ):
        _fill(
            model.get_layer(name),
            theirs.get_layer(conv),
            theirs.get_layer(norm),
        )
    # Theirs has no bias.
    classifier = model.get_layer("classifier")
    classifier.set_weights([kernel, np.zeros(kernel.shape[-1])])
    check_weights(model, f"segmenter {segmenter.name!r}")
    return model


def _load(segmenter):
    if isinstance(segmenter, keras.Model):
        return segmenter
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            "keras-hub reads its presets, and is not installed; `pip install "
            f"keras-hub`. Received: segmenter={str(segmenter)!r}"
        ) from error
    try:
        return keras_hub.models.DeepLabV3ImageSegmenter.from_preset(
            str(segmenter)
        )
    except Exception as error:
        # What it raises depends on where it looked for the preset.
        raise InputError(
            "keras-hub cannot read this preset. Received: "
            f"{str(segmenter)!r} ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error


def _name_of(model, layer_type):
    (name,) = (
        layer.name
        for layer in model.layers
        if type(layer).__name__ == layer_type
    )
    return name


def _fill(block, conv, norm):
    block.conv.set_weights(conv.get_weights())
    block.norm.set_weights(norm.get_weights())


def _preprocess(preprocessor):
    """`Preprocess` of an image converter: scale and offset by channel."""
    converter = getattr(preprocessor, "image_converter", None)
    scale = getattr(converter, "scale", None)
    offset = getattr(converter, "offset", None)
    scale = np.asarray(1.0 if scale is None else scale)
    offset = np.asarray(0.0 if offset is None else offset)
    # Single numbers hold for any number of channels.
    return Preprocess(
        value_range=(0.0, 255.0),
        mean=(-offset / scale).tolist(),
        std=(1 / scale).tolist(),
    )
