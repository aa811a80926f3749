"""with_dtype: copies of a segmenter in another dtype policy."""

import warnings

import keras

from keras_aspp.backbones.rebuild import compute_dtypes, configure
from keras_aspp.models.context import context_with_dtype
from keras_aspp.models.segmenter import Segmenter
from keras_aspp.models.transfer import copy_with
from keras_aspp.utils.exceptions import InputTypeError


def with_dtype(
    segmenter: Segmenter, dtype: str | keras.DTypePolicy
) -> Segmenter:
    """Copies a segmenter, with its weights, to another dtype policy.

    Args:
        segmenter: `Segmenter`, e.g. one trained in `"mixed_bfloat16"`.
        dtype: Keras dtype or policy, e.g. `"float32"`.

    Returns:
        A new segmenter of the same class, not compiled.

    Raises:
        TypeError: `segmenter` is not one of `keras_aspp.models`.

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
    changes = {
        "backbone": configure(segmenter.backbone, dtype=dtype),
        "dtype": dtype,
    }
    context = segmenter.arguments().get("context")
    if isinstance(context, dict):
        changes["context"] = context_with_dtype(context, dtype)
    return copy_with(segmenter, **changes)


def in_float32(segmenter: Segmenter) -> Segmenter:
    """Returns the segmenter, or a float32 copy if it computes in 16 bits.

    Prediction and export need float32: many operators of exported files, and
    most processors, do not support 16 bits. A warning reports the copy.

    Args:
        segmenter: `Segmenter`.

    Returns:
        `segmenter` itself, or a new one with the same weights.
    """
    halves = sorted(compute_dtypes(segmenter) & {"float16", "bfloat16"})
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
