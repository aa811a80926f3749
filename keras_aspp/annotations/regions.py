"""Regions of annotations, and the images that they belong to.

Coordinates are pixels: x to the right, y down, and pixel (0, 0) covers
[0, 1) x [0, 1). A polygon with integer corners (1, 1), (4, 3) therefore covers
columns 1 to 3 and rows 1 to 2, as in COCO.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_aspp.data.spec import DatasetSpec
from keras_aspp.utils import extras
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.types import Size

# Corners farther outside than this many image sizes are mistakes; pycocotools
# needs memory in proportion to the length of an outline.
_MAX_OUTSIDE = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Base class of the labeled regions of an image.

    Args:
        class_name: name in the annotations.
        z_order: order of drawing, higher is on top; `None` if the tool has
            none but the order in the file.
        is_ignored: True for regions without one class, such as COCO's crowds.
            They are drawn below all others, and hide none.
    """

    class_name: str
    z_order: float | None = None
    is_ignored: bool = False

    def mask(self, size: Size) -> np.ndarray:
        """Draws the region, bool `[H, W]`.

        Args:
            size: `(height, width)` of the annotated image.

        Raises:
            ValueError: the region does not fit an image of that size.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Polygons(Region):
    """Union of polygons, minus holes.

    Args:
        rings: outlines, each float `[N, 2]` of (x, y) with at least 3 corners.
        holes: outlines that are cut out.
        is_relative: True for coordinates in 0..1 of width and height.
    """

    rings: Sequence[Any]
    holes: Sequence[Any] = ()
    is_relative: bool = False

    def mask(self, size: Size) -> np.ndarray:
        inside = self._draw(self.rings, size)
        if self.holes:
            inside &= ~self._draw(self.holes, size)
        return inside

    def _draw(self, rings, size):
        height, width = size
        scale = (width, height) if self.is_relative else (1, 1)
        outlines = []
        for ring in rings:
            corners = check_ring(ring) * scale
            share = corners / (width, height)
            if share.min() < -_MAX_OUTSIDE or share.max() > 1 + _MAX_OUTSIDE:
                raise InputError(
                    f"a polygon reaches {_shown(corners)}, far outside its "
                    f"image of {height}x{width}"
                )
            if share.max(axis=0).min() <= 0 or share.min(axis=0).max() >= 1:
                raise InputError(
                    "a polygon lies outside its image of "
                    f"{height}x{width}, at {_shown(corners)}"
                )
            outlines.append(corners.ravel().tolist())
        coco = _coco_mask()
        parts = coco.frPyObjects(outlines, height, width)
        return coco.decode(coco.merge(parts)).astype(bool)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunLengths(Region):
    """COCO's run lengths of a mask in columns, beginning with zeros.

    Args:
        counts: list of ints, or COCO's compressed string.
        size: `(height, width)` of the mask.
    """

    counts: Sequence[int] | str | bytes
    size: Size

    def mask(self, size: Size) -> np.ndarray:
        counts = self.counts
        if isinstance(counts, (str, bytes)):
            counts = uncompress_counts(counts)
        try:
            counts = np.asarray(counts)
        except ValueError:  # lists of several lengths
            counts = np.empty(0)
        if tuple(self.size) != tuple(size) or counts.dtype.kind not in "iu":
            raise InputError(
                f"run lengths of a mask of {self.size}, in an image of {size}"
            )
        if (counts < 0).any() or counts.sum() != size[0] * size[1]:
            raise InputError(
                f"run lengths that do not add up to {size[0]}x{size[1]} pixels"
            )
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(size[::-1]).T


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bitmap(Region):
    """Mask of a part of an image.

    Args:
        values: bool `[h, w]`.
        origin: `(x, y)` of its upper left pixel.
    """

    values: np.ndarray
    origin: tuple[int, int] = (0, 0)

    def mask(self, size: Size) -> np.ndarray:
        (left, top), (height, width) = self.origin, self.values.shape
        if (
            min(left, top) < 0
            or top + height > size[0]
            or (left + width > size[1])
        ):
            raise InputError(
                f"a mask of {height}x{width} at column {left}, row {top} "
                f"does not fit its image of {size[0]}x{size[1]}"
            )
        drawn = np.zeros(size, bool)
        drawn[top : top + height, left : left + width] = self.values
        return drawn


@dataclasses.dataclass
class AnnotatedImage:
    """An image and its annotations, in regions or as a label image.

    Args:
        path: the image file.
        split: name of its split in the source, or `None`.
        size: `(height, width)` that the annotations state, or `None`.
        regions: list of `Region`.
        label_image: path of a mask instead of regions, or `None`.
        spec: `DatasetSpec` by which `label_image` is read, or `None`.
        likeness: how well the file fits the annotations, for comparison with
            others that name the same file; see `SourceFiles.find_image`.
        name: name in the annotations, for messages.
    """

    path: Path
    split: str | None = None
    size: Size | None = None
    regions: list[Region] = dataclasses.field(default_factory=list)
    label_image: Path | None = None
    spec: DatasetSpec | None = None
    likeness: tuple[int, ...] = ()
    name: str = ""


@dataclasses.dataclass
class Annotations:
    """Annotations of a data set.

    Args:
        class_names: names of the classes, in the source's order.
        images: list of `AnnotatedImage`.
        notes: messages about what was left out.
    """

    class_names: list[str]
    images: list[AnnotatedImage]
    notes: list[str] = dataclasses.field(default_factory=list)


def check_ring(ring: Any) -> np.ndarray:
    """Returns an outline as float64 `[N, 2]`.

    Args:
        ring: corners (x, y), nested or flat.

    Raises:
        ValueError: fewer than 3 corners, or not finite numbers.
    """
    try:
        corners = np.asarray(ring, "float64").reshape(-1, 2)
    except (TypeError, ValueError):
        corners = np.empty((0, 2))
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise InputError(
            "a polygon must have at least 3 corners (x, y) of finite numbers"
        )
    return corners


def uncompress_counts(text: str | bytes) -> np.ndarray:
    """Decodes COCO's compressed run lengths to int64 `[N]`.

    Six bits a character, of which the highest says that the number goes on;
    from the fourth number on, differences to the one two before. Pure Python:
    pycocotools trusts the lengths that the string states.

    Raises:
        ValueError: not such a string.
    """
    codes = text.encode() if isinstance(text, str) else text
    counts, value, shift = [], 0, 0
    for code in codes:
        code -= 48
        if not 0 <= code < 64 or shift > 30:
            raise InputError("a compressed run-length string is damaged")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value, shift = 0, 0
    if shift:
        raise InputError("a compressed run-length string is truncated")
    return np.array(counts, "int64")


@functools.cache
def _coco_mask():
    extras.require("Reading polygons", "import", "pycocotools.mask")
    from pycocotools import mask

    return mask


def _shown(corners):
    low, high = corners.min(axis=0), corners.max(axis=0)
    return f"x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}"
