"""Where a segmenter is right: at boundaries, and by the size of objects."""

import numpy as np
from PIL import Image, ImageFilter

BOUNDARY_PX = 3


def boundary_pixels(labels, distance_px=BOUNDARY_PX):
    """Pixels near another label.

    Args:
        labels: int array `(height, width)`, values 0..255.
        distance_px: int > 0. Within so many rows and columns. Defaults to 3.

    Returns:
        bool array `(height, width)`.

    Example:
    >>> boundary_pixels(np.array([[0, 0, 0, 0, 1, 1]]), distance_px=1)
    array([[False, False, False,  True,  True, False]])

    Reference:
        The "trimap" of [Chen et al., 2018](https://arxiv.org/abs/1802.02611),
        section 4.4. Differs from it in: square windows, and ignored pixels
        are a label like others here.
    """
    picture = Image.fromarray(np.asarray(labels).astype("uint8"))
    window = 2 * distance_px + 1
    low, high = (
        np.asarray(picture.filter(kind(window)))
        for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    return low != high


class ScaleRecall:
    """Share of objects' pixels that are labelled right, by size of object.

    Args:
        edges_px: floats in rising order. Bins are `[edge, next edge)`; the
            last one holds its upper edge too.
    """

    def __init__(self, edges_px):
        self.edges_px = tuple(edges_px)
        self.right = np.zeros(len(edges_px) - 1, "int64")
        self.total = np.zeros(len(edges_px) - 1, "int64")

    def update(self, predicted, instances, kinds, sizes_px):
        """Counts the objects of one picture.

        Args:
            predicted: int array `(height, width)` of labels.
            instances: int array `(height, width)`, `i` where the object
                `i - 1` is seen, 0 where none is.
            kinds: label of each object.
            sizes_px: size of each object.
        """
        bins = np.searchsorted(self.edges_px[1:-1], sizes_px, side="right")
        for i, (kind, where) in enumerate(zip(kinds, bins, strict=True)):
            seen = instances == i + 1
            self.total[where] += np.count_nonzero(seen)
            self.right[where] += np.count_nonzero(predicted[seen] == kind)

    def result(self):
        """dict: `"9-20"` and so on -> share in [0, 1], `None` without any."""
        names = (
            f"{low:.0f}-{high:.0f}"
            for low, high in zip(
                self.edges_px[:-1], self.edges_px[1:], strict=True
            )
        )
        return {
            name: float(right / total) if total else None
            for name, right, total in zip(
                names, self.right, self.total, strict=True
            )
        }
