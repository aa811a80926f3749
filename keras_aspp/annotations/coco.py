"""COCO: instances as polygons and run lengths, one JSON per split."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_aspp.annotations.json_stream import stream_items
from keras_aspp.annotations.regions import (
    Annotations,
    Polygons,
    RunLengths,
)
from keras_aspp.annotations.source import SourceFiles
from keras_aspp.utils.exceptions import InputError

_ENTRY = "annotations[]."


def is_coco(keys: set[str]) -> bool:
    """Returns True for the keys of a COCO file; see `top_level_keys`."""
    return "images" in keys and bool(keys & {"annotations", "categories"})


def choose_instances(
    keys: Mapping[Path, set[str]],
) -> tuple[list[Path], list[str]]:
    """Chooses the files of instances among COCO's files.

    COCO lists the same images once more with captions, keypoints, panoptic
    segments, and without annotations.

    Args:
        keys: keys of each COCO file; see `top_level_keys`.

    Returns:
        `(files, notes)`: those of keypoints only if there are no others.
    """
    kinds = {path: _kind(path, found) for path, found in keys.items()}
    kept = "instances" if "instances" in kinds.values() else "keypoints"
    left_out = [path for path, kind in kinds.items() if kind != kept]
    notes = [
        f"{path.name} was left out, since it holds {kinds[path]}"
        + " of the same images" * (kinds[path] == "keypoints")
        for path in left_out
    ]
    return [path for path in kinds if path not in left_out], notes


def _kind(path, keys):
    if "annotations" not in keys:
        return "no annotations"
    entry = {k.removeprefix(_ENTRY) for k in keys if k.startswith(_ENTRY)}
    if entry and "category_id" not in entry:
        return f"no instances but {', '.join(sorted(entry))}"
    # Instances may have keypoints as well: COCO's own files say so by name.
    named = "keypoints" in entry and "keypoints" in path.name
    return "keypoints" if named else "instances"


def read_coco(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads COCO files; a crowd becomes an ignored region.

    Files are read as streams, in three passes, so that memory holds the
    coordinates, 8 bytes each, and about 300 bytes for each region: 1.2 times
    the length of the file for polygons of 25 corners.

    Args:
        source: `SourceFiles`.
        files: the JSON files.

    Raises:
        ValueError: no valid COCO file, or an annotation of an unknown class.
    """
    class_names: dict[str, None] = {}
    found = Annotations([], [])
    for path in files:
        names = {}
        for category in stream_items(path, "categories.item"):
            names[_value(category, "id", path)] = str(
                _value(category, "name", path)
            )
        class_names |= dict.fromkeys(names.values())
        images = _read_images(source, path, found.notes)
        _read_regions(path, names, images, found.notes)
        found.images += [image for image in images.values() if image]
    found.class_names = list(class_names)
    return found


def _read_images(source, path, notes):
    """Returns image id -> `AnnotatedImage`, `None` without a file."""
    images, missing = {}, []
    for entry in stream_items(path, "images.item"):
        name = str(_value(entry, "file_name", path))
        image = source.find_image(name, path, by_name=True)
        image_id = _value(entry, "id", path)
        if image_id in images:
            raise InputError(f"Two images have the id {image_id}. File: {path}")
        images[image_id] = image
        if image is None:
            missing.append(name)
            continue
        size = (entry.get("height"), entry.get("width"))
        image.split = source.split_of(path, by_name=True) or image.split
        image.size = size if all(type(n) is int for n in size) else None
    if missing:
        notes.append(
            f"{len(missing)} images of {path.name} have no file, first "
            f"{missing[0]}"
        )
    return images


def _read_regions(path, names, images, notes):
    """Appends the regions of a file to their images."""
    skipped = collections.Counter()
    for entry in stream_items(path, "annotations.item"):
        category = _value(entry, "category_id", path)
        if category not in names:
            raise InputError(
                f"Annotation {entry.get('id')} has category_id {category}, "
                f"which is not among the categories. File: {path}"
            )
        image_id = _value(entry, "image_id", path)
        if image_id not in images:
            skipped["belong to no image of the file"] += 1
            continue
        region = _region(entry, names[category])
        if region is None:
            skipped["have no polygon and no mask (a box alone?)"] += 1
        elif images[image_id] is not None:
            images[image_id].regions.append(region)
    for reason, count in skipped.items():
        notes.append(f"{count} annotations of {path.name} {reason}")


def _region(entry, class_name):
    segmentation = entry.get("segmentation")
    common = {
        "class_name": class_name,
        "is_ignored": bool(entry.get("iscrowd", 0)),
        "z_order": _z_order(entry),
    }
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if counts is None or not isinstance(size, list) or len(size) != 2:
            return None
        return RunLengths(counts=counts, size=tuple(size), **common)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    with contextlib.suppress(TypeError, ValueError):
        # 8 bytes a number instead of 40; errors are reported when drawing.
        segmentation = tuple(np.array(r, "float64") for r in segmentation)
    return Polygons(rings=segmentation, **common)


def _z_order(entry):
    """Returns the order that some tools add, or `None`."""
    attributes = entry.get("attributes")
    places = [entry, attributes if isinstance(attributes, dict) else {}]
    orders = [p["z_order"] for p in places if "z_order" in p]
    return orders[0] if orders and type(orders[0]) in (int, float) else None


def _value(entry: Any, key: str, path: Path) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, (int, float, str)):
        raise InputError(
            f"An entry of a COCO file must have {key!r}, a number or text. "
            f"File: {path}"
        )
    return value
