"""CVAT's own XML, "CVAT for images": the format that has a z-order."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from keras_aspp.annotations.reading import (
    names_in_use,
    naming,
    note_missing,
    note_skipped,
    numbers_of,
    rectangle,
    rotated,
)
from keras_aspp.annotations.regions import (
    Annotations,
    Bitmap,
    Polygons,
    Region,
)
from keras_aspp.annotations.source import SourceFiles
from keras_aspp.data.decode import MAX_PIXELS
from keras_aspp.utils.exceptions import InputError


def is_cvat_xml(path: Path) -> bool:
    """Returns True if the root of an XML file is `annotations`."""
    try:
        events = ElementTree.iterparse(path, ("start",))
        return next(iter(events))[1].tag == "annotations"
    except (ElementTree.ParseError, StopIteration, ValueError, LookupError):
        return False


def read_cvat_xml(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads "CVAT for images 1.1": polygons, masks and boxes, with z-order.

    Args:
        source: `SourceFiles`.
        files: the XML files.
    """
    found = Annotations([], [])
    declared: dict[str, None] = {}
    missing: list[str] = []
    skipped: dict[str, int] = collections.Counter()
    for path in files:
        for element in _elements(path):
            if element.tag == "label":
                declared[str(element.findtext("name"))] = None
                continue
            if element.tag == "track":
                raise InputError(
                    'Tracks are of "CVAT for video"; export "CVAT for images '
                    f'1.1" instead. File: {path}'
                )
            name = element.get("name", "")
            with naming(path, f"image {name!r}"):
                annotated = source.find_image(name, path)
                if annotated is None:
                    missing.append(name)
                    continue
                annotated.size = (
                    int(element.attrib["height"]),
                    int(element.attrib["width"]),
                )
                for shape in element:
                    region = _region(shape)
                    if region is None:
                        skipped[shape.tag] += 1
                    elif declared and region.class_name not in declared:
                        raise InputError(
                            f"label {region.class_name!r} is not among those "
                            f"of the file, {', '.join(declared)}"
                        )
                    else:
                        annotated.regions.append(region)
            found.images.append(annotated)
    used = names_in_use(found.images)
    found.class_names = list(dict.fromkeys([*declared, *used]))
    note_missing(found, missing)
    note_skipped(found, skipped)
    return found


def _elements(path: Path) -> Iterator[ElementTree.Element]:
    """Yields labels and images one by one; those before are freed."""
    try:
        events = ElementTree.iterparse(path, ("start", "end"))
        _, root = next(events)
        for event, element in events:
            if event == "end" and element.tag in ("label", "image", "track"):
                yield element
                element.clear()
                if element.tag == "image":
                    root.clear()
    # ValueError and LookupError: encodings that are multi-byte or unknown.
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Not valid XML. File: {path} ({error})") from None


def _region(shape: ElementTree.Element) -> Region | None:
    values = shape.attrib
    common = {
        "class_name": values.get("label", ""),
        "z_order": float(values.get("z_order", 0)),
    }
    if shape.tag == "polygon":
        points = values["points"].split(";")
        if any(point.count(",") != 1 for point in points):
            raise InputError(f"points must be X,Y;X,Y;...: {points[:3]}")
        corners = [numbers_of(point.split(",")) for point in points]
        return Polygons(rings=[np.array(corners)], **common)
    if shape.tag == "box":
        left, top, right, bottom = numbers_of(
            [values[key] for key in ("xtl", "ytl", "xbr", "ybr")]
        )
        box = rectangle((left, top), (right, bottom))
        center = ((left + right) / 2, (top + bottom) / 2)
        degrees = float(values.get("rotation", 0))
        return Polygons(rings=[rotated(box, (1, 1), degrees, center)], **common)
    if shape.tag == "mask":
        return _mask(values, common)
    return None


def _mask(values, common):
    """Decodes run lengths in rows of a box, beginning with zeros."""
    left, top, width, height = (
        int(float(values[key])) for key in ("left", "top", "width", "height")
    )
    counts = [int(n) for n in values["rle"].split(",")]
    # Compared before any memory is taken.
    if (
        min(counts) < 0
        or sum(counts) != width * height
        or min(width, height) < 1
    ):
        raise InputError(
            f"run lengths that do not fill {height}x{width} pixels"
        )
    if width * height > MAX_PIXELS:
        raise InputError(f"a mask of {height}x{width} pixels")
    is_filled = np.arange(len(counts)) % 2 == 1
    filled = np.repeat(is_filled, counts).reshape(height, width)
    return Bitmap(values=filled, origin=(left, top), **common)
