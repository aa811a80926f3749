"""build_model: builds the segmenter that a configuration describes."""

import dataclasses
import os
from typing import Literal

import keras

from keras_aspp import models
from keras_aspp.config.schema import ModelConfig
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError

RGB = PixelFormat()
# Every architecture that `keras_aspp.models` exports, by its name.
ARCHITECTURES: dict[str, type[Segmenter]] = {
    exported.architecture: exported
    for exported in map(vars(models).get, models.__all__)
    if getattr(exported, "architecture", None)
}


def build_model(
    config: ModelConfig,
    num_classes: int,
    dtype: str | keras.DTypePolicy | None = None,
    rematerialize: bool = False,
    pixels: PixelFormat = RGB,
    task: Literal["semantic", "binary", "multilabel"] = "semantic",
) -> Segmenter:
    """Builds the segmenter that a `ModelConfig` describes.

    Args:
        config: `ModelConfig`.
        num_classes: int > 1.
        dtype: Keras dtype policy, or `None` for the global one.
        rematerialize: see `Segmenter`.
        pixels: `PixelFormat` of the images. Defaults to RGB of 8 bits.
        task: see `Segmenter`.

    Returns:
        `Segmenter`.

    Raises:
        ValueError: the architecture is unknown; a field that it does not have
            differs from its default; `weights` belong to a model of other
            input channels; or the images have no range of values.
    """
    if config.architecture not in ARCHITECTURES:
        raise InputError(
            f"`architecture` must be one of {tuple(ARCHITECTURES)}. "
            f"Received: model.architecture={config.architecture!r}"
        )
    arguments = _arguments(config)
    for name in ("backbone_weights", "weights"):
        if arguments[name] is not None:
            arguments[name] = os.path.expandvars(arguments[name])
    model = ARCHITECTURES[config.architecture](
        num_classes,
        dtype=dtype,
        rematerialize=rematerialize,
        input_shape=(None, None, pixels.channels),
        task=task,
        **arguments,
    )
    if model.input_channels != pixels.channels:
        raise InputError(
            "`model.weights` must be those of a model of as many input "
            f"channels as the data set has, {pixels.channels}, or of three. "
            f"Received: a model of {model.input_channels} input channels"
        )
    preprocess = model.preprocess.of_images(pixels)
    if preprocess != model.preprocess:
        model.preprocess = preprocess
    return model


def _arguments(config):
    """Returns the fields that the architecture has, by name."""
    arguments = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        owners = field.metadata.get("architectures", (config.architecture,))
        if config.architecture in owners:
            arguments[field.name] = value
        elif value != field.default:
            raise InputError(
                f"`{config.architecture}` has no `{field.name}`. "
                f"Received: model.{field.name}={value!r}"
            )
    del arguments["architecture"]
    return arguments
