"""build_model: the only place where configuration meets models."""

import dataclasses
import inspect
import os

from keras_aspp import models
from keras_aspp.models.segmenter import check_rgb
from keras_aspp.utils.exceptions import InputError

ARCHITECTURES = {
    kind.architecture: kind
    for kind in (
        models.DeepLabV2,
        models.DeepLabV3,
        models.CascadedDeepLabV3,
        models.DeepLabV3Plus,
        models.DenseASPP,
        models.LRASPP,
    )
}


def build_model(config, num_classes, dtype=None, rematerialize=False):
    """A segmenter as a `ModelConfig` describes it.

    Args:
        config: `ModelConfig`.
        num_classes: int > 0.
        dtype: Keras dtype policy, or `None` for the global one.
        rematerialize: see `Segmenter`.

    Returns:
        `Segmenter`.

    Raises:
        ValueError: a field that the architecture does not have is set to
            anything but its default, or `weights` are of a model of other
            than three input channels.
    """
    kind = ARCHITECTURES[config.architecture]
    known, arguments = arguments_of(kind), {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in known:
            arguments[field.name] = value
        elif field.name != "architecture" and value != field.default:
            raise InputError(
                f"`{config.architecture}` has no `{field.name}`. "
                f"Received: model.{field.name}={value!r}"
            )
    for name in ("backbone_weights", "weights"):
        if arguments[name] is not None:
            arguments[name] = os.path.expandvars(arguments[name])
    model = kind(
        num_classes, dtype=dtype, rematerialize=rematerialize, **arguments
    )
    check_rgb(model, "Training by a configuration")
    return model


def arguments_of(kind):
    """Constructor arguments of a segmenter, those of `Segmenter` included.

    Args:
        kind: subclass of `Segmenter`.

    Returns:
        dict: name -> `inspect.Parameter`, the subclass's where both have one.
    """
    return dict(inspect.signature(kind.__init__).parameters)
