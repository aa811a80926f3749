"""How often the classes of a split are seen."""

import collections
import dataclasses

import numpy as np

from keras_aspp.data.sources import Source

# Images whose sizes stand for those of a split that is not read beforehand.
SIZES_SAMPLED = 32


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Counts of a split, int64 arrays `(num_classes,)`.

    Attributes:
        pixels: pixels of each class.
        pictures: pictures in which it is seen.
        pixels_of_pictures: valid pixels of those pictures.
    """

    pixels: np.ndarray
    pictures: np.ndarray
    pixels_of_pictures: np.ndarray


def sizes_of(
    source: Source, split: str, count: int = SIZES_SAMPLED
) -> dict[tuple[int, int], int]:
    """Sizes of the first images of a split.

    Args:
        source: `FolderSource` or `TfdsSource`.
        split: name of one of its splits.
        count: int > 0, images to decode.

    Returns:
        dict, `(height, width)` -> how many of them have it.
    """
    records = source.records(split).take(count).as_numpy_iterator()
    return collections.Counter(
        source.decode(*record)[1].shape for record in records
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
        labels = labels[labels != spec.ignore_label]
        pixels = np.bincount(labels, minlength=spec.num_classes)
        seen = pixels > 0
        counts += [pixels, seen, seen * labels.size]
    return ClassCounts(*counts)
