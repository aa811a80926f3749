"""with_dtype: the same segmenter in another dtype policy."""

import warnings

import keras

from keras_aspp.backbones.rebuild import configure
from keras_aspp.models.segmenter import Segmenter, load_matching
from keras_aspp.utils.exceptions import InputTypeError


def with_dtype(segmenter, dtype):
    """A copy with the same weights that computes in another dtype.

    Args:
        segmenter: `Segmenter`, e.g. one trained in `"mixed_bfloat16"`.
        dtype: Keras dtype or policy, e.g. `"float32"`.

    Returns:
        A new segmenter of the same class, not compiled.

    Raises:
        TypeError: `segmenter` is no segmenter of ours.

    Example:
    >>> from keras_aspp.models import DeepLabV3
    >>> model = DeepLabV3(21, backbone_weights=None, dtype="mixed_bfloat16")
    >>> with_dtype(model, "float32").backbone.compute_dtype
    'float32'
    """
    if not isinstance(segmenter, Segmenter):
        raise InputTypeError(
            "`segmenter` must be one of `keras_aspp.models`. "
            f"Received: segmenter of type {type(segmenter).__name__}"
        )
    arguments = {
        **segmenter.arguments(),
        "backbone": configure(segmenter.backbone, dtype=dtype),
        "dtype": dtype,
    }
    copy = type(segmenter)(**arguments)
    load_matching(copy, segmenter, segmenter.name)
    return copy


def in_float32(segmenter):
    """The segmenter, or a copy in float32 where it computes in 16 bits.

    What serves and what is exported is float32: many operators of files, and
    most processors, have no 16 bits. A warning says so.

    Args:
        segmenter: `Segmenter`.

    Returns:
        `segmenter` itself, or a new one with the same weights.
    """
    # (A functional model's own policy is always the global one.)
    found = {
        layer.compute_dtype
        for layer in segmenter._flatten_layers()
        if layer.weights and not isinstance(layer, keras.Model)
    }
    halves = sorted(found & {"float16", "bfloat16"})
    if not halves:
        return segmenter
    copy = with_dtype(segmenter, "float32")
    warnings.warn(
        f"{segmenter.name!r} computes in {' and '.join(halves)}; a copy in "
        "float32 with the same weights is used instead, as of "
        '`models.with_dtype(model, "float32")`.',
        stacklevel=3,
    )
    return copy
