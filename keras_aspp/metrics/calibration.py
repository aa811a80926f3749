"""Calibration: confidence compared with accuracy.

Shape legend: B batch, H x W pixels, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from keras_aspp.labels import check_ignore_label, check_values
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_int


class Calibration:
    """Expected calibration error over a whole data set.

    The confidence of a pixel is the probability of its predicted class.

    Args:
        ignore_label: int. Label of pixels that are not counted. Defaults to
            255.
        bins: int > 0, number of bins of equal width over 0..1. Defaults to 15.

    Example:
    >>> metric = Calibration()
    >>> scores = np.log([[[[0.5, 0.5], [0.1, 0.9]]]])
    >>> metric.update(np.array([[[0, 1]]]), scores)
    >>> round(metric.error(), 2)
    0.3

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599), equation 5.
        Differs from it in: bins are `[a, b)`, where the paper has `(a, b]`.
    """

    def __init__(self, ignore_label: int = 255, bins: int = 15) -> None:
        self.ignore_label: int = check_ignore_label(ignore_label)
        bins = check_int("bins", bins)
        self.pixels: np.ndarray = np.zeros(bins, "int64")
        self.right: np.ndarray = np.zeros(bins, "int64")
        self.confidence: np.ndarray = np.zeros(bins, "float64")

    def update(
        self,
        labels: ArrayLike,
        scores: ArrayLike,
        predicted: ArrayLike | None = None,
    ) -> None:
        """Counts a batch.

        Args:
            labels: int `(B, H, W)`, `0..K-1` or `ignore_label`.
            scores: float `(B, H, W, K)` logits.
            predicted: int `(B, H, W)`, `0..K-1`, of a model that does not
                label by the highest score, as a binary one with a threshold;
                or `None`.

        Raises:
            ValueError: other shapes or labels, or scores that are NaN.
        """
        labels, scores = np.asarray(labels), np.asarray(scores, "float32")
        if scores.ndim != 4 or labels.shape != scores.shape[:3]:
            raise InputError(
                "Labels must be (B, H, W) and scores (B, H, W, K). Received: "
                f"shapes {labels.shape} and {scores.shape}"
            )
        check_values("labels", labels, scores.shape[-1], self.ignore_label)
        predicted = scores.argmax(-1) if predicted is None else predicted
        predicted = np.asarray(predicted)
        most = scores.shape[-1] - 1
        if (
            predicted.shape != labels.shape
            or predicted.dtype.kind not in "iu"
            or (
                predicted.size
                and not 0 <= predicted.min() <= predicted.max() <= most
            )
        ):
            raise InputError(
                f"`predicted` must be int (B, H, W) in 0..{most}, as labels "
                f"are. Received: {predicted.dtype} of shape {predicted.shape} "
                f"for labels of shape {labels.shape}"
            )
        valid = labels != self.ignore_label
        # Softmax, its largest exponent shifted to 0.
        exponents = np.exp(scores - scores.max(-1, keepdims=True))
        own = np.take_along_axis(exponents, predicted[..., None], -1)[..., 0]
        confidence = (own / exponents.sum(-1))[valid]
        if np.isnan(confidence).any():
            raise InputError(
                "Scores must be numbers. Received: "
                f"{np.isnan(confidence).sum()} pixels with NaN"
            )
        right = (predicted == labels)[valid]
        bins = len(self.pixels)
        where = np.minimum((confidence * bins).astype(int), bins - 1)
        self.pixels += np.bincount(where, minlength=bins)
        self.right += np.bincount(where, right, bins).astype("int64")
        self.confidence += np.bincount(where, confidence, bins)

    def error(self) -> float:
        """Returns the expected calibration error in [0, 1], or `nan`."""
        total = self.pixels.sum()
        if not total:
            return float("nan")
        return float(np.abs(self.right - self.confidence).sum() / total)

    def histogram(self) -> list[dict[str, int | float | None]]:
        """Returns the bins in order of rising confidence.

        Returns:
            list of dict: `pixels` (int), `confidence` and `accuracy` (means
            in [0, 1], `None` for an empty bin).
        """
        return [
            {
                "pixels": int(n),
                "confidence": float(c / n) if n else None,
                "accuracy": float(r / n) if n else None,
            }
            for n, r, c in zip(
                self.pixels, self.right, self.confidence, strict=True
            )
        ]
