"""Parts that readers of annotations share."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_aspp.annotations.regions import AnnotatedImage, Annotations, Region
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Size

_SHOWN = 60

# Raised where JSON or XML has other types than documented.
_DAMAGED = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    zlib.error,
)


@contextlib.contextmanager
def naming(path: Path, place: str = "") -> Iterator[None]:
    """Adds the file to errors of annotations that are not as documented."""
    try:
        yield
    except _DAMAGED as error:
        reason = error if isinstance(error, InputError) else repr(error)
        where = f"{path}, {place}" if place else str(path)
        raise InputError(
            f"Unreadable annotation: {reason}. File: {where}"
        ) from None


def rectangle(first: Any, last: Any) -> list[tuple[float, float]]:
    """Returns the outline of a box by two opposite corners (x, y)."""
    (left, top), (right, bottom) = first, last
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def rotated(
    corners: Sequence[Any], size: Size, degrees: float, center: Any
) -> np.ndarray:
    """Turns corners clockwise, in an image whose y points down.

    Args:
        corners: `[N, 2]` of (x, y), as shares of width and height.
        size: `(height, width)` of the image; a turn keeps angles of pixels.
        degrees: angle.
        center: (x, y) of the point that stays.

    Returns:
        float64 `[N, 2]`, shares as well.
    """
    if not degrees:
        return np.asarray(corners, "float64")
    angle = math.radians(degrees)
    turn = [
        [math.cos(angle), math.sin(angle)],
        [-math.sin(angle), math.cos(angle)],
    ]
    pixels = (np.asarray(corners) - center) * size[::-1]
    return pixels @ turn / size[::-1] + center


def numbers_of(words: Sequence[str]) -> list[float]:
    """Parses numbers.

    Raises:
        ValueError: a word is not a number.
    """
    try:
        return [float(word) for word in words]
    except ValueError:
        shown = " ".join(words)[:_SHOWN]
        raise InputError(f"coordinates must be numbers: {shown!r}") from None


def names_in_use(images: list[AnnotatedImage], *left_out: str) -> list[str]:
    """Returns the names of the classes of all regions, sorted."""
    regions: list[Region] = [r for image in images for r in image.regions]
    return sorted({region.class_name for region in regions} - {*left_out})


def note_missing(found: Annotations, missing: Sequence[str]) -> None:
    """Notes annotations whose image is absent."""
    if missing:
        found.notes.append(
            f"{len(missing)} annotations have no image, first {missing[0]}"
        )


def note_skipped(found: Annotations, skipped: Mapping[str, int]) -> None:
    """Notes shapes of types that are not read, type -> number."""
    for shape_type, count in skipped.items():
        found.notes.append(
            f"{count} shapes of type {shape_type!r} were left out"
        )
