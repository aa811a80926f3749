"""CrossEntropy, with focal, hard-pixel and boundary weighting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_aspp.losses.base import SegmentationLoss, weighted_mean
from keras_aspp.utils.numeric import check_int, check_number
from keras_aspp.utils.types import Tensor

# Three digits of the bits of a float32 >= 0.
_BASE = 2**11
_DIGITS = (_BASE**2, _BASE, 1)


@keras.saving.register_keras_serializable(package="keras_aspp")
class CrossEntropy(SegmentationLoss):
    """Weighted mean of the cross entropy over valid pixels.

    By default it equals Keras' `SparseCategoricalCrossentropy(
    from_logits=True, ignore_class=255)`.

    Args:
        ignore_label: see `SegmentationLoss`.
        class_weights: see `SegmentationLoss`; a pixel has the weight of its
            label.
        focal_gamma: float >= 0. Each pixel is multiplied by
            `(1 - p) ** focal_gamma`, p the probability of its label; 2 in the
            paper. Defaults to 0.
        label_smoothing: float in [0, 1), share of the target distributed
            over all classes. Defaults to 0.
        hard_share: float in (0, 1]. Share of the valid pixels of a batch
            that is kept, those of the highest loss ("top-k", "online hard
            example mining"). Defaults to 1.
        boundary_weight: float >= 0, factor of the weight of pixels near
            another valid label. Defaults to 1.
        boundary_px: int > 0, distance in rows and columns that counts as
            near. Defaults to 2.
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
        ignore_label: int = 255,
        class_weights: Sequence[float] | None = None,
        focal_gamma: float = 0.0,
        label_smoothing: float = 0.0,
        hard_share: float = 1.0,
        boundary_weight: float = 1.0,
        boundary_px: int = 2,
        name: str | None = "cross_entropy",
    ) -> None:
        super().__init__(ignore_label, class_weights, name)
        self.focal_gamma = check_number("focal_gamma", focal_gamma, "[0, inf)")
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, "[0, 1)"
        )
        self.hard_share = check_number("hard_share", hard_share, "(0, 1]")
        self.boundary_weight = check_number(
            "boundary_weight", boundary_weight, "[0, inf)"
        )
        self.boundary_px = check_int("boundary_px", boundary_px)

    def compute(self, labels: Tensor, logits: Tensor, valid: Tensor) -> Tensor:
        # This op of Keras computes one softmax and no one-hot labels.
        loss = entropy = ops.sparse_categorical_crossentropy(
            labels, logits, from_logits=True
        )
        if self.label_smoothing:
            spread = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
            share = self.label_smoothing
            loss = (1 - share) * loss + share * spread
        if self.focal_gamma:
            # 1 - p through expm1 for precision, and bounded away from 0, where
            # the slope is infinite for gammas below 1.
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
            weights = weights * _hardest(
                loss, valid, self.hard_share, self.all_reduce_sum
            )
        return weighted_mean(loss, weights, self.all_reduce_sum)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "focal_gamma": self.focal_gamma,
            "label_smoothing": self.label_smoothing,
            "hard_share": self.hard_share,
            "boundary_weight": self.boundary_weight,
            "boundary_px": self.boundary_px,
        }


def _near_another(labels, valid, distance_px):
    """Returns 1 for pixels with another valid label in their window."""
    window = 2 * distance_px + 1
    labels, valid = (ops.cast(x, "float32")[..., None] for x in (labels, valid))
    nothing = -1e4  # below every label

    def highest(x):
        x = ops.where(valid > 0, x, nothing)
        return ops.max_pool(x, window, strides=1, padding="same")

    return ops.cast(highest(labels) > -highest(-labels), "float32")[..., 0]


def _hardest(loss, valid, share, all_reduce_sum):
    """Returns 1 for this share of the valid pixels, by highest loss.

    The least loss of that share is found digit by digit, from the sums of
    weights of each digit, which replicas can add. A sort could not be shared.
    """
    # Floats >= 0 have the order of their bits. Keras must know the last axis.
    loss = ops.maximum(ops.stop_gradient(loss), 0.0)[..., None]
    bits = ops.view(loss, "int32")[..., 0]
    wanted = share * all_reduce_sum(ops.sum(valid))
    least = 0
    for digit in _DIGITS:
        # Of the pixels equal to `least` in the digits before.
        equal = bits // digit // _BASE == least // digit // _BASE
        weight = all_reduce_sum(
            ops.segment_sum(
                ops.reshape(ops.where(equal, valid, 0.0), (-1,)),
                ops.reshape(bits // digit % _BASE, (-1,)),
                num_segments=_BASE,
            )
        )
        # Of pixels with this digit or a higher one.
        reached = ops.flip(ops.cumsum(ops.flip(weight)))
        chosen = ops.sum(ops.cast(reached >= wanted, "int32")) - 1
        chosen = ops.maximum(chosen, 0)  # sums are rounded
        wanted = wanted - ops.take(reached - weight, chosen)
        least = least + chosen * digit
    return ops.cast(bits >= least, "float32")
