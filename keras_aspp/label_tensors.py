"""Label maps and pixel weights as tensors, for losses and metrics.

Shape legend: B batch, H x W pixels, K `num_classes`.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Tensor


def split_labels(
    labels: Tensor, num_classes: int, ignore_label: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Separates class ids from ignored pixels and from invalid values.

    A graph cannot raise, and under XLA an index out of range is undefined. So
    invalid values never reach a gather; callers report them by `known`.

    Args:
        labels: int, bool or float tensor of any shape.
        num_classes: int > 1.
        ignore_label: int.

    Returns:
        `(class_ids, valid, known)`, tensors of the same shape: int32 in
        `0..num_classes-1`, 0 for ignored and invalid pixels; bool, `False`
        where ignored; bool, `True` for a class id. 0.5 and NaN are invalid.
    """
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if "float" not in dtype:
        # In uint8, comparisons would wrap constants such as -1 and 300.
        wide = dtype in ("int64", "uint32", "uint64")
        labels = ops.cast(labels, "int64" if wide else "int32")
    valid = labels != ignore_label
    known = ops.logical_and(labels >= 0, labels < num_classes)
    if "float" in dtype:
        known = ops.logical_and(known, ops.floor(labels) == labels)
    class_ids = ops.where(ops.logical_and(valid, known), labels, 0)
    return ops.cast(class_ids, "int32"), valid, known


def pixel_weights(sample_weight: Tensor, pixels: Tensor) -> Tensor:
    """Broadcasts Keras' `sample_weight` to the pixels of a batch.

    Args:
        sample_weight: tensor. Weights of images have shape `()`, `(B,)` or
            `(B, 1)`; weights of pixels that of `pixels`, with or without a
            last axis of 1. Axes of 1 broadcast.
        pixels: tensor of the shape of the result, usually (B, H, W).

    Returns:
        float32 tensor of the shape of `pixels`; NaN for weights below 0.

    Raises:
        ValueError: the shape is none of these.
    """
    weights = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
    given, wanted = tuple(weights.shape), tuple(pixels.shape)
    if len(given) == len(wanted) + 1 and given[-1] == 1:
        weights = ops.squeeze(weights, -1)
    elif len(given) == 2 and given[1] == 1 and len(wanted) > 2:
        weights = ops.squeeze(weights, -1)
    if len(weights.shape) == 1:
        weights = ops.reshape(weights, (-1,) + (1,) * (len(wanted) - 1))
    rank = len(weights.shape)
    if rank and (
        rank != len(wanted)
        or any(
            n not in (m, 1, None) and m is not None
            for n, m in zip(weights.shape, wanted, strict=True)
        )
    ):
        raise InputError(
            "`sample_weight` must hold one weight for each image, (B,), or "
            "for each pixel, (B, H, W). Weights of classes are an argument "
            "of the losses, `class_weights`; Keras' `class_weight` is not "
            f"defined for label maps. Received: sample_weight of shape {given} "
            f"for labels of shape {wanted}"
        )
    weights = ops.where(weights >= 0, weights, float("nan"))
    return ops.broadcast_to(weights, ops.shape(pixels))
