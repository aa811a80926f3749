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
    rectangle,
)
from keras_aspp.annotations.regions import (
    AnnotatedImage,
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
            name = element.get("name", "")
            with naming(path, f"image {name!r}"):
                image = source.find_image(name, path)
                if image is None:
                    missing.append(name)
                    continue
                annotated = AnnotatedImage(
                    image,
                    source.split_of(image),
                    (
                        int(element.attrib["height"]),
                        int(element.attrib["width"]),
                    ),
                )
                for shape in element:
                    region = _region(shape)
                    if region is None:
                        skipped[shape.tag] += 1
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
            if event == "end" and element.tag in ("label", "image"):
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
        corners = [p.split(",") for p in values["points"].split(";")]
        return Polygons(rings=[np.array(corners, "float64")], **common)
    if shape.tag == "box" and not float(values.get("rotation", 0)):
        left, top, right, bottom = (
            float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr")
        )
        return Polygons(
            rings=[rectangle((left, top), (right, bottom))], **common
        )
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
