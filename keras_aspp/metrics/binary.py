"""BinaryCurve: precision and recall of an object at every threshold.

Shape legend: B batch, H x W pixels, N `bins`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from keras_aspp.labels import check_ignore_label, check_values
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_int


class BinaryCurve:
    """Precision, recall, Dice and IoU over thresholds, of a whole data set.

    A pixel is predicted as the object where its probability exceeds the
    threshold, as in an argmax, where ties go to the background. Thresholds are
    multiples of `1 / bins`, and exact if `bins` is a power of 2; at threshold
    0 every pixel is predicted. Memory does not depend on the number of images.

    Probabilities within `1 / bins` of 0 or 1 are not told apart. Where a model
    gives such probabilities to many pixels of both labels, average precision
    is too low, and the best threshold may not be found.

    Args:
        ignore_label: int. Label of pixels that are not counted. Defaults to
            255.
        bins: int > 1, number of thresholds. Defaults to 1024.

    Attributes:
        thresholds: float `(N,)`, `0, 1 / bins, ..., 1 - 1 / bins`.
        pixels: int64 `(2, N)`, pixels by label and by bin of probability.
            Those of several curves add up to the curve of all their images.

    Raises:
        ValueError: an argument is not as above.

    Example:
    >>> curve = BinaryCurve()
    >>> curve.update(np.array([0, 1, 1, 255]), np.array([0.6, 0.3, 0.9, 0.1]))
    >>> curve.best_threshold()
    0.2998046875
    >>> round(curve.average_precision(), 4)
    0.8333
    """

    def __init__(self, ignore_label: int = 255, bins: int = 1024) -> None:
        bins = check_int("bins", bins, 2)
        self.ignore_label: int = check_ignore_label(ignore_label)
        self.thresholds: np.ndarray = np.arange(bins) / bins
        self.pixels: np.ndarray = np.zeros((2, bins), "int64")

    def update(self, labels: ArrayLike, probabilities: ArrayLike) -> None:
        """Counts pixels.

        Args:
            labels: int array, usually `(B, H, W)`: 1 for the object, 0 for the
                background, or `ignore_label`.
            probabilities: float array of the same shape, of the object, in
                0..1 where the label is not ignored.

        Raises:
            ValueError: other shapes, labels or probabilities.
        """
        labels = np.asarray(labels)
        probabilities = np.asarray(probabilities)
        if labels.shape != probabilities.shape:
            raise InputError(
                "Labels and probabilities of the object must have one shape. "
                f"Received: {labels.shape} and {probabilities.shape}"
            )
        check_values("labels", labels, 2, self.ignore_label)
        valid = labels != self.ignore_label
        labels = labels[valid].astype("int64")
        probabilities = probabilities[valid].astype("float64")
        wrong = ~((probabilities >= 0) & (probabilities <= 1))
        if wrong.any():
            raise InputError(
                "`probabilities` must be in 0..1. Received: "
                f"{wrong.sum()} others, first {probabilities[wrong][0]}"
            )
        # Bin i holds what exceeds threshold i and not the next.
        bins = len(self.thresholds)
        where = np.ceil(probabilities * bins).astype("int64") - 1
        where = labels * bins + np.maximum(where, 0)
        counted = np.bincount(where, minlength=2 * bins)
        self.pixels += counted.reshape(2, bins)

    def _counts(self):
        """Returns true positives, false positives and false negatives."""
        false, true = np.cumsum(self.pixels[:, ::-1], axis=1)[:, ::-1]
        return true, false, true[0] - true

    def precision(self) -> np.ndarray:
        """Returns precision, float `(N,)`; `nan` where none is predicted."""
        true, false, _ = self._counts()
        return _ratio(true, true + false)

    def recall(self) -> np.ndarray:
        """Returns recall, float `(N,)`; `nan` if the object never occurs."""
        true, _, missed = self._counts()
        return _ratio(true, true + missed)

    def f1(self) -> np.ndarray:
        """Returns the F1 score, which is Dice, float `(N,)`, or `nan`."""
        true, false, missed = self._counts()
        return _ratio(2 * true, 2 * true + false + missed)

    def iou(self) -> np.ndarray:
        """Returns the IoU of the object, float `(N,)`, or `nan`."""
        true, false, missed = self._counts()
        return _ratio(true, true + false + missed)

    def average_precision(self) -> float:
        """Returns the area under the curve, or `nan` without object.

        The sum of precision times the increase of recall from one threshold to
        the next lower one, without interpolation, as in scikit-learn.
        """
        true, false, _ = self._counts()
        if not true[0]:
            return float("nan")
        precision = np.nan_to_num(_ratio(true, true + false))
        gained = -np.diff(np.append(true, 0)) / true[0]
        return float(np.sum(precision * gained))

    def best_threshold(self) -> float:
        """Returns the threshold of highest F1 in (0, 1), or `nan`.

        It is also that of highest IoU, since IoU is F1 / (2 - F1). Of equally
        good thresholds it is the nearest to 0.5. `nan` if the object never
        occurs: no threshold is better than another then.
        """
        if not self.pixels[1].any():
            return float("nan")
        # 0 separates nothing, since every pixel exceeds it.
        f1, thresholds = self.f1()[1:], self.thresholds[1:]
        best = thresholds[f1 == f1.max()]
        return float(best[np.argmin(np.abs(best - 0.5))])


def binary_scores(matrix: np.ndarray) -> dict[str, float]:
    """Returns the measures of the object from a confusion matrix.

    Args:
        matrix: `(2, 2)`, rows labels, columns predictions; class 1 is the
            object.

    Returns:
        dict: `iou`, `dice` (F1), `precision`, `recall`; NaN for 0 / 0.
    """
    (_, wrong), (missed, right) = np.asarray(matrix, "float64")
    ratios = {
        "iou": (right, right + wrong + missed),
        "dice": (2 * right, 2 * right + wrong + missed),
        "precision": (right, right + wrong),
        "recall": (right, right + missed),
    }
    return {name: float(_ratio(*parts)) for name, parts in ratios.items()}


def _ratio(part, whole):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole, dtype="float64")
