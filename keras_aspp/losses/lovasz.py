"""LovaszSoftmax: the convex surrogate of mean IoU."""

import keras
from keras import ops

from keras_aspp.losses.base import SegmentationLoss

# Errors, 0..1, are told apart to one part in this many.
BINS = 4096


@keras.saving.register_keras_serializable(package="keras_aspp")
class LovaszSoftmax(SegmentationLoss):
    """The Lovász extension of 1 - IoU, mean over labelled classes.

    It is mostly used beside cross entropy, or after it. Instead of sorting
    the batch's pixels once for each class, it counts them by their error: a
    sixth of the time.

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

    def __init__(self, ignore_label=255, class_weights=None, name="lovasz"):
        super().__init__(ignore_label, class_weights, name)

    def of_weighted(self, labels, logits, weights):
        return self.of_valid(labels, logits, weights, count_dtype="float32")

    def of_valid(self, labels, logits, valid, count_dtype="int32"):
        num_classes = logits.shape[-1]
        wanted = ops.one_hot(labels, num_classes, dtype="float32")
        errors = ops.abs(wanted - ops.softmax(logits, axis=-1))
        own = ops.sum(errors * wanted, axis=-1)
        every = ops.broadcast_to(valid[..., None], ops.shape(errors))
        # (K, BINS), the most wrong first; of all pixels, and of the class's.
        pixels, error = _by_error(
            errors, ops.arange(num_classes), every, num_classes, count_dtype
        )
        own_pixels, own_error = _by_error(
            own, labels, valid, num_classes, count_dtype
        )
        # The slopes are those of the whole batch, the errors one's own.
        pixels, own_pixels = (self.everywhere(x) for x in (pixels, own_pixels))
        count = ops.sum(own_pixels, axis=-1)
        slope, own_slope = _slopes(
            count[:, None] - _before(own_pixels),
            # Sums of weights are rounded, and must not fall.
            count[:, None] + _before(ops.maximum(pixels - own_pixels, 0.0)),
        )
        losses = ops.sum(
            ops.stop_gradient(own_slope) * own_error
            + ops.stop_gradient(slope) * (error - own_error),
            axis=-1,
        )
        return self.mean_of_labelled(losses, count)


def _by_error(errors, labels, valid, num_classes, count_dtype):
    """Number (or weight) and summed error of pixels, by class and error."""
    rank = ops.cast((1 - ops.stop_gradient(errors)) * (BINS - 1), "int32")
    # What is no number has a place too, or it would be dropped and forgotten.
    rank = ops.clip(rank, 0, BINS - 1)
    where = ops.reshape(labels * BINS + rank, (-1,))
    # Whole numbers: float32 stops counting at 2**24.
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
    """How many there are before each bin, and after the last, (K, BINS + 1)."""
    return ops.pad(ops.cumsum(pixels, axis=-1), [[0, 0], [1, 0]])


def _slopes(intersection, union):
    """By how much 1 - IoU grows with a further wrong pixel, (K, BINS).

    Returns:
        Of a pixel of another class, and of one of the class.
    """
    first, last = union[:, :-1], union[:, 1:]
    # Of a class without pixels the union begins at 0; it has no loss.
    area = ops.where(first > 0, first, 1.0) * ops.where(last > 0, last, 1.0)
    mean = (intersection[:, :-1] + intersection[:, 1:]) / 2
    return mean / area, (first + last) / 2 / area
