"""Lovász losses: convex surrogates of IoU, of classes or of one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.losses.base import SegmentationLoss
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Tensor

# Resolution of errors in 0..1.
BINS = 4096


class _Lovasz(SegmentationLoss):
    """Base class: pixels are counted in ints, weights summed in floats."""

    def compute_weighted(
        self, labels: Tensor, logits: Tensor, weights: Tensor
    ) -> Tensor:
        return self.compute(labels, logits, weights, count_dtype="float32")


@keras.saving.register_keras_serializable(package="keras_aspp")
class LovaszSoftmax(_Lovasz):
    """The Lovász extension of 1 - IoU, mean over labeled classes.

    Mostly used together with cross entropy, or after it. A histogram of errors
    replaces one sort per class, which takes a sixth of the time.

    Args:
        ignore_label: see `SegmentationLoss`.
        class_weights: see `SegmentationLoss`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W), `0..K-1` or `ignore_label`.
        y_pred: float (B, H, W, K) logits.

    Example:
    >>> loss = LovaszSoftmax()
    >>> round(float(loss([[[0, 255]]], [[[[0.0, 0.0], [9.0, 0.0]]]])), 4)
    0.5

    Reference:
        [Berman et al., 2018](https://arxiv.org/abs/1705.08790), algorithm 1,
        over the batch, classes "present". Differs from it in: pixels whose
        errors differ by less than 1 / 4096 may count as equally wrong, which
        moves the loss by less than that. Among equals the slopes are the mean
        of their orders, where a sort takes any one.
    """

    def __init__(
        self,
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        name: str | None = "lovasz",
    ) -> None:
        super().__init__(ignore_label, class_weights, name)

    def compute(
        self,
        labels: Tensor,
        logits: Tensor,
        valid: Tensor,
        count_dtype: str = "int32",
    ) -> Tensor:
        num_classes = logits.shape[-1]
        wanted = ops.one_hot(labels, num_classes, dtype="float32")
        errors = ops.abs(wanted - ops.softmax(logits, axis=-1))
        own = ops.sum(errors * wanted, axis=-1)
        every = ops.broadcast_to(valid[..., None], ops.shape(errors))
        # (K, BINS), largest error first; over all pixels and over the class's.
        counted = _by_error(
            errors,
            _rank(errors),
            ops.arange(num_classes, dtype="int32"),
            every,
            num_classes,
            count_dtype,
        )
        own_counted = _by_error(
            own, _rank(own), labels, valid, num_classes, count_dtype
        )
        losses, count = _losses(counted, own_counted, self.all_reduce_sum)
        return self.mean_over_present_classes(losses, count)


@keras.saving.register_keras_serializable(package="keras_aspp")
class LovaszHinge(_Lovasz):
    """The Lovász hinge of the IoU of one object, class 1, over the batch.

    The score of a pixel is the object's logit minus the background's; an error
    is `max(0, 1 - score)` where the object is labeled and `max(0, 1 + score)`
    elsewhere. Like the other losses of overlap, it is 0 for a batch without a
    pixel of the object, so it is mostly used together with cross entropy.

    Args:
        ignore_label: see `SegmentationLoss`.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W), 1 for the object, 0 for the background, or
            `ignore_label`.
        y_pred: float (B, H, W, 2) logits, the background's first.

    Raises:
        ValueError: the logits are not those of two classes.

    Example:
    >>> loss = LovaszHinge()
    >>> round(float(loss([[[1, 255]]], [[[[0.0, 0.25], [0.0, -9.0]]]])), 4)
    0.75

    Reference:
        [Berman et al., 2018](https://arxiv.org/abs/1705.08790), algorithm 1
        and equation 7, over the batch. Differs from it in: pixels of errors e
        that differ by less than `(1 + e)**2 / 4096` may count as equally
        wrong, and a batch without the object has no loss.
    """

    def __init__(
        self, ignore_label: int = 255, name: str | None = "lovasz_hinge"
    ) -> None:
        super().__init__(ignore_label, name=name)

    def compute(
        self,
        labels: Tensor,
        logits: Tensor,
        valid: Tensor,
        count_dtype: str = "int32",
    ) -> Tensor:
        if logits.shape[-1] != 2:
            raise InputError(
                "LovaszHinge needs the logits of two classes, background and "
                "object; LovaszSoftmax is for any number. Received: "
                f"{logits.shape[-1]} classes"
            )
        wanted = ops.cast(labels, "float32")
        score = logits[..., 1] - logits[..., 0]
        errors = ops.relu(1 - score * (2 * wanted - 1))
        # Hinge errors have no upper bound; their order is that of e / (1 + e).
        rank = _rank(1 - 1 / (1 + errors))
        counted, own_counted = (
            _by_error(errors, rank, 0, weights, 1, count_dtype)
            for weights in (valid, valid * wanted)
        )
        losses, count = _losses(counted, own_counted, self.all_reduce_sum)
        return self.mean_over_present_classes(losses, count)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {k: v for k, v in config.items() if k != "class_weights"}


def _rank(errors):
    """Returns the bin of each error in 0..1, the largest errors first."""
    rank = ops.cast((1 - ops.stop_gradient(errors)) * (BINS - 1), "int32")
    # NaN errors stay in range, so that they reach the loss.
    return ops.clip(rank, 0, BINS - 1)


def _losses(counted, own_counted, all_reduce_sum):
    """Computes the Lovász extension of 1 - IoU of each class.

    Args:
        counted: `_by_error` of all pixels.
        own_counted: `_by_error` of the pixels of the class.
        all_reduce_sum: function that sums a tensor over replicas.

    Returns:
        `(losses, pixels)`, float32 (K,): the replica's part of each loss, and
        the pixels of the class on all replicas.
    """
    (pixels, error), (own_pixels, own_error) = counted, own_counted
    # Slopes come from the whole batch, errors from this replica.
    pixels, own_pixels = (all_reduce_sum(x) for x in (pixels, own_pixels))
    count = ops.sum(own_pixels, axis=-1)
    slope, own_slope = _slopes(
        count[:, None] - _before(own_pixels),
        # Clipped, since sums of weights are rounded and must not decrease.
        count[:, None] + _before(ops.maximum(pixels - own_pixels, 0.0)),
    )
    losses = ops.sum(
        ops.stop_gradient(own_slope) * own_error
        + ops.stop_gradient(slope) * (error - own_error),
        axis=-1,
    )
    return losses, count


def _by_error(errors, rank, labels, valid, num_classes, count_dtype):
    """Sums number (or weight) and error of pixels by class and rank."""
    where = ops.reshape(labels * BINS + rank, (-1,))
    # Counts are ints, since float32 cannot count beyond 2**24.
    pixels, error = (
        ops.reshape(
            ops.segment_sum(
                ops.reshape(x, (-1,)), where, num_segments=num_classes * BINS
            ),
            (num_classes, BINS),
        )
        for x in (ops.cast(valid, count_dtype), errors * valid)
    )
    return ops.cast(pixels, "float32"), error


def _before(pixels):
    """Returns cumulative counts before each bin and the total, (K, BINS+1)."""
    return ops.pad(ops.cumsum(pixels, axis=-1), [[0, 0], [1, 0]])


def _slopes(intersection, union):
    """Computes the increase of 1 - IoU by one more wrong pixel, (K, BINS).

    Returns:
        Two tensors: for a pixel of another class, and for one of the class.
    """
    first, last = union[:, :-1], union[:, 1:]
    # The union of a class without pixels starts at 0; it has no loss.
    area = ops.where(first > 0, first, 1.0) * ops.where(last > 0, last, 1.0)
    mean = (intersection[:, :-1] + intersection[:, 1:]) / 2
    return mean / area, (first + last) / 2 / area
