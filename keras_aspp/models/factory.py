"""build_model: the only place where configuration meets models."""

import dataclasses
import os

from keras_aspp.models.deeplab_v3 import DeepLabV3
from keras_aspp.models.deeplab_v3_plus import DeepLabV3Plus

ARCHITECTURES = {
    "deeplab_v3": DeepLabV3,
    "deeplab_v3_plus": DeepLabV3Plus,
}
_PLUS_ONLY = ("decoder_filters", "projection_filters")


def build_model(config, num_classes, dtype=None):
    """A segmenter as a `ModelConfig` describes it.

    Args:
        config: `ModelConfig`.
        num_classes: int > 0.
        dtype: Keras dtype policy, or `None` for the global one.

    Returns:
        `Segmenter`.
    """
    arguments = dataclasses.asdict(config)
    kind = ARCHITECTURES[arguments.pop("architecture")]
    if kind is not DeepLabV3Plus:
        for name in _PLUS_ONLY:
            del arguments[name]
    for name in ("backbone_weights", "weights"):
        if arguments[name] is not None:
            arguments[name] = os.path.expandvars(arguments[name])
    return kind(num_classes, dtype=dtype, **arguments)
