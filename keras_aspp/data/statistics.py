"""Frequencies of the classes of a split."""

import collections
import dataclasses

import numpy as np

from keras_aspp.data.sources import Source

# Number of images sampled for the sizes of a split that is not read in full.
SIZES_SAMPLED = 32


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Class counts of a split, int64 arrays `(num_classes,)`.

    Attributes:
        pixels: pixels of each class.
        images: number of images that contain it.
        pixels_of_images: valid pixels of those images.
    """

    pixels: np.ndarray
    images: np.ndarray
    pixels_of_images: np.ndarray


def sizes_of(
    source: Source, split: str, count: int = SIZES_SAMPLED
) -> dict[tuple[int, int], int]:
    """Counts the sizes of the first images of a split.

    Args:
        source: `FolderSource` or `TfdsSource`.
        split: name of one of its splits.
        count: int > 0, images to decode.

    Returns:
        dict, `(height, width)` -> how many of them have it.
    """
    records = source.records(split).take(count).as_numpy_iterator()
    return collections.Counter(
        source.decode(*record)[1].shape[:2] for record in records
    )


def count_classes(source: Source, split: str) -> ClassCounts:
    """Counts the classes of a split, every mask once.

    Args:
        source: `FolderSource` or `TfdsSource`.
        split: name of one of its splits.

    Returns:
        `ClassCounts`.

    Raises:
        ValueError: no such split, or an unreadable file, which is named.
    """
    spec = source.spec
    counts = np.zeros((3, spec.num_classes), "int64")
    for record in source.records(split).as_numpy_iterator():
        _, labels = source.decode(*record)
        pixels = spec.count_pixels(labels)[:-1]
        # Of each mask for multilabel.
        valid = np.count_nonzero(labels != spec.ignore_label, axis=(0, 1))
        seen = pixels > 0
        counts += [pixels, seen, seen * valid]
    return ClassCounts(*counts)
