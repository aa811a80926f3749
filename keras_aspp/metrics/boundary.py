"""How well outlines are met: Boundary IoU, and IoU in bands around them.

Shape legend: H x W pixels, K `num_classes`.
"""

import numpy as np

from keras_aspp.labels import check_num_classes, check_pair
from keras_aspp.metrics.confusion import ConfusionMatrix

BANDS_PX = (1, 2, 4, 8, 16)


class BoundaryIoU:
    """IoU of the inner rims of masks, per class, over a whole set.

    The rim of a class is its pixels within `distance` of its outline, the
    edge of the picture being outline too. IoU of areas hardly notices the
    outline of a large object; this does.

    Args:
        num_classes: int > 1, background included.
        ignore_label: int. Pixels labelled so belong to no class, in the
            prediction neither. Defaults to 255.
        distance: float > 0, as a share of the picture's diagonal. Defaults
            to 0.02.

    Example:
    >>> metric = BoundaryIoU(2)
    >>> metric.update(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 1]]))
    >>> metric.mean()
    1.0

    Reference:
        [Cheng et al., 2021](https://arxiv.org/abs/2103.16562), equation 3,
        summed over a set before dividing, as mean IoU is. Differs from it in:
        nothing.
    """

    def __init__(self, num_classes, ignore_label=255, distance=0.02):
        self.num_classes = check_num_classes(num_classes)
        self.ignore_label = ignore_label
        self.distance = distance
        self.shared = np.zeros(num_classes, "int64")
        self.either = np.zeros(num_classes, "int64")

    def update(self, labels, predicted):
        """Counts one picture.

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
        for kind in occur:
            a, b = (
                rim(np.asarray(mask) == kind, distance_px)
                for mask in (labels, predicted)
            )
            self.shared[kind] += np.count_nonzero(a & b)
            self.either[kind] += np.count_nonzero(a | b)

    def per_class(self):
        """Float `(K,)` in [0, 1]; `nan` for a class that does not occur."""
        with np.errstate(invalid="ignore"):
            return self.shared / self.either

    def mean(self):
        """Mean over classes that occur, or `nan`."""
        found = self.per_class()[self.either > 0]
        return float(found.mean()) if found.size else float("nan")


class BandIoU:
    """Mean IoU of the pixels near another label, by width of the band.

    Args:
        num_classes: int > 1, background included.
        ignore_label: int. Defaults to 255.
        bands_px: ints > 0: near is within so many rows and columns. Defaults
            to (1, 2, 4, 8, 16).

    Reference:
        The "trimap" plot of [Chen et al.,
        2018](https://arxiv.org/abs/1802.02611), section 4.4. Differs from it
        in: the edge of what is ignored is an outline too.
    """

    def __init__(self, num_classes, ignore_label=255, bands_px=BANDS_PX):
        self.num_classes = check_num_classes(num_classes)
        self.ignore_label = ignore_label
        self.matrices = {
            width: ConfusionMatrix(num_classes, ignore_label)
            for width in bands_px
        }

    def update(self, labels, predicted):
        """Counts one picture; arguments as `BoundaryIoU.update`."""
        labels, predicted = check_pair(
            labels, predicted, self.num_classes, self.ignore_label
        )
        kinds = np.unique(labels)
        for width, matrix in self.matrices.items():
            near = np.zeros(labels.shape, bool)
            for kind in kinds:
                mask = labels == kind
                near |= mask & _reached(~mask, width)
            matrix.update_state(
                np.where(near, labels, self.ignore_label)[None],
                predicted[None],
            )

    def mean(self):
        """dict: width in pixels -> mean IoU, or `nan`."""
        return {w: matrix.mean_iou() for w, matrix in self.matrices.items()}


def rim(mask, distance_px):
    """Pixels of a mask within `distance_px` rows and columns of its outside.

    Args:
        mask: bool `(H, W)`; beyond the picture is outside.
        distance_px: int > 0.
    """
    padded = np.pad(~mask, 1, constant_values=True)
    return mask & _reached(padded, distance_px)[1:-1, 1:-1]


def _reached(mask, distance_px):
    """Pixels that have one of the mask in the square window around them."""
    for axis in (0, 1):
        n = mask.shape[axis]
        sums = np.cumsum(mask, axis, dtype="int32")
        sums = np.insert(sums, 0, 0, axis)
        position = np.arange(n)
        first = np.maximum(position - distance_px, 0)
        last = np.minimum(position + distance_px + 1, n)
        mask = np.take(sums, last, axis) > np.take(sums, first, axis)
    return mask
