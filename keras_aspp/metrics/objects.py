"""Recall of objects by their size.

Shape legend: H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from keras_aspp.labels import check_values
from keras_aspp.utils.deprecation import renamed_arguments, warn_renamed
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.numeric import check_numbers

# Bin edges for regions, as the side of a square of equal area. 32 and 96 are
# those of COCO.
SIDES_PX = (0.0, 16.0, 32.0, 96.0, np.inf)


class SizeRecall:
    """Share of object pixels predicted correctly, by object size.

    Args:
        edges_px: floats in rising order. Bins are `[edge, next edge)`; the
            last one includes its upper edge. Objects of other sizes are not
            counted. Defaults to 0, 16, 32, 96 and infinity.

    Example:
    >>> recall = SizeRecall()
    >>> labels = np.array([[0, 0, 1, 255]])
    >>> recall.update(np.array([[0, 1, 1, 1]]), *regions(labels))
    >>> recall.result()["0-16"]
    0.6666666666666666
    """

    def __init__(self, edges_px: Sequence[float] = SIDES_PX) -> None:
        self.edges_px: tuple[float, ...] = _checked_edges(edges_px)
        bins = len(self.edges_px) - 1
        self.right: np.ndarray = np.zeros(bins, "int64")
        self.total: np.ndarray = np.zeros(bins, "int64")
        self.objects: np.ndarray = np.zeros(bins, "int64")

    @renamed_arguments(kinds="class_ids")
    def update(
        self,
        predicted: ArrayLike,
        instances: ArrayLike,
        class_ids: ArrayLike,
        sizes_px: ArrayLike,
    ) -> None:
        """Counts the objects of one image.

        Args:
            predicted: int array `(height, width)` of labels.
            instances: int array `(height, width)`, `i` at the pixels of
                object `i - 1`, 0 elsewhere.
            class_ids: ints, class of each object.
            sizes_px: floats, size of each object.

        Raises:
            ValueError: shapes differ, or an instance has no class or size.
        """
        predicted, instances = np.asarray(predicted), np.asarray(instances)
        class_ids, sizes_px = np.asarray(class_ids), np.asarray(sizes_px)
        count = len(class_ids)
        if predicted.shape != instances.shape:
            raise InputError(
                "`predicted` and `instances` must have one shape. Received: "
                f"shapes {predicted.shape} and {instances.shape}"
            )
        if instances.dtype.kind not in "iu":
            raise InputError(
                "`instances` must be ints, 0 outside all objects. "
                f"Received: dtype {instances.dtype}"
            )
        if len(sizes_px) != count or not (
            0 <= instances.min(initial=0) <= instances.max(initial=0) <= count
        ):
            raise InputError(
                "`class_ids` and `sizes_px` must describe each instance. "
                f"Received: {count} class ids, {len(sizes_px)} sizes, "
                f"instances {instances.min()}..{instances.max()}"
            )
        low, *inner, high = self.edges_px
        bins = np.searchsorted(inner, sizes_px, side="right")
        counted = (low <= sizes_px) & (sizes_px <= high)
        # Pixels outside all objects get a class that is never predicted.
        right = np.append(-1, class_ids)[instances] == predicted
        for sums, where in (
            (self.total, slice(None)),
            (self.right, right),
        ):
            seen = np.bincount(instances[where].ravel(), minlength=count + 1)
            np.add.at(sums, bins[counted], seen[1:][counted])
        np.add.at(self.objects, bins[counted], 1)

    def result(self) -> dict[str, float | None]:
        """Returns dict: `"9-20"`, ... -> share in [0, 1], `None` if empty."""
        return {
            name: float(right / total) if total else None
            for name, right, total in zip(
                self._names(), self.right, self.total, strict=True
            )
        }

    def counts(self) -> dict[str, int]:
        """Returns dict: `"9-20"`, ... -> number of objects."""
        return dict(zip(self._names(), self.objects.tolist(), strict=True))

    def _names(self):
        return [
            # 15 digits: different edges never share a name.
            f"{low:.15g}-{high:.15g}"
            if high < np.inf
            else f"{low:.15g} and more"
            for low, high in zip(
                self.edges_px[:-1], self.edges_px[1:], strict=True
            )
        ]


class ScaleRecall(SizeRecall):
    """Deprecated name of `SizeRecall`."""

    def __init__(self, edges_px: Sequence[float] = SIDES_PX) -> None:
        warn_renamed("ScaleRecall", "SizeRecall")
        super().__init__(edges_px)


def _checked_edges(edges_px):
    edges = check_numbers("edges_px", edges_px, "[0, inf]")
    if len(edges) < 2 or sorted(set(edges)) != list(edges):
        raise InputError(
            "`edges_px` must be at least two numbers, each larger than the one "
            f"before. Received: edges_px={edges}"
        )
    return edges


def regions(
    labels: ArrayLike, ignore_label: int = 255, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds connected regions of one label as a substitute for objects.

    Touching objects of one class form one region; a partly hidden object may
    form several.

    Args:
        labels: int array `(height, width)`.
        ignore_label: int, label of pixels outside all regions. Defaults to
            255.
        num_classes: int, exclusive limit of labels, or `None`. Defaults to
            `None`.

    Returns:
        `(instances, class_ids, sizes_px)`, arguments of `SizeRecall.update`.
        Pixels that touch at a corner are connected. The size is the side of a
        square of equal area.

    Raises:
        ValueError: a label is neither a class nor `ignore_label`.
    """
    from scipy import ndimage

    labels = np.asarray(labels)
    check_values("labels", labels, num_classes, ignore_label)
    instances = np.zeros(labels.shape, "int32")
    class_ids = []
    for label in np.unique(labels[labels != ignore_label]):
        mask = labels == label
        found, count = ndimage.label(mask, np.ones((3, 3)))
        instances[mask] = found[mask] + len(class_ids)
        class_ids += [int(label)] * count
    areas = np.bincount(instances.ravel(), minlength=len(class_ids) + 1)[1:]
    return instances, np.array(class_ids, "int64"), np.sqrt(areas)
