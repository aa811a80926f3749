"""CrossEntropy, with the ways to let some pixels count more than others."""

import keras
from keras import ops

from keras_aspp.losses.base import (
    SegmentationLoss,
    check_not_negative,
    weighted_mean,
)
from keras_aspp.utils.exceptions import InputError


@keras.saving.register_keras_serializable(package="keras_aspp")
class CrossEntropy(SegmentationLoss):
    """Weighted mean of the valid pixels' cross entropies.

    Without further arguments it is Keras' `SparseCategoricalCrossentropy(
    from_logits=True, ignore_class=255)`.

    Args:
        ignore_label: see `SegmentationLoss`.
        class_weights: see `SegmentationLoss`; a pixel weighs what its label
            does.
        focal_gamma: float >= 0. Each pixel is multiplied by
            `(1 - p) ** focal_gamma`, p the probability of its label; 2 in the
            paper. Defaults to 0.
        label_smoothing: float in [0, 1): share of the target that is spread
            over all classes. Defaults to 0.
        hard_share: float in (0, 1]. Only this share of the batch's valid
            pixels counts, those of the highest loss ("top-k", "online hard
            example mining"). Defaults to 1.
        boundary_weight: float >= 0. Pixels near another valid label weigh
            that many times as much. Defaults to 1.
        boundary_px: int > 0: near is within so many rows and columns.
            Defaults to 2.
        name: str or `None`.

    Call arguments:
        y_true: int (B, H, W), `0..K-1` or `ignore_label`.
        y_pred: float (B, H, W, K) logits.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> loss = CrossEntropy(hard_share=0.5)
    >>> round(float(loss([[[0, 1]]], [[[[9.0, 0.0], [0.0, 0.0]]]])), 4)
    0.6931

    Reference:
        Focal: [Lin et al., 2017](https://arxiv.org/abs/1708.02002), equation
        4. Differs from it in: a softmax over classes. Hard pixels: [Wu et
        al., 2016](https://arxiv.org/abs/1605.06885), section 3.2, by share
        instead of by threshold. Boundaries: [Ronneberger et al.,
        2015](https://arxiv.org/abs/1505.04597), equation 2, with a band
        instead of a bell.
    """

    def __init__(
        self,
        ignore_label=255,
        class_weights=None,
        focal_gamma=0.0,
        label_smoothing=0.0,
        hard_share=1.0,
        boundary_weight=1.0,
        boundary_px=2,
        name="cross_entropy",
    ):
        super().__init__(ignore_label, class_weights, name)
        if not 0 < hard_share <= 1:
            raise InputError(
                "`hard_share` must be in (0, 1]. "
                f"Received: hard_share={hard_share}"
            )
        check_not_negative(
            focal_gamma=focal_gamma, boundary_weight=boundary_weight
        )
        if not 0 <= label_smoothing < 1:
            raise InputError(
                "`label_smoothing` must be in [0, 1). "
                f"Received: label_smoothing={label_smoothing}"
            )
        if type(boundary_px) is not int or boundary_px < 1:
            raise InputError(
                "`boundary_px` must be an int > 0. "
                f"Received: boundary_px={boundary_px}"
            )
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing
        self.hard_share = hard_share
        self.boundary_weight = boundary_weight
        self.boundary_px = boundary_px

    def of_valid(self, labels, logits, valid):
        # Keras' op keeps to one softmax and makes no one-hot labels.
        loss = entropy = ops.sparse_categorical_crossentropy(
            labels, logits, from_logits=True
        )
        if self.label_smoothing:
            spread = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
            share = self.label_smoothing
            loss = (1 - share) * loss + share * spread
        if self.focal_gamma:
            # 1 - p through expm1, and never a power of 0: its slope is
            # infinite for gammas below 1.
            miss = ops.maximum(-ops.expm1(-entropy), 1e-7)
            loss = miss**self.focal_gamma * loss
        weights = valid
        if self.class_weights is not None:
            of_class = self.weights_of(logits.shape[-1])
            weights = weights * ops.take(of_class, labels)
        if self.boundary_weight != 1:
            near = _near_another(labels, valid, self.boundary_px)
            weights = weights * (1 + near * (self.boundary_weight - 1))
        if self.hard_share < 1:
            weights = weights * _hardest(loss, valid, self.hard_share)
        return weighted_mean(loss, weights, self.everywhere)

    def get_config(self):
        return {
            **super().get_config(),
            "focal_gamma": self.focal_gamma,
            "label_smoothing": self.label_smoothing,
            "hard_share": self.hard_share,
            "boundary_weight": self.boundary_weight,
            "boundary_px": self.boundary_px,
        }


def _near_another(labels, valid, distance_px):
    """1 for pixels that see another valid label in the window around them."""
    window = 2 * distance_px + 1
    labels, valid = (ops.cast(x, "float32")[..., None] for x in (labels, valid))
    nothing = -1e4  # below every label

    def highest(x):
        x = ops.where(valid > 0, x, nothing)
        return ops.max_pool(x, window, strides=1, padding="same")

    return ops.cast(highest(labels) > -highest(-labels), "float32")[..., 0]


def _hardest(loss, valid, share):
    """1 for this share of the valid pixels, those of the highest loss."""
    # Ignored pixels sort behind all others: no loss is negative.
    loss = ops.stop_gradient(ops.where(valid > 0, loss, -1.0))
    ordered = ops.sort(ops.reshape(loss, (-1,)))[::-1]
    pixels = ops.sum(ops.cast(valid > 0, "float32"))
    count = ops.cast(ops.ceil(share * pixels), "int32")
    least = ops.take(ordered, ops.maximum(count - 1, 0))
    return ops.cast(loss >= ops.maximum(least, 0.0), "float32")
