"""LovaszSoftmax: the convex surrogate of mean IoU."""

import keras
from keras import ops

from keras_aspp.losses.base import SegmentationLoss


@keras.saving.register_keras_serializable(package="keras_aspp")
class LovaszSoftmax(SegmentationLoss):
    """The Lovász extension of 1 - IoU, mean over labelled classes.

    It sorts the batch's pixels once for each class, so it costs more than
    other losses; it is mostly used beside cross entropy, or after it.

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
        over the batch, classes "present". Differs from it in: nothing.
    """

    def __init__(self, ignore_label=255, class_weights=None, name="lovasz"):
        super().__init__(ignore_label, class_weights, name)

    def of_valid(self, labels, logits, valid):
        classes = logits.shape[-1]
        # Class by class, pixels last: what is sorted is contiguous.
        wanted = ops.one_hot(labels, classes, dtype="float32")
        errors = ops.abs(wanted - ops.softmax(logits, axis=-1))
        # An ignored pixel is right, so it sorts last and adds nothing.
        wanted, errors = (
            ops.transpose(ops.reshape(x * valid[..., None], (-1, classes)))
            for x in (wanted, errors)
        )
        order = ops.argsort(-ops.stop_gradient(errors), axis=-1)
        wanted = ops.take_along_axis(wanted, order, axis=-1)
        errors = ops.take_along_axis(errors, order, axis=-1)
        pixels = ops.sum(wanted, axis=-1)
        slopes = _slopes(wanted, pixels[:, None])
        losses = ops.sum(errors * ops.stop_gradient(slopes), axis=-1)
        return self.mean_of_labelled(losses, pixels)


def _slopes(wanted, pixels):
    """By how much 1 - IoU grows with each further wrong pixel, (K, N)."""
    intersection = pixels - ops.cumsum(wanted, axis=-1)
    union = pixels + ops.cumsum(1 - wanted, axis=-1)
    # Of a class without pixels, the first wrong one makes IoU 0 of 1.
    jaccard = 1 - intersection / union
    return ops.concatenate(
        [jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], axis=-1
    )
