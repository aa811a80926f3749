"""How well objects are found, by their size.

Shape legend: H x W pixels.
"""

import numpy as np

from keras_aspp.labels import check_values
from keras_aspp.utils.exceptions import InputError

# Edges of the bins for regions, by the side of a square as large; 32 and 96
# are COCO's.
SIDES_PX = (0.0, 16.0, 32.0, 96.0, np.inf)


class ScaleRecall:
    """Share of objects' pixels that are labelled right, by size of object.

    Args:
        edges_px: floats in rising order. Bins are `[edge, next edge)`; the
            last one holds its upper edge too. Defaults to 0, 16, 32, 96 and
            infinity.

    Example:
    >>> recall = ScaleRecall()
    >>> labels = np.array([[0, 0, 1, 255]])
    >>> recall.update(np.array([[0, 1, 1, 1]]), *regions(labels))
    >>> recall.result()["0-16"]
    0.6666666666666666
    """

    def __init__(self, edges_px=SIDES_PX):
        self.edges_px = tuple(edges_px)
        self.right = np.zeros(len(edges_px) - 1, "int64")
        self.total = np.zeros(len(edges_px) - 1, "int64")
        self.objects = np.zeros(len(edges_px) - 1, "int64")

    def update(self, predicted, instances, kinds, sizes_px):
        """Counts the objects of one picture.

        Args:
            predicted: int array `(height, width)` of labels.
            instances: int array `(height, width)`, `i` where the object
                `i - 1` is seen, 0 where none is.
            kinds: label of each object.
            sizes_px: size of each object.

        Raises:
            ValueError: shapes differ, or an instance has no kind and size.
        """
        predicted, instances = np.asarray(predicted), np.asarray(instances)
        count = len(kinds)
        if predicted.shape != instances.shape:
            raise InputError(
                "`predicted` and `instances` must have one shape. Received: "
                f"shapes {predicted.shape} and {instances.shape}"
            )
        if len(sizes_px) != count or not (
            0 <= instances.min(initial=0) <= instances.max(initial=0) <= count
        ):
            raise InputError(
                "`kinds` and `sizes_px` must describe each instance. Received: "
                f"{count} kinds, {len(sizes_px)} sizes, instances "
                f"{instances.min()}..{instances.max()}"
            )
        bins = np.searchsorted(self.edges_px[1:-1], sizes_px, side="right")
        # What belongs to no object is of a kind that is never predicted.
        right = np.append(-1, kinds)[instances] == predicted
        for sums, where in (
            (self.total, slice(None)),
            (self.right, right),
        ):
            seen = np.bincount(instances[where].ravel(), minlength=count + 1)
            np.add.at(sums, bins, seen[1:])
        np.add.at(self.objects, bins, 1)

    def result(self):
        """dict: `"9-20"` and so on -> share in [0, 1], `None` without any."""
        return {
            name: float(right / total) if total else None
            for name, right, total in zip(
                self._names(), self.right, self.total, strict=True
            )
        }

    def counts(self):
        """dict: `"9-20"` and so on -> how many objects there are."""
        return dict(zip(self._names(), self.objects.tolist(), strict=True))

    def _names(self):
        return [
            f"{low:.0f}-{high:.0f}" if high < np.inf else f"{low:.0f} and more"
            for low, high in zip(
                self.edges_px[:-1], self.edges_px[1:], strict=True
            )
        ]


def regions(labels, ignore_label=255, num_classes=None):
    """Connected regions of one label, which is what a mask knows of objects.

    Two objects of a class that touch are one region; one that is partly
    hidden may be several.

    Args:
        labels: int array `(height, width)`.
        ignore_label: int; what is labelled so is in no region. Defaults to
            255.
        num_classes: int: labels must be below it; or `None`. Defaults to
            `None`.

    Returns:
        `(instances, kinds, sizes_px)`, as `ScaleRecall.update` takes them.
        Pixels that touch at a corner are connected; the size is the side of a
        square of as many pixels.

    Raises:
        ValueError: a label is neither a class nor `ignore_label`.
    """
    from scipy import ndimage

    labels = np.asarray(labels)
    check_values("labels", labels, num_classes, ignore_label)
    instances = np.zeros(labels.shape, "int32")
    kinds = []
    for kind in np.unique(labels[labels != ignore_label]):
        mask = labels == kind
        found, count = ndimage.label(mask, np.ones((3, 3)))
        instances[mask] = found[mask] + len(kinds)
        kinds += [int(kind)] * count
    areas = np.bincount(instances.ravel(), minlength=len(kinds) + 1)[1:]
    return instances, np.array(kinds, "int64"), np.sqrt(areas)
