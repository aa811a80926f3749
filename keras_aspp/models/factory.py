"""build_model: builds the segmenter that a configuration describes."""

import dataclasses
import os
from typing import Literal

import keras

from keras_aspp import models
from keras_aspp.config.schema import ModelConfig
from keras_aspp.models.segmenter import Segmenter, check_rgb
from keras_aspp.utils.exceptions import InputError

# Every architecture that `keras_aspp.models` exports, by its name.
ARCHITECTURES: dict[str, type[Segmenter]] = {
    exported.architecture: exported
    for exported in map(vars(models).get, models.__all__)
    if isinstance(exported, type) and exported is not Segmenter
}


def build_model(
    config: ModelConfig,
    num_classes: int,
    dtype: str | keras.DTypePolicy | None = None,
    rematerialize: bool = False,
    task: Literal["semantic", "binary"] = "semantic",
) -> Segmenter:
    """Builds the segmenter that a `ModelConfig` describes.

    Args:
        config: `ModelConfig`.
        num_classes: int > 1.
        dtype: Keras dtype policy, or `None` for the global one.
        rematerialize: see `Segmenter`.
        task: see `Segmenter`.

    Returns:
        `Segmenter`.

    Raises:
        ValueError: the architecture is unknown; a field that it does not have
            differs from its default; or `weights` belong to a model of other
            than three input channels.
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
        task=task,
        **arguments,
    )
    check_rgb(model, "Training by a configuration")
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
