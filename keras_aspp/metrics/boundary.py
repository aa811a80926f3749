"""Accuracy at object outlines: Boundary IoU, and IoU in bands around them.

Shape legend: H x W pixels, K `num_classes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from keras_aspp.labels import (
    check_ignore_label,
    check_num_classes,
    check_pair,
)
from keras_aspp.metrics.confusion import ConfusionMatrix
from keras_aspp.utils.numeric import check_int, check_number, check_numbers

BANDS_PX = (1, 2, 4, 8, 16)


class BoundaryIoU:
    """IoU of the inner rims of masks, per class, over a whole data set.

    The rim of a class consists of its pixels within `distance` of its
    outline; the image border counts as outline. Unlike IoU of areas, it is
    sensitive to the outlines of large objects.

    Args:
        num_classes: int > 1, background included.
        ignore_label: int. Pixels of this label belong to no class, in labels
            and prediction. Defaults to 255.
        distance: float > 0, as a share of the image diagonal. Defaults
            to 0.02.

    Example:
    >>> metric = BoundaryIoU(2)
    >>> metric.update(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 1]]))
    >>> metric.mean()
    1.0

    Reference:
        [Cheng et al., 2021](https://arxiv.org/abs/2103.16562), equation 3,
        summed over a data set before dividing, like mean IoU. Differs from it
        in: nothing.
    """

    def __init__(
        self, num_classes: int, ignore_label: int = 255, distance: float = 0.02
    ) -> None:
        self.num_classes: int = check_num_classes(num_classes)
        self.ignore_label: int = check_ignore_label(ignore_label)
        self.distance: float = check_number("distance", distance, "(0, 1]")
        self.shared: np.ndarray = np.zeros(num_classes, "int64")
        self.either: np.ndarray = np.zeros(num_classes, "int64")

    def update(self, labels: ArrayLike, predicted: ArrayLike) -> None:
        """Counts one image.

        Args:
            labels: int `(H, W)`, `0..K-1` or `ignore_label`.
            predicted: int `(H, W)`, `0..K-1` where labels are valid.

        Raises:
            ValueError: other shapes or values.
        """
        labels, predicted = check_pair(
            labels, predicted, self.num_classes, self.ignore_label
        )
        valid = labels != self.ignore_label
        distance_px = max(round(self.distance * np.hypot(*labels.shape)), 1)
        occur = np.unique(np.stack([labels, predicted])[:, valid])
        for class_id in occur:
            a, b = (
                rim((np.asarray(mask) == class_id) & valid, distance_px)
                for mask in (labels, predicted)
            )
            self.shared[class_id] += np.count_nonzero(a & b)
            self.either[class_id] += np.count_nonzero(a | b)

    def per_class(self) -> np.ndarray:
        """Returns IoU as float `(K,)`; `nan` for classes that do not occur."""
        with np.errstate(invalid="ignore"):
            return self.shared / self.either

    def mean(self) -> float:
        """Returns the mean over classes that occur, or `nan`."""
        found = self.per_class()[self.either > 0]
        return float(found.mean()) if found.size else float("nan")


class BandIoU:
    """Mean IoU of pixels near another label, by band width.

    Args:
        num_classes: int > 1, background included.
        ignore_label: int. Defaults to 255.
        bands_px: ints > 0, band widths in rows and columns. Defaults to
            (1, 2, 4, 8, 16).

    Reference:
        The "trimap" plot of [Chen et al.,
        2018](https://arxiv.org/abs/1802.02611), section 4.4. Differs from it
        in: the edge of an ignored region is an outline too.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int = 255,
        bands_px: Sequence[int] = BANDS_PX,
    ) -> None:
        self.num_classes: int = check_num_classes(num_classes)
        self.ignore_label: int = check_ignore_label(ignore_label)
        self.matrices: dict[int, ConfusionMatrix] = {
            check_int("bands_px", width): ConfusionMatrix(
                num_classes, ignore_label
            )
            for width in check_numbers("bands_px", bands_px, "(0, inf)")
        }

    def update(self, labels: ArrayLike, predicted: ArrayLike) -> None:
        """Counts one image; arguments as in `BoundaryIoU.update`."""
        labels, predicted = check_pair(
            labels, predicted, self.num_classes, self.ignore_label
        )
        found = np.unique(labels)
        for width, matrix in self.matrices.items():
            near = np.zeros(labels.shape, bool)
            for label in found:
                mask = labels == label
                near |= mask & _reached(~mask, width)
            matrix.update_state(
                np.where(near, labels, self.ignore_label)[None],
                predicted[None],
            )

    def mean(self) -> dict[int, float]:
        """Returns dict: band width in pixels -> mean IoU, or `nan`."""
        return {w: matrix.mean_iou() for w, matrix in self.matrices.items()}


def rim(mask: np.ndarray, distance_px: int) -> np.ndarray:
    """Returns the pixels of a mask within a distance of its outside.

    Args:
        mask: bool `(H, W)`. Everything beyond the image counts as outside.
        distance_px: int > 0, in rows and columns.

    Returns:
        bool `(H, W)`.
    """
    padded = np.pad(~mask, 1, constant_values=True)
    return mask & _reached(padded, distance_px)[1:-1, 1:-1]


def _reached(mask, distance_px):
    """Returns the pixels with a mask pixel in the window around them."""
    for axis in (0, 1):
        n = mask.shape[axis]
        sums = np.cumsum(mask, axis, dtype="int32")
        sums = np.insert(sums, 0, 0, axis)
        position = np.arange(n)
        first = np.maximum(position - distance_px, 0)
        last = np.minimum(position + distance_px + 1, n)
        mask = np.take(sums, last, axis) > np.take(sums, first, axis)
    return mask
