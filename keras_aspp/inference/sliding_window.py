"""SlidingWindow: an image predicted window by window.

Shape legend: B batch, H x W pixels, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_aspp.inference.serving import MASK_OUTPUTS, OUTPUTS
from keras_aspp.layers.background_logit import logit
from keras_aspp.pixels import PixelFormat
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_int, check_number
from keras_aspp.utils.types import Tensor


class SlidingWindow:
    """Runtime that predicts an image in overlapping windows.

    Memory then grows with the scores of the image alone, and the model
    predicts images of the size that it was trained on. Where windows overlap,
    the mean of their probabilities is weighted: the weight of a window falls
    towards its edge, where the model has the least context, so that no seam is
    left. An image that fits into one window is predicted as a whole.

    Args:
        engine: with `scores(images)`, float logits (B, H, W, K).
        window: int > 0. Height and width of the windows, in pixels. Those at
            the lower and right border may be smaller by less than a feature
            cell, so that cells of all windows lie on one grid.
        overlap: float in [0, 1). Share of a window that the next one predicts
            again. Defaults to 0.25.

    Raises:
        ValueError: an argument is not as above.
    """

    image_size: tuple[int, int] | None = None
    survives_fork: bool = False

    def __init__(self, engine: Any, window: int, overlap: float = 0.25) -> None:
        window = check_int("window", window)
        check_number("overlap", overlap, "[0, 1)")
        if window < engine.smallest_side:
            raise InputError(
                f"`window` must be at least {engine.smallest_side}, the side "
                "of the smallest image that the model segments. "
                f"Received: window={window}"
            )
        self.engine: Any = engine
        self.is_multilabel: bool = isinstance(engine.threshold, tuple)
        self.outputs: tuple[str, ...] = (
            MASK_OUTPUTS if self.is_multilabel else OUTPUTS
        )
        self.window: int = window
        self.overlap: float = overlap
        self.num_classes: int = engine.num_classes
        self.pixels: PixelFormat = getattr(engine, "pixels", PixelFormat())
        self.threshold: Threshold = engine.threshold
        self.smallest_side: int = engine.smallest_side
        self.output_stride: int = engine.output_stride
        self.align: int = alignment(engine, window)

    def bytes_needed(self, count: int, height: int, width: int) -> int:
        """Returns the memory for one window and the scores, in bytes."""
        window = (min(n, self.window) for n in (height, width))
        scores = count * height * width * (12 * self.num_classes + 8)
        return self.engine.bytes_needed(count, *window) + scores

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Computes logits, or the log of the mean probability of windows."""
        axes = [
            spans(n, self.window, self.overlap, self.align)
            for n in images.shape[1:3]
        ]
        if all(len(slices) == 1 for slices in axes):
            return self.engine.scores(images)
        rows, columns = (
            list(zip(slices, weights(slices), strict=True)) for slices in axes
        )
        mean = np.zeros((*images.shape[:3], self.num_classes), "float32")
        for (row, down), (column, across) in itertools.product(rows, columns):
            found = true_probabilities(
                self.engine.scores(images[:, row, column]), self.threshold
            )
            weight = down[:, None, None] * across[:, None]  # (h, w, 1)
            mean[:, row, column] += found * weight
        return to_scores(mean, 1, self.threshold)

    def answer(
        self, images: np.ndarray, outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Computes outputs of `from_scores`."""
        return from_scores(self.scores(images), outputs, self.threshold)


def alignment(engine: Any, window: int) -> int:
    """Returns the pixels of which windows start at multiples.

    Args:
        engine: with `output_stride` and `smallest_side`.
        window: int > 0, height and width of windows, in pixels.
    """
    stride = engine.output_stride
    return stride if window - stride >= engine.smallest_side else 1


def spans(
    size: int, window: int, overlap: float, align: int = 1
) -> list[slice]:
    """Splits an axis into overlapping slices.

    Args:
        size: int > 0, pixels of the axis.
        window: int > 0, pixels of a slice.
        overlap: float in [0, 1), share of a slice that the next one repeats
            at least.
        align: int > 0. Slices start at multiples of it, if `window` and
            `overlap` leave steps that long; the last is shorter then.

    Example:
    >>> spans(10, 4, 0.25)
    [slice(0, 4, None), slice(3, 7, None), slice(6, 10, None)]
    >>> spans(9, 6, 0.25, align=2)
    [slice(0, 6, None), slice(4, 9, None)]
    """
    if size <= window:
        return [slice(0, size)]
    step = max(int(window * (1 - overlap)), 1)
    align = align if step >= align else 1
    step -= step % align
    last = -(-(size - window) // align) * align
    starts = [*range(0, last, step), last]
    return [slice(start, min(start + window, size)) for start in starts]


def weights(slices: Sequence[slice]) -> list[np.ndarray]:
    """Computes weights of overlapping slices that sum to 1 at each pixel.

    From each edge they rise as half a cosine, over as many pixels as the first
    two slices share, half a slice at most.

    Args:
        slices: slices of one axis, in rising order, without a gap.

    Returns:
        list of float32 arrays, one per slice.
    """
    shared = max(slices[0].stop - slices[1].start, 0) if slices[1:] else 0
    found = []
    for one in slices:
        length = one.stop - one.start
        edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
        rise = min(shared, length / 2)
        share = np.minimum(edge / rise, 1) if rise else np.ones(length)
        found.append(np.sin(share * np.pi / 2) ** 2)
    total = np.zeros(slices[-1].stop)
    for one, weight in zip(slices, found, strict=True):
        total[one] += weight
    return [
        (weight / total[one]).astype("float32")
        for one, weight in zip(slices, found, strict=True)
    ]


def probabilities(scores: Tensor) -> np.ndarray:
    """Computes the softmax over classes, float32."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(scores, axis=-1))


# Of a binary model one threshold, of a multilabel one a tuple, one for each
# class; `None` for the classes of a semantic one.
Threshold: TypeAlias = float | tuple[float, ...] | None


def true_probabilities(
    scores: np.ndarray, threshold: Threshold = None
) -> np.ndarray:
    """Computes probabilities, whatever a model's thresholds are.

    The softmax over classes; of a multilabel model, whose threshold is a
    tuple, the sigmoid of each.
    """
    if isinstance(threshold, tuple):
        scores = scores + _logits(threshold)
        return keras.ops.convert_to_numpy(keras.ops.sigmoid(scores))
    if threshold is not None:
        # The background's logit is that of the threshold.
        scores = scores - np.array([logit(threshold), 0], "float32")
    return probabilities(scores)


def to_scores(
    total: np.ndarray, count: float, threshold: Threshold
) -> np.ndarray:
    """Computes the scores of mean probabilities in place of their sum.

    Their labels are those of the mean, by the model's thresholds.

    Args:
        total: float32 (B, H, W, K), sum of probabilities.
        count: number of summands.
        threshold: see `true_probabilities`.
    """
    if isinstance(threshold, tuple):
        total /= count
        rest = np.log(np.maximum(1 - total, 1e-30))
        return logarithm(total, 1) - rest - _logits(threshold)
    scores = logarithm(total, count)
    if threshold is not None:
        scores[..., 0] += logit(threshold)
    return scores


def _logits(thresholds):
    return np.array([logit(one) for one in thresholds], "float32")


def decide(
    scores: np.ndarray,
    threshold: Threshold = None,
    is_multilabel: bool = False,
) -> np.ndarray:
    """Returns labels of scores: (B, H, W), or (B, H, W, K) of masks.

    Args:
        scores: float32 (B, H, W, K).
        threshold: see `true_probabilities`; a tuple marks masks, too.
        is_multilabel: bool. True for masks, also of unknown thresholds.
    """
    if is_multilabel or isinstance(threshold, tuple):
        return (scores > 0).astype("uint8")
    return scores.argmax(-1)


def label_probability(
    probabilities: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Returns the probability of each pixel's label."""
    at = np.asarray(labels)[..., None]
    return np.take_along_axis(probabilities, at, -1)[..., 0]


def from_scores(
    scores: np.ndarray,
    outputs: Sequence[str],
    threshold: Threshold = None,
    is_multilabel: bool = False,
) -> dict[str, np.ndarray]:
    """Computes outputs from logits on the host.

    Args:
        scores: float32 (B, H, W, K).
        outputs: of `"labels"`, `"confidence"` and `"probabilities"`.
        threshold: see `true_probabilities`. Masks have no confidence.
        is_multilabel: bool; see `decide`.

    Returns:
        dict: name -> array (B, H, W) or (B, H, W, K).
    """
    found = {"labels": decide(scores, threshold, is_multilabel)}
    if {"confidence", "probabilities"} & set(outputs):
        found["probabilities"] = true_probabilities(scores, threshold)
    if "confidence" in outputs:
        found["confidence"] = label_probability(
            found["probabilities"], found["labels"]
        )
    return {name: found[name] for name in outputs}


def logarithm(total: np.ndarray, count: float) -> np.ndarray:
    """Computes the log of mean probabilities in place of `total`."""
    total /= count
    np.maximum(total, 1e-30, out=total)
    return np.log(total, out=total)
