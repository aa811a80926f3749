"""Readers of one JSON or TXT per image, and of Label Studio's task list."""

from __future__ import annotations

import base64
import collections
import functools
import math
import re
import urllib.parse
import zlib
from pathlib import Path

import numpy as np

from keras_aspp.annotations.json_stream import stream_items
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
    AnnotatedImage,
    Annotations,
    Bitmap,
    Polygons,
)
from keras_aspp.annotations.source import SourceFiles, best_of
from keras_aspp.data.decode import MAX_PIXELS, open_image
from keras_aspp.utils.exceptions import InputError
from keras_aspp.utils.text import num_of, read_json, read_text

# labelme may store the image itself.
_MAX_BYTES = 2**28
_CIRCLE_CORNERS = 64
YOLO_SPECS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LABELME_IGNORE = "__ignore__"
# Label Studio puts the first digits of a random UUID before uploaded names.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
_LABEL_STUDIO_TYPES = ("polygonlabels", "rectanglelabels", "brushlabels")


def read_labelme(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads labelme: polygons, rectangles, circles and masks.

    Args:
        source: `SourceFiles`.
        files: the JSON files, one per image.
    """
    found = Annotations([], [])
    missing, skipped = [], collections.Counter()
    for path in files:
        content = read_json(path, max_bytes=_MAX_BYTES)
        name = str(content.get("imagePath") or path.stem)
        annotated = source.find_image(name, path)
        if annotated is None:
            missing.append(f"{path.name} ({name})")
            continue
        size = (content.get("imageHeight"), content.get("imageWidth"))
        annotated.split = source.split_of(path) or annotated.split
        annotated.size = size if all(type(n) is int for n in size) else None
        for shape in _list(content, "shapes", path):
            kind = str(shape.get("shape_type") or "polygon")
            with naming(path):
                region = _labelme_region(shape, kind)
            if region is None:
                skipped[kind] += 1
            else:
                annotated.regions.append(region)
        found.images.append(annotated)
    found.class_names = names_in_use(found.images, _LABELME_IGNORE)
    note_missing(found, missing)
    note_skipped(found, skipped)
    return found


def _labelme_region(shape, shape_type):
    # `_LABELME_IGNORE` is no class, and so ignored, in the order of the others.
    common = {"class_name": str(shape.get("label", ""))}
    points = np.asarray(shape.get("points"), "float64").reshape(-1, 2)
    if shape_type == "polygon":
        return Polygons(rings=[points], **common)
    if shape_type == "rectangle" and len(points) == 2:
        return Polygons(rings=[rectangle(*points)], **common)
    if shape_type == "circle" and len(points) == 2:
        return Polygons(rings=[_circle(*points)], **common)
    if shape_type == "mask" and len(points) == 2:
        values = _png(base64.b64decode(shape["mask"]))
        left, top = (math.floor(n) for n in points.min(axis=0))
        return Bitmap(values=values, origin=(left, top), **common)
    return None


def read_yolo(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads YOLO segmentation: a TXT of class and relative corners per image.

    Args:
        source: `SourceFiles`.
        files: each `data.yaml`, and each `classes.txt` with a name per line.
            Of several with different names, each is for the labels in its
            folder; a `classes.txt`, for those without a YAML above them.
    """
    # Cached, since a classes.txt that no label uses is not read.
    names_of = functools.cache(_yolo_names)
    labels = source.ending(".txt")
    label_of = _labels_of_images(source, labels)
    class_files = {
        path: _class_file(files, names_of, path)
        for path in label_of.values()
        if path is not None
    }
    specs = [path for path in files if not _is_list(path)]
    every = (
        name
        for path in dict.fromkeys([*(specs or files), *class_files.values()])
        for name in names_of(path).values()
    )
    found = Annotations(list(dict.fromkeys(every)), [])
    by_list = [path for path in class_files.values() if _is_list(path)]
    if specs and by_list:
        found.notes.append(
            f"{num_of(len(by_list), 'label file')} without "
            f"{specs[0].name} in a folder above: read by "
            f"{source.relative(by_list[0])}"
        )
    boxes = 0
    for image, path in label_of.items():
        annotated = AnnotatedImage(image, source.split_of(image))
        found.images.append(annotated)
        if path is None:
            continue
        class_file = class_files[path]
        names = names_of(class_file)
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            with naming(path, f"line {number}"):
                class_id, *numbers = numbers_of(line.split())
                if class_id not in names:
                    raise InputError(
                        f"class {class_id:g} is not among the {len(names)} "
                        f"names of {class_file.name}"
                    )
                if len(numbers) == 4:
                    boxes += 1
                    continue
                annotated.regions.append(
                    Polygons(
                        class_name=names[class_id],
                        rings=[numbers],
                        is_relative=True,
                    )
                )
    if boxes:
        found.notes.append(
            f"{boxes} boxes were left out, since a box is no mask"
        )
    others = [p.name for p in labels if p not in class_files and _is_yolo(p)]
    note_missing(found, others)
    if others and not class_files:
        found.images.clear()  # or all would be background
    return found


def _labels_of_images(source, labels):
    """Returns image file -> its label file, or `None`.

    A label file has the path of its image, with `labels` for `images`. Where
    neither has such a partner, they may differ by such a folder alone.
    """
    by_name = {
        source.relative(path).with_suffix("").as_posix(): path
        for path in labels
    }
    found = {}
    for image in source.images():
        relative = source.relative(image).with_suffix("")
        beside = [p if p != "images" else "labels" for p in relative.parts]
        found[image] = by_name.get("/".join(beside)) or by_name.get(
            relative.as_posix()
        )
    paired = {*found.values()}
    alike = collections.defaultdict(lambda: ([], []))
    for path in labels:
        if path not in paired:
            alike[_place(source.relative(path))][1].append(path)
    for image, label in found.items():
        if label is None:
            places = {
                _place(source.relative(image)),
                _place(source.within_images(image)),
            }
            for place in places & alike.keys():
                alike[place][0].append(image)
    for images, others in alike.values():
        if len(images) == len(others) == 1:
            found[images[0]] = others[0]
    return found


def _place(path):
    return tuple(
        part
        for part in path.with_suffix("").parts
        if part not in ("images", "labels")
    )


def _class_file(files, names_of, label):
    """Returns the file that names the classes of a label file."""
    above = [path for path in files if path.parent in label.parents]
    # LabelImg writes a classes.txt of its own beside the labels.
    specs, above_specs = (
        [path for path in paths if not _is_list(path)]
        for paths in (files, above)
    )
    if specs and (above_specs or not above):
        files, above = specs, above_specs
    elif specs:
        files = above
    first, *others = files
    if all(names_of(path) == names_of(first) for path in others):
        return first
    best = best_of(above, lambda path: len(path.parents))
    if len(best) == 1:
        return best[0]
    shown = ", ".join(map(str, best or files))
    raise InputError(
        "Files that name different classes must lie in the folders of their "
        f"labels, one in each. File: {label} ({shown})"
    )


def _is_list(path):
    """Returns True for `classes.txt`, which lists names."""
    return path.suffix.lower() == ".txt"


def _is_yolo(path):
    """Returns True if a TXT begins with a class id and coordinates."""
    with path.open(encoding="utf-8", errors="replace") as file:
        words = file.readline(2**16).split()
    try:
        return len(numbers_of(words)) > 4
    except InputError:
        return False


def _yolo_names(path):
    """Returns class id -> name of a `data.yaml` or `classes.txt`."""
    text = read_text(path)
    if _is_list(path):
        return dict(enumerate(text.rstrip().splitlines()))
    import yaml

    try:
        names = yaml.safe_load(text)["names"]
    except (yaml.YAMLError, KeyError, TypeError, RecursionError):
        names = None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if (
        not isinstance(names, dict)
        or not names
        or not all(
            isinstance(class_id, int) and isinstance(name, (str, int, float))
            for class_id, name in names.items()
        )
    ):
        raise InputError(
            "A YOLO data set must name its classes, `names:`, by a list or by "
            f"their ids. File: {path}"
        )
    return {class_id: str(name) for class_id, name in sorted(names.items())}


def read_label_studio(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads Label Studio's JSON: polygons, rectangles and brush strokes.

    Of several annotations of a task, the first that is not canceled counts.

    Args:
        source: `SourceFiles`.
        files: the exported JSON files.
    """
    found = Annotations([], [])
    missing, skipped = [], collections.Counter()
    for path in files:
        for number, task in enumerate(stream_items(path, "item"), 1):
            with naming(path, f"task {number}"):
                address = _image_address(task["data"])
                annotated = _find_by_address(source, address, path)
                if annotated is None:
                    missing.append(address)
                    continue
                results = _label_studio_results(task)
                if results is None:
                    continue
                for result in results:
                    if result.get("type") not in _LABEL_STUDIO_TYPES:
                        # Those of whole images have no size.
                        skipped[str(result.get("type"))] += 1
                        continue
                    region, annotated.size = _label_studio_region(result)
                    annotated.regions.append(region)
            found.images.append(annotated)
    found.class_names = names_in_use(found.images, "")
    note_missing(found, missing)
    note_skipped(found, skipped)
    return found


def _image_address(data):
    """Returns the image of a task: the first value that looks like one."""
    values = [data["image"]] if "image" in data else list(data.values())
    for value in map(str, values):
        return value.partition("?d=")[2] or value
    raise InputError("a task without an image")


def _find_by_address(source, address, near):
    """Finds the image file of a task, whose address may be a quoted URL."""
    for name in (address, urllib.parse.unquote(address)):
        upload = name.replace("\\", "/").rpartition("/")[2]
        for candidate in (name, _UPLOAD_PREFIX.sub("", upload)):
            found = source.find_image(candidate, near)
            if found is not None or candidate in source.ambiguous:
                return found
    return None


def _label_studio_results(task):
    """Returns the results of a task, `None` if nobody has annotated it."""
    annotations = task.get("annotations") or task.get("completions") or []
    for annotation in annotations:
        if not annotation.get("was_cancelled"):
            return [r for r in annotation["result"] if "value" in r]
    return None


def _label_studio_region(result):
    """Returns `(region, size)` of a result of a type that is read."""
    value, result_type = result["value"], result["type"]
    size = (int(result["original_height"]), int(result["original_width"]))
    if size[0] * size[1] > MAX_PIXELS or min(size) < 1:
        raise InputError(f"an image of {size[0]}x{size[1]} pixels")
    # A region without a label is not background either.
    label = str((value.get(result_type) or [""])[0])
    common = {"class_name": label, "is_ignored": not label}
    if result_type == "polygonlabels":
        rings = [np.asarray(value["points"], "float64") / 100]
    elif result_type == "rectanglelabels":
        first = np.array([value["x"], value["y"]], "float64") / 100
        extent = np.array([value["width"], value["height"]], "float64") / 100
        box = rectangle(first, first + extent)
        rings = [rotated(box, size, float(value.get("rotation") or 0), first)]
    else:
        return Bitmap(values=_brush(value["rle"], size), **common), size
    return Polygons(rings=rings, is_relative=True, **common), size


def _brush(data, size):
    """Decodes Label Studio's run lengths to bool `[H, W]`.

    A bit stream: the number of values and the bits of each, the bits of four
    kinds of lengths, then runs of one value and of different values. The
    values are RGBA; opaque pixels are labeled.
    """
    bits = np.unpackbits(np.asarray(data, "uint8"))
    place = 0

    def read(count):
        nonlocal place
        taken = bits[place : place + count]
        if len(taken) < count:
            raise InputError("a brush stroke is truncated")
        place += count
        return int("".join(map(str, taken)), 2)

    total = read(32)
    if total != 4 * size[0] * size[1]:
        raise InputError(
            f"a brush stroke of {total // 4} pixels in an image of "
            f"{size[0]}x{size[1]}"
        )
    value_bits = read(5) + 1
    if value_bits > 8:
        raise InputError(f"a brush stroke of {value_bits} bits a value")
    length_bits = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, "uint8")
    done = 0
    while done < total:
        is_run = read(1)
        count = min(read(length_bits[read(2)]) + 1, total - done)
        if is_run:
            values[done : done + count] = read(value_bits)
        else:
            for i in range(done, done + count):
                values[i] = read(value_bits)
        done += count
    return values.reshape(*size, 4)[..., 3] > 0


def read_supervisely(source: SourceFiles, files: list[Path]) -> Annotations:
    """Reads Supervisely: polygons with holes, rectangles and bitmaps.

    Args:
        source: `SourceFiles`.
        files: the `meta.json` of each project, which name the classes.
    """
    names = []
    for path in files:
        meta = read_json(path, max_bytes=_MAX_BYTES)
        with naming(path):
            names += [str(c["title"]) for c in _list(meta, "classes", path)]
    names = list(dict.fromkeys(names))
    found = Annotations(names, [])
    missing, skipped = [], collections.Counter()
    for path in source.ending(".json"):
        if path.parent.name != "ann":
            continue
        annotated = source.find_image(path.stem, path)
        if annotated is None:
            missing.append(f"{path.name} ({path.stem})")
            continue
        content = read_json(path, max_bytes=_MAX_BYTES)
        with naming(path):
            size = content.get("size") or {}
            if size:
                annotated.size = (int(size["height"]), int(size["width"]))
            for item in _list(content, "objects", path):
                if item["classTitle"] not in names:
                    raise InputError(
                        f"class {item['classTitle']!r} is not in meta.json"
                    )
                region = _supervisely_region(item)
                if region is None:
                    skipped[str(item.get("geometryType"))] += 1
                else:
                    annotated.regions.append(region)
        found.images.append(annotated)
    note_missing(found, missing)
    note_skipped(found, skipped)
    return found


def _supervisely_region(item):
    common = {"class_name": item["classTitle"]}
    if item["geometryType"] == "bitmap":
        bitmap = item["bitmap"]
        unpack = zlib.decompressobj()
        data = unpack.decompress(base64.b64decode(bitmap["data"]), _MAX_BYTES)
        left, top = (int(n) for n in bitmap["origin"])
        return Bitmap(values=_png(data), origin=(left, top), **common)
    if item["geometryType"] not in ("polygon", "rectangle"):
        return None
    points = item["points"]
    if item["geometryType"] == "polygon":
        return Polygons(
            rings=[points["exterior"]], holes=list(points["interior"]), **common
        )
    corners = np.asarray(points["exterior"], "float64")
    return Polygons(rings=[rectangle(*corners)], **common)


def _png(data: bytes) -> np.ndarray:
    """Decodes a mask within a JSON file to bool `[h, w]`."""
    with open_image(data) as image:
        values = np.array(image)
    # Of colors, the last channel: alpha, or any of equal ones.
    return (values if values.ndim == 2 else values[..., -1]) > 0


def _circle(center, edge):
    angles = np.linspace(0, 2 * math.pi, _CIRCLE_CORNERS, endpoint=False)
    radius = np.hypot(*(edge - center))
    return center + radius * np.stack([np.cos(angles), np.sin(angles)], -1)


def _list(content, key, path):
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(
        isinstance(item, dict) for item in items
    ):
        raise InputError(f"`{key}` must be a list of objects. File: {path}")
    return items
